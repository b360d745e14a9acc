"""ROAD in three dimensions: take tubes away without leaving a hole that tells where they were.

Remove and debias, Rong and others, https://arxiv.org/abs/2202.00449: every missing pixel becomes the weighted mean of
its neighbours, missing ones among them, which is one sparse linear system; a little noise hides its smoothness. There
the neighbours are those in an image, direct ones twice as heavy as diagonal ones. Here they are the 26 in space and
time, halved with each further axis: 1 for a face, 1/2 for an edge, 1/4 for a corner. Within one frame that is ROAD's
own weighting.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from workbench.analysis.trust.perturb import ExplainedOutput, removed_tubes, tube_pixels, tube_ranks

log = logging.getLogger(__name__)

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""How much is taken away, in turn."""


def linear_imputation(
    pixel_values: torch.Tensor, removed: torch.Tensor, *, noise: float = 0.01, seed: int = 0, tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> torch.Tensor:  # fmt: skip
    """``pixel_values`` (B, T, C, H, W) with its ``removed`` pixels (bool (B, T, 1, H, W)) filled in; the rest
    untouched.

    ``noise``: standard deviation, in the units of ``pixel_values``, of what is added to filled pixels.
    The system is symmetric and positive definite, so conjugate gradients solve it, to a residual of ``tolerance`` of
    its right-hand side; no matrix is built. A clip of which nothing is left becomes its own mean colour.
    """
    if removed.dtype != torch.bool or removed.shape != (*pixel_values.shape[:2], 1, *pixel_values.shape[3:]):
        raise ValueError(
            f"removed is {removed.dtype} {tuple(removed.shape)}; expected bool (B, T, 1, H, W) like the clips"
        )
    mean = pixel_values.mean((1, 3, 4), keepdim=True)
    empty = removed.flatten(1).all(1)
    known = torch.where(removed, torch.zeros_like(pixel_values), pixel_values - mean)
    inside = removed.to(pixel_values.dtype)
    degree = _neighbours(torch.ones_like(inside))  # less at the clip's faces, where there are fewer
    right = inside * _neighbours(known)
    x, residual = torch.zeros_like(known), right
    direction = residual / degree
    power = (residual * direction).sum((1, 3, 4), keepdim=True)  # (B, 1, C, 1, 1): every channel is its own system
    goal = tolerance * right.square().sum((1, 3, 4)).sqrt()
    for _ in range(max_iterations):
        if bool((residual.square().sum((1, 3, 4)).sqrt() <= goal).all()):
            break
        pushed = inside * (degree * direction - _neighbours(direction))
        step = power / (direction * pushed).sum((1, 3, 4), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        x = x + step * direction
        residual = residual - step * pushed
        scaled = residual / degree
        new = (residual * scaled).sum((1, 3, 4), keepdim=True)
        direction = scaled + new / power.clamp_min(torch.finfo(x.dtype).tiny) * direction
        power = new
    else:
        log.warning(
            "imputation stopped after %d iterations, before its residual was below %g", max_iterations, tolerance
        )
    x = torch.where(empty.view(-1, 1, 1, 1, 1), torch.zeros_like(x), x)
    generator = torch.Generator().manual_seed(seed)
    grain = noise * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return torch.where(removed, mean + x + grain, pixel_values)


def road(
    output: ExplainedOutput, values: np.ndarray, *, shares: Sequence[float] = SHARES, noise: float = 0.01, seed: int = 0
) -> np.ndarray:
    """How much more the score suffers when the most important tubes go than when the least important go, (B,).

    The mean over ``shares`` of score(least important removed) - score(most important removed), each imputed by
    :func:`linear_imputation`: in [-1, 1] for a probability, higher is better, and about 0 for a map that knows nothing.
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"shares={list(shares)} must lie between 0 and 1, both excluded; for example {SHARES}")
    ranks = tube_ranks(values, seed=seed)
    gaps = []
    for share in shares:
        kept = []
        for least_first in (True, False):
            gone = tube_pixels(removed_tubes(ranks, share, least_first=least_first), output.pixel_values)
            kept.append(output.scores(linear_imputation(output.pixel_values, gone, noise=noise, seed=seed)))
        gaps.append(kept[0] - kept[1])
    return np.mean(gaps, 0)


def _neighbours(x: torch.Tensor) -> torch.Tensor:
    """Weighted sum over the 26 neighbours, outside the clip nothing: (B, T, C, H, W) -> the same.

    The weights are those of (1/2, 1, 1/2) along each of three axes, times 2, without the middle: so three passes do.
    """
    out = x
    for axis in (1, 3, 4):
        smooth = out.clone()
        length = out.shape[axis]
        if length > 1:
            smooth.narrow(axis, 1, length - 1).add_(out.narrow(axis, 0, length - 1), alpha=0.5)
            smooth.narrow(axis, 0, length - 1).add_(out.narrow(axis, 1, length - 1), alpha=0.5)
        out = smooth
    return 2 * (out - x)
