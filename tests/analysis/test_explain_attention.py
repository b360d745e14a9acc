"""Streamed reading of attention against matrices, Chefer's rule against eager autograd, and the decoder's own maps."""

import math

import numpy as np
import pytest
import torch

from tests.analysis.family_runs import ACTION, FAMILIES, SAFETY, family_run, hooks_of, random_clips
from workbench.analysis.explain import explain
from workbench.analysis.explaining.attention import gradient_attention, read_rollout, rollout
from workbench.models.families import family_of
from workbench.models.tokens import dense_attentions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("attention")


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_read_rollout_equals_the_product_of_matrices(folder, name):
    backbone = family_run(name, folder).tml.backbone
    pixels = backbone.prepare(random_clips())
    product = rollout(dense_attentions(backbone.forward_with_attention(pixels)[1]))
    softmaxes = backbone.forward_recording(pixels)[1]
    reading = torch.rand(2, product.shape[1], generator=torch.Generator().manual_seed(0))
    reading = reading / reading.sum(-1, keepdim=True)
    found = read_rollout(softmaxes, reading)
    torch.testing.assert_close(found, torch.einsum("bi,bij->bj", reading, product), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.sum(-1), torch.ones(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_attention_equals_chefers_matrices_on_eager_attention(folder, name):
    """R = (I + mean over heads of (A * dA)+) R, layer by layer, read evenly, without the identity."""
    model = family_run(name, folder).tml.double()
    backbone, n = model.backbone, math.prod(model.backbone.grid)
    pixels = backbone.prepare(random_clips()).double()
    family = family_of(backbone.family)
    seen: list[torch.Tensor] = []
    hooks = [h for m in family.attention_modules(backbone.model) for h in family.listen(m, seen.append)]
    with backbone.attention_implementation("eager"):
        chosen = model(pixels)["action"][:, 1].sum()
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(chosen, seen)
    layouts = family.layouts(backbone.model, backbone.grid)
    product = torch.eye(layouts[0].tokens, dtype=torch.float64).expand(2, -1, -1)
    for weights, gradient, layout in zip(seen, gradients, layouts, strict=True):
        positive = (weights * gradient).clamp_min(0).detach()  # (B', A, n, n)
        rows = []
        for token in range(layout.tokens):
            one = torch.zeros(2, layout.tokens, dtype=torch.float64)
            one[:, token] = 1
            row = layout.leave(torch.einsum("bi,baij->baj", layout.enter(one), positive), one).mean(1)
            if layout.axis == "time":
                row[:, : layout.prefix] = 0  # a prefix token looks nowhere along time
            rows.append(row)
        product = product + torch.stack(rows, 1) @ product
    prefix = layouts[0].prefix
    by_hand = (product - torch.eye(layouts[0].tokens))[:, prefix:, prefix:].mean(1)
    found, _ = gradient_attention(model, "action", pixels, [1, 1])
    assert found.shape == (2, n) and found.min() >= 0
    torch.testing.assert_close(found / by_hand.max(), by_hand / by_hand.max(), atol=1e-5, rtol=0)


def test_gradient_attention_of_a_query_equals_the_rule_by_hand(folder):
    """One query, one block: the relevance of the cross-attention, carried through the encoder."""
    run = family_run("videomae", folder, "query")
    model = run.tml.double()
    pixels = model.backbone.prepare(random_clips()).double()
    tokens, softmaxes = model.backbone.forward_recording(pixels, values=True)
    memory = model.head.memory_norm(tokens.tokens)
    block = model.head.blocks[0]
    q = model.head.queries.expand(2, -1, -1)
    x = block.cross_norm(q)
    attention = block.cross_attention
    parts = [
        torch.nn.functional.linear(t, w, b).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for t, w, b in zip(
            (x, memory, memory), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
        )
    ]
    weights = (parts[0] @ parts[1].transpose(-1, -2) / parts[0].shape[-1] ** 0.5).softmax(-1)  # (B, A, 1, N)
    q = q + attention.out_proj((weights @ parts[2]).transpose(1, 2).flatten(2))
    logits = model.head.linears[0](model.head.norm(q + block.mlp(q)))[:, 0]
    torch.testing.assert_close(logits, model(pixels)["action"], atol=1e-5, rtol=1e-5)
    gradient, *by_context = torch.autograd.grad(logits[:, 2].sum(), [weights, *(s.context for s in softmaxes)])
    reading = (weights * gradient).clamp_min(0).mean(1)[:, 0].detach()
    for softmax, g in zip(reversed(softmaxes), reversed(by_context), strict=True):
        reading = reading + softmax.read_weighted(reading, g).mean(1)
    found, _ = gradient_attention(model, "action", pixels, [2, 2])
    scale = reading.max().item()
    torch.testing.assert_close(found / scale, reading.detach() / scale, atol=1e-8, rtol=0)


def test_gradient_attention_depends_on_the_target_and_attention_does_not(folder):
    run, clips = family_run("vivit", folder), random_clips()
    for method, differs in (("gradient_attention", True), ("rollout", False)):
        a, b = (explain(run, clips, method=method, target=t, progress=False).values for t in ("left", "up"))
        assert (np.abs(a - b).max() > 1e-6) == differs


def test_task_attention_is_what_the_decoder_says_block_by_block(folder):
    run, clips = family_run("videomae", folder, "query", (ACTION, SAFETY), decoder_layers=2), random_clips()
    model = run.tml
    maps = explain(run, clips, method="task_attention", task="safety", progress=False)
    assert maps.values.shape == (2, 2, 3, *model.backbone.grid)
    np.testing.assert_allclose(maps.values.sum((3, 4, 5)), 1, atol=1e-5)
    with torch.no_grad():
        last = model.forward_tokens_with_attention(model.backbone(model.backbone.prepare(clips)))[1]["safety"]
    np.testing.assert_allclose(maps.values[:, 1].mean(1).reshape(2, -1), last, atol=1e-6)
    assert gradient_attention(model, "safety", model.backbone.prepare(clips), [0, 0])[0].min() >= 0
    assert hooks_of(model) == 0


def test_explain_keeps_the_layer_and_head_asked_for(folder):
    run, clips = family_run("videomae", folder), random_clips()
    whole = explain(run, clips, method="attention", progress=False).values
    for layer, head, expected in (
        (1, None, whole[:, 1].mean(1)),
        (None, 2, whole[:, :, 2].mean(1)),
        (0, 1, whole[:, 0, 1]),
    ):
        maps = explain(run, clips, method="attention", layer=layer, head=head, progress=False)
        np.testing.assert_allclose(maps.values, expected, atol=1e-7)
        assert (maps.layer, maps.head, maps.num_layers) == (layer, head, None)
    with pytest.raises(ValueError, match="layer=2 is not one of the 2"):
        explain(run, clips, method="attention", layer=2, progress=False)


def test_explain_task_attention_needs_queries(folder):
    with pytest.raises(ValueError, match="no queries"):
        explain(family_run("videomae", folder), random_clips(), method="task_attention", progress=False)
