"""What a whole video file is: every frame decoded once by PyAV, and the facts that training depends on.

Decoding the whole file is the only honest test: headers promise frames that are missing, and damage lies anywhere.
Each test of a fact and its numbers below were set on 89 odd files and 537 ordinary ones.
"""

import io
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.data.clips import ClipDecodeError

SAMPLE_PX = 64
"""Side of the grey frames that statistics are computed from."""
SIGNATURE_FRAMES, SIGNATURE_PX = 8, 16
_KEEP = 64
"""At least this many frames (where there are so many) are looked at, evenly over the file; at most twice as many."""
_CUT_SHORT = 0.9


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The facts of one file; a file of which no frame decodes, or not all, has none and raises instead."""

    num_frames: int
    """Frames decoded: all that are shown, edit lists applied."""
    header_frames: int
    """What the container's header says; 0: nothing."""
    fps: float
    """Mean rate, from the frames' times."""
    seconds: float
    width: int
    height: int
    """Size as shown: rotation applied."""
    codec: str
    has_audio: bool
    file_bytes: int
    complete: bool = True
    """False: the time ran out, and only the first ``num_frames`` were decoded."""
    start_seconds: float = 0.0
    hidden_packets: int = 0
    """Packets that an edit list takes out."""
    variable_rate: bool = False
    disordered: bool = False
    """Times are missing, doubled or not ascending."""
    rotation: int = 0
    interlaced: int = 0
    damaged_frames: int = 0
    """Frames in which the decoder filled holes (FFmpeg's error concealment) or that it calls corrupt."""
    sizes: int = 1
    cover: bool = False
    """The only video is a cover picture of an audio file."""
    odd_metadata: bool = False
    brightness: float = math.nan
    """Mean luma, 0..255."""
    contrast: float = math.nan
    """Largest difference of two pixels in any one sampled frame, 0..255, at 64 px."""
    motion: float = math.nan
    """Mean absolute difference of neighbouring frames in grey levels, at 64 px."""
    smoothness: float = math.nan
    """Median correlation of a pixel with the next one, at 64 px; pictures have 0.8 and more, white noise 0."""
    steadiness: float = math.nan
    """Median correlation of a frame with the next one; nearly 1 in video, about 0 in noise."""
    signature: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8), repr=False)
    """uint8 ``(8, 16, 16)``: grey frames evenly spaced in time, for near-duplicates."""


def limit_memory(gib: float) -> None:
    """Cap this process's address space, so that a decompression bomb is an error of one file (POSIX only)."""
    try:
        import resource
    except ImportError:  # Windows has no such limit; the time limit still holds there
        return
    limit, (soft, hard) = int(gib * 2**30), resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if soft == resource.RLIM_INFINITY or soft > limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def survey_file(path: str, budget_seconds: float = math.inf, memory_gib: float | None = None) -> Survey:
    """Decode every frame of ``path`` with PyAV (one thread) and state the facts; meant for a child process.

    After ``budget_seconds`` the rest is left undecoded and ``complete`` is False: a long video is not a hang.
    ``memory_gib`` caps the process's address space from here on. Raises :class:`ClipDecodeError` when the file is
    not a video, is cut short, or a packet does not decode.
    """
    if memory_gib is not None:
        limit_memory(memory_gib)
    tally, seen = _Tally(), _Frames()
    odd_metadata = False
    with _opened(path) as (container, size):
        stream = _video_stream(path, container)
        odd_metadata = _odd_metadata(container)
        stream.codec_context.thread_count = 1
        facts = {
            "header_frames": int(stream.frames),
            "codec": stream.codec_context.name,
            "has_audio": bool(container.streams.audio),
            "cover": _is_cover(stream),
            "file_bytes": size,
        }
        rate = stream.average_rate or stream.guessed_rate
        complete = _decode_all(path, container, stream, tally, seen, time.monotonic() + budget_seconds)
    _check_length(path, facts["header_frames"], tally, complete)
    fps, seconds, timing = _timing(tally.times, float(rate) if rate else 25.0)
    turned = abs(tally.rotation) % 180 == 90
    width, height = tally.shape[::-1] if turned else tally.shape
    return Survey(
        num_frames=tally.frames, fps=fps, seconds=seconds, width=width, height=height, complete=complete,
        hidden_packets=tally.hidden, rotation=tally.rotation, interlaced=tally.interlaced,
        damaged_frames=tally.damaged, sizes=len(tally.sizes), odd_metadata=odd_metadata,
        **facts, **timing, **seen.statistics(),
    )  # fmt: skip


@dataclass
class _Tally:
    """What is counted while decoding."""

    packets: int = 0
    hidden: int = 0
    frames: int = 0
    interlaced: int = 0
    damaged: int = 0
    rotation: int = 0
    shape: tuple[int, int] = (0, 0)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    times: list[float] = field(default_factory=list)

    def add(self, frame: Any) -> None:
        self.frames += 1
        self.interlaced += bool(frame.interlaced_frame)
        self.damaged += bool(frame.is_corrupt)
        if not self.sizes:
            self.shape, self.rotation = (frame.width, frame.height), int(frame.rotation)
        self.sizes.add((frame.width, frame.height))
        self.times.append(math.nan if frame.time is None else float(frame.time))


class _Frames:
    """Small grey frames, evenly over a stream of unknown length: every ``stride``-th, which doubles when too many."""

    def __init__(self) -> None:
        self.stride, self.count = 1, 0
        self.kept: list[tuple[float, np.ndarray, np.ndarray | None]] = []
        """(time, frame, the frame right after it), each grey uint8 (64, 64)."""

    def add(self, frame: Any) -> None:
        position = self.count
        self.count += 1
        wanted, follows = position % self.stride == 0, (position - 1) % self.stride == 0 and bool(self.kept)
        if not (wanted or follows):
            return
        grey = frame.reformat(width=SAMPLE_PX, height=SAMPLE_PX, format="gray", interpolation="AREA").to_ndarray()
        if follows:
            self.kept[-1] = (*self.kept[-1][:2], grey)
        if wanted:
            moment = float(position) if frame.time is None else float(frame.time)
            self.kept.append((moment, grey, None))
            if len(self.kept) > 2 * _KEEP:
                self.kept, self.stride = self.kept[::2], 2 * self.stride

    def statistics(self) -> dict[str, Any]:
        frames = np.stack([grey for _, grey, _ in self.kept])
        pairs = [(a.astype(float), b.astype(float)) for _, a, b in self.kept if b is not None]
        flat = frames.astype(float)
        motion = [np.abs(a - b).mean() for a, b in pairs]
        return {
            "brightness": float(flat.mean()),
            "contrast": float(np.ptp(frames.reshape(len(frames), -1), axis=1).max()),
            "motion": float(np.mean(motion)) if motion else math.nan,
            "smoothness": _middle([_correlation(f[:, 1:], f[:, :-1]) for f in flat]),
            "steadiness": _middle([_correlation(a, b) for a, b in pairs]),
            "signature": self._signature(frames),
        }

    def _signature(self, frames: np.ndarray) -> np.ndarray:
        order = np.argsort([moment for moment, _, _ in self.kept], kind="stable")
        times = np.array([self.kept[i][0] for i in order])
        step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        wanted = times[0] + (times[-1] - times[0] + step) * (np.arange(SIGNATURE_FRAMES) + 0.5) / SIGNATURE_FRAMES
        # the frame on screen at each moment
        shown = order[np.clip(np.searchsorted(times, wanted + 1e-6, "right") - 1, 0, len(times) - 1)]
        side = SAMPLE_PX // SIGNATURE_PX
        blocks = frames[shown].reshape(-1, SIGNATURE_PX, side, SIGNATURE_PX, side).mean((2, 4))
        return np.round(blocks).astype(np.uint8)


def _middle(values: list[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return float(np.median(known)) if known else math.nan


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; NaN where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else math.nan


def _decode_all(path: str, container: Any, stream: Any, tally: _Tally, seen: _Frames, deadline: float) -> bool:
    """Fill the tallies; False when the deadline came first."""
    from av.error import FFmpegError

    for packet in container.demux(stream):
        tally.packets += bool(packet.size)
        tally.hidden += bool(packet.is_discard)
        try:
            frames = packet.decode()
        except (FFmpegError, ValueError) as error:
            if isinstance(error, MemoryError):
                raise
            raise _damaged(path, tally.frames, error) from error
        for frame in frames:
            tally.add(frame)
            seen.add(frame)
        if tally.frames and time.monotonic() > deadline:
            return False
    return True


def _damaged(path: str, frames: int, error: Exception) -> ClipDecodeError:
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, PermissionError):  # FFmpeg's answer to a copy protection that it knows
        return ClipDecodeError(
            path, f"encrypted: decoding stops after {frames} frame(s) ({text})", "get an unprotected copy"
        )
    if frames:
        return ClipDecodeError(path, f"damaged: decoding stops after {frames} frame(s) ({text})", "get a whole copy")
    return ClipDecodeError(path, f"no frame decodes ({text})", "the file is damaged, encrypted or of an unknown codec")


def _check_length(path: str, promised: int, tally: _Tally, complete: bool) -> None:
    if not tally.frames:
        raise ClipDecodeError(path, "no frame decodes", "the file is damaged, encrypted or empty")
    if complete and tally.packets < _CUT_SHORT * promised:
        reason = f"cut short: its header promises {promised} frames, it holds {tally.packets}"
        raise ClipDecodeError(path, reason, "copy or download it again")


def _timing(times: list[float], rate: float) -> tuple[float, float, dict[str, Any]]:
    """Mean rate, length, and what is odd about the frames' times."""
    known = np.array(times)
    steps = np.diff(known)
    disordered = len(known) > 1 and not bool((steps > 0).all())  # NaN compares False: missing counts as disordered
    if np.isnan(known).any():
        return rate, len(known) / rate, {"disordered": disordered}
    ordered = np.sort(known)
    length = float(ordered[-1] - ordered[0])
    fps = (len(ordered) - 1) / length if length > 0 else rate
    steps = np.diff(ordered)
    varies = len(steps) > 1 and bool(steps.max() > 1.5 * max(float(np.median(steps)), 1e-6))
    timing = {"start_seconds": float(ordered[0]), "variable_rate": varies, "disordered": disordered}
    return fps, length + 1 / fps, timing


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _video_stream(path: str, container: Any) -> Any:
    if not len(container.streams):
        raise ClipDecodeError(path, "no streams, its index is missing", "copy or download it again")
    stream = container.streams.best("video")
    if stream is None:
        raise ClipDecodeError(path, "no video stream", "it holds audio or data only")
    if stream.codec_context is None:
        raise ClipDecodeError(path, "a video codec that FFmpeg does not know", "convert it with the program it is from")
    return stream


def _odd_metadata(container: Any) -> bool:
    """Whether titles and tags are not UTF-8, which stops programs that open files with PyAV's defaults."""
    tags = [container.metadata, *(stream.metadata for stream in container.streams)]
    return any("\ufffd" in text for tag in tags for pair in tag.items() for text in pair)


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, int]]:
    """The container and its size in bytes; what opening costs becomes a :class:`ClipDecodeError`."""
    import av

    source, size = _source(path)
    try:
        # `file` only: a playlist named .mp4 must not reach the network.
        options = {"protocol_whitelist": "file"}
        with av.open(source, options=options, metadata_errors="replace") as container:
            yield container, size
    except MemoryError:
        raise
    # LookupError: a stream that begins within a damaged file, which PyAV has no place for
    except (av.error.FFmpegError, AttributeError, ValueError, OverflowError, LookupError) as error:
        if isinstance(error, ClipDecodeError):
            raise
        text = getattr(error, "strerror", None) or str(error)
        hint = "the file is damaged, encrypted or not a video"
        raise ClipDecodeError(path, f"not decodable: {text}", hint) from error


def _source(path: str) -> tuple[Any, int]:
    """What PyAV opens: the file, or the bytes of a tar's member."""
    from workbench.data.sources.archives import locate, read_span

    path = os.path.abspath(path)  # never a bare name, which FFmpeg might take for a protocol ("concat:...")
    try:
        span = None if os.path.exists(path) else locate(path)
    except FileNotFoundError as error:
        raise ClipDecodeError(path, "the file does not exist", str(error)) from error
    if span is not None:
        data = read_span(span)
        _check_start(path, data[:512], len(data))
        return io.BytesIO(data), len(data)
    if not os.path.exists(path):
        raise ClipDecodeError(path, "the file does not exist", "check the path and the table's root")
    if not os.path.isfile(path):
        raise ClipDecodeError(path, "not a file")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise ClipDecodeError(path, f"cannot be read: {error.strerror}", "check its permissions") from error
    size = os.path.getsize(path)
    _check_start(path, start, size)
    return path, size


def _check_start(path: str, start: bytes, size: int) -> None:
    if not size:
        raise ClipDecodeError(path, "the file is empty (0 bytes)", "copy or download it again")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        raise ClipDecodeError(path, "a text file, not a video", "it only has a video's name")
