"""One long video through a run, window after window: what it says when, and the events that need eyes.

The video is decoded once, in order, in a child process; of the frames only those stay in memory that a window to come
still needs. A window is read as the run's protocol reads a clip of that stretch, so its numbers are those that
:func:`workbench.training.predict.predict` gives for the stretch cut out.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from workbench.analysis.operating_point import OperatingPoint
from workbench.analysis.screening import REVIEW, Roles, operating_point_of, point_words, review_of, roles_of, said
from workbench.analysis.windows import WindowReader, plan_windows
from workbench.data.clips import ClipDecodeError
from workbench.data.streaming import Squares, VideoStream
from workbench.training.predict import outputs_of, pick_device

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Timeline:
    """What :func:`screen_video` found."""

    path: str
    run: str
    table: pd.DataFrame
    """One row per window: ``start_seconds, end_seconds``, the columns of the tasks (the safety probability smoothed,
    beside it ``<safety>_raw``), ``flagged``, ``general_flashes``, ``red_flashes`` (the most in any one second),
    ``rule_unsafe`` and ``review``, one of :data:`~workbench.analysis.screening.REVIEW`."""
    events: pd.DataFrame
    """One row per stretch of windows that are flagged, by the model, the rule or both, and touch: see
    :func:`events_of`."""
    roles: Roles
    operating_point: OperatingPoint
    posters: dict[int, bytes]
    """JPEG by window: of those flagged by the unsmoothed probability or the rule, and some evenly over the video."""
    window_seconds: float
    stride_seconds: float
    smoothing: int
    fps: float
    duration_seconds: float
    num_frames: int
    """Frames that the packets announce."""
    decoded: int
    """Frames that the decoder put out."""
    damaged: int
    """Of those, how many it concealed errors in."""
    frames_held: int
    """The most of the model's frames that were in memory at once."""
    seconds: float
    """Wall time."""
    error: str = ""
    """Why the table ends before the video does; empty where it does not."""

    @property
    def safety_column(self) -> str:
        """The column with the smoothed probability."""
        return f"{self.roles.safety.name}_probability"

    def to_csv(self, path: str | Path) -> Path:
        """The table of windows."""
        self.table.to_csv(path, index=False)
        return Path(path)

    def __repr__(self) -> str:
        lines = [
            f"Timeline of {Path(self.path).name!r} by {self.run!r}: {self.duration_seconds:.1f} s, "
            f"{len(self.table)} windows of {self.window_seconds:g} s, {len(self.events)} event(s)",
            f"  {point_words(self.operating_point)}",
            f"  {self.decoded} frames decoded in {self.seconds:.1f} s, at most {self.frames_held} held",
            *([f"  {self.damaged} frame(s) are damaged"] if self.damaged else []),
            *([f"  STOPPED EARLY: {self.error}"] if self.error else []),
        ]
        return "\n".join(lines)


def screen_video(
    run: Any, path: str | Path, *, window_seconds: float = 2.0, overlap: float = 0.5, smoothing: int = 1,
    safety: str | None = None, threshold: OperatingPoint | float | None = None, max_rate: float = 0.05,
    merge_seconds: float = 0.0, flash: bool = True, batch_size: int = 16, time_limit_seconds: float = 60.0,
    device: str = "auto", progress: bool = True,
) -> Timeline:  # fmt: skip
    """Slide a window over one long video; ``run``, ``safety``, ``threshold`` and ``max_rate`` as for
    :func:`~workbench.analysis.screening.screen`.

    ``window_seconds``: take the length of the clips that the run was trained on. ``overlap``: the share of a window
    that the next one sees again, 0 up to 1. ``smoothing``: the safety probability becomes the mean over so many windows
    (odd, centred); 1: none. Smoothing takes noise away, and with it events as short as one window: what it costs is in
    ``benchmarks/RESULTS.md``. Flagged windows that touch, or lie at most ``merge_seconds`` apart, are one event.
    ``flash``: judge every frame by the flash rule.

    An operating point from val holds for one clip: a long video has thousands of windows, and five in a hundred
    flagged by mistake are many.

    The file is read in a child process that is ended after ``time_limit_seconds`` without a piece; what came before
    stays, and ``error`` says why the rest is missing. Frames are read by PyAV, whatever decoder the protocol names.
    Raises :class:`~workbench.data.clips.ClipDecodeError` where no window can be read, and ValueError on arguments out
    of range.
    """
    _check(window_seconds, overlap, smoothing, merge_seconds, batch_size)
    roles = roles_of(run, safety)
    point = operating_point_of(run, roles.safety, threshold, max_rate)
    model, p, began = run.model(str(pick_device(device))), run.protocol, time.monotonic()
    key, stride = f"{roles.safety.name}_probability", window_seconds * (1 - overlap)

    def score(frames: np.ndarray) -> list[dict[str, Any]]:
        rows = said(run, roles, outputs_of(model, frames, batch_size=batch_size))
        return [row | {"flag": row[key] >= point.threshold} for row in rows]

    decoded, damaged, error = 0, 0, ""
    with VideoStream(path, time_limit_seconds=time_limit_seconds) as stream:
        plan = plan_windows(p, stream.times, stream.fps, window_seconds, stride, flash=flash)
        reader = WindowReader(plan, stream.times, stream.fps, score, batch_size)
        pieces = stream.pieces(
            plan.wanted, Squares(p.size_px, p.fit, p.num_crops, p.resize_px), posters=np.unique(plan.poster).tolist(),
            small=flash,
        )  # fmt: skip
        with tqdm(total=len(stream.times), desc="screening", unit="frame", disable=not progress, leave=False) as bar:
            for piece in pieces:
                reader.take(piece)
                decoded, damaged, error = decoded + piece.decoded, damaged + piece.damaged, piece.error
                bar.update(piece.last - piece.first)
        reader.finish()
    if not error and stream.lost:
        error = f"cut short: the file's header promises {stream.lost} more frame(s) than it holds"
    if not reader.rows:
        raise ClipDecodeError(path, error or "no window could be read")
    if error:
        log.warning("%s: screened up to %.1f s: %s", path, reader.rows[-1]["end_seconds"], error)
    table = _flagged(pd.DataFrame(reader.rows), key, f"{roles.safety.name}_raw", point, smoothing)
    return Timeline(
        str(path), run.name, table, events_of(table, roles, merge_seconds), roles, point, reader.posters,
        window_seconds, stride, smoothing, stream.fps, stream.duration_seconds, len(stream.times), decoded, damaged,
        reader.frames_held, time.monotonic() - began, error,
    )  # fmt: skip


def _check(window_seconds: float, overlap: float, smoothing: int, merge_seconds: float, batch_size: int) -> None:
    if not (window_seconds > 0 and np.isfinite(window_seconds)):
        raise ValueError(f"window_seconds={window_seconds} must be a positive number of seconds")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap} must be at least 0 and below 1; 0.5 sees every moment twice")
    if smoothing < 1 or smoothing % 2 == 0:
        raise ValueError(f"smoothing={smoothing} must be an odd number of windows; 1: none")
    if merge_seconds < 0 or batch_size < 1:
        raise ValueError(f"merge_seconds={merge_seconds} must be at least 0 and batch_size={batch_size} at least 1")


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over ``width`` (odd) of ``values`` (n,); at the ends over those that are there.

    >>> smoothed(np.array([0.0, 0.0, 1.0, 0.0]), 3).round(2).tolist()
    [0.0, 0.33, 0.33, 0.5]
    """
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=float)])
    at = np.arange(len(values))
    low, high = np.maximum(at - width // 2, 0), np.minimum(at + width // 2 + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _flagged(rows: pd.DataFrame, key: str, raw: str, point: OperatingPoint, smoothing: int) -> pd.DataFrame:
    values = rows[key].to_numpy(float)
    rows.insert(rows.columns.get_loc(key) + 1, raw, values)
    if smoothing > 1:  # else to the bit what was said
        rows[key] = smoothed(values, smoothing)
    flagged = rows[key] >= point.threshold
    review = [review_of(*pair) for pair in zip(flagged, rows["rule_unsafe"], strict=True)]
    return rows.assign(flagged=flagged, review=review)


def events_of(table: pd.DataFrame, roles: Roles, merge_seconds: float = 0.0) -> pd.DataFrame:
    """Stretches of windows that are not ``clear`` and touch or overlap, or lie at most ``merge_seconds`` apart.

    Columns: ``start_seconds, end_seconds, windows, review`` (``both`` where model and rule each flag a window of it),
    ``peak`` (the highest probability), ``peak_window`` (its row), ``peak_seconds`` (the middle of that window), the
    action and the quality of that window, ``general_flashes`` and ``red_flashes`` (the highest).
    """
    key = f"{roles.safety.name}_probability"
    also = [task.name for task in (roles.action, roles.quality) if task is not None]
    bad = np.flatnonzero(table["review"] != REVIEW[3])
    start, end = table["start_seconds"].to_numpy(float), table["end_seconds"].to_numpy(float)
    breaks = np.flatnonzero(start[bad[1:]] > end[bad[:-1]] + merge_seconds + 1e-6) + 1
    events = []
    for rows in np.split(bad, breaks) if len(bad) else []:
        part = table.iloc[rows]
        peak = int(rows[int(np.argmax(part[key]))])
        unsafe = any(value is True or value == 1 for value in part["rule_unsafe"])
        events.append(
            {
                "start_seconds": start[rows[0]], "end_seconds": end[rows[-1]], "windows": len(rows),
                "review": review_of(bool(part["flagged"].any()), unsafe), "peak": float(table[key].iloc[peak]),
                "peak_window": peak, "peak_seconds": (start[peak] + end[peak]) / 2,
                **{name: table[name].iloc[peak] for name in also},
                "general_flashes": part["general_flashes"].max(), "red_flashes": part["red_flashes"].max(),
            }
        )  # fmt: skip
    columns = ["start_seconds", "end_seconds", "windows", "review", "peak", "peak_window", "peak_seconds", *also]
    return pd.DataFrame(events, columns=[*columns, "general_flashes", "red_flashes"])
