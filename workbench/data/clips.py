"""Which frames: a video file -> uint8 frames (T, H, W, C). The only module that knows a decoder.

Two decoders give the same frames: decord (the default) and PyAV. Three rules make that true, each the answer to
something measured on odd files:

- Frames are read **in order from the first one**. decord 0.6's random access returned other frames than it shows in
  order for HEVC, for B-frames with negative offsets and for edit lists; its sequential reading did not.
- The frames that exist are counted from the container's packets (PyAV, nothing is decoded). Where decord counts
  otherwise (it ignores edit lists, and fills the gap by repeating a neighbour), reading stops with an error.
- One decoder thread, and no reader outlives the call.
"""

import importlib.util
import logging
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.frames import FITS, resize_frame, uniform_indices

log = logging.getLogger(__name__)

READER_VERSION = 1
"""Raised when the same call would return other pixels; part of every cache key."""
DECODERS = ("auto", "decord", "pyav")
SAMPLINGS = ("uniform", "single")


class ClipDecodeError(ValueError):
    """A file that yields no trustworthy frames: ``path``, a human ``reason`` and a ``hint`` of what to do."""

    def __init__(self, path: str | Path, reason: str, hint: str = "") -> None:
        super().__init__(path, reason, hint)  # the three arguments, so that the error survives a process boundary
        self.path, self.reason, self.hint = str(path), reason, hint

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video is: frames shown (edit lists applied), mean rate, length, and size as shown (rotation applied)."""

    num_frames: int
    fps: float
    duration_seconds: float
    width: int
    height: int
    variable_rate: bool = False


@dataclass(frozen=True)
class _Scan:
    path: str
    times: np.ndarray
    """(n,) seconds of each shown frame after the first one, ascending."""
    fps: float


def decoder_name(decoder: str = "auto") -> str:
    """``"decord"`` or ``"pyav"``: what ``decoder`` means on this machine.

    ``auto`` is decord, and PyAV with one line of warning where decord is not installed (no wheel for macOS on arm64).
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder={decoder!r} is not one of {', '.join(DECODERS)}")
    if decoder == "pyav":
        return decoder
    if _has_decord():
        return "decord"
    if decoder == "decord":
        raise ValueError("decoder='decord' but decord is not installed here; pip install decord, or decoder='pyav'")
    return "pyav"


@cache
def _has_decord() -> bool:
    if importlib.util.find_spec("decord") is None:
        log.warning("decord is not installed; PyAV decodes instead (same frames)")
        return False
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        log.warning("decord does not load (%s); PyAV decodes instead (same frames)", error)
        return False
    decord.logging.set_level(decord.logging.QUIET)
    return True


def probe(path: str | Path, decoder: str = "auto") -> VideoInfo:
    """Count the frames and decode the first one. Raises :class:`ClipDecodeError`."""
    scan = _scan(path)
    height, width = _decode(scan, np.array([0]), decoder_name(decoder))[0].shape[:2]
    steps = np.diff(scan.times)
    return VideoInfo(
        num_frames=len(scan.times),
        fps=scan.fps,
        duration_seconds=float(scan.times[-1]) + 1 / scan.fps,
        width=width,
        height=height,
        variable_rate=bool(len(steps) > 1 and steps.max() > 1.5 * max(float(np.median(steps)), 1e-6)),
    )


def read_clip(
    path: str | Path,
    *,
    num_frames: int,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    size_px: int | None = None,
    fit: str = "crop",
    sampling: str = "uniform",
    decoder: str = "auto",
) -> np.ndarray:
    """``num_frames`` frames of a video as uint8 RGB ``(T, H, W, 3)``.

    The clip is every frame shown at ``start_seconds <= t < end_seconds``, counted from the video's first frame (None
    or NaN: from the start, to the end). From its ``n`` frames ``uniform`` takes :func:`uniform_indices`; ``single``
    takes the middle one of those and repeats it. With ``size_px`` the frames become squares, by an antialiased
    filter: ``crop`` keeps the centre, ``pad`` adds black bars, ``stretch`` changes the aspect ratio. Rotation flags
    are applied. Raises :class:`ClipDecodeError` for any file that cannot be decoded.
    """
    if num_frames < 1 or (size_px is not None and size_px < 1):
        raise ValueError(f"num_frames={num_frames} and size_px={size_px} must be at least 1")
    if fit not in FITS:
        raise ValueError(f"fit={fit!r} is not one of {', '.join(FITS)}")
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling={sampling!r} is not one of {', '.join(SAMPLINGS)}")
    name = decoder_name(decoder)
    scan = _scan(path)
    first, last = _frame_range(scan, start_seconds, end_seconds)
    indices = first + uniform_indices(last - first, num_frames)
    if sampling == "single":
        indices = np.full_like(indices, indices[num_frames // 2])
    wanted, inverse = np.unique(indices, return_inverse=True)
    frames = _decode(scan, wanted, name)
    if size_px is not None:
        frames = [resize_frame(frame, size_px, fit) for frame in frames]
    return np.stack(frames)[inverse]


def _frame_range(scan: _Scan, start: float | None, end: float | None) -> tuple[int, int]:
    low = -math.inf if start is None or math.isnan(start) else float(start)
    high = math.inf if end is None or math.isnan(end) else float(end)
    if low >= high:
        raise ClipDecodeError(scan.path, f"start_seconds={start} is not before end_seconds={end}", "mend the table")
    slack = 1e-6  # timestamps are rationals: 0.1 s must include the frame shown at 1/10 s
    first, last = (int(np.searchsorted(scan.times, edge - slack)) for edge in (low, high))
    if first >= last:
        length = float(scan.times[-1]) + 1 / scan.fps
        raise ClipDecodeError(scan.path, f"no frame between {start} and {end} s", f"the video lasts {length:.2f} s")
    return first, last


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The container, whatever goes wrong inside turned into a :class:`ClipDecodeError`."""
    import av

    try:
        # `file` only: a playlist named .mp4 must not reach the network. Broken metadata is no reason to refuse frames.
        with av.open(path, options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            yield container
    except (av.error.FFmpegError, UnicodeDecodeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, ClipDecodeError):
            raise
        text = getattr(error, "strerror", None) or str(error)
        raise ClipDecodeError(
            path, f"not decodable: {text}", "the file is damaged, encrypted or not a video"
        ) from error


def _check_file(path: str) -> None:
    if not os.path.exists(path):
        raise ClipDecodeError(path, "the file does not exist", "check the path and the table's root")
    if not os.path.isfile(path):
        raise ClipDecodeError(path, "not a file")
    if os.path.getsize(path) == 0:
        raise ClipDecodeError(path, "the file is empty (0 bytes)", "copy or download it again")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise ClipDecodeError(path, f"cannot be read: {error.strerror}", "check its permissions") from error
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        raise ClipDecodeError(path, "a text file, not a video", "it only has a video's name")


def _scan(path: str | Path) -> _Scan:
    """Count the shown frames and their times from the packets; nothing is decoded."""
    from av.stream import Disposition

    path = os.path.abspath(path)  # never a bare name, which FFmpeg might take for a protocol ("concat:...")
    _check_file(path)
    with _opened(path) as container:
        stream = container.streams.best("video")
        if not len(container.streams):
            raise ClipDecodeError(path, "no streams, its index is missing", "copy or download it again")
        if stream is None:
            raise ClipDecodeError(path, "no video stream", "it holds audio or data only")
        if stream.disposition & Disposition.attached_pic:
            raise ClipDecodeError(path, "no video stream, only a cover picture", "it is an audio file")
        packets = [p for p in container.demux(stream) if p.size]
        shown = [p.pts if p.pts is not None else p.dts for p in packets if not p.is_discard]
        rate, base, promised = stream.average_rate or stream.guessed_rate, stream.time_base, stream.frames
    if not shown:
        raise ClipDecodeError(path, "no frames", "the video stream is empty")
    if len(packets) < 0.9 * promised:
        reason = f"cut short: its header promises {promised} frames, it holds {len(packets)}"
        raise ClipDecodeError(path, reason, "copy or download it again")
    fps = float(rate) if rate else 25.0
    if base and all(t is not None for t in shown):
        ticks = np.sort(np.asarray(shown, np.int64))
        times = (ticks - ticks[0]).astype(float) * float(base)
    else:
        times = np.arange(len(shown)) / fps
    if times[-1] > 0:
        fps = (len(times) - 1) / float(times[-1])
    return _Scan(path, times, fps)


def _decode(scan: _Scan, wanted: np.ndarray, decoder: str) -> list[np.ndarray]:
    """The frames at the ascending positions ``wanted``."""
    return (_decode_decord if decoder == "decord" else _decode_pyav)(scan, wanted)


def _decode_decord(scan: _Scan, wanted: np.ndarray) -> list[np.ndarray]:
    import decord

    hint, keep, frames = "decoder='pyav' may read it", set(wanted.tolist()), []
    try:
        reader = decord.VideoReader(scan.path, ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(scan.times):
            reason = f"decord counts {len(reader)} frames where {len(scan.times)} are shown, and would repeat some"
            raise ClipDecodeError(scan.path, reason, "an edit list or damage; " + hint)
        for i in range(int(wanted[-1]) + 1):
            frame = reader.next()
            if i in keep:
                frames.append(frame.asnumpy())
    except (decord.DECORDError, RuntimeError, StopIteration) as error:
        text = str(error).strip().splitlines()
        reason = _decord_reason(text[0] if text else f"it ends after {len(frames)} of {len(wanted)} frames")
        raise ClipDecodeError(scan.path, f"not decodable by decord: {reason}", hint) from error
    return frames


def _decord_reason(text: str) -> str:
    """The sentence in a message such as ``[12:00:00] /src/x.cc:151: Check failed: ... ERROR cannot find ...``."""
    known = {
        "cannot find video stream": "no video stream in a format it knows",
        "avfilter_graph_create_filter": "no picture size or pixel format in the stream",
        "Failed to measure": "it cannot count the frames",
        "av_read_frame failed": "the file breaks off",
        "Check failed": "a damaged packet",
        "Error sending packet": "a damaged packet",
        "Unable to handle EOF": "it cannot find the last frames",
    }
    return next((plain for sign, plain in known.items() if sign in text), text.split(": ")[-1][:160])


def _decode_pyav(scan: _Scan, wanted: np.ndarray) -> list[np.ndarray]:
    keep, frames, count, shape = set(wanted.tolist()), [], 0, None
    with _opened(scan.path) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            shape = shape or (frame.width, frame.height)  # a stream may change its size: all frames get the first's
            if count in keep:
                pixels = frame.to_ndarray(format="rgb24", width=shape[0], height=shape[1])
                frames.append(np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)))
            count += 1
            if count > wanted[-1]:
                return frames
    if not count:
        raise ClipDecodeError(scan.path, "no frame decodes", "the file is damaged or encrypted")
    # Two packets may make one frame (fields), and frames before the first key frame are dropped.
    rescaled = np.minimum(wanted * count // len(scan.times), count - 1)
    log.info("%s: %d packets make %d frames", scan.path, len(scan.times), count)
    shorter, inverse = np.unique(rescaled, return_inverse=True)
    again = _decode_pyav(_Scan(scan.path, scan.times[:count], scan.fps), shorter)
    return [again[i] for i in inverse]


def write_clip(path: str | Path, frames: np.ndarray, fps: float, crf: int = 18, gop: int | None = None) -> Path:
    """Write uint8 RGB frames ``(T, H, W, 3)`` as H.264 MP4 (yuv420p, index first), atomically.

    One encoder thread and FFmpeg's bit-exact mode: equal frames give equal bytes with the same PyAV. ``crf`` runs
    from 0 (best) to 51; ``gop`` is the largest distance between key frames (x264's own choice where None).
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T >= 1, not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"frames are {width}x{height}; H.264 in yuv420p needs even sizes: crop or pad by one pixel")
    if not 0 <= crf <= 51 or not fps > 0 or not math.isfinite(fps) or (gop is not None and gop < 1):
        raise ValueError(f"crf={crf} must lie in 0..51, fps={fps} above 0 and gop={gop} at least 1")
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        _encode(part, frames, Fraction(fps).limit_denominator(100_000), crf, gop)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _encode(path: Path, frames: np.ndarray, rate: Fraction, crf: int, gop: int | None) -> None:
    import av
    from av.codec.context import Flags

    # x264's macroblock tree is left out: with it about one file in 400 came out different from the same frames.
    coding = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    flags = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", container_options=flags) as container:
        stream = container.add_stream("libx264", rate=rate, options=coding)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= Flags.bitexact
        if gop is not None:
            stream.codec_context.gop_size = gop
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode(None))
