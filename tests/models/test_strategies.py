"""Each strategy on each family: what trains, what stays bit-equal, at what rate, and how it is counted."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.tiny import TINY, save
from workbench.data.tables import Task
from workbench.models.adapters import inserted
from workbench.models.backbones import Backbone, load_backbone
from workbench.models.strategies import (
    STRATEGIES,
    Strategy,
    apply_strategy,
    learning_rates,
    parse_strategy,
    report,
)  # fmt: skip
from workbench.models.tml import TML

TASKS = (Task("action", "multiclass", ("left", "right", "up")), Task("quality", "regression"))
SPELLED = ("scratch", "linear", "attentive", "bitfit", "lora:2", "adapter:6", "partial:1", "llrd:0.5", "full")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {name: save(name, tmp_path_factory.mktemp(name)) for name in TINY}


def plain_backbone(folders, family: str = "videomae", **options: Any) -> Backbone:
    return load_backbone(folders[family], **(TINY[family].options | options))


def build(folders, spelled: str, family: str = "videomae", head: str | None = None) -> TML:
    strategy = parse_strategy(spelled)
    backbone = plain_backbone(folders, family, weights="pretrained" if strategy.pretrained else "random")
    model = TML(backbone, TASKS, head=head or strategy.head)
    apply_strategy(model, strategy)
    return model


def pixels(backbone: Backbone) -> Tensor:
    shape = (3, backbone.num_frames, 3, backbone.size_px, backbone.size_px)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def train_steps(model: TML, steps: int) -> None:
    """Real optimiser steps on every task; without weight decay, so that only gradients move anything."""
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    x = pixels(model.backbone)
    for _ in range(steps):
        optimiser.zero_grad()
        out: Any = model(x)
        loss = nn.functional.cross_entropy(out["action"], torch.tensor([0, 1, 2])) + (out["quality"] - 1).square().sum()
        loss.backward()
        optimiser.step()


def trains(model: TML) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def named_by_hand(model: TML, spelled: str) -> set[str]:
    """What a strategy should train, written from its definition."""
    names = {name for name, _ in model.named_parameters()}
    blocks = [{id(p) for p in block.parameters()} for block in model.backbone.blocks]
    embedding = {id(p) for p in model.backbone.embedding.parameters()}
    ids = {name: id(p) for name, p in model.named_parameters()}
    kind = spelled.split(":")[0]
    if kind in ("linear", "attentive"):
        chosen = set()
    elif kind == "bitfit":
        chosen = {n for n in names if n.endswith("bias")}
    elif kind == "lora":
        chosen = {n for n in names if re.search(r"\.lora_[AB]\.default\.weight$", n)}
    elif kind == "adapter":
        chosen = {n for n in names if n.startswith("adapters.")}
    elif kind == "partial":
        outside = {n for n in names if ids[n] not in set().union(*blocks, embedding)}
        chosen = {n for n in names if ids[n] in blocks[-1]} | {n for n in outside if "norm" in n}
    else:
        chosen = names
    return {n for n in chosen if n.startswith(("backbone.", "adapters."))} | {n for n in names if n.startswith("head.")}


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("family", TINY)
def test_apply_strategy_steps_move_exactly_what_is_named(folders, family, spelled):
    model = build(folders, spelled, family)
    expected = named_by_hand(model, spelled)
    assert trains(model) == expected
    before = {n: v.detach().clone() for n, v in (*model.named_parameters(), *model.named_buffers())}
    train_steps(model, 1)
    for name, parameter in model.named_parameters():
        if name in expected:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        else:
            assert parameter.grad is None, name
    # Behind a matrix that starts at zero, the first gradient is zero.
    train_steps(model, 2)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        assert torch.equal(value, before[name]) is (name not in expected), name


@pytest.mark.parametrize("spelled", ["bitfit", "lora:2", "adapter:6", "partial:1", "llrd:0.5", "full", "scratch"])
def test_apply_strategy_leaves_out_the_norm_that_a_query_head_does_not_read(folders, spelled):
    model = build(folders, spelled, head="query")
    assert not {n for n in trains(model) if n.startswith("backbone.norm")}
    train_steps(model, 1)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("spelled", ["lora:2", "adapter:6"])
@pytest.mark.parametrize("family", TINY)
def test_apply_strategy_changes_no_output_at_step_0(folders, family, spelled):
    plain = TML(plain_backbone(folders, family), TASKS)
    model = TML(plain_backbone(folders, family), TASKS)
    model.head.load_state_dict(plain.head.state_dict())
    apply_strategy(model, spelled)
    x = pixels(plain.backbone)
    with torch.no_grad():
        ours, theirs = model.eval()(x), plain.eval()(x)
    for task in TASKS:
        torch.testing.assert_close(ours[task.name], theirs[task.name], atol=1e-6, rtol=0)


def test_apply_strategy_can_be_changed_where_nothing_was_put_in(folders):
    model = build(folders, "linear")
    apply_strategy(model, "full")
    assert all(p.requires_grad for p in model.parameters())
    apply_strategy(model, "partial:1")
    apply_strategy(model, "linear")
    assert not any(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize("first", ["lora:2", "adapter:6"])
def test_apply_strategy_refuses_a_model_that_carries_modules_already(folders, first):
    model = build(folders, first)
    assert inserted(model) == first.split(":")[0]
    with pytest.raises(ValueError, match=f"strategy '{first.split(':')[0]}' already; build it anew for 'full'"):
        apply_strategy(model, "full")


@pytest.mark.parametrize(("name", "head"), [("linear", "query"), ("attentive", "mean")])
def test_apply_strategy_refuses_a_probe_with_another_head(folders, name, head):
    with pytest.raises(ValueError, match=f"{name}.*head="):
        build(folders, name, head=head)


def test_apply_strategy_refuses_more_blocks_than_there_are(folders):
    with pytest.raises(ValueError, match="has 2 blocks; use at most partial:2"):
        build(folders, "partial:3")


def test_apply_strategy_draws_what_it_puts_in_from_the_seed_alone(folders):
    torch.manual_seed(77)
    before = torch.get_rng_state()
    for spelled in ("lora:2", "adapter:6"):
        models = [TML(plain_backbone(folders), TASKS) for _ in range(3)]
        drawn = []
        for model, seed in zip(models, (0, 0, 1), strict=True):
            torch.rand(3)
            apply_strategy(model, spelled, seed=seed)
            put_in = [p.flatten() for n, p in model.named_parameters() if p.requires_grad and not n.startswith("head.")]
            drawn.append(torch.cat(put_in))
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    torch.set_rng_state(before)


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("lora", "lora:8"), ("lora:4", "lora:4"), ("adapter", "adapter:64"), ("partial", "partial:2"),
        ("llrd", "llrd:0.75"), ("llrd:1", "llrd:1.0"), ("full", "full"), ("bitfit", "bitfit"),
    ],
)  # fmt: skip
def test_parse_strategy_spells_the_value_out(given, spelled):
    assert str(parse_strategy(given)) == spelled
    assert parse_strategy(spelled) == parse_strategy(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("fulll", "strategy='fulll' is not known; use one of scratch, linear, attentive, bitfit, lora:8, adapter:64"),
        ("full:3", "full takes no value; write 'full'"),
        ("lora:", "strategy='lora:' does not fit; write for example 'lora:8'"),
        ("lora:2.5", "strategy='lora:2.5' does not fit"),
        ("lora:0", "lora:0 must lie from 1 up to 4096"),
        ("partial:-1", "partial:-1 must lie from 1"),
        ("llrd:0", "llrd:0.0 must lie above 0 up to 1"),
        ("llrd:1.5", "llrd:1.5 must lie above 0 up to 1"),
        ("llrd:nan", "llrd:nan must lie above 0"),
        ("adapter:wide", "strategy='adapter:wide' does not fit"),
    ],
)
def test_parse_strategy_says_what_is_wrong(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_strategy(given)


def test_parse_strategy_passes_a_strategy_through():
    own = Strategy("own", pretrained=True, head="query", frozen=False, method="lora", value=4)
    assert parse_strategy(own) is own and str(own) == "own:4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": True, "method": "lora", "value": 4}, "no method fits"),
        ({"frozen": False, "method": "prompt"}, "method='prompt' is not one of all, partial"),
        ({"frozen": False, "method": "lora"}, "own:None needs a whole number, for example lora:8"),
        ({"frozen": False, "method": "bitfit", "value": 3}, "takes no value; got 3"),
    ],
)
def test_strategy_refuses_what_contradicts_itself(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Strategy("own", pretrained=True, head="mean", **options)


# Tiny encoder: D = 24, MLP 48, patch 3 x 4 x 8 x 8 = 768, two blocks; heads of 3 and 1 outputs.
BLOCK = 2 * (24 + 24) + 3 * 24 * 24 + 2 * 24 + (24 * 24 + 24) + (24 * 48 + 48) + (48 * 24 + 24)
HEADS = (24 * 3 + 3) + (24 + 1)
BLOCK_BIASES = 2 * 24 + 2 * 24 + 24 + 48 + 24  # norms, query and value, output, MLP
LORA = 4 * (24 * 2 + 2 * 24)
ADAPTER = (24 * 6 + 6) + (6 * 3 + 6) + (6 * 24 + 24)


@pytest.mark.parametrize(
    ("spelled", "trainable"),
    [
        ("linear", [0, 0, 0, 0]),
        ("bitfit", [24, BLOCK_BIASES, BLOCK_BIASES, 24]),
        ("lora:2", [0, LORA, LORA, 0]),
        ("partial:1", [0, 0, BLOCK, 48]),
        ("llrd:0.5", [768 * 24 + 24, BLOCK, BLOCK, 48]),
        ("full", [768 * 24 + 24, BLOCK, BLOCK, 48]),
    ],
)
def test_report_counts_by_hand(folders, spelled, trainable):
    rows = report(build(folders, spelled))
    names = ["backbone embedding", "backbone block 0", "backbone block 1", "backbone norm", "task heads"]
    extra = LORA if spelled == "lora:2" else 0
    assert list(rows.group) == names
    assert list(rows.trainable) == [*trainable, HEADS]
    assert list(rows.total) == [768 * 24 + 24, BLOCK + extra, BLOCK + extra, 48, HEADS]


def test_report_counts_adapters_by_hand(folders):
    rows = report(build(folders, "adapter:6")).set_index("group")
    assert list(rows.index[1:5]) == ["adapter 0", "backbone block 0", "adapter 1", "backbone block 1"]
    trainable = rows.trainable[rows.trainable > 0].to_dict()
    assert trainable == {"adapter 0": ADAPTER, "adapter 1": ADAPTER, "task heads": HEADS}


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("family", TINY)
def test_report_sums_to_the_model(folders, family, spelled):
    model = build(folders, spelled, family)
    rows = report(model)
    assert rows.total.sum() == sum(p.numel() for p in model.parameters())
    assert rows.trainable.sum() == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_report_gives_rates_and_memory_by_hand(folders):
    setup = SimpleNamespace(strategy="llrd:0.5", rates=(0.8, 3.0), batch_size=4)
    rows = report(build(folders, "llrd:0.5"), setup).set_index("group")
    assert rows.lr.to_dict() == {
        "backbone embedding": pytest.approx(0.1), "backbone block 0": pytest.approx(0.2),
        "backbone block 1": pytest.approx(0.4), "backbone norm": pytest.approx(0.8), "task heads": 3.0,
    }  # fmt: skip
    # The heads keep one input for both: the normed mean (4, 24) in float32.
    assert rows.activation_mib["task heads"] == 4 * 24 * 4 / 2**20
    one = report(build(folders, "llrd:0.5"), batch_size=1).set_index("group")
    block = "backbone block 0"
    assert rows.activation_mib[block] == pytest.approx(4 * one.activation_mib[block], rel=0.01)


def test_report_gives_no_rate_to_what_is_frozen(folders):
    setup = SimpleNamespace(strategy="linear", rates=(0.0, 0.5), batch_size=2)
    rows = report(build(folders, "linear"), setup).set_index("group")
    assert rows.lr.dropna().to_dict() == {"task heads": 0.5}
    assert rows.activation_mib.drop("task heads").sum() == 0


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("family", ["videomae", "timesformer", "vjepa2", "dinov2", "bert"])
def test_learning_rates_by_definition(folders, family, spelled):
    model = build(folders, spelled, family)
    rates = learning_rates(model, spelled, 0.8, 3.0)
    assert list(rates) == [n for n, p in model.named_parameters() if p.requires_grad]
    blocks = [{id(p) for p in block.parameters()} for block in model.backbone.blocks]
    embedding = {id(p) for p in model.backbone.embedding.parameters()}
    for name, parameter in model.named_parameters():
        if name not in rates:
            continue
        expected = 3.0 if name.startswith("head.") else 0.8
        if spelled == "llrd:0.5" and not name.startswith("head."):
            places = [id(parameter) in place for place in (blocks[1], blocks[0], embedding)]
            expected = 0.8 * 0.5 ** (places.index(True) + 1 if any(places) else 0)
        assert rates[name] == pytest.approx(expected), name


def test_strategies_are_listed_under_their_own_names():
    assert list(STRATEGIES) == [s.name for s in STRATEGIES.values()]
    assert {s.split(":")[0] for s in SPELLED} == set(STRATEGIES)
