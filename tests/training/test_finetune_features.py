"""A frozen strategy trains its head on stored features, through the same loop, to the same run."""

import logging
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.training.killed import starter
from workbench.data.tables import ClipTable
from workbench.training.feed import FEATURE_VIEWS, feed, stored_views
from workbench.training.finetune import fine_tune
from workbench.training.predict import predict_table
from workbench.training.probing import encoding
from workbench.training.probing.features import Features
from workbench.training.runs import Run, build_model
from workbench.training.setup import Setup

QUIET: dict[str, Any] = {"device": "cpu", "workers": 1, "progress": False}


def setup_for(checkpoint: str, strategy: str, **changes: Any) -> Setup:
    options: dict[str, Any] = {"backbone": checkpoint, "epochs": 2, "batch_size": 6, "precision": "fp32"}
    return Setup(strategy=strategy, **(options | changes))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "weights.safetensors")


@pytest.mark.parametrize("strategy", ["linear", "attentive"])
def test_fine_tune_on_plain_features_is_the_ordinary_run(
    tiny_checkpoint: str, tiny_table: ClipTable, runs_dir: Path, strategy: str
) -> None:
    setup = setup_for(tiny_checkpoint, strategy, augment=False)
    stored = fine_tune(setup, tiny_table, runs_dir=runs_dir, **QUIET)
    ordinary = fine_tune(setup.replace(feature_views=0), tiny_table, runs_dir=runs_dir, **QUIET)
    dtype = "float32" if strategy == "linear" else "float16"
    kind = "pooled" if strategy == "linear" else "tokens"
    assert stored.record["features"] == {"kind": kind, "views": 1, "dtype": dtype}
    assert ordinary.record["features"] is None and ordinary.record["timings"]["encode_seconds"] == 0
    assert weights(stored).keys() == weights(ordinary).keys()
    # Same clips in the same order: what is left is rounding, of float16 for the tokens.
    atol = 1e-5 if strategy == "linear" else 5e-3
    for column in ("train_loss", "val_loss"):
        assert np.allclose(stored.history[column], ordinary.history[column], atol=atol)
    assert np.allclose(stored.predictions.prediction, ordinary.predictions.prediction, atol=atol)


@pytest.mark.parametrize("strategy", ["linear", "attentive"])
def test_run_on_features_predicts_from_clips_what_it_recorded(
    tiny_checkpoint: str, tiny_table: ClipTable, runs_dir: Path, strategy: str
) -> None:
    setup = setup_for(tiny_checkpoint, strategy, sampling="dense", test_clips=2, test_crops=3)
    run = fine_tune(setup, tiny_table, runs_dir=runs_dir, **QUIET)
    assert run.setup.feature_views == FEATURE_VIEWS and run.record["features"]["views"] == FEATURE_VIEWS
    assert run.protocol.level == "video"
    said = predict_table(run, tiny_table, split="test", device="cpu").reset_index(drop=True)
    stored = run.predictions.query("split == 'test'").reset_index(drop=True)
    atol = 1e-5 if strategy == "linear" else 2e-3
    for a, b in zip(said.probabilities, stored.probabilities, strict=True):
        assert np.allclose(a, b, atol=atol)
    assert np.allclose(said.prediction, stored.prediction, atol=atol)
    # And the backbone is the checkpoint's own.
    fresh = build_model(run.setup, run.tasks)
    for (name, a), (_, b) in zip(fresh.named_parameters(), run.model().named_parameters(), strict=True):
        assert torch.equal(a, b) == name.startswith("backbone."), name


def test_fine_tune_encodes_once_for_all_seeds_heads_rates_and_tasks(
    tiny_checkpoint: str, tiny_table: ClipTable, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    setup, sizes, batch = setup_for(tiny_checkpoint, "linear"), [], encoding.Encoder._batch

    def counted(self: Any, clips: torch.Tensor) -> np.ndarray:
        sizes.append(len(clips))
        return batch(self, clips)

    monkeypatch.setattr(encoding.Encoder, "_batch", counted)
    first = fine_tune(setup, tiny_table, runs_dir=runs_dir, **QUIET)
    assert sum(sizes) == 16 * FEATURE_VIEWS + 8 + 8
    assert first.record["timings"]["encode_seconds"] > 0
    sizes.clear()
    others = [{"seed": 1}, {"head_lr": 1e-3}, {"tasks": ("speed",)}, {"weight_decay": 0.5, "epochs": 3}]
    for change in others:
        run = fine_tune(setup.replace(**change), tiny_table, runs_dir=runs_dir, **QUIET)
        assert run.record["timings"]["encode_seconds"] == 0
    assert not sizes
    again = fine_tune(setup, tiny_table, runs_dir=tmp_path / "again", **QUIET)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(first).items())


def test_fine_tune_shows_another_stored_view_in_another_epoch(
    tiny_checkpoint: str, tiny_table: ClipTable, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    take = Features.take

    def spied(self: Features, rows: np.ndarray, views: np.ndarray) -> torch.Tensor:
        seen.extend(zip(rows.tolist(), views.tolist(), strict=True))
        return take(self, rows, views)

    monkeypatch.setattr(Features, "take", spied)
    fine_tune(setup_for(tiny_checkpoint, "linear", epochs=8), tiny_table, runs_dir=runs_dir, **QUIET)
    assert len(seen) == 8 * 16
    for epoch in range(8):
        assert sorted(row for row, _ in seen[epoch * 16 : epoch * 16 + 16]) == list(range(16))
    assert {view for _, view in seen} == set(range(FEATURE_VIEWS))
    assert len({seen[epoch * 16] for epoch in range(8)}) > 1


def test_stored_views_says_which_setups_train_on_features(caplog: pytest.LogCaptureFixture) -> None:
    assert stored_views(Setup(strategy="linear")) == stored_views(Setup(strategy="attentive")) == 5
    assert stored_views(Setup(strategy="linear", augment=False)) == 1
    assert stored_views(Setup(strategy="linear", feature_views=3)) == 3
    assert stored_views(Setup(strategy="linear", feature_views=0)) == 0
    for strategy in ("full", "scratch", "lora", "adapter", "bitfit", "partial", "llrd"):
        assert stored_views(Setup(strategy=strategy)) == 0
    with caplog.at_level(logging.INFO):
        assert stored_views(Setup(strategy="linear", mixup=0.8)) == 0
    assert "mixed clips are encoded at each step" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "full", "feature_views": 2}, "feature_views=2, but strategy='full' trains the backbone"),
        ({"feature_views": 2, "mixup": 0.8}, "mixed clips cannot be stored"),
        ({"feature_views": 2, "augment": False}, "only the plain view is there"),
        ({"feature_views": -1}, "feature_views=-1 must be a whole number"),
        ({"feature_views": True}, "feature_views=True must be a whole number"),
    ],
)
def test_setup_refuses_feature_views_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Setup(**({"strategy": "linear"} | changes))


def test_fine_tune_goes_the_ordinary_way_where_tokens_cannot_be_stored(
    tiny_checkpoint: str, tiny_table: ClipTable, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_CACHE_GB", "0.0005")
    run = fine_tune(setup_for(tiny_checkpoint, "attentive", epochs=1), tiny_table, runs_dir=runs_dir, **QUIET)
    assert run.record["features"] is None
    assert "features are not stored, each step encodes its clips" in caplog.text


def test_feed_reads_the_plain_train_view_as_val_is_read(tiny_checkpoint: str, tiny_table: ClipTable) -> None:
    setup = setup_for(tiny_checkpoint, "linear")
    backbone = build_model(setup, tiny_table.tasks).backbone
    data = feed(tiny_table, setup, backbone, workers=1, progress=False)
    assert isinstance(data.train, Features) and isinstance(data.val, Features)
    assert data.val_views is data.val and data.test is not None
    assert data.train.values.shape == (16, FEATURE_VIEWS, 48) and data.val.values.shape == (8, 1, 48)
    assert data.train.reading == data.val.reading
    assert data.protocol.decoder in ("decord", "pyav")


def test_fine_tune_on_features_killed_and_started_again_ends_with_the_same_weights(
    tiny_checkpoint: str, tiny_table: ClipTable, runs_dir: Path, tmp_path: Path
) -> None:
    setup = setup_for(tiny_checkpoint, "attentive")
    reference = fine_tune(setup, tiny_table, runs_dir=tmp_path / "unbroken", **QUIET)
    start = starter(setup, tiny_table, runs_dir, tmp_path)
    assert start(3) == -signal.SIGKILL
    assert not list(runs_dir.glob("*/run.json"))
    assert start(10**9) == 0
    (folder,) = [p.parent for p in runs_dir.glob("*/run.json")]
    resumed, unbroken = load_file(folder / "weights.safetensors"), weights(reference)
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
    a, b = Run(folder).history, reference.history
    pd.testing.assert_frame_equal(a.drop(columns="seconds"), b.drop(columns="seconds"))
