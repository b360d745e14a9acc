"""What the notebooks under test show: true objects, made by hand or by numpy, that need no training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.predictions import Predictions
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

ACTIONS = ("left", "right", "up", "down")
TASK = Task("action", "multiclass", ACTIONS)
CLIPS = 2000


def table(seed: int, skill: float) -> pd.DataFrame:
    """Predictions of 2,000 clips of 12 files; right with probability ``skill``."""
    rng, truth = np.random.default_rng(seed), np.arange(CLIPS) % 4
    said = np.where(rng.random(CLIPS) < skill, truth, rng.integers(4, size=CLIPS))
    sure = 0.4 + 0.55 * rng.random(CLIPS)
    probabilities = np.repeat((1 - sure)[:, None] / 3, 4, 1)
    probabilities[np.arange(CLIPS), said] = sure
    return pd.DataFrame(
        {
            "clip_id": [f"clip {i}" for i in range(CLIPS)], "path": [f"c{i % 12}.mp4" for i in range(CLIPS)],
            "group": [f"g{i % 50}" for i in range(CLIPS)], "split": "test", "task": "action",
            "target": truth.astype(float), "prediction": said.astype(float), "probabilities": list(probabilities),
        }
    )  # fmt: skip


def predictions(name: str, seed: int, skill: float) -> Predictions:
    return Predictions(name, (TASK,), table(seed, skill), Protocol(num_frames=16, size_px=64))


def notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells."""
    made: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": c, "outputs": [], "execution_count": None}
        for i, c in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(book), encoding="utf-8")
    return path
