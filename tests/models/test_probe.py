"""Attention from recorded queries and keys, against the weights that eager attention gives."""

import math

import pytest
import torch
import transformers

from tests.models.tiny import TINY, save
from workbench.models.backbones import load_backbone, pooler_attention
from workbench.models.probe import Layout, Probe, Softmax
from workbench.models.tokens import dense_attentions

FAMILIES = list(TINY)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    return {n: load_backbone(str(save(n, folder / n)), **TINY[n].options) for n in TINY}


@pytest.fixture
def pixels():
    return torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_forward_recording_changes_no_output_and_equals_eager(backbones, pixels, name):
    backbone = backbones[name]
    plain = backbone(pixels).tokens
    tokens, softmaxes = backbone.forward_recording(pixels)
    eager, attentions = backbone.forward_with_attention(pixels)
    assert torch.equal(tokens.tokens, plain)
    torch.testing.assert_close(tokens.tokens, eager.tokens, atol=1e-5, rtol=1e-5)
    dense = dense_attentions(attentions)
    assert len(softmaxes) == len(dense)
    size = TINY[name].prefix + math.prod(backbone.grid)
    reading = torch.rand(2, size, generator=torch.Generator().manual_seed(1))
    for softmax, weights in zip(softmaxes, dense, strict=True):
        assert softmax.clips == 2 and softmax.layout.tokens == size
        rows = softmax.weights().sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-5, rtol=0)
        by_hand = torch.einsum("bi,baij->baj", reading, weights)
        torch.testing.assert_close(softmax.read(reading), by_hand, atol=1e-5, rtol=1e-5)
        for token in (0, size - 1):
            torch.testing.assert_close(softmax.look(token), weights[:, :, token], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_forward_recording_under_eager_gives_the_same(backbones, pixels, name):
    backbone = backbones[name]
    expected = backbone.forward_recording(pixels)[1]
    with backbone.attention_implementation("eager"):
        plain = backbone(pixels).tokens
        tokens, found = backbone.forward_recording(pixels)
        assert backbone.config._attn_implementation == "eager"
    torch.testing.assert_close(tokens.tokens, plain, atol=1e-5, rtol=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.weights(), b.weights(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_forward_recording_in_pieces_gives_the_same(backbones, pixels, monkeypatch):
    softmax = backbones["vivit"].forward_recording(pixels)[1][1]
    whole, reading = softmax.weights(), torch.rand(2, 65)
    read = softmax.read(reading)
    monkeypatch.setattr("workbench.models.probe.PIECE_BYTES", 4 * 2 * 3 * 65 * 7)  # seven rows, the last piece shorter
    assert [p.shape[2] for _, p in softmax.pieces()] == [7] * 9 + [2]
    torch.testing.assert_close(softmax.weights(), whole)
    torch.testing.assert_close(softmax.read(reading), read)


@pytest.mark.parametrize("name", ["videomae", "timesformer"])
def test_forward_recording_leaves_nothing_behind_after_an_error(backbones, pixels, name):
    backbone = backbones[name]

    def explode(*_):
        raise RuntimeError("boom")

    own = backbone.blocks[1].register_forward_hook(explode)
    with pytest.raises(RuntimeError, match="boom"):
        backbone.forward_recording(pixels)
    own.remove()
    assert hooks_of(backbone) == 0
    assert backbone.config._attn_implementation == ("eager" if name == "timesformer" else "sdpa")
    assert torch.overrides._get_current_function_mode() is None


def test_forward_recording_says_so_when_it_saw_too_little(backbones, pixels, monkeypatch):
    monkeypatch.setattr(Probe, "_noted", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="saw 0 of 2 softmaxes"):
        backbones["videomae"].forward_recording(pixels)


@pytest.mark.parametrize("name", FAMILIES)
def test_read_weighted_equals_autograd_through_the_weights(backbones, pixels, name):
    """An independent way to the gradients of the weights: autograd through eager attention."""
    backbone = backbones[name]
    direction = torch.randn(backbone.hidden_size, generator=torch.Generator().manual_seed(2))
    tokens, softmaxes = backbone.forward_recording(pixels, values=True)
    contexts = [s.context for s in softmaxes]
    found = torch.autograd.grad((tokens.tokens.mean(1) @ direction).sum(), contexts)

    seen: list[torch.Tensor] = []
    tokens, attentions = _eager_with_graph(backbone, pixels, seen)
    expected = torch.autograd.grad((tokens.tokens.mean(1) @ direction).sum(), seen)
    for softmax, gradient, weights, by_weights in zip(softmaxes, found, seen, expected, strict=True):
        layout = softmax.layout
        product = (weights * by_weights).clamp_min(0)  # (B', A, n, n)
        reading = torch.rand(2, layout.tokens, generator=torch.Generator().manual_seed(3))
        by_hand = layout.leave(torch.einsum("bi,baij->baj", layout.enter(reading), product), reading)
        if layout.axis == "time":
            by_hand[..., : layout.prefix] = 0
        torch.testing.assert_close(softmax.read_weighted(reading, gradient), by_hand, atol=1e-6, rtol=1e-3)


def _eager_with_graph(backbone, pixels, seen):
    from workbench.models.families import family_of

    family = family_of(backbone.family)
    hooks = [h for m in family.attention_modules(backbone.model) for h in family.listen(m, seen.append)]
    try:
        with backbone.attention_implementation("eager"):
            return backbone(pixels), seen
    finally:
        for hook in hooks:
            hook.remove()


def test_read_weighted_without_values_says_what_to_do():
    one = torch.ones(1, 1, 4, 2)
    softmax = Softmax(one, one, 1.0, Layout("joint", (1, 2, 2)))
    with pytest.raises(ValueError, match="values=True"):
        softmax.read_weighted(torch.ones(1, 4), one)
    with pytest.raises(ValueError, match="token=4"):
        softmax.look(4)


def test_probe_refuses_a_mask():
    q = torch.ones(1, 1, 4, 2)
    with pytest.raises(ValueError, match="mask"), Probe(lambda *_: None):
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)


@torch.no_grad()
def test_pooler_attention_equals_what_plain_transformers_gives_under_eager(tmp_path, pixels):
    folder = save("vjepa2", tmp_path / "vjepa2")
    model = transformers.VJEPA2ForVideoClassification.from_pretrained(folder, attn_implementation="eager").eval()
    seen = []
    model.pooler.cross_attention_layer.cross_attn.register_forward_hook(lambda _m, _i, output: seen.append(output[1]))
    model(pixel_values_videos=pixels)
    backbone = load_backbone(str(folder))
    found = pooler_attention(folder, backbone(pixels))
    torch.testing.assert_close(found, seen[0][:, :, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3), atol=1e-5, rtol=0)


def test_pooler_attention_says_where_there_is_none(tmp_path, backbones, pixels):
    backbone = backbones["vjepa2"]
    encoder = backbone.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="no attentive pooler"):
        pooler_attention(encoder, backbone(pixels))
    with pytest.raises(ValueError, match="pools its tokens by attention"):
        pooler_attention(save("vivit", tmp_path / "vivit"), backbone(pixels))
