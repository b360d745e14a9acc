import pytest
import torch

from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.models.strategies import PLANNED, STRATEGIES, Strategy, apply_strategy, parse_strategy, report
from workbench.models.tml import TML

TASKS = (Task("action", "multiclass", ("left", "right", "up")), Task("quality", "regression"))


def build(checkpoint, name, head=None):
    strategy = parse_strategy(name)
    weights = "pretrained" if strategy.pretrained else "random"
    model = TML(load_backbone(checkpoint[0], weights=weights), TASKS, head=head or strategy.head)
    apply_strategy(model, strategy)
    return model


def step(model, clips):
    """One optimiser step on every task."""
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    out = model(model.backbone.prepare(clips))
    loss = (
        torch.nn.functional.cross_entropy(out["action"], torch.tensor([0, 1, 2])) + (out["quality"] - 1).square().sum()
    )
    loss.backward()
    optimiser.step()


@pytest.mark.parametrize("name", STRATEGIES)
def test_apply_strategy_trains_exactly_the_named_parameters(checkpoint, name):
    model = build(checkpoint, name)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    everything = {n for n, _ in model.named_parameters()}
    expected = {
        "scratch": everything,
        "full": everything,
        "linear": {f"head.linears.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")},
        "attentive": {n for n in everything if n.startswith("head.")},
    }[name]
    assert trains == expected
    assert isinstance(model.head, type(TML(model.backbone, TASKS, head=parse_strategy(name).head).head))


@pytest.mark.parametrize(("name", "head"), [*((n, None) for n in STRATEGIES), ("full", "query"), ("scratch", "query")])
def test_apply_strategy_step_moves_what_trains_and_nothing_else(checkpoint, clips, name, head):
    model = build(checkpoint, name, head)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    step(model, clips)
    for n, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and torch.isfinite(p.grad).all(), n
            assert not torch.equal(p, before[n]), f"{n} did not move"
        else:
            assert p.grad is None and torch.equal(p, before[n]), f"{n} is frozen but moved"


def test_apply_strategy_can_be_changed_on_the_same_model(checkpoint):
    model = build(checkpoint, "linear")
    apply_strategy(model, "full")
    assert all(p.requires_grad for p in model.parameters())
    apply_strategy(model, "linear")
    assert not any(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize(("name", "head"), [("linear", "query"), ("attentive", "mean")])
def test_apply_strategy_refuses_a_probe_with_another_head(checkpoint, name, head):
    with pytest.raises(ValueError, match=f"{name}.*head="):
        build(checkpoint, name, head)


@pytest.mark.parametrize("name", ["lora:8", "llrd:0.75", "partial:2", *PLANNED])
def test_parse_strategy_says_what_is_not_there_yet(name):
    with pytest.raises(ValueError, match="not there yet; use one of scratch, linear, attentive, full"):
        parse_strategy(name)


def test_parse_strategy_unknown_lists_the_known():
    with pytest.raises(ValueError, match="scratch, linear, attentive, full") as error:
        parse_strategy("fulll")
    assert "lora" in str(error.value)


def test_parse_strategy_passes_a_strategy_through():
    own = Strategy("own", pretrained=True, head="query", frozen=False)
    assert parse_strategy(own) is own


def test_report_counts_each_parameter_once_by_hand(checkpoint):
    """Tiny encoder: D = 24, MLP 48, patch 3 x 4 x 8 x 8 = 768."""
    rows = report(build(checkpoint, "linear")).set_index("group")
    block = 2 * (24 + 24) + 3 * 24 * 24 + 2 * 24 + (24 * 24 + 24) + (24 * 48 + 48) + (48 * 24 + 24)
    assert rows.total.to_dict() == {
        "backbone embedding": 768 * 24 + 24,
        "backbone block 0": block,
        "backbone block 1": block,
        "backbone norm": 2 * 24,
        "task heads": (24 * 3 + 3) + (24 + 1),
    }
    assert rows.trainable.to_dict() == {**dict.fromkeys(rows.index, 0), "task heads": 100}


@pytest.mark.parametrize("name", STRATEGIES)
def test_report_sums_to_the_model(checkpoint, name):
    model = build(checkpoint, name)
    rows = report(model)
    assert rows.total.sum() == sum(p.numel() for p in model.parameters())
    assert rows.trainable.sum() == sum(p.numel() for p in model.parameters() if p.requires_grad)
