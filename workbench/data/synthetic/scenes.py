"""Rendering of moving layers, and what only a generator knows: masks and optical flow. PyTorch, any device.

A scene is a textured background and up to ``K`` sprites, painted back to front. Each layer carries, per frame, the
affine map from the screen ([-1, 1] in x and y, y down) to its own texture coordinates; motion, masks and flow all
follow from it.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.data.synthetic.motions import Track


def _affine(center: np.ndarray, scale: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Maps own -> outer coordinates, (T, 3, 3): ``outer = center + R(angle) @ (scale * own)``; scale is (T, 2)."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.zeros((len(angle), 3, 3))
    matrix[:, 0] = np.stack([cos * scale[:, 0], -sin * scale[:, 1], center[:, 0]], axis=1)
    matrix[:, 1] = np.stack([sin * scale[:, 0], cos * scale[:, 1], center[:, 1]], axis=1)
    matrix[:, 2, 2] = 1
    return matrix


def layer_matrices(own: Track, view: Track, *, stretch: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Screen -> texture maps, float64 (T, 3, 3), of a layer with the given track under a camera.

    ``stretch`` multiplies the layer's half-width and half-height.
    """
    to_world = _affine(view.center, np.repeat(view.scale[:, None], 2, axis=1), view.angle)
    placed = _affine(own.center, own.scale[:, None] * np.asarray(stretch), own.angle)
    return np.linalg.inv(placed) @ to_world


@dataclass
class Scenes:
    """A batch of B scenes over T frames with K sprite slots, painted in slot order over the background.

    ``background`` (B, 3, R, R) and ``sprites`` (B, K, 4, S, S) in [0, 1]; ``background_maps`` (B, T, 3, 3) and
    ``sprite_maps`` (B, K, T, 3, 3) screen -> texture; ``present`` (B, K) bool.
    """

    background: Tensor
    sprites: Tensor
    background_maps: Tensor
    sprite_maps: Tensor
    present: Tensor

    def __getitem__(self, some: slice) -> "Scenes":
        return Scenes(**{name: value[some] for name, value in vars(self).items()})

    def to(self, device: str | torch.device) -> "Scenes":
        return Scenes(**{name: value.to(device) for name, value in vars(self).items()})


def screen_points(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Pixel centres as homogeneous screen coordinates (H * W, 3)."""
    ys = (torch.arange(height, device=device) + 0.5) / height * 2 - 1
    xs = (torch.arange(width, device=device) + 0.5) / width * 2 - 1
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"), dim=-1).flip(-1).reshape(-1, 2)
    return torch.cat([grid, torch.ones(len(grid), 1, device=device)], dim=1)


def _grids(maps: Tensor, size_px: int) -> Tensor:
    """Where each pixel of each frame falls in the layer's texture, x and y: maps (n, T, 3, 3) -> (n, T, 2, H * W)."""
    points = screen_points(size_px, size_px, maps.device)
    return maps[:, :, :2].to(points.dtype) @ points.T


def _sample(image: Tensor, maps: Tensor, size_px: int) -> Tensor:
    """Images (n, C, S, S) seen through maps (n, T, 3, 3), reflected beyond their rim: (n, T, C, H, W)."""
    n, T = maps.shape[:2]
    grid = _grids(maps, size_px).transpose(2, 3).reshape(n, T * size_px, size_px, 2)
    # All frames of one clip are one tall grid over one image: no copy of the image per frame.
    seen = F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return seen.reshape(n, -1, T, size_px, size_px).transpose(1, 2)


def render(scenes: Scenes, size_px: int) -> tuple[Tensor, Tensor]:
    """Frames float (B, T, 3, H, W) in [0, 1] and each slot's *visible* coverage (B, K, T, H, W) in [0, 1]."""
    frames = _sample(scenes.background, scenes.background_maps, size_px)
    B, K = scenes.present.shape
    T = frames.shape[1]
    cover = frames.new_zeros(B, K, T, size_px, size_px)
    canvas, covered = frames.transpose(1, 2).reshape(B, 3, -1), cover.view(B, K, -1)
    # Beyond its rim by a texel a sprite is all zeros: only the pixels that fall inside are sampled and painted.
    limit = 1 + 2 / scenes.sprites.shape[-1]
    for k in range(K):
        rows = scenes.present[:, k].nonzero()[:, 0]
        if not len(rows):
            continue
        x, y = _grids(scenes.sprite_maps[rows, k], size_px).unbind(2)  # (n, T, H * W) each
        inside = ((x.abs() <= limit) & (y.abs() <= limit)).flatten(1)
        for i, row in enumerate(rows.tolist()):
            at = inside[i].nonzero()[:, 0]
            grid = torch.stack([x[i].reshape(-1)[at], y[i].reshape(-1)[at]], dim=-1)
            below = [covered[row, j] for j in range(k) if scenes.present[row, j]]
            _paint(canvas[row], below, covered[row, k], scenes.sprites[row, k], grid, at)
    return canvas.view(B, 3, T, size_px, size_px).transpose(1, 2).clamp_(0, 1), cover


def _paint(canvas: Tensor, below: list[Tensor], own: Tensor, sprite: Tensor, grid: Tensor, at: Tensor) -> None:
    """Put ``sprite`` (4, S, S), sampled at ``grid`` (n, 2), on the n pixels ``at`` of ``canvas`` (3, P); ``own`` (P,)
    becomes its coverage, and those of the sprites ``below`` lose what it hides."""
    if not len(at):
        return
    seen = F.grid_sample(sprite[None], grid[None, None], mode="bilinear", align_corners=False)[0, :, 0]
    color, alpha = seen[:3], seen[3]
    canvas[:, at] = canvas[:, at].lerp_(color, alpha)
    for cover in below:
        cover[at] *= 1 - alpha
    own[at] = alpha


def optical_flow(scenes: Scenes, cover: Tensor) -> Tensor:
    """Where each point of frame t lies in frame t + 1: displacement (B, T, 2, H, W) in screen units (frame = 2 wide).

    ``cover`` (B, K, T, H, W) may be at any resolution (tokens included). The last frame repeats the one before.
    Exact for the generator: a layer's points move by ``inverse(map[t + 1]) @ map[t]``, mixed by visible coverage.
    """
    B, K, T, H, W = cover.shape
    points = screen_points(H, W, cover.device)

    def displacement(maps: Tensor) -> Tensor:  # (n, T, 3, 3) -> (n, T, 2, H, W)
        maps = maps.double()
        step = torch.linalg.solve(maps[:, 1:], maps[:, :-1])
        step = torch.cat([step, step[:, -1:]], dim=1) - torch.eye(3, dtype=maps.dtype, device=maps.device)
        moved = torch.einsum("ntij,pj->ntip", step[:, :, :2].float(), points)
        return moved.reshape(len(maps), T, 2, H, W)

    flow = displacement(scenes.background_maps) * (1 - cover.sum(1).clamp(0, 1))[:, :, None]
    for k in range(K):
        rows = scenes.present[:, k].nonzero()[:, 0]
        if len(rows):
            flow[rows] += displacement(scenes.sprite_maps[rows, k]) * cover[rows, k][:, :, None]
    return flow
