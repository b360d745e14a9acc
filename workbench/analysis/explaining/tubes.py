"""Perturbation of space-time tubes: what the output loses when a piece of the clip is replaced by its baseline."""

import itertools
import math

import torch
from captum.attr import FeatureAblation, Occlusion, ShapleyValueSampling
from torch import Tensor, nn

from workbench.models.backbones import Backbone

Tube = tuple[int, int, int]
MOST_TUBES = 64
"""Where no tube is given."""


def check_tube(grid: tuple[int, int, int], tube: Tube | None) -> Tube:
    """``tube`` in tokens (t', h', w'); None: at most 64 of them, about as many along each axis.

    Raises ValueError where it does not divide the grid.
    """
    if tube is None:
        return _usual_tube(grid)
    if len(tube) != 3 or any(size < 1 or whole % size for whole, size in zip(grid, tube, strict=True)):
        raise ValueError(f"tube={tube!r} does not divide the token grid {grid}; (1, 1, 1) is a single token")
    return tube


def _usual_tube(grid: tuple[int, int, int]) -> Tube:
    def merit(counts: tuple[int, ...]) -> tuple[float, float, int]:
        """Tubes as wide as high, then many and about as many along each axis."""
        number = math.prod(counts)
        return -abs(counts[1] - counts[2]), number * min(counts) / max(counts), number

    axes = [[n for n in range(1, size + 1) if size % n == 0] for size in grid]
    counts = max((c for c in itertools.product(*axes) if math.prod(c) <= MOST_TUBES), key=merit)
    return grid[0] // counts[0], grid[1] // counts[1], grid[2] // counts[2]


def tube_numbers(backbone: Backbone, tube: Tube) -> Tensor:
    """The number of each pixel's tube, int64 (1, T, 1, H, W), counted from 0 without a gap: a Captum feature mask."""
    counts = [whole // size for whole, size in zip(backbone.grid, tube, strict=True)]
    numbers = torch.arange(math.prod(counts)).view(*counts)
    for axis, (size, px) in enumerate(zip(tube, _token_px(backbone), strict=True)):
        numbers = numbers.repeat_interleave(size * px, axis)
    return numbers[None, :, None]


def _token_px(backbone: Backbone) -> tuple[int, int, int]:
    return backbone.tubelet_size, backbone.patch_size, backbone.patch_size


def tube_attributions(
    method: str, output: nn.Module, backbone: Backbone, pixel_values: Tensor, baseline: Tensor, targets: list[int],
    tube: Tube, *, passes: int, permutations: int = 10, seed: int = 0, progress: bool = False,
) -> Tensor:  # fmt: skip
    """Attributions of tubes, spread evenly over their tokens: (B, N), by Captum.

    ``occlusion`` (a window that steps by its own size) and ``ablation`` (feature ablation): the output minus what it is
    with the tube replaced. ``shapley``: the mean of that over ``permutations`` random orders in which tubes come in, so
    that all tubes together sum to the output minus the baseline's. ``passes``: clips per forward.
    """
    per_eval = max(1, passes // len(pixel_values))
    device, options = pixel_values.device, {"baselines": baseline, "target": targets, "show_progress": progress}
    with torch.no_grad():
        if method == "occlusion":
            _, _, channels, _, _ = pixel_values.shape
            t, h, w = (size * px for size, px in zip(tube, _token_px(backbone), strict=True))
            found = Occlusion(output).attribute(
                pixel_values, sliding_window_shapes=(t, channels, h, w), strides=(t, channels, h, w),
                perturbations_per_eval=per_eval, **options,
            )  # fmt: skip
        elif method == "ablation":
            found = FeatureAblation(output).attribute(
                pixel_values, feature_mask=tube_numbers(backbone, tube).to(device), perturbations_per_eval=per_eval,
                **options,
            )  # fmt: skip
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                found = ShapleyValueSampling(output).attribute(
                    pixel_values, feature_mask=tube_numbers(backbone, tube).to(device), n_samples=permutations,
                    perturbations_per_eval=per_eval, **options,
                )  # fmt: skip
    t, p, _ = _token_px(backbone)
    per_token = found[:, ::t, 0, ::p, ::p].flatten(1)  # every pixel of a tube carries the tube's number
    return per_token / math.prod(tube)
