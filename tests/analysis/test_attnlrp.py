"""AttnLRP against the paper's formulas written out, an implementation on eager attention, and its conservation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tests.analysis.family_runs import FAMILIES, SAFETY, family_run, hooks_of, random_clips
from workbench.analysis.explain import explain
from workbench.analysis.explaining.attnlrp import Rules, relevance, rules
from workbench.analysis.explaining.targets import evaluating


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lrp")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def propagated(function, *inputs):
    """Output and relevance of each input, beginning with the output's own values."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    with Rules():
        y = function(*leaves)
    gradients = torch.autograd.grad(y.sum(), leaves)
    return y.detach(), [(x * g).detach() for x, g in zip(leaves, gradients, strict=True)]


def test_rules_for_attention_equal_the_papers_formulas():
    q, k, v = (randn(1, 1, 4, 3, seed=i) for i in range(3))
    y, found = propagated(F.scaled_dot_product_attention, q, k, v)
    scores = (q @ k.transpose(-1, -2)) / 3**0.5
    weights = scores.softmax(-1)
    torch.testing.assert_close(y, weights @ v)
    # Bilinear products: half to each factor, in proportion to what it contributed. Softmax: x (R - s sum R).
    contributions = weights[..., None] * v[:, :, None]  # (1, 1, i, j, d), which sum to y over j
    to_weights = 0.5 * contributions.sum(-1)
    to_values = 0.5 * contributions.sum(2)
    to_scores = scores * (to_weights - weights * to_weights.sum(-1, keepdim=True))
    each = q[:, :, :, None] * k[:, :, None] / 3**0.5 / scores[..., None] * to_scores[..., None]  # (1, 1, i, j, d)
    expected = [0.5 * each.sum(3), 0.5 * each.sum(2), to_values]
    for one, by_hand in zip(found, expected, strict=True):
        torch.testing.assert_close(one, by_hand)


def test_rules_for_multihead_attention_equal_those_for_its_parts():
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(6, 2, batch_first=True).double().requires_grad_(False)
    q, memory = randn(2, 3, 6), randn(2, 5, 6, seed=1)

    def parts(q, memory):
        projected = [
            F.linear(x, w, b).unflatten(-1, (2, 3)).transpose(1, 2)
            for x, w, b in zip(
                (q, memory, memory), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
            )
        ]
        return attention.out_proj(F.scaled_dot_product_attention(*projected).transpose(1, 2).flatten(2))

    expected = propagated(parts, q, memory)
    found = propagated(lambda q, m: attention(q, m, m, need_weights=False)[0], q, memory)
    torch.testing.assert_close(found, expected)


def test_rules_for_the_norm_equal_the_papers_formula_and_conserve():
    x, weight = randn(3, 5), randn(5, seed=1)
    y, (found,) = propagated(lambda x: F.layer_norm(x, (5,), weight, None, 1e-6), x)
    deviation = (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    centring = torch.eye(5, dtype=torch.float64) - 0.2
    contributions = x[:, :, None] * centring * (weight / deviation)[:, None]  # from i to j; they sum to y_j
    torch.testing.assert_close(contributions.sum(1), y)
    torch.testing.assert_close(found, contributions.sum(2))
    torch.testing.assert_close(found.sum(-1), y.sum(-1))


@pytest.mark.parametrize("function", [F.gelu, F.silu, lambda x: F.gelu(x, approximate="tanh")])
def test_rules_for_activations_hand_all_relevance_on(function):
    x = randn(4, 5)
    x[0, 0] = 0
    y, (found,) = propagated(function, x)
    torch.testing.assert_close(y, function(x))
    torch.testing.assert_close(found, y)


def test_rules_conserve_on_a_network_without_biases():
    w = [randn(6, 6, seed=i) / 2 for i in range(3)]

    def network(x):
        hidden = F.layer_norm(x, (6,)) @ w[0]
        return x + F.gelu(hidden) @ w[1] + F.silu(hidden @ w[2])

    x = randn(2, 6, seed=9)
    y, (found,) = propagated(network, x)
    torch.testing.assert_close(found.sum(-1), y.sum(-1))
    plain = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(plain).sum(), plain)
    assert (x * gradient).sum(-1).sub(y.sum(-1)).abs().max() > 0.1  # gradient x input does not


class Elementary(TorchFunctionMode):
    """The rules once more, from sums, products and constants, for attention written out with ``matmul``."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            a, b = (0.5 * x + 0.5 * x.detach() for x in args)
            return torch.matmul(a, b)
        if func is F.layer_norm:
            x = args[0]
            centred = x - x.mean(-1, keepdim=True)
            deviation = (x.var(-1, unbiased=False, keepdim=True) + kwargs["eps"]).sqrt().detach()
            return centred / deviation * kwargs["weight"] + kwargs["bias"]
        if func in (F.gelu, F.silu):
            return args[0] * (func(*args, **kwargs) / args[0]).detach()
        return func(*args, **kwargs)


@pytest.mark.parametrize("layer", ["embedding", 0])
@pytest.mark.parametrize("name", FAMILIES)
def test_relevance_equals_an_implementation_on_eager_attention(folder, name, layer):
    model = family_run(name, folder).tml
    backbone = model.backbone
    pixels = backbone.prepare(random_clips())
    with evaluating(model):
        plain = model(pixels)["action"].detach()
        found, logits = relevance(model, "action", pixels, [0, 2], layer)
        kept = []

        def start(_module, _args, hidden):
            first = hidden[0] if isinstance(hidden, tuple) else hidden
            kept.append(first.detach().requires_grad_())
            return (kept[0], *hidden[1:]) if isinstance(hidden, tuple) else kept[0]

        module = backbone.embedding if layer == "embedding" else backbone.blocks[layer]
        hooks = [module.register_forward_hook(start)]
        hooks += [  # activations that are written out, such as ViViT's
            m.register_forward_hook(lambda _m, args, y: args[0] * (y / args[0]).detach())
            for m in model.modules() if type(m).__module__ == "transformers.activations"
        ]  # fmt: skip
        with backbone.attention_implementation("eager"), Elementary():
            chosen = model(pixels)["action"][torch.arange(2), [0, 2]]
        (gradient,) = torch.autograd.grad(chosen.sum(), kept[0])
        for hook in hooks:
            hook.remove()
    expected = backbone.tokens_of(gradient * kept[0].detach()).tokens
    assert torch.equal(logits, plain)
    scale = expected.abs().max()
    torch.testing.assert_close(found[:, -expected.shape[1] :] / scale, expected / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_relevance_is_conserved_without_biases_and_attention(folder, name):
    """Attention hands on no relevance where its output is nothing; all that is left conserves."""
    model = family_run(name, folder).tml
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            inside = ".layer" in key  # the encoder's blocks
            output = any(f".{part}." in key for part in ("o_proj", "attention.output.dense", "attention.proj"))
            if "bias" in key or "temporal_dense" in key or (inside and output):
                parameter.zero_()
        for key, buffer in model.named_buffers():
            if key.endswith("temporal_positions"):  # added after the last norm, as a bias is
                buffer.zero_()
    with evaluating(model):
        found, logits = relevance(model, "action", model.backbone.prepare(random_clips()), [1, 2])
    torch.testing.assert_close(found.sum((1, 2)), logits[[0, 1], [1, 2]], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", ["mean", "query"])
def test_explain_attnlrp_leaves_integrated_gradients_as_they_were(folder, head):
    run, clips = family_run("videomae", folder, head, (SAFETY,)), random_clips()
    options = {"method": "integrated_gradients", "progress": False}
    before = explain(run, clips, **options)
    maps = explain(run, clips, progress=False)
    after = explain(run, clips, **options)
    assert maps.method == "attnlrp" and maps.signed and maps.layer == "embedding"
    np.testing.assert_array_equal(before.values, after.values)
    np.testing.assert_array_equal(before.completeness_error, after.completeness_error)
    assert hooks_of(run.tml) == 0


@pytest.mark.parametrize("name", ["videomae", "timesformer"])
def test_rules_leave_nothing_behind_after_an_error(folder, name):
    model = family_run(name, folder).tml
    own = model.backbone.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        relevance(model, "action", model.backbone.prepare(random_clips()), [0, 1])
    own.remove()
    assert hooks_of(model) == 0 and torch.overrides._get_current_function_mode() is None
    assert all(p.requires_grad for p in model.head.parameters())


def test_rules_hold_in_one_thread_only(folder):
    from concurrent.futures import ThreadPoolExecutor

    model = family_run("videomae", folder).tml
    x = randn(2, 5)

    def slope():
        y = x.clone().requires_grad_()
        return torch.autograd.grad(F.gelu(y).sum(), y)[0]

    expected = slope()
    with rules(model), ThreadPoolExecutor(1) as other:
        assert not torch.allclose(slope(), expected)
        torch.testing.assert_close(other.submit(slope).result(), expected)
