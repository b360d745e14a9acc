"""What a camera, a codec or a network does to a clip, in five severities, at the resolution that the model sees.

Damage is done to the squares that the run's protocol cuts out of the frames, so a severity means the same for a phone's
clip and a 4K one, and severity 0 is the clip itself. Sizes in pixels are those published for 224 px, scaled to the
square. Compression and lost frames work on *every* frame of the clip, of which the protocol then takes its few.

==============  ==================================================  ==============================================
corruption      what changes with severity                          numbers from
==============  ==================================================  ==============================================
compression     H.264 rate factor of a real re-encoding             Yi et al. 2021, arXiv:2110.06513 (h264_crf)
noise           Gaussian, standard deviation of the 0..1 range      Hendrycks & Dietterich 2019, arXiv:1903.12261
blur            Gaussian, sigma in px of 224                        the same (gaussian_blur)
brightness      added to V of HSV                                   the same
scaling         shrunk to this share (box filter), enlarged again   the same (pixelate)
frame_drops     share of frames lost; the last one stays            ours
freeze          share of the clip for which the picture stands      ours
==============  ==================================================  ==============================================
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.clips import ClipDecodeError, frame_times, read_clip, read_views, write_clip
from workbench.data.frames import Sampling

SEVERITIES: dict[str, tuple[float, ...]] = {
    "compression": (23, 30, 37, 44, 51),
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1, 2, 3, 4, 6),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "scaling": (0.6, 0.5, 0.4, 0.3, 0.25),
    "frame_drops": (0.15, 0.3, 0.45, 0.6, 0.75),
    "freeze": (0.2, 0.35, 0.5, 0.65, 0.8),
}
"""The number of each severity, 1 to 5."""
CORRUPTIONS = tuple(SEVERITIES)
TEMPORAL = ("frame_drops", "freeze")
"""Those that change which picture is shown when, and no pixel."""
_REFERENCE_PX = 224
_CODEC_FPS = 25.0  # only x264's rate control looks at it
_MAX_BYTES = 2**30
_POLICY = ("num_frames", "sampling", "sampling_rate", "fps", "num_clips", "short")

Filter = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def shown_frames(total: int, kind: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Which of ``total`` frames is on the screen at the time of each, int64 (total,); ``kind`` is one of TEMPORAL.

    >>> shown_frames(10, "freeze", 3, np.random.default_rng(1)).tolist()
    [0, 1, 2, 3, 3, 3, 3, 3, 8, 9]
    """
    _check(kind, severity)
    order = np.arange(total)
    if severity == 0:
        return order
    share = SEVERITIES[kind][severity - 1]
    if kind == "freeze":
        length = round(share * total)
        # One draw whatever the share, so that a longer freeze lies over a shorter one.
        first = int(rng.random() * (total - length + 1))
        order[first : first + length] = first
        return order
    # One draw per frame whatever the share: a worse severity loses the frames of a milder one and some more.
    lost = rng.random(total) < share
    lost[0] = False
    return np.asarray(np.maximum.accumulate(np.where(lost, 0, order)))


def corrupt(frames: np.ndarray, kind: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A damaged copy of uint8 frames (T, H, W, 3), consecutive ones of a clip; ``severity`` 0 returns them as they are.

    Raises ValueError for an unknown kind or severity.
    """
    _check(kind, severity)
    if severity == 0:
        return frames
    if kind in TEMPORAL:
        return frames[shown_frames(len(frames), kind, severity, rng)]
    value = SEVERITIES[kind][severity - 1]
    if kind == "compression":
        return _compressed(frames, int(value))
    return np.clip(_FILTERS[kind](frames, value, rng).round(), 0, 255).astype(np.uint8)


def corrupted_views(path: str, *, kind: str, severities: Sequence[int], seed: int, **reading: Any) -> np.ndarray:
    """One clip, damaged: uint8 ``(severities, V, T, S, S, 3)``, read as :func:`~workbench.data.clips.read_views` reads
    it with ``reading`` (its arguments, ``size_px`` among them).

    ``seed`` alone decides where the noise falls and what is lost; it does so alike at every severity, so that
    severities differ in strength only. Raises what ``read_views`` raises, and
    :class:`~workbench.data.clips.ClipDecodeError` where the whole clip is needed and takes over 1 GiB.
    """
    if kind != "compression" and kind not in TEMPORAL:
        views = read_views(path, **reading)
        frames = views.reshape(-1, *views.shape[2:])
        made = [corrupt(frames, kind, s, np.random.default_rng(seed)).reshape(views.shape) for s in severities]
        return np.stack(made)
    policy = Sampling(**{name: reading[name] for name in _POLICY if name in reading})
    times = _within(frame_times(path), reading.get("start_seconds"), reading.get("end_seconds"))
    indices = policy.indices(times)  # (num_clips, T)
    crops = reading.get("num_crops", 1)
    if (size := len(times) * crops * 3 * reading["size_px"] ** 2) > _MAX_BYTES:
        raise ClipDecodeError(path, f"{kind} needs all {len(times)} frames, {size / 2**30:.1f} GiB", "cut it shorter")
    rest = {name: value for name, value in reading.items() if name not in _POLICY}
    squares = read_views(path, num_frames=len(times), sampling="dense", **rest)  # (crops, frames, S, S, 3)
    found = []
    for severity in severities:
        damaged = np.stack([corrupt(crop, kind, severity, np.random.default_rng(seed)) for crop in squares])
        views = damaged[:, indices].swapaxes(0, 1)  # (crops, num_clips, T, ...) -> (num_clips, crops, T, ...)
        found.append(views.reshape(-1, *views.shape[2:]))
    return np.stack(found)


def clip_seed(clip_id: str, seed: int) -> int:
    """The seed of one clip: neither other clips nor their order change what is done to it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {clip_id}".encode()).digest()[:4], "big")


def _within(times: np.ndarray, start: float | None, end: float | None) -> np.ndarray:
    """The times shown at ``start <= t < end``, as ``read_views`` takes them; it raises where none is."""
    low, high = (-np.inf if start is None else start) - 1e-6, (np.inf if end is None else end) - 1e-6
    inside = times[(times >= low) & (times < high)]
    return inside if len(inside) else times[:1]


def _check(kind: str, severity: int) -> None:
    if kind not in SEVERITIES:
        raise ValueError(f"unknown corruption {kind!r}; known: {', '.join(CORRUPTIONS)}")
    if isinstance(severity, bool) or severity not in range(6):
        raise ValueError(f"severity={severity!r} must be a whole number from 0 (none) to 5")


def _noise(frames: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    return frames + 255 * share * rng.standard_normal(frames.shape, np.float32)


def _blur(frames: np.ndarray, sigma_px: float, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    sigma = sigma_px * min(frames.shape[1:3]) / _REFERENCE_PX
    return np.asarray(gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0), mode="nearest"))


def _brighter(frames: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    # V of HSV is the largest channel; hue and saturation stay when all three are scaled by what V changes.
    levels = frames.astype(np.float32)
    value = levels.max(-1, keepdims=True)
    raised = np.minimum(value + 255 * share, 255)
    return np.where(value > 0, levels * raised / np.maximum(value, 1), raised)


def _rescaled(frames: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    height, width = frames.shape[1:3]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    box, nearest = Image.Resampling.BOX, Image.Resampling.NEAREST
    return np.stack([
        np.asarray(Image.fromarray(f).resize(small, box).resize((width, height), nearest)) for f in frames
    ])  # fmt: skip


def _compressed(frames: np.ndarray, crf: int) -> np.ndarray:
    """The frames after H.264; a side that is odd is padded by its last line for the encoder."""
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with tempfile.TemporaryDirectory() as folder:
        path = write_clip(Path(folder) / "clip.mp4", even, fps=_CODEC_FPS, crf=crf)
        read = read_clip(path, num_frames=len(even), sampling="dense", decoder="pyav")
    return read[:, :height, :width]


_FILTERS: dict[str, Filter] = {"noise": _noise, "blur": _blur, "brightness": _brighter, "scaling": _rescaled}
