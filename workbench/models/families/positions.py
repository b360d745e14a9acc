"""Where a clip's pieces lie, and position tables made for another number of frames or another size."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """What an encoder takes: ``num_frames`` square frames of ``size_px``, cut into tubelets. Checked when made."""

    num_frames: int
    tubelet_size: int
    size_px: int
    patch_size: int

    def __post_init__(self) -> None:
        for name, unit in (("num_frames", "tubelet_size"), ("size_px", "patch_size")):
            value, step = getattr(self, name), getattr(self, unit)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
            if value % step:
                below, above = value // step * step, (value // step + 1) * step
                better = f"{below} or {above}" if below else f"{above}"
                raise ValueError(f"{name}={value} is not a multiple of {unit}={step}; use {better}")

    @property
    def grid(self) -> Grid:
        """(T', H', W')."""
        side = self.size_px // self.patch_size
        return self.num_frames // self.tubelet_size, side, side

    def changed(self, num_frames: int | None, size_px: int | None) -> "Geometry":
        """The same tubelets over another number of frames or another size; None keeps."""
        return replace(
            self,
            num_frames=self.num_frames if num_frames is None else num_frames,
            size_px=self.size_px if size_px is None else size_px,
        )


def resize_positions(
    table: torch.Tensor, old: Grid, new: Grid, *, space: str = "bicubic", time: str = "linear"
) -> torch.Tensor:
    """Position vectors (N, D) of the grid ``old``, time-major -> (N', D) of the grid ``new``.

    Interpolated along space (``bicubic`` or ``nearest``), then along time (``linear`` or ``nearest``), between the
    centres of the pieces; an axis that does not change is not touched, so the same grid gives the same table.
    """
    T, H, W = old
    if table.shape[0] != math.prod(old):
        raise ValueError(f"a table of {table.shape[0]} positions does not fit the grid {old} = {math.prod(old)}")
    x = table.float().reshape(T, H, W, -1)
    if new[1:] != (H, W):
        corners: dict[str, bool] = {} if space == "nearest" else {"align_corners": False}
        x = F.interpolate(x.permute(0, 3, 1, 2), size=new[1:], mode=space, **corners).permute(0, 2, 3, 1)
    if new[0] != T:
        corners = {} if time == "nearest" else {"align_corners": False}
        flat = x.reshape(T, -1).T[None]  # (1, H' * W' * D, T)
        x = F.interpolate(flat, size=new[0], mode=time, **corners)[0].T.reshape(new[0], *x.shape[1:])
    return x.reshape(math.prod(new), -1).to(table.dtype)


def sinusoid(length: int, width: int) -> torch.Tensor:
    """float32 (length, width): sines at even and cosines at odd places, https://arxiv.org/abs/1706.03762 3.5."""
    angle = np.arange(length)[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    return torch.from_numpy(np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle)).astype(np.float32))


def square(name: str, value: object) -> int:
    """The side of a square that a config writes as a number or a pair. Raises ValueError where it is not square."""
    sides = {value} if isinstance(value, int) else set(value) if isinstance(value, list | tuple) else set()
    if len(sides) != 1:
        raise ValueError(f"{name}={value} is not square; only square frames and patches are supported")
    return int(sides.pop())
