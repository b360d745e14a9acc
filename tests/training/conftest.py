"""A tiny backbone and a tiny table of real video files: bright squares that move left or right."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from workbench.data.clips import write_clip
from workbench.data.tables import ClipTable, DatasetInfo, Task

TASKS = (
    Task("direction", "multiclass", ("left", "right")),
    Task("bright", "binary"),
    Task("speed", "regression"),
)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, tubelet_size=4, hidden_size=48, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=96, use_mean_pooling=True, num_labels=3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        VideoMAEForVideoClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return str(folder)


def moving_square(rng: np.random.Generator, left: bool, bright: bool, speed: float) -> np.ndarray:
    """Eight frames of 32 px: a square over grey noise; its middle position is random."""
    frames = rng.integers(40, 80, (8, 32, 32, 3), dtype=np.uint8)
    x0, y0 = rng.integers(10, 16), rng.integers(4, 20)
    for t in range(8):
        x = int(np.clip(x0 + (-1 if left else 1) * speed * (t - 3.5), 0, 26))
        frames[t, y0 : y0 + 7, x : x + 7] = 250 if bright else 140
    return frames


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory: pytest.TempPathFactory) -> ClipTable:
    root, rng, rows = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    for i in range(32):
        left, bright, speed = bool(i % 2), bool(i // 2 % 2), 1.0 + (i % 5) / 2
        write_clip(root / f"{i:02d}.mp4", moving_square(rng, left, bright, speed), fps=8, crf=10)
        rows.append({
            "clip_id": f"clip{i:02d}", "path": f"{i:02d}.mp4", "start_seconds": np.nan, "end_seconds": np.nan,
            "split": "train" if i < 16 else "val" if i < 24 else "test", "group": f"g{i // 2}",
            "direction": "left" if left else "right", "bright": float(bright), "speed": speed,
        })  # fmt: skip
    frame = pd.DataFrame(rows)
    # Missing labels, as where data sets are mixed.
    frame.loc[[3, 17, 25], "speed"] = np.nan
    frame.loc[[5], "direction"] = None
    return ClipTable(frame, TASKS, root=root, info=DatasetInfo(name="squares"))


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"
