"""Quality labels for clips that have none: copies damaged by known steps, so that the step is the label."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.data.cache import reason_of
from workbench.data.clips import frame_times, read_clip, write_clip
from workbench.data.loading.guard import run_guarded
from workbench.data.synthetic.degrade import DEGRADATIONS, degrade
from workbench.data.tables import ClipTable, Task

log = logging.getLogger(__name__)

WORST = 5
"""The last step of each ladder; step 0 leaves the clip as it is."""
TIME_LIMIT_SECONDS = 300.0


def ladder_score(severity: int) -> float:
    """The label of a step: 1 undamaged, 0 at the last, evenly spaced.

    Within one kind of damage the order is true by construction. Between kinds it is a convention: step 3 of blur and
    step 3 of noise share a score, not a look. A mean opinion score it is not.

    >>> [round(ladder_score(s), 1) for s in (0, 1, 5)]
    [1.0, 0.8, 0.0]
    """
    if severity not in range(WORST + 1):
        raise ValueError(f"severity={severity!r} must be a whole number from 0 (none) to {WORST}")
    return 1 - severity / WORST


def quality_ladder(
    table: ClipTable,
    folder: str | Path,
    *,
    task: str = "quality",
    kinds: Sequence[str] = DEGRADATIONS,
    severities: Sequence[int] = range(WORST + 1),
    copies: int = 1,
    keep_labels: bool = True,
    short_side_px: int | None = None,
    max_seconds: float = 10.0,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> ClipTable:
    """A table of damaged ``copies`` of each clip in ``folder``, with the regression ``task`` :func:`ladder_score`.

    Each copy draws one of ``kinds`` (:mod:`workbench.data.synthetic.degrade`) and of ``severities`` from ``seed`` and
    its clip's id alone: adding clips changes no other's damage. Splits and groups are those of the sources, so that
    copies of one clip never lie on both sides; so are the labels, unless ``keep_labels=False``, which makes a table of
    this task only. ``short_side_px`` shrinks frames *before* the damage; a blur of a few pixels is gone once a large
    frame is scaled down to what a model sees. At most ``max_seconds`` of a clip are copied, at its mean frame rate.

    Files are H.264, written whole; those that are there already are kept. Sources are decoded in child processes; what
    cannot be read is in the new table's ``quarantine``. Columns ``degradation`` and ``severity`` say what was done. The
    copies are as identifiable as their sources and carry their licence: keep them where those may lie.
    """
    _check(table, task, kinds, severities, copies, short_side_px, max_seconds)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows, items = [], []
    source = table.frame.reset_index(drop=True)
    for place, (clip_id, path) in enumerate(zip(source.clip_id.astype(str), table.files(), strict=True)):
        for copy in range(copies):
            rng = np.random.default_rng([seed, copy, *hashlib.sha256(clip_id.encode()).digest()[:8]])
            kind, severity = str(rng.choice(list(kinds))), int(rng.choice(list(severities)))
            item: dict[str, Any] = {
                "path": str(path), "start_seconds": _second(source, place, "start_seconds"),
                "end_seconds": _second(source, place, "end_seconds"), "kind": kind, "severity": severity,
                "seed": int(rng.integers(2**31)), "short_side_px": short_side_px, "max_seconds": max_seconds,
            }  # fmt: skip
            name = hashlib.sha256(repr((clip_id, sorted(item.items(), key=str))).encode()).hexdigest()[:16]
            items.append(item | {"target": str(folder / f"{name}.mp4")})
            rows.append((place, f"{clip_id}~{copy}" if copies > 1 else clip_id, f"{name}.mp4", kind, severity))
    made = pd.DataFrame(rows, columns=["place", "clip_id", "path", "degradation", "severity"])
    frame = source.iloc[made.place].reset_index(drop=True).drop(columns=["decoder"], errors="ignore")
    frame = frame.assign(
        clip_id=made.clip_id, path=made.path, start_seconds=np.nan, end_seconds=np.nan,
        degradation=made.degradation, severity=made.severity, **{task: made.severity.map(ladder_score)},
    )  # fmt: skip
    reasons = _write_all(items, workers, progress)
    own = tuple(table.tasks) if keep_labels else ()
    gone = {t.name for t in table.tasks} if not keep_labels else set()
    new = ClipTable(
        frame.drop(columns=sorted(gone)), (*own, Task(task, "regression")), root=folder,
        info=replace(table.info, name=f"{table.info.name}-ladder", source=f"{table.info.source} (damaged copies)"),
        quarantine=table.quarantine,
    )  # fmt: skip
    bad = new.frame.assign(reason=reasons)
    bad = bad[bad.reason.astype(bool)]
    return new.with_quarantine(bad) if len(bad) else new


def _write_all(items: Sequence[dict[str, Any]], workers: int, progress: bool) -> list[str]:
    """Write what is not there yet; per item why it failed, or empty."""
    missing = [i for i, item in enumerate(items) if not Path(item["target"]).exists()]
    reasons = [""] * len(items)
    if not missing:
        return reasons
    outcomes = run_guarded(
        write_damaged, [items[i] for i in missing], workers=workers, time_limit_seconds=TIME_LIMIT_SECONDS,
        progress="quality ladder" if progress else None,
    )  # fmt: skip
    for i, outcome in zip(missing, outcomes, strict=True):
        if isinstance(outcome, Exception):
            reasons[i] = reason_of(outcome)
            log.warning("%s: %s", items[i]["path"], reasons[i])
    return reasons


def write_damaged(
    path: str, target: str, *, start_seconds: float | None, end_seconds: float | None, kind: str, severity: int,
    seed: int, short_side_px: int | None, max_seconds: float,
) -> str:  # fmt: skip
    """Write one damaged copy of the clip at ``path`` to ``target``; runs in a child process. Raises
    :class:`~workbench.data.clips.ClipDecodeError` where the source cannot be read."""
    start = start_seconds or 0.0
    end = min(end_seconds if end_seconds is not None else np.inf, start + max_seconds)
    times = frame_times(path)
    times = times[(times >= start - 1e-6) & (times < end - 1e-6)]
    frames = read_clip(
        path, num_frames=max(1, len(times)), sampling="dense", start_seconds=start, end_seconds=end, decoder="pyav"
    )
    fps = (len(times) - 1) / float(times[-1] - times[0]) if len(times) > 1 else 1.0
    damaged, crf = degrade(_even(frames, short_side_px), kind, severity, np.random.default_rng(seed))
    write_clip(target, damaged, fps=fps, crf=crf)
    return target


def _even(frames: np.ndarray, short_side_px: int | None) -> np.ndarray:
    """Frames (T, H, W, 3) with that short side where they are larger, and even sides, as H.264 wants them."""
    from PIL import Image

    height, width = frames.shape[1:3]
    if short_side_px is not None and min(height, width) > short_side_px:
        scale = short_side_px / min(height, width)
        size = (round(width * scale), round(height * scale))
        frames = np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BILINEAR)) for f in frames])
        height, width = frames.shape[1:3]
    return np.ascontiguousarray(frames[:, : height // 2 * 2, : width // 2 * 2])


def _second(frame: pd.DataFrame, place: int, column: str) -> float | None:
    value = frame[column].iloc[place]
    return None if pd.isna(value) else float(value)


def _check(
    table: ClipTable, task: str, kinds: Sequence[str], severities: Sequence[int], copies: int,
    short_side_px: int | None, max_seconds: float,
) -> None:  # fmt: skip
    if task in table.frame.columns:
        raise ValueError(f"the table has a column {task!r} already; name the new task otherwise")
    if odd := [k for k in kinds if k not in DEGRADATIONS]:
        raise ValueError(f"unknown degradation {odd[0]!r}; known: {', '.join(DEGRADATIONS)}")
    if not kinds or not len(severities):
        raise ValueError(f"kinds={list(kinds)} and severities={list(severities)}: at least one of each")
    for severity in severities:
        ladder_score(severity)
    if copies < 1 or not max_seconds > 0 or (short_side_px is not None and short_side_px < 2):
        raise ValueError(
            f"copies={copies} must be at least 1, max_seconds={max_seconds} above 0 and short_side_px={short_side_px} "
            "None or at least 2"
        )
