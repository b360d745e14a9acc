"""How much of a map lies where the evidence is known to lie. All on the token grid, one number per clip.

``values`` (B, T', H', W') and ``mask`` bool (B, T', H', W'). Only what speaks for the target counts: negative values
are set to zero where mass is measured, and left as they are where tokens are ranked.
"""

import numpy as np


def pointing_hit(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """1 where the largest token lies in the mask, else 0, (B,): the pointing game in space and time.

    Ties share: if k tokens are largest and j of them lie in the mask, j / k. An even map thus scores what chance would.
    Zhang and others, https://arxiv.org/abs/1608.00507
    """
    flat, inside = _flat(values, mask)
    best = flat == flat.max(1, keepdims=True)
    return (best & inside).sum(1) / best.sum(1)


def mass_in_mask(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of the positive mass that lies in the mask, (B,); the mask's own share of the clip where there is none."""
    flat, inside = _flat(values, mask)
    return _share(np.maximum(flat, 0), inside)


def temporal_mass(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of the positive mass at the time steps that the mask reaches, wherever in the frame, (B,)."""
    _flat(values, mask)
    steps = np.broadcast_to(mask.any((2, 3), keepdims=True), mask.shape)
    return mass_in_mask(values, steps)


def mask_auroc(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Chance that a token in the mask ranks above one outside, ties half, (B,). NaN where one side is empty."""
    flat, inside = _flat(values, mask)
    found = np.full(len(flat), np.nan)
    for i, (row, member) in enumerate(zip(flat, inside, strict=True)):
        if member.any() and not member.all():
            more, equal = row[member][:, None] > row[~member], row[member][:, None] == row[~member]
            found[i] = (more + 0.5 * equal).mean()
    return found


MASK_METRICS = {"pointing": pointing_hit, "mass": mass_in_mask, "temporal_mass": temporal_mass, "auroc": mask_auroc}
"""What can be measured where the evidence is known. Higher is better for all four."""


def _flat(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if values.ndim != 4 or values.shape != mask.shape or mask.dtype != bool:
        raise ValueError(
            f"values {values.shape} and mask {mask.dtype} {mask.shape} must both be (B, T', H', W'), the mask bool"
        )
    return values.reshape(len(values), -1).astype(np.float64), mask.reshape(len(mask), -1)


def _share(positive: np.ndarray, inside: np.ndarray) -> np.ndarray:
    total = positive.sum(1)
    share = (positive * inside).sum(1) / np.where(total > 0, total, 1)
    return np.where(total > 0, share, inside.mean(1))
