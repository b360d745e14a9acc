"""What the tests of trust share: a model that is a sum over tubes, and tiny models trained on planted clips."""

from functools import cache

import numpy as np
import torch
from torch import nn

from workbench.analysis.trust.lab import PlantedRun, train_planted
from workbench.analysis.trust.perturb import ExplainedOutput
from workbench.data.synthetic.planted import PlantedClips, planted_clips
from workbench.data.tables import Task

GRID = (2, 3, 3)


class TubeSum(nn.Module):
    """output(x) = sum over tubes of weights[tube] * mean of x over the tube; grid (2, 3, 3), clips (4, 1, 6, 6)."""

    def __init__(self, weights: np.ndarray, kind: str = "regression") -> None:
        super().__init__()
        self.weights, self.kind = torch.from_numpy(weights).float(), kind

    def task(self, name: str) -> Task:
        return Task(name, self.kind)

    def means(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), 2, 2, 3, 2, 3, 2).mean((2, 4, 6))  # C = 1

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": (self.means(x) * self.weights).sum((1, 2, 3))}


def tube_sum(n: int = 3, seed: int = 0, kind: str = "regression") -> tuple[ExplainedOutput, torch.Tensor, np.ndarray]:
    """The output, a fill, and the exact attributions (n, 2, 3, 3): what each tube adds beyond the fill."""
    generator = torch.Generator().manual_seed(seed)
    x, x0 = (torch.rand(n, 4, 1, 6, 6, generator=generator) for _ in range(2))
    model = TubeSum(np.random.default_rng(seed).normal(size=GRID), kind)
    exact = (model.means(x) - model.means(x0)) * model.weights
    return ExplainedOutput(model, "sum", x, [0] * n), x0, exact.numpy()


@cache
def trained(family: str = "videomae", head: str = "mean") -> PlantedRun:
    return train_planted(family, planted_clips(512, seed=1), held_out(), seed=0, head=head)


@cache
def held_out() -> PlantedClips:
    return planted_clips(128, seed=2)
