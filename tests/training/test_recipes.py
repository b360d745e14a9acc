"""Recipes against the numbers of their sources, and the rule of scaling by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.data.tables import ClipTable, Task
from workbench.training.recipes import RECIPES, recipe, recipe_sources
from workbench.training.setup import Setup

ACTION = Task("action", "multiclass", ("a", "b"))
QUALITY = Task("quality", "regression")


def table(n: int, *tasks: Task) -> ClipTable:
    """``n`` training clips and one of val; nothing is read from disk."""
    frame = pd.DataFrame({
        "clip_id": [f"c{i}" for i in range(n + 1)], "path": "a.mp4", "start_seconds": np.nan, "end_seconds": np.nan,
        "split": ["train"] * n + ["val"], "group": [f"g{i}" for i in range(n + 1)],
        "action": "a", "quality": 1.0,
    })  # fmt: skip
    return ClipTable(frame, tasks or (ACTION,), root=Path("."))


# Read from the files that the module names; the rates are per 256 clips there, and for the whole batch here.
PUBLISHED: dict[str, dict[str, Any]] = {
    "videomae-ucf101": {
        "strategy": "llrd:0.7", "optimizer": "adamw", "lr": 5e-4 * 128 / 256, "weight_decay": 0.05, "drop_path": 0.2,
        "epochs": 100, "test_clips": 5, "test_crops": 3, "sampling": "dense", "sampling_rate": 4, "warmup": 0.05,
        "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "rand_augment": 4, "magnitude": 7.0, "erasing": 0.25,
    },
    "finetune": {
        "strategy": "llrd:0.75", "optimizer": "adamw", "betas": (0.9, 0.999), "lr": 7.5e-4, "weight_decay": 0.05,
        "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "rand_augment": 4, "magnitude": 7.0, "erasing": 0.25,
        "drop_path": 0.1,
    },
    "vjepa2-attentive": {"strategy": "attentive", "head_lr": 1e-3, "weight_decay": 0.01, "epochs": 20, "warmup": 0.0},
    "st-adapter": {"strategy": "adapter:384", "lr": 1e-3, "weight_decay": 0.01, "epochs": 50, "warmup": 0.04},
    "bitfit": {"strategy": "bitfit", "lr": 1e-3, "epochs": 16, "batch_size": 8},
    "lora": {"strategy": "lora:8", "lr": 7.5e-3, "head_lr": 7.5e-4, "weight_decay": 0.1, "warmup": 0.06},
    "linear": {"strategy": "linear", "head_lr": 5e-3, "weight_decay": 0.0, "epochs": 90},
}  # fmt: skip
BATCHES = {"videomae-ucf101": 128, "finetune": 384, "vjepa2-attentive": 256, "st-adapter": 256, "lora": 384}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_without_clips_is_the_published_one(name: str) -> None:
    setup = recipe(name)
    assert {key: getattr(setup, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    if name in BATCHES:
        assert setup.batch_size * setup.accumulation == BATCHES[name]
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup


def test_every_recipe_is_held_to_its_source() -> None:
    assert set(PUBLISHED) == set(RECIPES)


def test_recipe_scales_the_rate_with_the_square_root_of_the_batch() -> None:
    setup = recipe("videomae-ucf101", table(800))
    assert (setup.batch_size, setup.accumulation, setup.epochs) == (16, 1, 100)
    assert setup.lr == pytest.approx(2.5e-4 * math.sqrt(16 / 128), rel=1e-3)
    assert recipe("videomae-ucf101", table(800), batch_size=128).lr == pytest.approx(2.5e-4)
    assert recipe("videomae-ucf101", table(800), accumulation=8).lr == pytest.approx(2.5e-4)
    linear = recipe("videomae-ucf101", table(800), optimizer="sgd", batch_size=64)
    assert linear.lr == pytest.approx(1.25e-4)


def test_recipe_takes_eight_batches_of_few_clips_and_enough_epochs() -> None:
    setup = recipe("vjepa2-attentive", table(100))
    assert setup.batch_size == 12  # 100 / 8
    assert setup.epochs == 34  # nine steps an epoch, 300 in all
    assert recipe("bitfit", table(10)).epochs == 60  # five steps an epoch, 300 in all
    assert recipe("bitfit", table(4)).epochs == 64  # two steps an epoch: four times the source's 16 at most
    assert recipe("vjepa2-attentive", table(4000)).batch_size == 256  # a frozen backbone: the source's


def test_recipe_shows_no_more_clips_than_the_source_did() -> None:
    assert recipe("videomae-ucf101", table(2 * 9537)).epochs == 50
    assert recipe("videomae-ucf101", table(9537)).epochs == 100


def test_recipe_mixes_no_values() -> None:
    both = table(64, ACTION, QUALITY)
    assert [getattr(recipe("finetune", both), key) for key in ("mixup", "cutmix", "rand_augment")] == [0, 0, 0]
    only = recipe("finetune", both, tasks="action")
    assert (only.tasks, only.mixup, only.cutmix, only.rand_augment) == (("action",), 0.8, 1.0, 4)
    assert recipe("finetune", both, mixup=0.3).mixup == 0.3  # said so: the last word
    mixed = recipe("finetune", both, mix_regression=True)
    assert (mixed.mixup, mixed.cutmix, mixed.rand_augment, mixed.mix_regression) == (0.8, 1.0, 0, True)
    rows = recipe_sources("finetune", both).set_index("field")
    assert rows.source["mixup"].startswith("off: quality is regression; else 0.8 (github.com/MCG-NJU")


def test_recipe_of_a_strategy_is_the_nearest() -> None:
    assert recipe("lora:4").replace(strategy="lora:8") == recipe("lora")
    assert recipe("adapter").strategy == "adapter:64" and recipe("adapter").lr == 1e-3
    assert recipe("full").replace(strategy="llrd:0.75") == recipe("finetune")
    frozen = recipe("finetune", table(64), strategy="linear")
    assert frozen.rates[0] == 0.0 and frozen.batch_size == 8


def test_recipe_sources_gives_a_source_for_every_field_it_sets() -> None:
    for name in RECIPES:
        for clips in (None, table(200)):
            rows, setup = recipe_sources(name, clips, ema=0.99), recipe(name, clips, ema=0.99)
            assert list(rows.columns) == ["field", "value", "source"] and rows.source.str.len().min() > 0
            fields = rows[rows.field != "not here"]
            assert fields.field.is_unique
            assert all(getattr(setup, row.field) == row.value for row in fields.itertuples())
            # What it does not name is as in any setup.
            plain = Setup().replace(**{row.field: row.value for row in fields.itertuples()})
            assert plain == setup
            assert rows.set_index("field").source["ema"] == "given"


def test_recipe_says_what_is_known() -> None:
    with pytest.raises(ValueError, match="recipe 'resnet' is not known; use one of finetune, videomae-ucf101"):
        recipe("resnet")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        recipe("finetune", colour=1)
