"""A run whose model is a formula: what it says of a clip can be worked out by hand."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from workbench.data.clips import write_clip
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

TASKS = (
    Task("action", "multiclass", ("dim", "lit")),
    Task("safety", "binary", ("safe", "bright")),
    Task("quality", "regression"),
)
FPS = 10


class _Pixels:
    device = torch.device("cpu")

    def prepare(self, clips: Tensor) -> Tensor:
        return clips.float() / 255


class Brightness(nn.Module):
    """The logit of *safety* is 10 (b - 1/2), of *lit* 4 (b - 1/2), *quality* is b: b in 0..1, the mean brightness."""

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        super().__init__()
        self.tasks, self.backbone = tasks, _Pixels()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        b = x.mean((1, 2, 3, 4))
        said = {"multiclass": torch.stack([0 * b, 4 * (b - 0.5)], 1), "binary": 10 * (b - 0.5), "regression": b}
        return {task.name: said[task.kind] for task in self.tasks}


def probability(level: float) -> float:
    """Of *safety*, for clips of this mean grey level."""
    return float(1 / (1 + np.exp(-10 * (level / 255 - 0.5))))


@dataclass
class BrightRun:
    name: str = "bright"
    tasks: tuple[Task, ...] = TASKS
    protocol: Protocol = field(default_factory=lambda: Protocol(num_frames=4, size_px=32, decoder="pyav"))
    standard: dict[str, tuple[float, float]] = field(default_factory=lambda: {"quality": (0.0, 1.0)})

    def model(self, device: str = "cpu") -> Any:
        return Brightness(self.tasks)

    @property
    def predictions(self) -> pd.DataFrame:
        """Twenty val clips, a positive for every fourth; their scores are 0.02, 0.06 ... 0.78."""
        rows = [
            {"clip_id": f"v{i}", "path": f"v{i}.mp4", "group": f"g{i}", "split": "val", "task": "safety",
             "target": float(i % 4 == 3), "prediction": 0.0, "probabilities": [0.98 - 0.04 * i, 0.02 + 0.04 * i]}
            for i in range(20)
        ]  # fmt: skip
        return pd.DataFrame(rows)


def grey_video(path: Path, levels: list[float], *, fps: int = FPS, size: int = 32) -> Path:
    """One frame per level."""
    frames = np.repeat(np.round(levels).astype(np.uint8), size * size * 3).reshape(-1, size, size, 3)
    return write_clip(path, frames, fps=fps, crf=4)
