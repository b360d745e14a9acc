"""Augmentation on the device, in batch; one clip gets one transform for all its frames. PyTorch, any device.

Which ones are safe depends on the labels: a mirrored "left" is a "right", a reversed "open" is a "close". Only what a
table's card allows is used, and the random operations hold none that mirrors, reverses, turns upside down or inverts.
Those that change colour, sharpness or tone (``color``, ``rand_augment``) are not for labels about just that, such as
quality: switch them off there.

All chance comes from one generator. A generator on the CPU gives the same transforms on every device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

OVERSAMPLE = 3
"""Frames stored per frame shown in training, so that each may be one of three neighbours (the middle one in
testing)."""
MARGIN = 1.125
"""Stored size per shown size in training, so that a random crop need not enlarge."""


RAND_OPS = (
    "identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y", "brightness", "contrast", "saturation",
    "sharpness", "posterize", "autocontrast",
)  # fmt: skip
"""What ``rand_augment`` draws from."""
MAX_MAGNITUDE = 10.0
# At full magnitude: radians, shares of the side, shares of the factor, bits.
_ROTATION, _SHEAR, _TRANSLATION, _FACTOR, _BITS = math.pi / 6, 0.3, 0.3, 0.9, 4
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), 3.3


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random views of stored clips. ``flip`` and ``reverse`` only where the labels survive them."""

    num_frames: int
    size_px: int
    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Range of the crop's share of the frame's area."""
    aspect: float = 1.2
    """The crop's sides differ by up to this factor."""
    color: float = 0.3
    """Brightness, contrast and saturation each change by up to this share."""
    flip: bool = False
    """Mirror half the clips."""
    reverse: bool = False
    """Play half the clips backwards."""
    rand_augment: int = 0
    """Operations of :data:`RAND_OPS` per clip, drawn with replacement; the geometric ones first, together with the
    crop, then the others in the order drawn. After RandAugment (https://arxiv.org/abs/1909.13719)."""
    magnitude: float = 7.0
    """Strength of these, from 0 (none) to 10: 30 degrees, 30 % of the side, a factor of 0.1 or 1.9, four of eight
    bits. The direction is random. (``autocontrast`` knows no strength.)"""
    erasing: float = 0.0
    """Probability that a clip loses a random box, the same in all frames, to the clip's mean colour. After
    https://arxiv.org/abs/1708.04896."""

    def __post_init__(self) -> None:
        if self.rand_augment < 0:
            raise ValueError(f"rand_augment={self.rand_augment} must be 0 (off) or a number of operations")
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"magnitude={self.magnitude} must lie between 0 and {MAX_MAGNITUDE:g}")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing={self.erasing} is a probability: between 0 and 1")

    def __call__(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (B, T * k, S, S, 3) -> uint8 (B, T, size, size, 3), on the clips' device; all chance from
        ``generator``.

        k >= 1 stored frames per shown one; each shown frame is a random one of its k.
        """
        frames = _one_of_each(clips, self.num_frames, generator)  # (B, T, S, S, 3)
        B, T = frames.shape[:2]
        device = frames.device
        theta = self._crops(B, generator)
        factors = [1 + self.color * (2 * _uniform((B,), generator) - 1) for _ in range(3)]
        ops, strengths = self._operations(B, generator)
        frames = self._one_way(frames, generator)
        theta = theta @ _geometry(ops, strengths)
        grids = F.affine_grid(theta[:, :2].to(device), [B, 3, self.size_px, self.size_px], align_corners=False)
        x = frames.permute(0, 1, 4, 2, 3).reshape(B, T * 3, *frames.shape[2:4]).float()
        # A crop lies inside the frame; an operation may look beyond it, where a reflection would move the other way.
        x = F.grid_sample(x, grids, padding_mode="border" if self.rand_augment else "reflection", align_corners=False)
        x = x.view(B, T, 3, self.size_px, self.size_px)
        brightness, contrast, saturation = (_per_clip(factor, device) for factor in factors)
        gray = x.mean(dim=2, keepdim=True)
        x = gray + saturation * (x - gray)
        mean = gray.mean(dim=(1, 3, 4), keepdim=True)
        x = brightness * (mean + contrast * (x - mean))
        x = self._erased(_photometry(x, ops, strengths), generator)
        return x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)

    def _crops(self, B: int, generator: torch.Generator) -> Tensor:
        """(B, 3, 3): where in the frame (-1 to 1) each place of a random crop lies; mirrored in half where allowed."""
        u = _uniform((5, B), generator)
        low, high = self.crop_scale
        side = (low + (high - low) * u[0]).sqrt()
        stretch = torch.exp((2 * u[1] - 1) * math.log(self.aspect) / 2)
        width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
        theta = torch.eye(3).repeat(B, 1, 1)
        theta[:, 0, 0] = width * torch.where((u[4] < 0.5) & torch.tensor(self.flip), -1.0, 1.0)
        theta[:, 1, 1] = height
        theta[:, 0, 2] = (2 * u[2] - 1) * (1 - width)
        theta[:, 1, 2] = (2 * u[3] - 1) * (1 - height)
        return theta

    def _operations(self, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Index into RAND_OPS and signed strength in [-1, 1], each (rand_augment, B)."""
        shape = (self.rand_augment, B)
        if not self.rand_augment:  # draws nothing
            return torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        ops = (_uniform(shape, generator) * len(RAND_OPS)).long().clamp(max=len(RAND_OPS) - 1)
        signs = torch.where(_uniform(shape, generator) < 0.5, -1.0, 1.0)
        return ops, signs * self.magnitude / MAX_MAGNITUDE

    def _one_way(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """(B, T, ...) with half the clips backwards where that is allowed."""
        if not self.reverse:
            return frames
        backwards = (_uniform((len(frames),), generator) < 0.5).to(frames.device)
        return torch.where(backwards.view(-1, 1, 1, 1, 1), frames.flip(1), frames)

    def _erased(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(B, T, 3, S, S) with a box of some clips filled with that clip's mean colour, through all frames."""
        if not self.erasing:
            return x
        B, S = len(x), self.size_px
        u = _uniform((5, B), generator)
        area = _ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * u[1]
        stretch = torch.exp((2 * u[2] - 1) * math.log(_ERASED_ASPECT) / 2)
        lost = torch.ones(B, S, S, dtype=torch.bool)
        for dim, side, place in ((1, area.sqrt() * stretch, u[3]), (2, area.sqrt() / stretch, u[4])):
            length = (side * S).round().clamp(1, S)
            start = (place * (S - length + 1)).floor()
            at = torch.arange(S)
            inside = (at >= start[:, None]) & (at < (start + length)[:, None])  # (B, S)
            lost &= inside.unsqueeze(3 - dim)
        lost &= (u[0] < self.erasing).view(-1, 1, 1)
        return torch.where(lost[:, None, None].to(x.device), x.mean(dim=(1, 3, 4), keepdim=True), x)


def _geometry(ops: Tensor, strengths: Tensor) -> Tensor:
    """(B, 3, 3): where in the crop each place of the result lies, by all geometric operations of a clip in turn."""
    steps = torch.eye(3).repeat(*ops.shape, 1, 1)  # (n, B, 3, 3)
    chosen = [ops == RAND_OPS.index(name) for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")]
    angle = _ROTATION * torch.where(chosen[0], strengths, 0.0)
    steps[..., 0, 0] = steps[..., 1, 1] = angle.cos()
    steps[..., 1, 0] = angle.sin()
    steps[..., 0, 1] = -angle.sin() + _SHEAR * torch.where(chosen[1], strengths, 0.0)
    steps[..., 1, 0] += _SHEAR * torch.where(chosen[2], strengths, 0.0)
    for row, here in enumerate(chosen[3:]):  # the frame's side is 2 in these units
        steps[..., row, 2] = 2 * _TRANSLATION * torch.where(here, strengths, 0.0)
    whole = torch.eye(3).repeat(ops.shape[1], 1, 1)
    for step in steps:
        whole = whole @ step
    return whole


def _photometry(x: Tensor, ops: Tensor, strengths: Tensor) -> Tensor:
    """(B, T, 3, S, S) in 0..255 after each clip's other operations, in turn."""
    for row, strength in zip(ops, strengths, strict=True):
        for index in row.unique().tolist():
            change = _CHANGES.get(RAND_OPS[index])
            if change:
                here = (row == index).nonzero().flatten().to(x.device)
                changed = change(x[here], _per_clip(strength[row == index], x.device)).clamp_(0, 255)
                x = x.index_copy(0, here, changed)
    return x


def _brightness(x: Tensor, s: Tensor) -> Tensor:
    return x * (1 + _FACTOR * s)


def _contrast(x: Tensor, s: Tensor) -> Tensor:
    mean = x.mean(dim=(1, 2, 3, 4), keepdim=True)
    return mean + (1 + _FACTOR * s) * (x - mean)


def _saturation(x: Tensor, s: Tensor) -> Tensor:
    gray = x.mean(dim=2, keepdim=True)
    return gray + (1 + _FACTOR * s) * (x - gray)


def _sharpness(x: Tensor, s: Tensor) -> Tensor:
    """Away from, or towards, the mean of the 3 x 3 neighbours in which the middle counts five times."""
    flat = F.pad(x.flatten(0, 2)[:, None], (1, 1, 1, 1), mode="replicate")  # (B * T * 3, 1, S + 2, S + 2)
    smooth = (9 * F.avg_pool2d(flat, 3, stride=1)).view_as(x).add(x, alpha=4) / 13
    return smooth + (1 + _FACTOR * s) * (x - smooth)


def _posterize(x: Tensor, s: Tensor) -> Tensor:
    step = 2.0 ** (_BITS * s.abs()).round()
    return (x / step).floor() * step


def _autocontrast(x: Tensor, s: Tensor) -> Tensor:
    """Each channel's darkest level of the whole clip becomes 0, its brightest 255; a flat channel stays."""
    low, high = x.amin(dim=(1, 3, 4), keepdim=True), x.amax(dim=(1, 3, 4), keepdim=True)
    return torch.where(high - low < 1, x, (x - low) * 255 / (high - low).clamp(min=1))


_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "sharpness": _sharpness,
    "posterize": _posterize, "autocontrast": _autocontrast,
}  # fmt: skip


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """In [0, 1), drawn where the generator is and brought to the CPU: a few numbers per clip."""
    return torch.rand(shape, device=generator.device, generator=generator).cpu()


def _per_clip(values: Tensor, device: torch.device) -> Tensor:
    return values.view(-1, 1, 1, 1, 1).to(device)


def _one_of_each(clips: Tensor, num_frames: int, generator: torch.Generator) -> Tensor:
    """(B, T * k, ...) -> (B, T, ...): from each run of k stored frames a random one."""
    B, stored = clips.shape[:2]
    if stored % num_frames:
        raise ValueError(f"{stored} stored frames are not a multiple of num_frames={num_frames}")
    k = stored // num_frames
    pick = (_uniform((B, num_frames), generator) * k).long().clamp(max=k - 1)
    index = (torch.arange(num_frames) * k + pick).to(clips.device)
    return clips[torch.arange(B, device=clips.device)[:, None], index]
