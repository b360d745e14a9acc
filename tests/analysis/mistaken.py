"""Predictions made by hand for the tests of mistakes: every number in them is chosen."""

from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.predictions import Predictions
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

PROTOCOL = Protocol(num_frames=16, size_px=64)
KIND = Task("kind", "multiclass", tuple("abcdef"))
FLASH = Task("flash", "binary", ("safe", "flashing"))
SCORE = Task("score", "regression")


def made(
    task: Task, target: Any, prediction: Any, probabilities: np.ndarray | None = None, *, groups: Any = None,
    split: str | list[str] = "test",
) -> Predictions:  # fmt: skip
    """A table of clips ``c00000, c00001, ...``."""
    n = len(target)
    frame = pd.DataFrame(
        {
            "clip_id": [f"c{i:05d}" for i in range(n)], "path": [f"c{i}.mp4" for i in range(n)], "task": task.name,
            "target": np.asarray(target, float), "prediction": np.asarray(prediction, float), "split": split,
            "group": [f"g{g}" for g in (range(n) if groups is None else groups)],
        }
    )  # fmt: skip
    if probabilities is not None:
        frame["probabilities"] = [list(map(float, p)) for p in probabilities]
    return Predictions("by hand", (task,), frame, PROTOCOL)


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def failing(
    seed: int, *, n: int = 240, clips_per_group: int = 4, dark_wrong: float | None = None, wrong: float = 0.15
) -> tuple[Predictions, pd.DataFrame, np.ndarray]:
    """A run whose clips of one group err together, eight properties, and the darkest sixth (where it may err more)."""
    rng, count = np.random.default_rng(seed), n // clips_per_group
    group = np.arange(n) // clips_per_group
    facts = pd.DataFrame({"clip_id": [f"c{i:05d}" for i in range(n)]})
    for name in ("brightness", "motion", "seconds", "sharpness", "contrast"):
        facts[name] = 0.8 * rng.normal(size=count)[group] + 0.6 * rng.normal(size=n)
    facts["camera"] = rng.choice(list("xyz"), count)[group]
    facts["weather"] = rng.choice(["sun", "rain", "fog"], n)
    facts["people"] = rng.integers(0, 4, n)
    dark = (facts.brightness <= facts.brightness.quantile(1 / 6)).to_numpy()
    logit = np.log(wrong / (1 - wrong)) + rng.normal(size=count)[group]
    chance = 1 / (1 + np.exp(-logit))
    if dark_wrong is not None:
        chance = np.where(dark, dark_wrong, chance)
    truth = rng.integers(0, 6, n)
    said = np.where(rng.random(n) < chance, (truth + rng.integers(1, 6, n)) % 6, truth)
    return made(KIND, truth, said, groups=group), facts, dark
