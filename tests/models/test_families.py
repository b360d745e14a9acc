"""Every family beside the plain transformers model with the same weights, and through everything above it."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch import Tensor

from tests.models.tiny import TINY, plain, save, spread
from workbench.data.clips import write_clip
from workbench.data.tables import ClipTable, DatasetInfo, Task
from workbench.models.backbones import Backbone, load_backbone
from workbench.models.families import MODEL_TYPES, family_of
from workbench.models.families.positions import Geometry, resize_positions, sinusoid
from workbench.models.strategies import apply_strategy, parse_strategy
from workbench.models.tml import TML
from workbench.models.tokens import DividedAttention, Tokens, dense_attentions
from workbench.training.finetune import fine_tune
from workbench.training.predict import outputs_of, predict
from workbench.training.runs import load_run
from workbench.training.setup import Setup

NAMES = tuple(TINY)
LEARNED = ("timesformer", "vivit", "vit", "dinov2")
TASKS = (Task("action", "multiclass", ("left", "right", "up")), Task("quality", "regression"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of the named family, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture
def load(folders: Callable[[str], Path]) -> Callable[..., Any]:
    return lambda name, **options: load_backbone(folders(name), **(TINY[name].options | options))


def pixels(backbone: Backbone, batch: int = 2, seed: int = 3) -> Tensor:
    shape = (batch, backbone.num_frames, 3, backbone.size_px, backbone.size_px)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def projected(backbone: Any, x: Tensor) -> Tensor:
    """Tubelets through the linear layer, one after the other: (B, N, D)."""
    layer, out = backbone.embedding.projection, []
    T, H, W = backbone.grid
    step, side = backbone.tubelet_size, backbone.patch_size
    for t, h, w in itertools.product(range(T), range(H), range(W)):
        piece = x[:, t * step :, :, h * side :, w * side :][:, :step, :, :side, :side].transpose(1, 2)
        out.append(piece.flatten(1) @ layer.weight.flatten(1).T + layer.bias)
    return torch.stack(out, 1)


def theirs(name: str, model: Any, backbone: Backbone, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens (B, N, D) and prefix of the plain model, put in order here by index."""
    if backbone.family in ("bert", "roberta"):
        return model(inputs_embeds=projected(backbone, x)).last_hidden_state, None
    hidden, (T, H, W) = TINY[name].call(model, x), backbone.grid
    if backbone.family in ("vit", "dinov2"):
        frames = hidden.view(len(x), T, -1, hidden.shape[-1]) + sinusoid(T, hidden.shape[-1])[:, None]
        return torch.cat([frames[:, t, 1:] for t in range(T)], 1), frames[:, :, 0]
    if backbone.family == "timesformer":
        order = [1 + s * T + t for t in range(T) for s in range(H * W)]
        return hidden[:, order], hidden[:, :1]
    return (hidden[:, 1:], hidden[:, :1]) if TINY[name].prefix else (hidden, None)


def same(ours: Tokens, answer: tuple[Tensor, Tensor | None], atol: float = 2e-5) -> None:
    torch.testing.assert_close(ours.tokens, answer[0], atol=atol, rtol=1e-5)
    assert (ours.prefix is None) == (answer[1] is None)
    if ours.prefix is not None:
        torch.testing.assert_close(ours.prefix, answer[1], atol=atol, rtol=1e-5)


def test_model_types_are_all_tested():
    assert {name.split("-")[0] for name in NAMES} == set(MODEL_TYPES)


@pytest.mark.parametrize(("name", "attn"), [(n, a) for n in NAMES for a in TINY[n].attn])
@torch.no_grad()
def test_forward_equals_the_plain_model(load, folders, name, attn):
    backbone = load(name, attn=attn)
    assert backbone.config._attn_implementation == attn
    assert (backbone.grid, backbone.hidden_size, backbone.num_heads) == (TINY[name].grid, 24, 3)
    x = pixels(backbone)
    same(backbone(x), theirs(name, plain(name, folders(name)), backbone, x))


@pytest.mark.parametrize("name", NAMES)
def test_load_backbone_default_attention_is_the_first_of_the_family(load, name):
    assert load(name).config._attn_implementation == TINY[name].attn[0]


def test_load_backbone_refuses_an_attention_that_the_family_lacks(load):
    with pytest.raises(ValueError, match=r"timesformer cannot run attn='sdpa'; it can run eager"):
        load("timesformer", attn="sdpa")


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_bfloat16_are_those_in_float32(load, name):
    """Some backward passes are wrong in bfloat16 alone, by as much as the gradient itself (see the adapters' test)."""
    backbone = load(name)
    torch.manual_seed(0)
    x, slope = pixels(backbone), torch.randn(backbone(pixels(backbone)).tokens.shape)

    def gradients() -> dict[str, Tensor]:
        backbone.zero_grad()
        (backbone(x).tokens.float() * slope).sum().backward()
        return {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}

    exact = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients()
    most = max(g.abs().max() for g in exact.values())
    for name_of, gradient in exact.items():
        # Of a key's bias the gradient is zero but for rounding.
        assert (found[name_of] - gradient).norm() < 0.05 * gradient.norm() + 1e-3 * most, name_of


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_tokens_of_the_embedding_are_time_major(load, name):
    """Changing one tubelet of the clip changes the one token of its place and nothing else."""
    backbone = load(name)
    x = pixels(backbone)
    T, H, W = backbone.grid
    step, side = backbone.tubelet_size, backbone.patch_size
    seen: list[Tensor] = []
    backbone.embedding.register_forward_hook(lambda _m, _i, out: seen.append(out))
    for t, h, w in ((0, 0, 0), (1, 0, 1), (T - 1, 1, 0)):
        changed = x.clone()
        changed[:, t * step : (t + 1) * step, :, h * side : (h + 1) * side, w * side : (w + 1) * side] += 1
        seen.clear()
        backbone(x), backbone(changed)
        before, after = (backbone.tokens_of(hidden) for hidden in seen)
        moved = (before.tokens != after.tokens).any(-1)
        assert [n.tolist() for n in moved.nonzero()] == [[b, (t * H + h) * W + w] for b in range(2)]
        assert before.prefix is None or torch.equal(before.prefix, after.prefix)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_hidden_of_is_the_way_back_from_tokens_of(load, name):
    backbone = load(name)
    seen: list[Any] = []
    backbone.blocks[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    tokens = backbone(pixels(backbone))
    hidden = seen[0] if isinstance(seen[0], Tensor) else seen[0][0]
    assert torch.equal(backbone.hidden_of(backbone.tokens_of(hidden)), hidden)
    assert backbone.tokens_of(hidden).tokens.shape == tokens.tokens.shape
    assert (tokens.prefix.shape[1] if tokens.prefix is not None else 0) == TINY[name].prefix


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("timesformer")])
@torch.no_grad()
def test_forward_with_attention_equals_the_plain_models_attentions(load, folders, name):
    backbone, model = load(name), plain(name, folders(name))
    x = pixels(backbone)
    tokens, attentions = backbone.forward_with_attention(x)
    torch.testing.assert_close(tokens.tokens, backbone(x).tokens, atol=2e-5, rtol=1e-5)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules()) == 0
    options: dict[str, Any] = {"output_attentions": True}
    if backbone.family in ("bert", "roberta"):
        expected = model(inputs_embeds=projected(backbone, x), **options).attentions
    elif backbone.family in ("vit", "dinov2"):
        expected = model(x.flatten(0, 1), **options).attentions
        attentions = tuple(a.weights.transpose(1, 2).flatten(0, 1) for a in attentions)
    else:
        expected = model(x, **options, **({"skip_predictor": True} if name == "vjepa2" else {})).attentions
    assert len(attentions) == len(expected) == 2
    for ours, other in zip(attentions, expected, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=0)


def softmax_by_hand(module: Any, x: Tensor, heads: int = 3) -> Tensor:
    """(B, N, D) -> (B, A, N, N), of a joint projection."""
    q, k, _ = module.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)


@torch.no_grad()
def test_forward_with_attention_of_timesformer_has_time_and_space(load, folders):
    backbone = load("timesformer")
    x, (T, H, W) = pixels(backbone), backbone.grid
    tokens, found = backbone.forward_with_attention(x)
    assert [a.axis for a in found] == ["time", "space"] * 2
    assert torch.equal(tokens.tokens, backbone(x).tokens)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules()) == 0
    # Along time, block 0: each place by hand. In space: what the plain model gives.
    block: Any = backbone.blocks[0]
    start = backbone.tokens_of(backbone.embedding(x)).tokens.unflatten(1, (T, H * W))  # (B, T, S, D)
    for s in (0, 3, H * W - 1):
        by_hand = softmax_by_hand(block.temporal_attention.attention, block.temporal_layernorm(start[:, :, s]))
        torch.testing.assert_close(found[0].weights[:, :, s], by_hand, atol=1e-5, rtol=0)
    expected = plain("timesformer", folders("timesformer"))(x, output_attentions=True).attentions
    for ours, other in zip(found[1::2], expected, strict=True):
        for b, t in itertools.product(range(2), range(T)):
            torch.testing.assert_close(ours.weights[b, :, t], other[b * T + t], atol=1e-5, rtol=0)


@torch.no_grad()
def test_forward_with_attention_of_joint_timesformer_is_time_major(load, folders):
    backbone = load("timesformer-joint")
    x, (T, H, W) = pixels(backbone), backbone.grid
    ours = backbone.forward_with_attention(x)[1]
    expected = plain("timesformer-joint", folders("timesformer-joint"))(x, output_attentions=True).attentions
    order = [0] + [1 + s * T + t for t in range(T) for s in range(H * W)]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b[:, :, order][..., order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_dense_attentions_are_matrices_whose_rows_sum_to_one(load, name):
    backbone = load(name)
    tokens, found = backbone.forward_with_attention(pixels(backbone))
    size = TINY[name].prefix + tokens.tokens.shape[1]
    dense = dense_attentions(found)
    assert len(dense) == (4 if name == "timesformer" else 2)
    for one in dense:
        assert one.shape == (2, 3, size, size)
        torch.testing.assert_close(one.sum(-1), torch.ones(2, 3, size), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("axis", "shared"), [("time", True), ("space", True), ("space", False)])
def test_divided_attention_dense_by_hand(axis, shared):
    """Two steps, three places, a CLS for the clip or one per step; every entry written out."""
    T, S = 2, 3
    shape = (1, 1, S, T, T) if axis == "time" else (1, 1, T, 1 + S, 1 + S)
    w = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    P = 1 if shared else T
    expected = torch.zeros(P + T * S, P + T * S)
    at = lambda t, s: P + t * S + s  # noqa: E731
    cls = lambda t: 0 if shared else t  # noqa: E731
    for t in range(T):
        if axis == "time":
            expected[0, 0] = 1
            for s, u in itertools.product(range(S), range(T)):
                expected[at(t, s), at(u, s)] = w[0, 0, s, t, u]
            continue
        for s in range(S):
            expected[at(t, s), cls(t)] = w[0, 0, t, 1 + s, 0]
            expected[cls(t), at(t, s)] = w[0, 0, t, 0, 1 + s] / (T if shared else 1)
            for r in range(S):
                expected[at(t, s), at(t, r)] = w[0, 0, t, 1 + s, 1 + r]
        expected[cls(t), cls(t)] += w[0, 0, t, 0, 0] / (T if shared else 1)
    found = DividedAttention(w, axis, prefix=P, shared_prefix=shared).dense()
    torch.testing.assert_close(found[0, 0], expected)


def test_divided_attention_refuses_another_shape():
    with pytest.raises(ValueError, match=r"axis='time'.*\(B, A, S, T, T\)"):
        DividedAttention(torch.zeros(2, 3, 4, 4), "time", prefix=1)


# -- another geometry


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_load_backbone_at_its_own_geometry_is_the_identity(load, name):
    backbone = load(name)
    again = load(name, num_frames=8, size_px=32)
    assert again.fingerprint() == backbone.fingerprint()
    x = pixels(backbone)
    assert torch.equal(again(x).tokens, backbone(x).tokens)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "vivit"])
@pytest.mark.parametrize(("frames", "size"), [(16, 32), (8, 48), (4, 64)])
@torch.no_grad()
def test_load_backbone_at_another_geometry_equals_the_plain_models_own_way(load, folders, name, frames, size):
    """TimeSformer, ViT and DINOv2 interpolate in their own forward; VideoMAE and V-JEPA 2 compute positions from the
    config; the text models take a longer or shorter sequence."""
    backbone = load(name, num_frames=frames, size_px=size)
    assert (backbone.num_frames, backbone.size_px) == (frames, size)
    folder, x = folders(name), pixels(backbone)
    if backbone.family == "videomae":
        model = plain(name, folder, num_frames=frames, image_size=size)
    elif backbone.family == "vjepa2":
        model = plain(name, folder, frames_per_clip=frames, crop_size=size)
    else:
        model = plain(name, folder)
        model.config.num_frames = frames  # TimeSformer's blocks read it there
    if name == "vit":
        hidden = model(x.flatten(0, 1), interpolate_pos_encoding=True).last_hidden_state
        hidden = hidden.view(2, frames, -1, 24) + sinusoid(frames, 24)[:, None]
        same(backbone(x), (hidden[:, :, 1:].flatten(1, 2), hidden[:, :, 0]))
    else:
        same(backbone(x), theirs(name, model, backbone, x))


@torch.no_grad()
def test_load_backbone_of_vivit_interpolates_its_table(load):
    """In time linear between centres: of a and b become a, (3a + b) / 4, (a + 3b) / 4, b at twice the frames."""
    backbone, longer, wider = load("vivit"), load("vivit", num_frames=16), load("vivit", size_px=64)
    table = backbone.embedding.position_embeddings[0]
    old, new = table[1:].view(4, 16, 24), longer.embedding.position_embeddings[0, 1:].view(8, 16, 24)
    torch.testing.assert_close(new[0], old[0])
    torch.testing.assert_close(new[7], old[3])
    for i in range(3):
        torch.testing.assert_close(new[2 * i + 1], 0.75 * old[i] + 0.25 * old[i + 1])
        torch.testing.assert_close(new[2 * i + 2], 0.25 * old[i] + 0.75 * old[i + 1])
    for other in (longer, wider):
        assert torch.equal(other.embedding.position_embeddings[0, 0], table[0])
        assert torch.isfinite(other(pixels(other)).tokens).all()
    assert wider.embedding.position_embeddings.shape == (1, 1 + 4 * 64, 24)


def test_resize_positions_of_the_same_grid_is_the_identity():
    table = torch.randn(2 * 3 * 3, 5)
    for ways in ({}, {"space": "nearest", "time": "nearest"}):
        assert torch.equal(resize_positions(table, (2, 3, 3), (2, 3, 3), **ways), table)


def test_resize_positions_in_space_equals_the_cubic_kernel_by_hand():
    """Keys' kernel with a = -3/4 about the new centres, border repeated, along rows and columns; steps do not mix."""

    def kernel(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = torch.zeros(6, 4)  # new x old
    for i in range(6):
        centre = (i + 0.5) * 4 / 6 - 0.5
        for j in range(-3, 8):
            matrix[i, min(max(j, 0), 3)] += kernel(centre - j)
    table = torch.randn(2, 4, 4, 5, generator=torch.Generator().manual_seed(0))
    found = resize_positions(table.reshape(32, 5), (2, 4, 4), (2, 6, 6)).view(2, 6, 6, 5)
    torch.testing.assert_close(found, torch.einsum("ih,jw,thwd->tijd", matrix, matrix, table), atol=1e-5, rtol=1e-5)


def test_resize_positions_nearest_doubles_by_hand():
    table = torch.tensor([[1.0], [2.0]])
    assert resize_positions(table, (2, 1, 1), (4, 1, 1), time="nearest")[:, 0].tolist() == [1, 1, 2, 2]
    found = resize_positions(torch.arange(4.0)[:, None], (1, 2, 2), (1, 4, 4), space="nearest")
    assert found.view(4, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_resize_positions_refuses_a_table_of_another_grid():
    with pytest.raises(ValueError, match=r"17 positions.*\(1, 4, 4\) = 16"):
        resize_positions(torch.zeros(17, 2), (1, 4, 4), (1, 8, 8))


def test_sinusoid_equals_the_library_table():
    from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

    torch.testing.assert_close(sinusoid(7, 10), get_sinusoid_encoding_table(7, 10)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 15}, r"num_frames=15 is not a multiple of tubelet_size=2; use 14 or 16"),
        ({"num_frames": 1}, r"num_frames=1 is not a multiple of tubelet_size=2; use 2"),
        ({"size_px": 33}, r"size_px=33 is not a multiple of patch_size=8; use 32 or 40"),
        ({"num_frames": 0}, "whole number of at least 1"),
    ],
)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_load_backbone_refuses_a_geometry_that_does_not_divide(load, options, message, weights):
    with pytest.raises(ValueError, match=message):
        load("vivit", weights=weights, **options)


@pytest.mark.parametrize(("name", "room"), [("bert", 66), ("roberta", 64)])
def test_load_backbone_of_text_takes_as_many_tokens_as_it_has_positions(load, name, room):
    assert load(name, num_frames=8 * 4, size_px=32).grid == (16, 2, 2)  # 64, the last position of the second
    with pytest.raises(ValueError, match=rf"num_frames=34 at size_px=32 makes 68 tokens.*{room} positions; use fewer"):
        load(name, num_frames=34)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_load_backbone_of_text_has_a_geometry_of_its_own(tmp_path, caplog, name):
    save(name, tmp_path, max_position_embeddings=514)
    backbone = load_backbone(tmp_path, seed=4)
    assert backbone.grid == (8, 7, 7) and (backbone.num_frames, backbone.size_px) == (16, 112)
    assert "projection of tubelets into it is new" in caplog.text
    assert backbone.fingerprint() == load_backbone(tmp_path, seed=4).fingerprint()
    assert backbone.fingerprint() != load_backbone(tmp_path, seed=5).fingerprint()
    clip = torch.full((1, 16, 112, 112, 3), 255, dtype=torch.uint8)
    assert torch.equal(backbone.prepare(clip), torch.ones(1, 16, 3, 112, 112))


def test_load_backbone_of_dinov2_takes_the_crop_of_its_preprocessing(tmp_path):
    folder = save("dinov2", tmp_path, image_size=56)
    backbone = load_backbone(folder)
    assert (backbone.size_px, backbone.grid) == (32, (8, 4, 4))
    x = pixels(backbone)
    with torch.no_grad():
        same(backbone(x), theirs("dinov2", plain("dinov2", folder), backbone, x))


def test_load_backbone_scales_the_preprocessing_with_the_size(tmp_path):
    import json

    folder = save("videomae", tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"shortest_edge": 40}}))
    assert load_backbone(folder).resize_px == 40
    backbone = load_backbone(folder, size_px=64)
    assert backbone.resize_px == 80
    assert backbone.prepare(torch.zeros(1, 8, 90, 120, 3, dtype=torch.uint8)).shape == (1, 8, 3, 64, 64)


def test_load_backbone_warns_where_videomae_changes_size(load, caplog):
    load("videomae", num_frames=16)
    assert "positions" not in caplog.text
    load("videomae", size_px=64)
    assert "every place gets another code" in caplog.text


def test_load_backbone_refuses_timesformer_without_time(tmp_path):
    save("timesformer", tmp_path, attention_type="space_only")
    with pytest.raises(ValueError, match="attention_type='space_only'.*use an image family"):
        load_backbone(tmp_path)


# -- weights


@pytest.mark.parametrize("name", NAMES)
def test_load_backbone_random_depends_on_the_seed_alone(load, name):
    before = torch.get_rng_state()
    a, b, c = (load(name, weights="random", seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    assert a.fingerprint() != load(name).fingerprint()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "videomae"])
def test_load_backbone_refuses_a_checkpoint_that_lacks_a_weight(tmp_path, name):
    from safetensors.torch import load_file, save_file

    save(name, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(k for k in weights if ".1." in k and "norm" in k.lower() and "predictor" not in k and "pooler" not in k)
    del weights[gone]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 encoder weights"):
        load_backbone(tmp_path, **TINY[name].options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"num_frames": 4, "size_px": 48}])
@torch.no_grad()
def test_save_pretrained_and_load_give_the_same_backbone(load, tmp_path, name, options):
    backbone = load(name, **options)
    spread(backbone, seed=12)
    backbone.save_pretrained(tmp_path)
    again = load_backbone(tmp_path)
    assert again.fingerprint() == backbone.fingerprint()
    assert again.grid == backbone.grid
    frames = torch.randint(0, 256, (1, backbone.num_frames, 70, 90, 3), dtype=torch.uint8)
    assert torch.equal(again.prepare(frames), backbone.prepare(frames))
    x = pixels(backbone)
    assert torch.equal(again(x).tokens, backbone(x).tokens)
    assert torch.equal(again.pool(again(x).tokens), backbone.pool(backbone(x).tokens))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_save_pretrained_is_read_by_plain_transformers(load, tmp_path, name):
    backbone = load(name)
    spread(backbone, seed=12)
    backbone.save_pretrained(tmp_path)
    x = pixels(backbone)
    same(backbone(x), theirs(name, plain(name, tmp_path), backbone, x))
    assert transformers.AutoConfig.from_pretrained(tmp_path).model_type == backbone.family


@pytest.mark.parametrize("name", NAMES)
def test_load_backbone_is_quiet(load, capfd, name):
    load(name)
    captured = capfd.readouterr()
    assert captured.out == "" and "UNEXPECTED" not in captured.err and "Loading" not in captured.err


# -- everything above


@pytest.mark.parametrize("strategy", ["scratch", "linear", "attentive", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_what_trains_and_nothing_else(load, name, strategy):
    chosen = parse_strategy(strategy)
    backbone = load(name, weights="pretrained" if chosen.pretrained else "random")
    model = TML(backbone, TASKS, head=chosen.head)
    apply_strategy(model, chosen)
    before = {n: v.detach().clone() for n, v in (*model.named_parameters(), *model.named_buffers())}
    torch.manual_seed(0)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.01)
    out: Any = model(pixels(backbone, 3))
    loss = torch.nn.functional.cross_entropy(out["action"], torch.tensor([0, 1, 2])) + out["quality"].sub(1).abs().sum()
    loss.backward()
    optimiser.step()
    for n, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and torch.isfinite(p.grad).all(), n
            assert not torch.equal(p, before[n]) or not p.grad.any(), n
        else:
            assert p.grad is None and torch.equal(p, before[n]), f"{n} is frozen but moved"
    for n, buffer in model.named_buffers():
        assert torch.equal(buffer, before[n]), n
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({n for n in before if n.startswith("backbone.")} & frozen if chosen.frozen else set())
    unmoved = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is not None and not p.grad.any()]
    assert unmoved == []


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_equal_the_heads_on_the_tokens(load, name):
    """What prediction runs: uint8 clips of another size through preprocessing, backbone and heads, in batches."""
    model = TML(load(name), TASKS, head="query").eval()
    clips = torch.randint(0, 256, (3, 8, 40, 44, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    found = outputs_of(model, clips.numpy(), batch_size=2)
    with torch.no_grad():
        expected = model.forward_tokens(model.backbone(model.backbone.prepare(clips)))
    for task in TASKS:
        torch.testing.assert_close(found[task.name], expected[task.name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_backbone_deep_copy_is_independent(load, name):
    backbone = load(name)
    twin = copy.deepcopy(backbone)
    x = pixels(backbone)
    expected = backbone(x).tokens
    for parameter in backbone.parameters():
        parameter.zero_()
    assert torch.equal(twin(x).tokens, expected)


@torch.no_grad()
def test_per_frame_tokens_tell_the_order_of_frames(load):
    """Frames in reverse give the same tokens in reverse, but for the time that was added."""
    backbone = load("dinov2")
    x = pixels(backbone)
    table = sinusoid(8, 24)
    forth, back = (backbone(v).tokens.unflatten(1, (8, 16)) - table[:, None] for v in (x, x.flip(1)))
    torch.testing.assert_close(forth.flip(1), back, atol=1e-5, rtol=1e-5)
    assert len(table.unique(dim=0)) == 8


@pytest.mark.parametrize("name", LEARNED)
def test_family_resize_at_its_own_geometry_changes_nothing(load, name):
    backbone = load(name)
    family = family_of(backbone.family)
    own = Geometry(backbone.num_frames, backbone.tubelet_size, backbone.size_px, backbone.patch_size)
    state = backbone.model.state_dict()
    resized = family.resize(state, own, own)
    assert resized is None or all(torch.equal(resized[k], v) for k, v in state.items())


@pytest.mark.slow
@torch.no_grad()
def test_forward_equals_videomae_at_full_size(tmp_path):
    """The base geometry: 16 frames of 224 px, twelve blocks of 768."""
    import json

    config = transformers.VideoMAEConfig()
    transformers.VideoMAEForVideoClassification(config).save_pretrained(tmp_path)
    record = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    backbone = load_backbone(tmp_path)
    assert backbone.grid == (8, 14, 14)
    x = pixels(backbone, 1)
    for attn in ("sdpa", "eager"):
        model = transformers.VideoMAEModel.from_pretrained(tmp_path, attn_implementation=attn).eval()
        with backbone.attention_implementation(attn):
            assert torch.equal(backbone(x).tokens, model(x).last_hidden_state)


PAIRS = list(zip(NAMES, itertools.cycle(["linear", "full", "attentive", "scratch"]), strict=False))


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory: pytest.TempPathFactory) -> ClipTable:
    """Twelve small files of noise in two brightnesses."""
    root, rng, rows = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    for i in range(12):
        frames = rng.integers(20, 60, (8, 32, 32, 3), dtype=np.uint8) + np.uint8(120 * (i % 2))
        write_clip(root / f"{i}.mp4", frames, fps=8)
        rows.append({
            "clip_id": str(i), "path": f"{i}.mp4", "start_seconds": np.nan, "end_seconds": np.nan,
            "split": "train" if i < 6 else "val" if i < 9 else "test", "group": str(i), "bright": float(i % 2),
        })  # fmt: skip
    return ClipTable(pd.DataFrame(rows), (Task("bright", "binary"),), root=root, info=DatasetInfo(name="few"))


@pytest.mark.parametrize(("name", "strategy"), PAIRS)
def test_fine_tune_and_predict_agree(few_clips, load, tmp_path, name, strategy):
    """A run trained, written, read again and asked about the test files says what it said when it was trained."""
    folder = load(name).save_pretrained(tmp_path / "checkpoint")  # says the text models' small geometry
    setup = Setup(strategy=strategy, backbone=str(folder), epochs=1, batch_size=3, precision="fp32")
    run = fine_tune(setup, few_clips, runs_dir=tmp_path / "runs", device="cpu", workers=1, progress=False)
    said = run.predictions.query("split == 'test'").set_index("clip_id")
    paths = [few_clips.root / f"{i}.mp4" for i in said.index]
    again = predict(load_run(run.folder), paths, device="cpu", workers=1, progress=False)
    assert (again.reason == "").all() and len(again) == 3
    expected = [probabilities[1] for probabilities in said.probabilities]
    assert again.bright_probability.tolist() == pytest.approx(expected, abs=1e-5)
