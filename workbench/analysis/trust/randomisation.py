"""Does a map depend on what the model has learned? Randomise its weights from the head down and see.

Adebayo and others, Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292 (cascading randomisation).
"""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import nn
from tqdm.auto import tqdm

from workbench.models.tml import TML


def shuffle_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Permute the entries of every parameter, in place: what was learned goes, each tensor's distribution stays.

    Fresh draws from a family's own initialiser would shrink trained activations as well, and that alone changes a map.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def cascade(model: TML) -> list[tuple[str, list[nn.Module]]]:
    """Parts of a model from the output down: head, blocks from the last to the first, embedding."""
    backbone = model.backbone
    blocks = [(f"block {i}", [block]) for i, block in reversed(list(enumerate(backbone.blocks)))]
    return [("head", [model.head, backbone.norm]), *blocks, ("embedding", [backbone.embedding])]


def randomisation_cascade(
    explain_run: Callable[[Any], np.ndarray], run: Any, *, device: str = "cpu", seed: int = 0, progress: bool = True
) -> pd.DataFrame:
    """How like its first self a map stays while the model's weights are shuffled, from the head down.

    ``explain_run``: a run -> maps (B, T', H', W') of always the same clips and targets. ``run`` is left as it is.
    One row per stage and clip: ``stage`` ("none", "head", "block 1", ..., "embedding"; each on top of those before it),
    ``clip``, ``spearman`` (rank correlation of the tokens with the unrandomised map) and ``spearman_absolute`` (of
    their absolute values, for signed maps). A map that stays alike to the end shows the clip, not the model.
    """
    trained = explain_run(run)
    model = copy.deepcopy(run.model(device))
    shuffled = SimpleNamespace(model=lambda where: model.to(where), tasks=model.tasks)
    generator = torch.Generator().manual_seed(seed)
    rows = _compare("none", trained, explain_run(run))
    for stage, parts in tqdm(cascade(model), "randomise", disable=not progress, leave=False):
        for part in parts:
            shuffle_weights(part, generator)
        rows += _compare(stage, trained, explain_run(shuffled))
    return pd.DataFrame(rows)


def _compare(stage: str, before: np.ndarray, after: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage, "clip": i, "spearman": rank_correlation(x, y),
            "spearman_absolute": rank_correlation(np.abs(x), np.abs(y)),
        }
        for i, (x, y) in enumerate(zip(before, after, strict=True))
    ]  # fmt: skip


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of two maps; NaN where one is even, for then nothing ranks."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(spearmanr(x.ravel(), y.ravel()).statistic)
