"""Frames at wanted positions from an opened PyAV container: by timestamp from a key frame, or in order from the first.

Imports no decoder: it is handed the container. :func:`by_time` is the fast way and gives up at any doubt;
:func:`in_order` is the slow one that settles it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

Take = Callable[[Any, tuple[int, int]], Any]
"""What is kept of a decoded frame, given the width and height that all frames of the clip get."""

JUMP_FRAMES = 12
"""A key frame at least this many frames ahead is worth a seek."""
# Frames that nothing refers to can be left out without a trace only where the codec marks them as such. HEVC's mark
# holds for one temporal layer, not for those above it.
_MARKS_UNREFERENCED = ("h264",)


class DoubtError(ValueError):
    """The fast way cannot vouch for a frame."""


@dataclass(frozen=True)
class Scan:
    """What the packets of a video announce; nothing is decoded for it."""

    times: np.ndarray
    """float64 (n,): seconds of each shown frame after the first one, ascending."""
    fps: float
    ticks: np.ndarray | None
    """int64 (n,): the same as timestamps of the stream; None where two frames have one."""
    keys: np.ndarray
    """int64 (k, 2): timestamp of the first packet and of each key frame, and where to seek for it, in the file's order.
    Empty where timestamps are missing or made up, so that frames cannot be told apart by them."""
    size: tuple[int, int]
    """Width and height, as coded."""
    codec: str
    lost: int = 0
    """Frames that the file's header promises and no packet holds: it was cut short by less than a tenth."""


Packet = tuple[int | None, int | None, bool, bool]
"""Timestamp, decoding time, whether it is a key frame, whether an edit list hides it."""


def scan_of(packets: Sequence[Packet], stream: Any, container: str) -> Scan:
    """The scan of a stream's packets, of which at least one is shown; ``container`` is FFmpeg's name of the format."""
    shown = [pts if pts is not None else dts for pts, dts, _, hidden in packets if not hidden]
    rate, base, context = stream.average_rate or stream.guessed_rate, stream.time_base, stream.codec_context
    if context.name == "vp8":  # its packets that are only referred to share the next one's timestamp
        shown = list(dict.fromkeys(shown))
    fps, ticks = float(rate) if rate else 25.0, None
    if base and all(t is not None for t in shown):
        ticks = np.sort(np.asarray(shown, np.int64))
        times = (ticks - ticks[0]).astype(float) * float(base)
    else:
        times = np.arange(len(shown)) / fps
    if times[-1] > 0:
        fps = (len(times) - 1) / float(times[-1])
    if ticks is not None and len(np.unique(ticks)) < len(ticks):
        ticks = None
    # AVI has no timestamps: FFmpeg makes some up, in the wrong order where there are B-frames.
    usable = ticks is not None and container != "avi" and all(pts is not None for pts, *_ in packets)
    # Seeks go by decoding time; Matroska has none for the first frames, and seeks by timestamp.
    keys = [(pts, pts if dts is None else dts) for i, (pts, dts, key, _) in enumerate(packets) if key or i == 0]
    table = np.array(keys if usable else [], np.int64).reshape(-1, 2)
    return Scan(times, fps, ticks, table, (context.width, context.height), context.name)


@dataclass(frozen=True)
class Stretch:
    """One run of the decoder: from the packet with timestamp ``start``, found by a seek, to the last of ``ticks``."""

    start: int
    seek: int
    at_key: bool
    ticks: frozenset[int]


def stretches(scan: Scan, wanted: np.ndarray) -> list[Stretch]:
    """Runs that cover the ascending positions ``wanted``, in order.

    A run starts at the last key frame before a wanted frame if that lies at least :data:`JUMP_FRAMES` after the wanted
    frame before it (or the file's start); otherwise decoding goes on.
    """
    assert scan.ticks is not None
    by_time = scan.keys[np.argsort(scan.keys[:, 0], kind="stable")]
    key_of = np.searchsorted(by_time[:, 0], scan.ticks[wanted], side="right") - 1
    key_position = np.searchsorted(scan.ticks, by_time[:, 0])
    runs: list[tuple[np.ndarray, bool, list[int]]] = []
    reached = 0
    for position, key in zip(wanted.tolist(), key_of.tolist(), strict=True):
        if key >= 0 and key_position[key] >= reached + JUMP_FRAMES:
            runs.append((by_time[key], True, []))
        elif not runs:
            runs.append((scan.keys[0], False, []))
        runs[-1][2].append(int(scan.ticks[position]))
        reached = position
    return [Stretch(int(start[0]), int(start[1]), at_key, frozenset(ticks)) for start, at_key, ticks in runs]


def by_time(container: Any, scan: Scan, wanted: np.ndarray, take: Take) -> list[Any]:
    """``take`` of the frames at ``wanted``, each found by its timestamp. Raises :class:`DoubtError`, or PyAV's errors.

    H.264 says of each frame whether another one refers to it (``nal_ref_idc``, ITU-T H.264 7.4.1). Those that none
    refers to are not decoded unless wanted, except right after a wanted one: that may be its second field.
    """
    assert scan.ticks is not None
    stream, taken = container.streams.best("video"), {}
    stream.codec_context.thread_count = 1
    for run in stretches(scan, wanted):
        if stream.codec_context.is_open:
            stream.codec_context.flush_buffers()
        last = None
        for frame in _decoded(container, stream, run, scan.codec in _MARKS_UNREFERENCED):
            if last is None and run.at_key and not (frame.key_frame and frame.pts == run.start):
                raise DoubtError("decoding does not begin with the key frame")
            if frame.is_corrupt or frame.pts is None or (last is not None and frame.pts <= last):
                raise DoubtError(f"the frame at {frame.pts} is damaged or out of order")
            last = frame.pts
            if frame.pts in run.ticks:
                if (frame.width, frame.height) != scan.size:
                    raise DoubtError(f"the frame at {frame.pts} is {frame.width}x{frame.height}, not {scan.size}")
                taken[frame.pts] = take(frame, scan.size)
    if len(taken) != len(wanted):
        raise DoubtError(f"{len(taken)} of {len(wanted)} frames found")
    return [taken[tick] for tick in scan.ticks[wanted].tolist()]


def _decoded(container: Any, stream: Any, run: Stretch, can_skip: bool) -> Iterator[Any]:
    """Frames from the packet ``run.start`` on, until no further packet is needed for the wanted ones."""
    context, left, after_wanted = stream.codec_context, set(run.ticks), False
    for packet in _packets(container, stream, run):
        is_wanted = packet.pts in left
        left.discard(packet.pts)
        if can_skip:
            context.skip_frame = "DEFAULT" if is_wanted or after_wanted else "NONREF"
        yield from packet.decode()
        if not left and not is_wanted:
            break  # every wanted packet is in, and one more, which may hold the second field
        after_wanted = is_wanted
    yield from context.decode(None)


def _packets(container: Any, stream: Any, run: Stretch) -> Iterator[Any]:
    container.seek(run.seek, stream=stream, backward=True)
    started = False
    for packet in container.demux(stream):
        started = started or packet.pts == run.start
        if started and packet.size:
            yield packet
        elif not started and (not packet.size or (packet.dts is not None and packet.dts > run.start)):
            raise DoubtError(f"the seek to {run.seek} arrived at {packet.dts}")


def in_order(container: Any, ticks: np.ndarray | None, wanted: np.ndarray, take: Take) -> tuple[list[Any], int]:
    """``take`` of the frames at ``wanted`` while all frames come out in order, and how many came out.

    With ``ticks``, what is on the screen at ``ticks[wanted]``: where two packets make one frame, or frames before the
    first key frame are dropped, a neighbour is. Without, frames are counted, and fewer than wanted come back when the
    stream ends before. Raises :class:`DoubtError` where ``ticks`` are not the order in which frames come out.
    """
    stream = container.streams.best("video")
    stream.codec_context.thread_count = 1
    taken: list[Any] = []
    size, held, rank, count = None, None, -1, 0

    def keep_until(position: int) -> None:
        """The held frame is on the screen for the wanted positions before ``position``."""
        shown = int(np.searchsorted(wanted, position)) - len(taken)
        if held is not None and shown > 0:
            taken.extend([take(held, size)] * shown)

    for frame in container.decode(stream):
        size = size or (frame.width, frame.height)  # a stream may change its size: all frames get the first's
        before, rank = rank, count if ticks is None else rank_of(ticks, frame.pts)
        if rank <= before:
            raise DoubtError(f"the frame at {frame.pts} is out of order")
        keep_until(rank)
        held, count = frame, count + 1
        if rank >= wanted[-1]:
            break
    keep_until(rank + 1 if ticks is None else int(wanted[-1]) + 1)
    return taken, count


def rank_of(ticks: np.ndarray, pts: int | None) -> int:
    """The position that a frame with timestamp ``pts`` is shown at. Raises :class:`DoubtError` without a timestamp."""
    if pts is None:
        raise DoubtError("a frame comes out without a timestamp")
    return int(np.searchsorted(ticks, pts, side="right")) - 1
