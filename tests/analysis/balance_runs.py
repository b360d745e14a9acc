"""Predictions of balances that never trained: two tasks, known to be right on a given share of the clips."""

import numpy as np
import pandas as pd

from workbench.analysis.predictions import Predictions
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

A, B = (Task(name, "multiclass", ("x", "y")) for name in "ab")
SEEDS, N = tuple(range(6)), 100


def runs(a: float, b: float, val: tuple[float, float] | None = None) -> dict[int, Predictions]:
    """Six runs that are right on these shares of the clips, which lie in twenty groups."""
    found = {}
    for seed in SEEDS:
        frames = []
        for split, shares in (("test", (a, b)), ("val", val or (a, b))):
            for task, share in zip((A, B), shares, strict=True):
                right = np.random.default_rng([seed, ord(task.name)]).permutation(N) < round(share * N)
                frames.append(pd.DataFrame({
                    "clip_id": [f"{split}{i:03d}" for i in range(N)], "task": task.name, "split": split,
                    "group": [f"g{i % 20:02d}" for i in range(N)], "target": 0.0,
                    "prediction": np.where(right, 0.0, 1.0),
                    "probabilities": [[1.0, 0.0] if r else [0.0, 1.0] for r in right],
                }))  # fmt: skip
        protocol = Protocol(num_frames=8, size_px=32)
        found[seed] = Predictions("run", (A, B), pd.concat(frames, ignore_index=True), protocol)
    return found


STATIC = {"sum": runs(0.5, 0.5), "static:a=4": runs(0.7, 0.3), "static:b=4": runs(0.2, 0.45)}
