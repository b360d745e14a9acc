"""Which frames: a video file -> uint8 frames. Reading is behind :func:`read_views`; writing is :func:`write_clip`.

The decoders, and what makes them return the same frames: :mod:`workbench.data.decoders`.
"""

import math
import os
import uuid
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from workbench.data.decoders import DECODERS as DECODERS
from workbench.data.decoders import ClipDecodeError as ClipDecodeError
from workbench.data.decoders import Video, opened
from workbench.data.decoders import available_decoders as available_decoders
from workbench.data.decoders import decoder_name as decoder_name
from workbench.data.frames import POLICIES, Sampling, ShortClipError, check_views, views_of

READER_VERSION = 2
"""Raised when the same call would return other pixels; part of every cache key."""
SAMPLINGS = POLICIES


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video is: frames shown (edit lists applied), mean rate, length, and size as shown (rotation applied)."""

    num_frames: int
    fps: float
    duration_seconds: float
    width: int
    height: int
    variable_rate: bool = False


def probe(path: str | Path, decoder: str = "auto") -> VideoInfo:
    """Count the frames and decode the first one. Raises :class:`ClipDecodeError`."""
    name = decoder_name(decoder)
    with opened(path, name) as video:
        times, fps = video.scan.times, video.scan.fps
        height, width = video.frames(np.array([0]), name)[0].shape[:2]
    steps = np.diff(times)
    return VideoInfo(
        num_frames=len(times),
        fps=fps,
        duration_seconds=float(times[-1]) + 1 / fps,
        width=width,
        height=height,
        variable_rate=bool(len(steps) > 1 and steps.max() > 1.5 * max(float(np.median(steps)), 1e-6)),
    )


def frame_times(path: str | Path) -> np.ndarray:
    """Seconds of each shown frame after the first one, ascending float64 (n,). Nothing is decoded.

    Raises :class:`ClipDecodeError`.
    """
    with opened(path, "pyav") as video:
        return video.scan.times.copy()


def read_views(
    path: str | Path,
    *,
    num_frames: int,
    size_px: int | None = None,
    fit: str = "crop",
    sampling: str = "uniform",
    sampling_rate: int = 1,
    fps: float | None = None,
    num_clips: int = 1,
    num_crops: int = 1,
    short: str = "repeat_last",
    resize_px: int | None = None,
    decoder: str = "auto",
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    start: str = "centre",
    seed: int = 0,
) -> np.ndarray:
    """All views of a clip as uint8 RGB ``(V, T, S, S, 3)``: ``V = num_clips * num_crops``, crops of a window adjacent.

    The clip is every frame shown at ``start_seconds <= t < end_seconds``, counted from the video's first frame (None
    or NaN: from the start, to the end). Which of its frames are read: :class:`~workbench.data.frames.Sampling`, with
    ``start`` and ``seed``. How they become squares: :func:`~workbench.data.frames.views_of`; without ``size_px`` they
    keep their size, ``(V, T, H, W, 3)``. Rotation flags are applied. ``path`` may lead through an uncompressed tar
    (``corpus-000.tar/clips/0001.mp4``).

    Raises ValueError for options that do not go together, :class:`ClipDecodeError` for any clip that cannot be read and
    :class:`~workbench.data.frames.ShortClipError` for one too short under ``short="error"``.
    """
    policy = Sampling(
        num_frames=num_frames, sampling=sampling, sampling_rate=sampling_rate, fps=fps, num_clips=num_clips,
        short=short, start=start, seed=seed,
    )  # fmt: skip
    check_views(size_px, fit, num_crops, resize_px)
    name = decoder_name(decoder)

    def squares(frame: np.ndarray) -> list[np.ndarray]:
        return [frame] if size_px is None else views_of(frame, size_px, fit, num_crops, resize_px)

    with opened(path, name) as video:
        first, last = _frame_range(video, start_seconds, end_seconds)
        try:
            indices = first + policy.indices(video.scan.times[first:last])
        except ShortClipError as error:
            raise ShortClipError(error.reason, video.path) from error
        wanted, inverse = np.unique(indices, return_inverse=True)
        frames = np.array(video.frames(wanted, name, squares))
    # (wanted, crops, H, W, 3) -> (num_clips, T, crops, H, W, 3) -> (num_clips * crops, T, H, W, 3)
    views = frames[inverse.reshape(indices.shape)].swapaxes(1, 2)
    return np.ascontiguousarray(views).reshape(-1, num_frames, *frames.shape[2:])


def read_clip(
    path: str | Path,
    *,
    num_frames: int,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    size_px: int | None = None,
    fit: str = "crop",
    sampling: str = "uniform",
    sampling_rate: int = 1,
    fps: float | None = None,
    short: str = "repeat_last",
    resize_px: int | None = None,
    decoder: str = "auto",
    start: str = "centre",
    seed: int = 0,
) -> np.ndarray:
    """``num_frames`` frames of a video as uint8 RGB ``(T, H, W, 3)``: :func:`read_views` with one view."""
    return read_views(
        path, num_frames=num_frames, size_px=size_px, fit=fit, sampling=sampling, sampling_rate=sampling_rate, fps=fps,
        short=short, resize_px=resize_px, decoder=decoder, start_seconds=start_seconds, end_seconds=end_seconds,
        start=start, seed=seed,
    )[0]  # fmt: skip


def _frame_range(video: Video, start: float | None, end: float | None) -> tuple[int, int]:
    """Positions of the first frame shown in ``start <= t < end`` seconds and of the first one after it."""
    low = -math.inf if start is None or math.isnan(start) else float(start)
    high = math.inf if end is None or math.isnan(end) else float(end)
    if low >= high:
        raise ClipDecodeError(video.path, f"start_seconds={start} is not before end_seconds={end}", "mend the table")
    slack = 1e-6  # timestamps are rationals: 0.1 s must include the frame shown at 1/10 s
    first, last = (int(np.searchsorted(video.scan.times, edge - slack)) for edge in (low, high))
    if first >= last:
        length = float(video.scan.times[-1]) + 1 / video.scan.fps
        raise ClipDecodeError(video.path, f"no frame between {start} and {end} s", f"the video lasts {length:.2f} s")
    return first, last


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
