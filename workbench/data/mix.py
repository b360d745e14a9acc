"""Two clips as one: mixup and CutMix, on the device, in batch. PyTorch, any device.

A mixed clip has two labels. They are not blended here: a :class:`Pairing` says whose label is the second and what the
first one weighs, so that a loss can leave out whichever of the two is missing.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairing:
    """Row i of a mixed batch shows clip i with ``weight`` and clip ``partner[i]`` with ``1 - weight``."""

    partner: Tensor
    """int64 (B,), on the clips' device: a permutation of the rows, so both sides hold the same labels."""
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight={self.weight} must lie between 0 and 1")

    def blended(self, values: Tensor) -> Tensor:
        """(B, ...) -> each row and its partner, weighed; NaN where either is."""
        return self.weight * values + (1 - self.weight) * values[self.partner]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Mix every clip of a batch with another one of it. With both kinds on, each batch takes either by even chance."""

    mixup: float = 0.0
    """alpha of the Beta(alpha, alpha) that the weight is drawn from, one per batch; 0: never. The clips are averaged.
    https://arxiv.org/abs/1710.09412."""
    cutmix: float = 0.0
    """The same for a box of the partner, through all frames, in place of the clip's own; the weight is the share of the
    picture that stays. https://arxiv.org/abs/1905.04899."""

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 (off) or the alpha of a Beta distribution")
        if not self.mixup and not self.cutmix:
            raise ValueError("mixup=0 and cutmix=0: nothing to mix; give one of them an alpha, or make no Mix")

    def __call__(self, clips: Tensor, generator: torch.Generator) -> tuple[Tensor, Pairing]:
        """uint8 (B, T, H, W, C) -> the same, mixed, and who was mixed with whom.

        All chance comes from ``generator``, wherever that is; one on the CPU gives the same mix on every device.
        """
        seed = torch.randint(2**63 - 1, (), device=generator.device, generator=generator)
        rng = np.random.default_rng(int(seed))  # torch draws no Beta from a generator of one's own
        cuts = rng.random() < 0.5 if self.mixup and self.cutmix else bool(self.cutmix)
        alpha = self.cutmix if cuts else self.mixup
        weight = float(rng.beta(alpha, alpha))
        # A batch is in random order already; a step round it leaves no clip its own partner.
        step = int(rng.integers(1, len(clips))) if len(clips) > 1 else 0
        partner = torch.arange(len(clips), device=clips.device).roll(step)
        if not cuts:
            pairing = Pairing(partner, weight)
            return pairing.blended(clips.float()).round_().to(torch.uint8), pairing
        rows, columns = _box(clips.shape[2], clips.shape[3], 1 - weight, rng)
        mixed = clips.clone()
        mixed[:, :, rows, columns] = clips[partner][:, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, Pairing(partner, 1 - area / (clips.shape[2] * clips.shape[3]))


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """A box of the frame's shape and about ``share`` of its area, centred anywhere, less what lies outside."""
    sides = []
    for length in (height, width):
        half, centre = length * math.sqrt(share) / 2, rng.uniform(0, length)
        sides.append(slice(max(0, round(centre - half)), min(length, round(centre + half))))
    return sides[0], sides[1]
