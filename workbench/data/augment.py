"""Augmentation on the device, in batch; one clip gets one transform for all its frames. PyTorch, any device.

Which ones are safe depends on the labels: a mirrored "left" is a "right". Only what a table's card allows is used.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

OVERSAMPLE = 3
"""Frames stored per frame shown in training, so that each may be one of three neighbours (the middle one in
testing)."""
MARGIN = 1.125
"""Stored size per shown size in training, so that a random crop need not enlarge."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random views of stored clips. ``flip`` only where the labels survive it."""

    num_frames: int
    size_px: int
    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Range of the crop's share of the frame's area."""
    aspect: float = 1.2
    """The crop's sides differ by up to this factor."""
    color: float = 0.3
    """Brightness, contrast and saturation each change by up to this share."""
    flip: bool = False

    def __call__(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (B, T * k, S, S, 3) -> uint8 (B, T, size, size, 3), on the clips' device; all chance from
        ``generator``.

        k >= 1 stored frames per shown one; each shown frame is a random one of its k.
        """
        frames = _one_of_each(clips, self.num_frames, generator)  # (B, T, S, S, 3)
        B, T = frames.shape[:2]
        x = frames.permute(0, 1, 4, 2, 3).reshape(B, T * 3, *frames.shape[2:4]).float()
        x = F.grid_sample(x, self._grids(B, x.device, generator), padding_mode="reflection", align_corners=False)
        x = x.view(B, T, 3, self.size_px, self.size_px)
        brightness, contrast, saturation = (
            1 + self.color * (2 * _uniform((B, 1, 1, 1, 1), x.device, generator) - 1) for _ in range(3)
        )
        gray = x.mean(dim=2, keepdim=True)
        x = gray + saturation * (x - gray)
        mean = gray.mean(dim=(1, 3, 4), keepdim=True)
        x = brightness * (mean + contrast * (x - mean))
        return x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)

    def _grids(self, B: int, device: torch.device, generator: torch.Generator) -> Tensor:
        """Sampling grids (B, size, size, 2) of random crops, mirrored with probability one half where allowed."""
        u = _uniform((5, B), device, generator)
        low, high = self.crop_scale
        side = (low + (high - low) * u[0]).sqrt()
        stretch = torch.exp((2 * u[1] - 1) * math.log(self.aspect) / 2)
        width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
        theta = torch.zeros(B, 2, 3, device=device)
        theta[:, 0, 0] = width * torch.where((u[4] < 0.5) & torch.tensor(self.flip, device=device), -1.0, 1.0)
        theta[:, 1, 1] = height
        theta[:, 0, 2] = (2 * u[2] - 1) * (1 - width)
        theta[:, 1, 2] = (2 * u[3] - 1) * (1 - height)
        return F.affine_grid(theta, [B, 3, self.size_px, self.size_px], align_corners=False)


def _uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, device=device, generator=generator)


def _one_of_each(clips: Tensor, num_frames: int, generator: torch.Generator) -> Tensor:
    """(B, T * k, ...) -> (B, T, ...): from each run of k stored frames a random one."""
    B, stored = clips.shape[:2]
    if stored % num_frames:
        raise ValueError(f"{stored} stored frames are not a multiple of num_frames={num_frames}")
    k = stored // num_frames
    pick = (_uniform((B, num_frames), clips.device, generator) * k).long().clamp(max=k - 1)
    index = torch.arange(num_frames, device=clips.device) * k + pick
    return clips[torch.arange(B, device=clips.device)[:, None], index]
