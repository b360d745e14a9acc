"""What a checkpoint wants done to frames before they enter it, read from its own file and done on the device in batch.

In the order of transformers' processors: resize, centre crop, rescale, normalise. Resizing is Pillow's, which those
processors call: antialiased, along the rows first, cut to whole levels after each axis, all in whole numbers. So with
the aspect ratio kept the frames that result are equal to Pillow's to the last level, on any device. (Where a stretch
shrinks the height much more than the width, Pillow 13 goes along the columns first: one level apart at most.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RESAMPLES = {2: "bilinear", 3: "bicubic"}
"""Pillow's number of a filter, as the files write it -> torch's name."""
MODEL_SIZE = 0
"""In ``resize`` and ``crop``: the file does not say; it is the side that the model takes."""
_CHUNK_VALUES = {"cpu": 2**20}
"""Pixel values resized at a time. About a frame on a CPU: its sums stay in the cache, four times as fast as a clip at a
time, and as fast as Pillow. Elsewhere:"""
_CHUNK_VALUES_ELSEWHERE = 2**26
_PRECISION_BITS = 22
"""Of Pillow's weights: 32, less 8 of a level, less 2 for the overshoot of a bicubic sum."""


def to_pixel_values(clips: Tensor, mean: Sequence[float], std: Sequence[float], *, scale: float = 1 / 255) -> Tensor:
    """uint8 ``clips`` (B, T, H, W, C) -> float32 ``pixel_values`` (B, T, C, H, W), on the clips' device.

    ``(clips * scale - mean) / std`` per channel: the last two steps alone, for clips that have their size already.
    """
    shape, channels = tuple(clips.shape), len(mean)
    if clips.dtype != torch.uint8 or clips.ndim != 5 or shape[-1] != channels:
        raise ValueError(
            f"clips must be uint8 (B, T, H, W, {channels}), not {clips.dtype} {shape}; "
            "read them with workbench.data.clips.read_clip or decode_table"
        )
    x = clips.permute(0, 1, 4, 2, 3).float() * scale  # (B, T, C, H, W)
    centre = torch.tensor(mean, device=x.device).view(channels, 1, 1)  # (C, 1, 1)
    return (x - centre) / torch.tensor(std, device=x.device).view(channels, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """A checkpoint's preprocessing. Checked when made; see :meth:`from_record`."""

    mean: tuple[float, ...]
    """Per channel, of the scaled values; an offset that is subtracted after scaling is part of it."""
    std: tuple[float, ...]
    scale: float = 1 / 255
    resize: int | tuple[int, int] | None = MODEL_SIZE
    """The short side, its aspect ratio kept; or (height, width), which stretches; None: frames stay as they are."""
    resample: str = "bilinear"
    """Or ``bicubic``."""
    crop: int | tuple[int, int] | None = MODEL_SIZE
    """The square or (height, width) kept of the middle; where a frame is smaller, zeros surround it. None: all."""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(f"image_std={self.std} must hold a positive number for each of image_mean={self.mean}")
        if self.resample not in RESAMPLES.values():
            raise ValueError(f"resample={self.resample!r} is not one of {', '.join(RESAMPLES.values())}")

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "Preprocessing":
        """From the content of a ``preprocessor_config.json`` or ``video_preprocessor_config.json``.

        Read are do_resize, size (``shortest_edge``, ``height`` and ``width``, or a number: the short side), resample,
        do_center_crop, crop_size, do_rescale, rescale_factor, offset, do_normalize, image_mean and image_std. A size
        that is missing is the model's own. Raises ValueError naming what is missing or not known here.
        """
        normalise = record.get("do_normalize", True)
        missing = [key for key in ("image_mean", "image_std") if normalise and record.get(key) is None]
        if missing:
            raise ValueError(f"{missing} missing; without them clips cannot be normalised as in pretraining")
        mean = _channels(record["image_mean"]) if normalise else (0.0,) * 3
        std = _channels(record["image_std"]) if normalise else (1.0,) * 3
        scale = float(record.get("rescale_factor") or 1 / 255) if record.get("do_rescale", True) else 1.0
        if record.get("offset", _doubled(scale)) and record.get("do_rescale", True):
            # One is subtracted after scaling: (x * scale - 1 - mean) / std.
            mean = tuple(m + 1.0 for m in mean)
        resize = _resize(record.get("size")) if record.get("do_resize", True) else None
        # A stretch to (height, width) is the model's input already, unless the file crops from it.
        crops = record.get("do_center_crop", record.get("crop_size") is not None or not isinstance(resize, tuple))
        number = record.get("resample", 2)
        if number not in RESAMPLES:
            raise ValueError(f"resample={number!r} is none of the filters known here: {RESAMPLES}")
        return Preprocessing(
            mean=mean, std=std, scale=scale, resize=resize, resample=RESAMPLES[number],
            crop=_crop(record.get("crop_size")) if crops else None,
        )  # fmt: skip

    def for_model(self, size_px: int) -> "Preprocessing":
        """The same with every side that the file leaves open set to the model's."""
        return replace(
            self,
            resize=size_px if self.resize == MODEL_SIZE else self.resize,
            crop=size_px if self.crop == MODEL_SIZE else self.crop,
        )

    def short_side(self, size_px: int) -> int:
        """Short side of a frame before the centre crop, for a decoder that resizes: at least the model's ``size_px``.

        >>> Preprocessing(mean=(0.5,), std=(0.5,), resize=256, crop=224).short_side(224)
        256
        """
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize or size_px,)
        return max(size_px, min(sides))

    def pixel_values(self, clips: Tensor) -> Tensor:
        """uint8 ``clips`` (B, T, H, W, C) of any size -> float32 (B, T, C, H', W') for the model, on their device."""
        if clips.dtype != torch.uint8 or clips.ndim != 5:
            to_pixel_values(clips, self.mean, self.std)  # says what is wrong
        return to_pixel_values(self.resized(clips), self.mean, self.std, scale=self.scale)

    def resized(self, clips: Tensor) -> Tensor:
        """The first two steps: uint8 (B, T, H, W, C) -> uint8 (B, T, H', W', C)."""
        B, T, H, W, C = clips.shape
        frames = clips.reshape(B * T, H, W, C)
        height, width = self._resized_size(H, W)
        chunk = _CHUNK_VALUES.get(clips.device.type, _CHUNK_VALUES_ELSEWHERE)
        parts = [self._frames(part, height, width) for part in frames.split(max(1, chunk // (C * H * W)))]
        return torch.cat(parts).unflatten(0, (B, T))

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """The short side becomes ``resize``, the long side is cut to whole pixels (transformers' rule)."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = min(height, width), max(height, width)
        new_long = int(self.resize * long / short)
        return (new_long, self.resize) if width <= height else (self.resize, new_long)

    def _frames(self, frames: Tensor, height: int, width: int) -> Tensor:
        """uint8 (N, H, W, C) -> uint8 (N, H', W', C): resize to (height, width), then crop; only what stays is made."""
        crop_height, crop_width = (height, width) if self.crop is None else _pair(self.crop)
        for dim, whole, kept in ((2, width, crop_width), (1, height, crop_height)):
            start = max(0, (whole - kept) // 2)
            frames = _resized_axis(frames, dim, whole, range(start, start + min(whole, kept)), self.resample)
        # Where the frame is smaller than the crop, the odd pixel of the border comes first.
        before = [-min(0, (whole - kept) // 2) for whole, kept in ((width, crop_width), (height, crop_height))]
        left, top = before
        right, bottom = crop_width - left - frames.shape[2], crop_height - top - frames.shape[1]
        return F.pad(frames, (0, 0, left, right, top, bottom))


def _resized_axis(x: Tensor, dim: int, length: int, kept: range, resample: str) -> Tensor:
    """uint8 ``x`` with axis ``dim`` resized to ``length``, of which only the positions ``kept`` are computed.

    In whole numbers, as Pillow does it, and so with the same result on any device: the weighted sum of the inputs under
    the filter, and one half, cut to whole levels.
    """
    if x.shape[dim] == length:
        return x.narrow(dim, kept.start, len(kept))
    index, weight = (torch.from_numpy(a).to(x.device) for a in _taps(x.shape[dim], length, kept, resample))
    x = x.movedim(dim, 1).contiguous()  # so that picking copies long runs, not three bytes at a time
    half = 1 << (_PRECISION_BITS - 1)
    total = torch.full((x.shape[0], len(kept), *x.shape[2:]), half, dtype=torch.int32, device=x.device)
    for i, w in zip(index, weight, strict=True):
        total.addcmul_(x.index_select(1, i).to(torch.int32), w.view(1, -1, 1, 1))
    return (total >> _PRECISION_BITS).clamp_(0, 255).to(torch.uint8).movedim(1, dim)


@lru_cache(maxsize=64)
def _taps(size: int, length: int, kept: range, resample: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of each output and their weights, int64 and int32 (K, len(kept)); weights sum to 2**_PRECISION_BITS.

    The filter is widened by the factor of shrinking (antialiasing), cut at the border and scaled to sum to one:
    ``precompute_coeffs`` and ``normalize_coeffs_8bpc`` of Pillow's ``Resample.c``.
    """
    scale = size / length
    widening = max(scale, 1.0)
    support = widening * (1 if resample == "bilinear" else 2)
    centre = (np.array(kept) + 0.5) * scale
    low = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    high = np.minimum((centre + support + 0.5).astype(np.int64), size)
    index = low + np.arange(int((high - low).max()))[:, None]  # (K, len(kept))
    x = np.abs((index - centre + 0.5) / widening)
    if resample == "bilinear":
        weight = np.maximum(1 - x, 0)
    else:  # Keys' cubic with a = -1/2
        weight = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0))
    weight = np.where(index < high, weight, 0)
    weight = weight / weight.sum(0) * (1 << _PRECISION_BITS)
    return np.minimum(index, size - 1), np.trunc(weight + np.copysign(0.5, weight)).astype(np.int32)


def _doubled(scale: float) -> bool:
    """Whether 0..255 becomes 0..2. A file that does not speak of an offset was then saved by a processor that always
    subtracts one, so that values lie between -1 and 1."""
    return abs(scale * 127.5 - 1) < 1e-3


def _pair(side: int | tuple[int, int]) -> tuple[int, int]:
    return side if isinstance(side, tuple) else (side, side)


def _channels(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(float(v) for v in value)


def _resize(size: int | Mapping[str, int] | None) -> int | tuple[int, int]:
    if size is None:
        return MODEL_SIZE
    if isinstance(size, int):
        return size
    if "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    if size.get("shortest_edge") and not size.get("longest_edge"):
        return int(size["shortest_edge"])
    raise ValueError(f"size={dict(size)} is not understood; known are shortest_edge alone, or height and width")


def _crop(size: int | Mapping[str, int] | None) -> int | tuple[int, int]:
    if size is None or isinstance(size, int):
        return size or MODEL_SIZE
    if "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    raise ValueError(f"crop_size={dict(size)} is not understood; known are a number, or height and width")
