"""Gradients layer by layer of a run and of a setup."""

import dataclasses

import numpy as np
import pytest
import torch

from workbench.training.finetune import fine_tune
from workbench.training.layer_conflict import layer_conflict
from workbench.training.runs import build_model
from workbench.training.setup import Setup

QUIET = {"device": "cpu", "workers": 1, "progress": False}


def test_layer_conflict_of_a_setup_and_of_its_run(tiny_checkpoint, tiny_table, runs_dir) -> None:
    setup = Setup(backbone=tiny_checkpoint, head="query", epochs=1, batch_size=6, precision="fp32")
    before = layer_conflict(setup, tiny_table, batches=2, **QUIET)
    assert list(before) == ["batch", "layer", "task", "other", "cosine", "norm_task", "norm_other"]
    assert list(before.layer.unique()) == ["embedding", "block 0", "block 1", "decoder"]
    assert len(before) == 2 * 4 * 3 and before.cosine.between(-1, 1).all() and (before.norm_task > 0).all()
    again = layer_conflict(setup, tiny_table, batches=2, **QUIET)
    assert np.array_equal(before.cosine, again.cosine)
    run = fine_tune(setup, tiny_table, runs_dir=runs_dir, **QUIET)
    after = layer_conflict(run, tiny_table, batches=2, split="val", **QUIET)
    assert set(after.batch) == {0, 1} and not np.allclose(after.cosine, before.cosine)


def test_layer_conflict_reads_labels_as_the_run_numbers_them(tiny_checkpoint, tiny_table, runs_dir) -> None:
    run = fine_tune(Setup(backbone=tiny_checkpoint, epochs=1, precision="fp32"), tiny_table, runs_dir=runs_dir, **QUIET)
    tasks = [dataclasses.replace(t, classes=t.classes[::-1]) for t in tiny_table.tasks]
    turned = tiny_table._with(tiny_table.frame, tasks=tasks)
    found, wanted = (layer_conflict(run, table, batches=1, **QUIET) for table in (turned, tiny_table))
    assert np.array_equal(found.cosine, wanted.cosine)


def test_layer_conflict_leaves_the_model_as_it_was(tiny_checkpoint, tiny_table, monkeypatch) -> None:
    setup = Setup(backbone=tiny_checkpoint, head="query")
    model = build_model(setup, tiny_table.tasks)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr("workbench.training.layer_conflict.build_model", lambda *_: model)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    layer_conflict(setup, tiny_table, batches=1, **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_layer_conflict_leaves_out_a_task_without_labels_in_a_batch(tiny_checkpoint, tiny_table) -> None:
    setup = Setup(backbone=tiny_checkpoint, head="query", batch_size=4)
    frame = tiny_table.frame.copy()
    frame.loc[frame.index[:15], "speed"] = np.nan  # one of sixteen train clips keeps it
    table = tiny_table._with(frame)
    found = layer_conflict(setup, table, batches=4, **QUIET)
    with_speed = found[(found.task == "speed") | (found.other == "speed")]
    assert set(found.batch) == {0, 1, 2, 3} and with_speed.batch.nunique() == 1


def test_layer_conflict_says_where_there_is_nothing_to_compare(tiny_checkpoint, tiny_table) -> None:
    with pytest.raises(ValueError, match="'bright' is the only task"):
        layer_conflict(Setup(backbone=tiny_checkpoint, tasks="bright"), tiny_table, **QUIET)
    with pytest.raises(ValueError, match="the tasks share nothing that trains"):
        layer_conflict(Setup(backbone=tiny_checkpoint, strategy="linear"), tiny_table, **QUIET)
    frame = tiny_table.frame.assign(bright=np.nan, direction=None)
    with pytest.raises(ValueError, match="none of 2 batches of train has labels of two tasks"):
        layer_conflict(Setup(backbone=tiny_checkpoint), tiny_table._with(frame), batches=2, **QUIET)
