"""A video file -> its shown frames, by decord, PyAV or torchcodec. With clips.py the only module that knows a decoder.

Every decoder is held to one list of frames: those that the container's packets announce (nothing is
decoded for that), in the order of their timestamps, without those that an edit list hides.

- **decord** reads in order from the first frame. Its random access and its ``skip_frames`` returned other frames than
  it shows in order on 11 of 60 odd files (HEVC, fields, negative offsets, edit lists, AVI without timestamps). Where it
  counts other frames than the packets (it ignores edit lists, and would repeat a neighbour), reading stops.
- **PyAV** starts at the last key frame before what is wanted, does not decode H.264 frames that no other frame refers
  to unless they are wanted, and finds frames by timestamp. Any doubt (a timestamp missing or given twice, a wanted
  frame not found, an error, a concealed picture, another picture size) and it reads in order from the first frame.
- **torchcodec** finds frames by the timestamps of its own scan, which must be the same ones.

One decoder thread, and no reader outlives the call.
"""

import importlib.util
import io
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.seeking import DoubtError, Scan, Take, by_time, in_order, scan_of
from workbench.data.sources.archives import Span, locate, read_span

log = logging.getLogger(__name__)

DECODERS = ("auto", "decord", "pyav", "torchcodec")
_KEPT_SCANS = 4
_scans: "OrderedDict[tuple[object, ...], Scan]" = OrderedDict()

Each = Callable[[np.ndarray], Any]


class ClipDecodeError(ValueError):
    """A file that yields no trustworthy frames: ``path``, a human ``reason`` and a ``hint`` of what to do."""

    def __init__(self, path: str | Path, reason: str, hint: str = "") -> None:
        super().__init__(path, reason, hint)  # the three arguments, so that the error survives a process boundary
        self.path, self.reason, self.hint = str(path), reason, hint

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True)
class Video:
    """An opened file. ``path`` is the name it was given by, made absolute; ``span`` its place in a tar, if in one."""

    path: str
    span: Span | None
    scan: Scan
    container: Any = None

    def frames(self, wanted: np.ndarray, decoder: str, each: Each = np.asarray) -> list[Any]:
        """``each(frame)`` for the frames uint8 RGB (H, W, 3), rotation applied, at the ascending positions ``wanted``.

        ``decoder`` is a name from :func:`decoder_name`. Frames go through ``each`` one by one, so that only what it
        returns has to fit in memory. Raises :class:`ClipDecodeError`.
        """
        read = {"decord": _frames_decord, "pyav": _frames_pyav, "torchcodec": _frames_torchcodec}[decoder]
        return read(self, wanted, each)

    def source(self) -> Any:
        """The file's name, or for a tar member its bytes as a file object."""
        try:
            return self.path if self.span is None else io.BytesIO(read_span(self.span))
        except OSError as error:
            raise ClipDecodeError(self.path, str(error), "its tar changed or cannot be read") from error


def decoder_name(decoder: str = "auto") -> str:
    """``"decord"``, ``"pyav"`` or ``"torchcodec"``: what ``decoder`` means on this machine.

    ``auto`` is decord, and PyAV with one line of warning where decord is not installed (no wheel for macOS on arm64).
    Raises ValueError for an unknown name and for a decoder that does not load here, saying why.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder={decoder!r} is not one of {', '.join(DECODERS)}")
    if decoder == "pyav":
        return decoder
    if decoder == "torchcodec":
        if problem := _torchcodec_problem():
            raise ValueError(f"decoder='torchcodec' but {problem}; or take decoder='pyav'")
        return decoder
    if _has_decord():
        return "decord"
    if decoder == "decord":
        raise ValueError("decoder='decord' but decord is not installed here; pip install decord, or decoder='pyav'")
    return "pyav"


def available_decoders() -> tuple[str, ...]:
    """The decoders that load on this machine, PyAV always among them."""
    loads = {"decord": _has_decord(), "pyav": True, "torchcodec": not _torchcodec_problem()}
    return tuple(name for name, there in loads.items() if there)


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


@cache
def _torchcodec_problem() -> str:
    """Why torchcodec cannot be used here; empty where it can."""
    if importlib.util.find_spec("torchcodec") is None:
        return "torchcodec is not installed here; pip install torchcodec"
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
        return (
            f"torchcodec does not load here ({line[:160]}); it needs FFmpeg's shared libraries and the build that "
            "goes with this torch (0.13 loads beside a CPU torch, newer wheels need a CUDA one)"
        )
    return ""


@contextmanager
def opened(path: str | Path, decoder: str) -> Iterator[Video]:
    """The video at ``path``, also in a tar (``x.tar/clip.mp4``); the file is closed afterwards.

    Scanned on the first visit, in the same opening that PyAV decodes from; a few scans are remembered, so that further
    clips of a long video cost no further pass through it. Raises :class:`ClipDecodeError`.
    """
    name = os.path.abspath(path)  # never a bare name, which FFmpeg might take for a protocol ("concat:...")
    span, state = _checked(name)
    key = (name, span, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    scan = _scans.get(key)
    if scan is not None and decoder != "pyav":
        yield Video(name, span, scan)
        return
    container = _open(name, span)
    try:
        if scan is None:
            with explained(name):
                scan = _scanned(name, container)
            _scans[key] = scan
            while len(_scans) > _KEPT_SCANS:
                _scans.popitem(last=False)
        yield Video(name, span, scan, container)
    finally:
        container.close()


def _checked(path: str) -> tuple[Span | None, os.stat_result]:
    """Refuse what is no video before a decoder sees it; the span of a tar member, and the state of the file."""
    try:
        span = None if os.path.exists(path) else locate(path)
    except (OSError, ValueError) as error:
        raise ClipDecodeError(path, str(error), "check the path and the table's root") from error
    if span is None and not os.path.exists(path):
        raise ClipDecodeError(path, "the file does not exist", "check the path and the table's root")
    if span is None and not os.path.isfile(path):
        raise ClipDecodeError(path, "not a file")
    try:
        with open(span.file if span else path, "rb") as file:
            state = os.fstat(file.fileno())
            file.seek(span.offset if span else 0)
            start = file.read(min(512, span.size) if span else 512)
    except OSError as error:
        raise ClipDecodeError(path, f"cannot be read: {error.strerror}", "check its permissions") from error
    if not start:
        raise ClipDecodeError(path, "the file is empty (0 bytes)", "copy or download it again")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        raise ClipDecodeError(path, "a text file, not a video", "it only has a video's name")
    return span, state


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Whatever PyAV raises, turned into a :class:`ClipDecodeError`."""
    import av

    try:
        yield
    except (ClipDecodeError, DoubtError):
        raise
    except (av.error.FFmpegError, UnicodeDecodeError, AttributeError, ValueError, OverflowError, LookupError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise ClipDecodeError(
            path, f"not decodable: {text}", "the file is damaged, encrypted or not a video"
        ) from error


def _open(path: str, span: Span | None) -> Any:
    import av

    # Files only: a playlist named .mp4 must not reach the network. Broken metadata is no reason to refuse frames.
    name, protocols = path, "file"
    if span is not None:
        name = f"subfile,,start,{span.offset},end,{span.offset + span.size},,:{span.file}"
        protocols = "file,subfile"
    with explained(path):
        return av.open(name, options={"protocol_whitelist": protocols}, metadata_errors="replace")


def _scanned(path: str, container: Any) -> Scan:
    from av.stream import Disposition

    stream = container.streams.best("video")
    if not len(container.streams):
        raise ClipDecodeError(path, "no streams, its index is missing", "copy or download it again")
    if stream is None:
        raise ClipDecodeError(path, "no video stream", "it holds audio or data only")
    if stream.disposition & Disposition.attached_pic:
        raise ClipDecodeError(path, "no video stream, only a cover picture", "it is an audio file")
    packets = [(p.pts, p.dts, p.is_keyframe, p.is_discard) for p in container.demux(stream) if p.size]
    if all(hidden for *_, hidden in packets):
        raise ClipDecodeError(path, "no frames", "the video stream is empty")
    held = len(packets)
    if container.format.name == "avi":  # its header counts slots, and a slot may be empty
        held = max(held, 1 + max((dts for _, dts, *_ in packets if dts is not None), default=0))
    if held < 0.9 * stream.frames:
        reason = f"cut short: its header promises {stream.frames} frames, it holds {held}"
        raise ClipDecodeError(path, reason, "copy or download it again")
    return replace(scan_of(packets, stream, container.format.name), lost=max(0, stream.frames - held))


def _frames_decord(video: Video, wanted: np.ndarray, each: Each) -> list[Any]:
    import decord

    hint, keep, frames = "decoder='pyav' may read it", set(wanted.tolist()), []
    if video.scan.ticks is not None and video.scan.ticks[0] < 0:
        reason = "its timestamps begin below 0; decord leaves those frames out and repeats the last one instead"
        raise ClipDecodeError(video.path, reason, hint)
    try:
        reader = decord.VideoReader(video.source(), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(video.scan.times):
            reason = (
                f"decord counts {len(reader)} frames where {len(video.scan.times)} are shown, and would repeat some"
            )
            raise ClipDecodeError(video.path, reason, "an edit list or damage; " + hint)
        for i in range(int(wanted[-1]) + 1):
            frame = reader.next()
            if i in keep:
                frames.append(each(_three_channels(video, frame.asnumpy(), hint)))
    except (decord.DECORDError, RuntimeError, StopIteration) as error:
        text = str(error).strip().splitlines()
        reason = _decord_reason(text[0] if text else f"it ends after {len(frames)} of {len(wanted)} frames")
        raise ClipDecodeError(video.path, f"not decodable by decord: {reason}", hint) from error
    return frames


def _three_channels(video: Video, pixels: np.ndarray, hint: str) -> np.ndarray:
    """Refuse what decord 0.6 makes of pictures 16, 24, 48 or 72 px wide, among others: shifted, of 4 channels."""
    if pixels.shape[2] != 3 or sorted(pixels.shape[:2]) != sorted(video.scan.size):
        shape, size = "x".join(map(str, pixels.shape)), "x".join(map(str, video.scan.size))
        raise ClipDecodeError(video.path, f"decord returns a picture of {shape} for one of {size}", hint)
    return pixels


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


def _frames_torchcodec(video: Video, wanted: np.ndarray, each: Each) -> list[Any]:
    from torchcodec.decoders import VideoDecoder

    hint, times = "decoder='pyav' may read it", video.scan.times
    if not len(video.scan.keys):
        raise ClipDecodeError(video.path, "no timestamps that torchcodec could find its frames by", hint)
    source = video.path if video.span is None else video.source().getvalue()
    try:
        reader = VideoDecoder(source, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        if reader.metadata.num_frames != len(times):
            reason = f"torchcodec counts {reader.metadata.num_frames} frames where {len(times)} are shown"
            raise ClipDecodeError(video.path, reason, "an edit list or damage; " + hint)
        batch = reader.get_frames_at(wanted.tolist())
    except (RuntimeError, IndexError, TypeError, OSError) as error:
        text = str(error).strip().splitlines()
        raise ClipDecodeError(video.path, f"not decodable by torchcodec: {(text or ['?'])[0][:160]}", hint) from error
    shown = batch.pts_seconds.numpy() - (reader.metadata.begin_stream_seconds or 0.0)
    late = float(np.abs(shown - times[wanted]).max())
    if late > 0.5 / video.scan.fps:
        raise ClipDecodeError(video.path, f"torchcodec shows frames {late:.3f} s from where they should be", hint)
    return [each(frame) for frame in batch.data.numpy()]


def _frames_pyav(video: Video, wanted: np.ndarray, each: Each) -> list[Any]:
    import av
    from av.video.reformatter import VideoReformatter

    shared = VideoReformatter()  # one per clip: its tables cost more than converting a small frame

    def take(frame: Any, size: tuple[int, int]) -> Any:
        # One thread: left to itself swscale starts one per core for each frame, several times slower on a busy machine.
        pixels = shared.reformat(frame, width=size[0], height=size[1], format="rgb24", threads=1).to_ndarray()
        return each(np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)))

    ticks = video.scan.ticks
    if ticks is not None:
        try:
            if video.container is not None and len(video.scan.keys):
                return by_time(video.container, video.scan, wanted, take)
        except (av.error.FFmpegError, DoubtError) as error:
            log.debug("%s: %s; reading from the first frame", video.path, error)
        try:
            return _whole(video, ticks, wanted, take)[0]
        except DoubtError as error:
            log.debug("%s: %s; counting frames", video.path, error)
    frames, count = _whole(video, None, wanted, take)
    if len(frames) == len(wanted):
        return frames
    log.info("%s: %d packets make %d frames", video.path, len(video.scan.times), count)
    rescaled = np.minimum(wanted * count // len(video.scan.times), count - 1)
    shorter, inverse = np.unique(rescaled, return_inverse=True)
    again, _ = _whole(video, None, shorter, take)
    return [again[i] for i in inverse]


def _whole(video: Video, ticks: np.ndarray | None, wanted: np.ndarray, take: Take) -> tuple[list[Any], int]:
    """In order from the first frame, in an opening of its own."""
    container = _open(video.path, video.span)
    try:
        with explained(video.path):
            frames, count = in_order(container, ticks, wanted, take)
    finally:
        container.close()
    if not count:
        raise ClipDecodeError(video.path, "no frame decodes", "the file is damaged or encrypted")
    return frames, count
