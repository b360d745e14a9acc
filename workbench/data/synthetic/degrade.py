"""A ladder of known degradations, severity 0 (none) to 5: what a camera, a codec or a network does to a clip."""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

PRISTINE_CRF = 16
"""Rate factor of an undamaged clip: visually lossless for libx264."""

_BLUR_SIGMA_PX = (0.0, 0.5, 0.9, 1.4, 2.0, 2.8)
_NOISE_LEVELS = (0.0, 5.0, 10.0, 18.0, 28.0, 42.0)
_SCALE_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_DROP_SHARES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)
_COMPRESSION_CRF = (PRISTINE_CRF, 28, 33, 38, 43, 48)


def _blur(frames: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    sigma = _BLUR_SIGMA_PX[severity]
    return gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0)).round()


def _noise(frames: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    return (frames + _NOISE_LEVELS[severity] * rng.standard_normal(frames.shape, np.float32)).round()


def _rescale(frames: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    height, width = frames.shape[1:3]
    small = (max(2, round(width / _SCALE_FACTORS[severity])), max(2, round(height / _SCALE_FACTORS[severity])))
    bilinear = Image.Resampling.BILINEAR
    return np.stack(
        [np.asarray(Image.fromarray(f).resize(small, bilinear).resize((width, height), bilinear)) for f in frames]
    )


def _drop(frames: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    lost = rng.random(len(frames)) < _DROP_SHARES[severity]
    lost[0] = False
    kept = np.maximum.accumulate(np.where(lost, 0, np.arange(len(frames))))
    return frames[kept]


_FILTERS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "blur": _blur,
    "noise": _noise,
    "scaling": _rescale,
    "frame_drops": _drop,
}
DEGRADATIONS = ("compression", *_FILTERS)


def degrade(frames: np.ndarray, kind: str, severity: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Damaged copy of uint8 ``frames`` (T, H, W, 3), and the H.264 rate factor to store it with.

    ``kind`` is one of DEGRADATIONS, ``severity`` 0 to 5. Compression happens in the encoder, so it returns the frames
    as they are with a higher rate factor; a dropped frame is replaced by the last one that arrived.
    """
    if kind not in DEGRADATIONS:
        raise ValueError(f"unknown degradation {kind!r}; known: {', '.join(DEGRADATIONS)}")
    if severity not in range(6):
        raise ValueError(f"severity={severity!r} must be a whole number from 0 (none) to 5")
    if kind == "compression":
        return frames, _COMPRESSION_CRF[severity]
    if severity == 0:
        return frames, PRISTINE_CRF
    return np.clip(_FILTERS[kind](frames, severity, rng), 0, 255).astype(np.uint8), PRISTINE_CRF
