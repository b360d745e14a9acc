"""What screening reads of a clip in one visit of a child process: the model's views, and what the flash rule says.

Imports neither torch nor pandas: child processes import this module.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.data.clips import ClipDecodeError, frame_times, read_views
from workbench.data.frames import Sampling
from workbench.data.streaming import PIECE_FRAMES, Squares, close_video, open_video, read_piece
from workbench.data.synthetic.flash import FlashReport, flash_report

BLOCK_SECONDS = 8.0
"""So much is judged at a time, with a second and a half of the block before: any one second lies within a block."""
_SHARED_SECONDS = 1.5
NO_FLASHES = FlashReport(0, 0, False, 0, 0)


@dataclass(frozen=True)
class Judged:
    """One clip as it comes from a child process."""

    views: np.ndarray
    """uint8 (V, T, S, S, 3)."""
    seconds: np.ndarray
    """float64 (T,): when in its file the frames of the middle view are shown."""
    rule: FlashReport | None
    """None where it was not asked for, or where ``rule_problem`` says why it cannot be known."""
    rule_problem: str = ""


def read_judged(
    path: str, *, flash: bool, num_frames: int, sampling: str, sampling_rate: int, fps: float | None, num_clips: int,
    num_crops: int, short: str, start_seconds: float | None = None, end_seconds: float | None = None, **reading: Any,
) -> Judged:  # fmt: skip
    """Read a clip as :func:`workbench.data.clips.read_views` does, and judge every frame of it by the flash rule.

    Raises :class:`~workbench.data.clips.ClipDecodeError`.
    """
    how: dict[str, Any] = {
        "num_frames": num_frames, "sampling": sampling, "sampling_rate": sampling_rate, "fps": fps,
        "num_clips": num_clips, "short": short,
    }  # fmt: skip
    span: dict[str, Any] = {"start_seconds": start_seconds, "end_seconds": end_seconds}
    views = read_views(path, num_crops=num_crops, **how, **span, **reading)
    times = frame_times(path)
    first, last = _positions(times, start_seconds, end_seconds)
    middle = len(views) // 2 // num_crops
    shown = first + Sampling(**how).indices(times[first:last])[middle]
    if not flash:
        return Judged(views, times[shown], None)
    try:
        return Judged(views, times[shown], flash_rule(path, first, last))
    except ClipDecodeError as error:  # the model's frames were read: it is judged by the model alone
        return Judged(views, times[shown], None, error.reason)


def _positions(times: np.ndarray, start: float | None, end: float | None) -> tuple[int, int]:
    """Of the first frame at ``start <= t < end`` and the first one after it, as ``read_views`` counts them."""
    first = 0 if start is None else int(np.searchsorted(times, start - 1e-6))
    return first, len(times) if end is None else int(np.searchsorted(times, end - 1e-6))


def flash_rule(path: str, first: int = 0, last: int | None = None) -> FlashReport:
    """:func:`~workbench.data.synthetic.flash.flash_report` of a file's frames ``first`` to ``last``, decoded once.

    The frames are made small first, each pixel the mean of those it stands for, and of a long file
    :data:`BLOCK_SECONDS` are judged at a time. Raises :class:`~workbench.data.clips.ClipDecodeError`, but where the
    file breaks off after a second that is over the limit already: what was seen of it is enough.
    """
    ticket = uuid.uuid4().hex
    times, fps, _ = open_video(ticket, path)
    last = len(times) if last is None else last
    found, waiting, begun, error = NO_FLASHES, np.zeros((0, 1, 1, 3), np.uint8), first, ""
    try:
        for at, until in _pieces(first, last):
            piece = read_piece(ticket, at, until, (), (), Squares(1), small=at >= first)
            error = piece.error
            if len(piece.small):
                waiting = np.concatenate([waiting, piece.small]) if len(waiting) else piece.small
            end = begun + len(waiting)
            if len(waiting) and (error or until == last or times[end - 1] - times[begun] >= BLOCK_SECONDS):
                found = worst([found, flash_report(*steady(waiting, times[begun:end], fps))])
                # By time, not by number: at a varying rate a second may hold any number of frames.
                again = max(begun, int(np.searchsorted(times[:end], times[end - 1] - _SHARED_SECONDS)))
                waiting, begun = waiting[again - begun :], again
            if error:
                break
    finally:
        close_video(ticket)
    if error and not found.unsafe:
        raise ClipDecodeError(path, error)
    return found


def _pieces(first: int, last: int) -> list[tuple[int, int]]:
    """Ranges up to ``first``, then from there to ``last``."""
    return [
        (at, min(at + PIECE_FRAMES, edge)) for low, edge in ((0, first), (first, last))
        for at in range(low, edge, PIECE_FRAMES)
    ]  # fmt: skip


def steady(frames: np.ndarray, times: np.ndarray, fps: float) -> tuple[np.ndarray, float]:
    """``frames`` (n, h, w, 3) shown at ``times`` (n,) as they stand on the screen at a steady rate, and that rate.

    The rule counts frames; where they are not evenly spaced, each is repeated as long as it is shown.
    """
    steps = np.minimum(np.diff(times), _SHARED_SECONDS)  # a pause is a pause, however long
    if not len(steps) or np.abs(steps - 1 / fps).max() < 0.25 / fps:
        return frames, fps
    rate = min(120.0, max(fps, 1 / max(float(steps.min()), 1e-3)))
    shown = np.concatenate([[0.0], np.cumsum(steps)])
    grid = np.arange(0, shown[-1] + 1 / fps, 1 / rate)
    return frames[np.searchsorted(shown, grid + 1e-6, side="right") - 1], rate


def worst(reports: Sequence[FlashReport]) -> FlashReport:
    """The highest of each count."""
    return FlashReport(
        max(r.general_flashes for r in reports), max(r.red_flashes for r in reports), any(r.unsafe for r in reports),
        max(r.general_transitions for r in reports), max(r.red_transitions for r in reports),
    )  # fmt: skip
