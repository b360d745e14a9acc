"""What "nothing to see" looks like: the clips that attributions are measured from."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

BASELINES = ("blur", "mean", "black", "frozen")


def baseline_pixels(pixel_values: torch.Tensor, black: torch.Tensor, kind: str) -> torch.Tensor:
    """What "nothing to see" looks like, (B, T, C, H, W) like ``pixel_values``.

    ``blur``: the clip itself through a Gaussian of an eighth of its width and a quarter of its length: colours and
    light stay, shape and motion go. ``mean``: its mean colour everywhere. ``black``: ``black`` (C,), a black pixel.
    ``frozen``: its central frame, held: what can be seen stays, what happens goes.
    Raises ValueError on another ``kind``.
    """
    if kind not in BASELINES:
        raise ValueError(f"baseline={kind!r} is not one of {', '.join(BASELINES)}")
    if kind == "black":
        return black.view(1, 1, -1, 1, 1).expand_as(pixel_values).contiguous()
    if kind == "mean":
        return pixel_values.mean((1, 3, 4), keepdim=True).expand_as(pixel_values).contiguous()
    _, frames, _, height, width = pixel_values.shape
    if kind == "frozen":
        return pixel_values[:, frames // 2, None].expand_as(pixel_values).contiguous()
    sigma = (0, frames / 4, 0, height / 8, width / 8)
    blurred = gaussian_filter(pixel_values.cpu().numpy(), sigma, mode="nearest")
    return torch.from_numpy(blurred).to(pixel_values)


def baseline_frames(frames: np.ndarray, kind: str) -> np.ndarray:
    """The same for uint8 frames (B, T, H, W, 3), to be looked at: normalisation and these baselines commute."""
    pixels = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float()
    shown = baseline_pixels(pixels, torch.zeros(frames.shape[-1]), kind).permute(0, 1, 3, 4, 2)
    return shown.round().clamp(0, 255).to(torch.uint8).numpy()
