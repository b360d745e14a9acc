"""Small true objects to show: clips on disk, a run's predictions and history, a comparison and maps."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.analysis.maps import Maps
from workbench.data.clips import write_clip
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, DatasetInfo, Task

HOSTILE = "<img src=x onerror=alert(1)>"
TASKS = (
    Task("action", "multiclass", ("left", "right", "up", "down")),
    Task("safety", "binary", ("safe", "flashing")),
    Task("quality", "regression"),
)
PROTOCOL = Protocol(num_frames=16, size_px=64)


@dataclass
class StandInRun:
    """What the views read of a run."""

    name: str
    predictions: pd.DataFrame
    history: pd.DataFrame
    record: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[Task, ...] = TASKS
    protocol: Protocol = PROTOCOL


def moving_square(direction: int, *, seed: int = 0, frames: int = 16, size: int = 64) -> np.ndarray:
    """uint8 (T, H, W, 3): a bright textured square moving left, right, up or down over a dim background."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(30, 90, (8, 8, 3)).repeat(size // 8, 0).repeat(size // 8, 1)
    colour = rng.integers(120, 255, 3)
    clip = np.repeat(ground[None], frames, 0).astype(np.uint8)
    for t in range(frames):
        along, across = 4 + round((size - 24) * t / (frames - 1)), size // 2 - 8
        x, y = [(size - 20 - along, across), (along, across), (across, size - 20 - along), (across, along)][direction]
        clip[t, y : y + 16, x : x + 16] = colour
    return clip


def make_run(
    name: str, skill: float, *, seed: int = 0, n: int = 60, tasks: tuple[Task, ...] = TASKS, files: int = 12
) -> StandInRun:
    """A run that is right with probability ``skill``; its clips lie in twelve groups and name files c0..c11."""
    rng, truth = np.random.default_rng(seed + 1), np.random.default_rng(7)
    lines: list[dict[str, Any]] = []
    for task in tasks:
        k = max(2, len(task.classes))
        targets = truth.random(n) if task.kind == "regression" else truth.permutation(np.arange(n) % k).astype(float)
        for i, target in enumerate(targets):
            line = {"clip_id": f"clip {i}", "path": f"c{i % files}.mp4", "group": f"g{i % 12}", "split": "test"}
            probabilities: list[float] = []
            if task.kind == "regression":
                guess = float(np.clip(target + rng.normal(0, 1.05 - skill), 0, 1))
            else:
                guess = float(target if rng.random() < skill else rng.integers(k))
                sure = 0.5 + 0.5 * rng.random()
                probabilities = [sure if c == guess else (1 - sure) / (k - 1) for c in range(k)]
            lines.append(
                line | {"task": task.name, "target": target, "prediction": guess, "probabilities": probabilities}
            )
    epochs = np.arange(1, 9)
    history = pd.DataFrame({"epoch": epochs, "train_loss": 1.6 * np.exp(-epochs * skill / 4)})
    history["val_score"] = skill * (1 - np.exp(-epochs / 2)) + rng.normal(0, 0.01, 8)
    history["val_action"] = history["val_score"] * 0.9
    record = {
        "kept_epoch": 6, "setup": {"backbone": "nano", "strategy": name, "lr": 8e-4, "seed": seed, "tasks": ["action"]},
        "parameters": {"trainable": int(2e6 * skill), "total": 2_400_000},
        "timings": {"train_seconds": 40 * skill, "clips_per_second": 210.0},
        "data": {"quarantined": 1},
    }  # fmt: skip
    return StandInRun(name, pd.DataFrame(lines), history, record, tasks)


def make_maps(method: str, *, clips: int = 3, seed: int = 0, ids: tuple[str, ...] = ()) -> Maps:
    """Maps on a (4, 8, 8) grid over moving squares; attention has 2 layers and 3 heads."""
    rng = np.random.default_rng(seed)
    signed = method == "integrated_gradients"
    frames = np.stack([moving_square(i % 4, seed=i) for i in range(clips)])
    bright = frames.max(-1).reshape(clips, 4, 4, 8, 8, 8, 8).max((2, 4, 6)) / 255.0  # (B, 4, 8, 8)
    values = bright**4 + 0.1 * rng.random(bright.shape)
    values = values / values.sum((1, 2, 3), keepdims=True)
    if signed:
        values = values - 0.3 * rng.random(bright.shape) / bright[0].size * 3
    if method == "attention":
        values = np.stack([np.stack([values ** (1 + a + la) for a in range(3)], 1) for la in range(2)], 1)
        values = values / values.sum((3, 4, 5), keepdims=True)
    extra: dict[str, Any] = {}
    if signed:
        extra = {"baseline": "blur", "completeness_error": np.full(clips, 0.004), "steps": np.full(clips, 64)}
    names = ids or tuple(f"clip {i}" for i in range(clips))
    target = tuple(TASKS[0].classes[i % 4] for i in range(clips))
    return Maps(method, "action", target, values.astype(np.float32), signed, frames, names, **extra)


def make_table(folder: Path, *, n: int = 12) -> ClipTable:
    """Twelve real files c0.mp4 .. c11.mp4 in ``folder`` and the table of them."""
    for i in range(n):
        write_clip(folder / f"c{i}.mp4", moving_square(i % 4, seed=i), 8.0)
    frame = pd.DataFrame(
        {
            "clip_id": [f"clip {i}" for i in range(n)], "path": [f"c{i}.mp4" for i in range(n)],
            "start_seconds": np.nan, "end_seconds": np.nan, "split": "test", "group": [f"g{i}" for i in range(n)],
            "action": [TASKS[0].classes[i % 4] for i in range(n)], "safety": [i % 2 for i in range(n)],
            "quality": np.linspace(0, 1, n),
        }
    )  # fmt: skip
    return ClipTable(frame, TASKS, root=folder, info=DatasetInfo(name="squares", licence="CC0-1.0"))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipTable:
    return make_table(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def runs() -> dict[str, StandInRun]:
    return {n: make_run(n, s, seed=i) for i, (n, s) in enumerate([("scratch", 0.3), ("linear", 0.6), ("full", 0.85)])}
