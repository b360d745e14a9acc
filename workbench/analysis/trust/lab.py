"""Tiny models of each family trained on planted clips in seconds: the bench on which explanations are tested."""

import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from workbench.data.synthetic.planted import PlantedClips
from workbench.data.tables import Task
from workbench.models.backbones import Backbone, load_backbone
from workbench.models.tml import TML

log = logging.getLogger(__name__)

_SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_VIDEO: dict[str, Any] = _SIZES | {"image_size": 32, "num_frames": 8, "patch_size": 8, "intermediate_size": 96}
CONFIGS: dict[str, dict[str, Any]] = {
    "videomae": _VIDEO | {"tubelet_size": 2, "use_mean_pooling": True},
    "vivit": _VIDEO | {"tubelet_size": [2, 8, 8]},
    "timesformer": _VIDEO | {"attention_type": "divided_space_time"},
    "vjepa2": _SIZES
    | {"crop_size": 32, "frames_per_clip": 8, "patch_size": 8, "tubelet_size": 2, "mlp_ratio": 2,
       "pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
}  # fmt: skip
"""Two blocks of width 48 for eight frames of 32 px: 64 tokens, TimeSformer 128."""


@dataclass(frozen=True, repr=False)
class PlantedRun:
    """A trained tiny model where a run is wanted: it has ``model(device)`` and ``tasks``."""

    tml: TML
    accuracy: dict[str, float]
    """Share of right answers per task on the clips held out."""
    steps: int

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.tml.tasks

    def model(self, device: str) -> TML:
        return self.tml.to(device)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in self.accuracy.items())
        return f"PlantedRun of a tiny {self.tml.backbone.family}: {self.steps} steps, accuracy {shown}"


def tiny_backbone(family: str, *, seed: int = 0) -> Backbone:
    """A freshly initialised tiny backbone of one of :data:`CONFIGS`. Raises ValueError on another family."""
    if family not in CONFIGS:
        raise ValueError(f"family={family!r} has no tiny configuration; those that have are {', '.join(CONFIGS)}")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({"model_type": family} | CONFIGS[family]), encoding="utf-8")
        record = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 32}, "crop_size": 32}
        config.with_name("preprocessor_config.json").write_text(json.dumps(record), encoding="utf-8")
        return load_backbone(folder, weights="random", seed=seed)


def train_planted(
    family: str, train: PlantedClips, held_out: PlantedClips, *, seed: int = 0, head: str = "mean", steps: int = 1000,
    batch_size: int = 32, lr: float = 2e-3, enough: float = 0.99,
) -> PlantedRun:  # fmt: skip
    """Train a tiny model of ``family`` on planted clips in float32, on the CPU.

    It stops when every task's accuracy on ``held_out`` reaches ``enough``, looked at every 50 steps, or after
    ``steps``; a map of a model that has not learned the evidence says nothing about the method, so look at
    ``accuracy``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = TML(tiny_backbone(family, seed=seed), train.tasks, head=head)
    # The usual deviation of 0.02 is made for widths of hundreds; at 48 it leaves attention even for hundreds of steps.
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    rng = np.random.default_rng(seed)
    labels = {name: torch.from_numpy(value) for name, value in train.labels.items()}
    step, accuracy = 0, {name: 0.0 for name in labels}
    while step < steps and min(accuracy.values()) < enough:
        model.train()
        for _ in range(50):
            rows = rng.integers(len(train), size=batch_size)
            outputs = model(model.backbone.prepare(torch.from_numpy(train.frames[rows])))
            loss = torch.stack([F.cross_entropy(outputs[name], labels[name][rows]) for name in labels]).sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        step += 50
        accuracy = planted_accuracy(model, held_out)
        log.info("%s, step %d: accuracy %s", family, step, accuracy)
    return PlantedRun(model.eval(), accuracy, step)


@torch.no_grad()
def planted_accuracy(model: TML, clips: PlantedClips) -> dict[str, float]:
    """Share of right answers per task; puts the model in eval mode."""
    model.eval()
    found: dict[str, list[np.ndarray]] = {name: [] for name in clips.labels}
    for first in range(0, len(clips), 64):
        outputs = model(model.backbone.prepare(torch.from_numpy(clips.frames[first : first + 64])))
        for name, rows in found.items():
            rows.append(outputs[name].argmax(-1).numpy())
    return {name: float((np.concatenate(rows) == clips.labels[name]).mean()) for name, rows in found.items()}
