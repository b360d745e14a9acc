"""Costs of one model against several: counted by hand, and passes of the backbone counted by a hook."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.training.conftest import TASKS, tiny_checkpoint  # noqa: F401  (fixture)
from workbench.analysis.costs import costs_of, training_memory_mib
from workbench.models.strategies import report
from workbench.models.tml import TML
from workbench.training.runs import build_model
from workbench.training.setup import Setup

# ruff: noqa: F811 (fixtures come by their names)


def made(checkpoint: str, strategy: str, head: str | None = None) -> tuple[tuple[TML, Setup], dict]:
    setup = Setup(strategy=strategy, backbone=checkpoint, batch_size=4, head=head)
    alone = {t.name: (build_model(setup, (t,)), setup.replace(tasks=(t.name,))) for t in TASKS}
    return (build_model(setup, TASKS), setup), alone


@contextmanager
def passes(models: list[TML]) -> Iterator[list[int]]:
    """The clips of every forward pass of the models' backbones (counting memory takes some of one and of a batch)."""
    seen: list[int] = []
    hooks = [m.backbone.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]))) for m in models]
    yield seen
    for hook in hooks:
        hook.remove()


def test_costs_of_counts_parameters_and_interleaves(tiny_checkpoint: str) -> None:
    together, alone = made(tiny_checkpoint, "full", "query")
    with passes([together[0], *(m for m, _ in alone.values())]) as seen:
        costs = costs_of(together, alone, clips=3, repeats=3)
    assert seen.count(3) == 4 * 4  # the joint model and three others, three times and once before
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, (m, _) in alone.items()}
    assert costs.parameters == sum(p.numel() for p in together[0].parameters())
    assert costs.alone_parameters == sum(sizes.values())
    assert costs.inference_ratio > 0 and costs.inference_ms > 0
    assert costs.alone_memory_mib == max(training_memory_mib(*pair) for pair in alone.values())


def test_costs_of_probes_share_the_frozen_backbone(tiny_checkpoint: str) -> None:
    together, alone = made(tiny_checkpoint, "attentive")
    models = [m for m, _ in alone.values()]
    with passes(models) as seen:
        costs = costs_of(together, alone, clips=3, repeats=1)
    assert seen.count(3) == 2  # one pass for all three, in both rounds
    backbone = sum(p.numel() for p in models[0].backbone.parameters())
    heads = sum(p.numel() for m in models for p in m.head.parameters())
    assert costs.alone_parameters == backbone + heads


@pytest.mark.parametrize(("optimizer", "copies"), [("adamw", 4), ("sgd", 3)])
def test_training_memory_holds_weights_gradients_and_moments(tiny_checkpoint: str, optimizer: str, copies: int) -> None:
    setup = Setup(backbone=tiny_checkpoint, optimizer=optimizer, lr=0.01, head_lr=0.01, batch_size=4)
    model = build_model(setup, TASKS)
    numbers = sum(p.numel() for p in model.parameters())
    kept = float(report(model, setup).activation_mib.sum())
    assert training_memory_mib(model, setup) == pytest.approx(kept + copies * 4 * numbers / 2**20)
    frozen = Setup(strategy="linear", backbone=tiny_checkpoint, batch_size=4)
    probe = build_model(frozen, TASKS)
    trains = sum(p.numel() for p in probe.parameters() if p.requires_grad)
    assert training_memory_mib(probe, frozen) < (numbers + 3 * trains) * 4 / 2**20 + kept / 2


def test_costs_of_leaves_modes_and_needs_something_to_compare(tiny_checkpoint: str) -> None:
    together, alone = made(tiny_checkpoint, "full")
    with pytest.raises(ValueError, match="0 single-task models"):
        costs_of(together, {})
    costs_of(together, alone, clips=1, repeats=1)
    assert not any(torch.is_inference(p) for p in together[0].parameters())
