"""LoRA and ST-Adapters: where they sit, what they compute, and that they can be merged."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.tiny import TINY, save
from workbench.data.tables import Task
from workbench.models.adapters import (
    STAdapter,
    attention_projections,
    insert_adapters,
    insert_lora,
    inserted,
    is_inserted,
    merge_lora,
)  # fmt: skip
from workbench.models.backbones import Backbone, load_backbone
from workbench.models.strategies import apply_strategy
from workbench.models.tml import TML

TASKS = (Task("action", "multiclass", ("left", "right", "up")),)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {name: save(name, tmp_path_factory.mktemp(name)) for name in TINY}


def fresh(folders, family: str = "videomae") -> TML:
    torch.manual_seed(3)
    return TML(load_backbone(folders[family], **TINY[family].options), TASKS).eval()


def pixels(backbone: Backbone) -> Tensor:
    shape = (2, backbone.num_frames, 3, backbone.size_px, backbone.size_px)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def shake(model: TML) -> None:
    """Give what was put in weights that do something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_inserted(name):
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))


@torch.no_grad()
def test_st_adapter_is_its_formula_token_by_token():
    torch.manual_seed(0)
    adapter: Any = STAdapter(5, 4)
    for parameter in adapter.parameters():
        parameter.normal_()
    x = torch.randn(2, 3, 2, 2, 5)
    out = adapter(x)
    for b, t, h, w in [(0, 0, 0, 0), (1, 1, 0, 1), (1, 2, 1, 0)]:
        mixed = adapter.conv.bias.clone()
        for tap in (-1, 0, 1):  # before, now, after; zeros outside of the clip
            if 0 <= t + tap < 3:
                down = adapter.down.weight @ x[b, t + tap, h, w] + adapter.down.bias
                mixed += adapter.conv.weight[:, 0, tap + 1, 0, 0] * down
        by_hand = adapter.up.weight @ nn.functional.gelu(mixed) + adapter.up.bias
        torch.testing.assert_close(out[b, t, h, w], by_hand, atol=1e-5, rtol=1e-5)


def test_st_adapter_has_the_same_gradients_in_bfloat16():
    """On CPUs that have bfloat16, PyTorch's gradient of a convolution over permuted tokens is off by its own size."""
    torch.manual_seed(0)
    for _ in range(20):
        adapter, x, slope = STAdapter(48, 8), torch.randn(3, 2, 4, 4, 48), torch.randn(3, 2, 4, 4, 48)
        nn.init.normal_(adapter.up.weight)
        with torch.autocast("cpu", torch.bfloat16):
            out = adapter(x)
        found = torch.autograd.grad((out.float() * slope).sum(), list(adapter.parameters()))
        wanted = torch.autograd.grad((adapter(x) * slope).sum(), list(adapter.parameters()))
        for ours, exact in zip(found, wanted, strict=True):
            assert (ours - exact).abs().max() < 0.05 * exact.abs().max()


def test_st_adapter_starts_as_nothing():
    assert torch.equal(STAdapter(5, 4)(torch.randn(1, 2, 2, 2, 5)), torch.zeros(1, 2, 2, 2, 5))


@pytest.mark.parametrize("family", TINY)
@torch.no_grad()
def test_insert_adapters_lets_a_token_see_the_same_place_at_other_times(folders, family):
    """A change of one token before block 0 reaches, inside the hook, that place at the times beside it and no other."""
    model = fresh(folders, family)
    insert_adapters(model, 6)
    shake(model)
    backbone, block = model.backbone, model.backbone.blocks[0]
    (hook,) = [h for h in block._forward_pre_hooks.values() if type(h).__name__ == "BeforeBlock"]
    T, H, W = backbone.grid
    grid = torch.randn(1, T, H, W, 24)
    prefix = torch.randn(1, TINY[family].prefix, 24) if TINY[family].prefix else None

    def entering(grid: Tensor) -> Any:
        from workbench.models.tokens import Tokens

        hidden = backbone.hidden_of(Tokens(grid.flatten(1, 3), (T, H, W), prefix))
        (after,), _ = hook(block, (hidden,), {})
        _, by_name = hook(block, (), {"hidden_states": hidden})
        assert torch.equal(by_name["hidden_states"], after) and after.shape == hidden.shape
        return backbone.tokens_of(after)

    plain = entering(grid)
    grid[0, 1, 1, 0] += 1
    changed = entering(grid)
    moved = (changed.tokens - plain.tokens).abs().amax(-1).view(T, H, W) > 1e-6
    expected = torch.zeros(T, H, W, dtype=torch.bool)
    expected[: min(T, 3), 1, 0] = True
    assert torch.equal(moved, expected)
    if prefix is not None:
        assert torch.equal(changed.prefix, prefix)


@torch.no_grad()
def test_insert_adapters_runs_them_before_every_block(folders):
    model = fresh(folders)
    x, seen = pixels(model.backbone), []
    before = model(x)["action"]
    insert_adapters(model, 6)
    for block in model.backbone.blocks:
        block.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    for i in range(2):  # one at a time: each must matter
        seen.clear()
        nn.init.ones_(model.get_submodule(f"adapters.{i}.up").bias)
        assert not torch.equal(model(x)["action"], before)
        nn.init.zeros_(model.get_submodule(f"adapters.{i}.up").bias)
    assert torch.equal(model(x)["action"], before)


@torch.no_grad()
def test_a_deep_copy_runs_its_own_adapters(folders):
    model = fresh(folders)
    insert_adapters(model, 6)
    twin, x = copy.deepcopy(model), pixels(model.backbone)
    shake(twin)
    assert not torch.equal(twin(x)["action"], model(x)["action"])
    shake(model)
    assert torch.equal(twin(x)["action"], model(x)["action"])


def test_adapters_leave_the_backbones_own_weights_and_fingerprint(folders):
    model = fresh(folders)
    before, names = model.backbone.fingerprint(), set(model.backbone.state_dict())
    insert_adapters(model, 6)
    assert model.backbone.fingerprint() == before and set(model.backbone.state_dict()) == names


QKV = ("query", "key", "value")
SPLIT = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
TEXT = (*(f"attention.self.{name}" for name in QKV), "attention.output.dense")
JOINT = ("attention.attention.qkv", "attention.output.dense")
PROJECTIONS = {
    "videomae": (*(f"attention.attention.{name}" for name in QKV), "attention.output.dense"),
    "timesformer": ("temporal_attention.attention.qkv", "temporal_attention.output.dense", *JOINT),
    "timesformer-joint": JOINT,
    "vjepa2": (*(f"attention.{name}" for name in QKV), "attention.proj"),
    "vivit": SPLIT, "vit": SPLIT, "dinov2": SPLIT, "bert": TEXT, "roberta": TEXT,
}  # fmt: skip


@pytest.mark.parametrize("family", TINY)
def test_attention_projections_by_hand(folders, family):
    backbone = load_backbone(folders[family], **TINY[family].options)
    inside = [{name for name, m in block.named_modules() if isinstance(m, nn.Linear)} for block in backbone.blocks]
    assert all(set(PROJECTIONS[family]) <= names for names in inside)
    by_hand = {id(block.get_submodule(name)) for block in backbone.blocks for name in PROJECTIONS[family]}
    found = attention_projections(backbone)
    assert {id(backbone.model.get_submodule(name)) for name in found} == by_hand
    assert len(found) == len(set(found)) == len(by_hand)


def test_attention_projections_says_where_there_is_no_attention(folders):
    backbone: Any = load_backbone(folders["videomae"])
    backbone.model.encoder.layer[1] = nn.Sequential(nn.Linear(24, 24))
    with pytest.raises(ValueError, match=r"block 1 of videomae has no attention.*'Linear', 'Sequential'"):
        attention_projections(backbone)


def test_apply_strategy_finds_lora_that_does_nothing(folders, monkeypatch):
    """An attention that multiplies by a layer's weight itself never calls the layer, nor what is beside it."""
    model = fresh(folders)
    attention: Any = model.backbone.blocks[0].get_submodule("attention.attention")
    original = attention.forward

    def by_weight(hidden_states: Tensor) -> Any:
        query = attention.query
        attention._modules["query"] = nn.Module()
        object.__setattr__(attention._modules["query"], "forward", lambda x: x @ query.weight.T + query.bias)
        try:
            return original(hidden_states)
        finally:
            attention._modules["query"] = query

    monkeypatch.setattr(attention, "forward", by_weight)
    with pytest.raises(ValueError, match=r"2 of 16 inserted weights do nothing, for example .*layer\.0.*query\.lora_A"):
        apply_strategy(model, "lora:2")


@pytest.mark.parametrize("family", TINY)
@torch.no_grad()
def test_merge_lora_gives_a_plain_backbone_with_the_same_outputs(folders, family):
    plain, model = fresh(folders, family), fresh(folders, family)
    x = pixels(model.backbone)
    insert_lora(model, 2)
    at_first = model(x)["action"]
    torch.testing.assert_close(at_first, plain(x)["action"], atol=1e-6, rtol=0)
    shake(model)
    unmerged = model(x)["action"]
    layer: Any = model.backbone.model.get_submodule(attention_projections(plain.backbone)[0])
    by_hand = layer.weight + 16 / 2 * layer.lora_B.default.weight @ layer.lora_A.default.weight  # alpha / rank
    assert (unmerged - at_first).abs().max() > 1e-3
    merge_lora(model)
    assert inserted(model) is None
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(model(x)["action"], unmerged, atol=1e-5, rtol=1e-5)
    merged = model.backbone.model.get_submodule(attention_projections(plain.backbone)[0])
    torch.testing.assert_close(merged.weight, by_hand)
    # What was not projected is as it was.
    touched = {f"backbone.model.{name}.weight" for name in attention_projections(model.backbone)}
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value) is (name not in touched), name


def test_merge_lora_leaves_other_models_alone(folders):
    model = fresh(folders)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge_lora(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_peft_is_imported_for_lora_alone():
    code = "import sys, workbench.training.finetune, workbench.training.export; print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
