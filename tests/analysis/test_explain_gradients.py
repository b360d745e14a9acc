"""Captum's gradient methods pointed at the right tokens: equal to Captum by hand, to closed forms, and in place."""

import math

import numpy as np
import pytest
import torch
from captum.attr import LRP, DeepLift, IntegratedGradients, LayerGradCam, LayerIntegratedGradients

from tests.analysis.family_runs import FAMILIES, family_run, hooks_of, random_clips
from tests.models.tiny import TINY
from workbench.analysis.explain import baseline_pixels, evaluating, explain
from workbench.analysis.explaining.gradients import integrate_gradients
from workbench.analysis.explaining.taps import TaskOutput, check_layer, places, tapped

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gradients")


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_tapped_changes_no_output_and_sees_time_major_tokens(folder, name):
    model = family_run(name, folder).tml
    backbone, n, last = model.backbone, math.prod(model.backbone.grid), len(model.backbone.blocks) - 1
    pixels, seen = backbone.prepare(random_clips()), []
    plain = model(pixels)["action"]
    for layer, volume in (("embedding", False), (0, False), (last, True)):
        with tapped(backbone, layer, volume=volume) as tap:
            tap.register_forward_hook(lambda _m, _i, output: seen.append(output))
            assert torch.equal(model(pixels)["action"], plain)
    assert seen[0].shape == seen[1].shape == (2, TINY[name].prefix + n, backbone.hidden_size)
    assert seen[2].shape == (2, backbone.hidden_size, *backbone.grid)
    assert hooks_of(model) == 0


def canary(name, folder):
    """A model without attention: each token's evidence stays where it is. White noise in one quadrant and half of the
    time, black elsewhere; black is also the baseline, so nothing else can have an attribution."""
    run = family_run(name, folder)
    with torch.no_grad():
        for key, parameter in run.tml.backbone.named_parameters():
            if any(
                f".{part}." in key for part in ("o_proj", "attention.output.dense", "attention.proj", "temporal_dense")
            ):
                parameter.zero_()
    clips = np.zeros((2, 8, 32, 32, 3), np.uint8)
    clips[:, :4, 16:, :16] = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3))
    mask = np.zeros((8, 32, 32), bool)
    mask[:4, 16:, :16] = True
    return run, clips, mask


@pytest.mark.parametrize("name", FAMILIES)
def test_evidence_in_a_quadrant_and_half_of_the_time_is_found_there_and_in_no_other_order(folder, name):
    run, clips, mask = canary(name, folder)
    options = {"method": "integrated_gradients", "baseline": "black", "target": 0, **QUIET}
    maps = explain(run, clips, **options)
    t, h, w = maps.grid
    for clip in range(2):
        assert maps.share_in(clip, mask) >= 0.90
        swapped = maps.values[clip].reshape(h * w, t).T.reshape(t, h, w).clip(0)  # as if tokens came place by place
        tokens = mask.reshape(t, 8 // t, h, 32 // h, w, 32 // w).any((1, 3, 5))
        assert (swapped * tokens).sum() / swapped.sum() <= 0.25 + 1e-6


@pytest.mark.parametrize("name", ["videomae", "timesformer", "bert"])
@pytest.mark.parametrize("method", ["occlusion", "gradient_x_activation", "attnlrp"])
def test_other_methods_find_the_evidence_too(folder, name, method):
    run, clips, mask = canary(name, folder)
    grid = run.tml.backbone.grid
    options = {"tube": (grid[0] // 2, grid[1] // 2, grid[2] // 2), "baseline": "black"} if method == "occlusion" else {}
    with torch.no_grad():  # relevance and gradients also speak of what is black everywhere; contrast it away
        black = explain(run, np.zeros_like(clips), method=method, target=0, **options, **QUIET)
    maps = explain(run, clips, method=method, target=0, **options, **QUIET)
    moved = np.abs(maps.values - black.values)[0]
    tokens = mask.reshape(grid[0], 8 // grid[0], grid[1], 32 // grid[1], grid[2], 32 // grid[2]).any((1, 3, 5))
    assert (moved * tokens).sum() / moved.sum() >= (0.9 if method == "occlusion" else 0.5)


def test_integrated_gradients_of_many_clips_equal_those_of_each_alone(folder):
    run, clips = family_run("vivit", folder), random_clips(3)
    options = {"method": "integrated_gradients", "steps": 16, "target": 1, **QUIET}
    together = explain(run, clips, **options).values
    alone = np.concatenate([explain(run, clips[i : i + 1], **options).values for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    step_by_step = explain(run, clips, memory_bytes=1, **options).values  # one step to a pass
    np.testing.assert_allclose(step_by_step, together, atol=1e-5 * np.abs(together).max())


@pytest.mark.parametrize("name", ["videomae", "timesformer", "vjepa2", "vit"])
def test_integrated_gradients_of_pixels_equal_those_of_linear_embeddings(folder, name):
    """Tokens are linear in the pixels of their own tubelet, so both paths are the same path."""
    run, clips = family_run(name, folder), random_clips(1)
    options = {"method": "integrated_gradients", "target": 0, "steps": 32, **QUIET}
    pixels, tokens = (explain(run, clips, layer=layer, **options) for layer in ("pixels", "embedding"))
    scale = np.abs(tokens.values).max()
    np.testing.assert_allclose(pixels.values / scale, tokens.values / scale, atol=1e-3)
    assert (pixels.layer, tokens.layer) == ("pixels", "embedding")


def test_integrated_gradients_of_pixels_on_a_linear_model_are_w_times_the_difference():
    w = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    x, x0 = torch.ones(1, 12), torch.linspace(0, 0.5, 12)[None]
    linear = torch.nn.Linear(12, 2)
    linear.weight = torch.nn.Parameter(w)
    found, error, _ = integrate_gradients(linear, None, x, x0, [1], first_steps=2)
    torch.testing.assert_close(found[0], w[1] * (x - x0)[0])
    assert error[0] < 1e-5


@pytest.mark.parametrize("layer", ["embedding", 0])
def test_integrated_gradients_equal_captum_by_hand(folder, layer):
    run, clips = family_run("videomae", folder), random_clips(1)
    backbone = run.tml.backbone
    x = backbone.prepare(clips)
    module = backbone.embedding if layer == "embedding" else backbone.blocks[layer]
    by_hand = LayerIntegratedGradients(TaskOutput(run.tml, "action"), module).attribute(
        x, baseline_pixels(x, torch.zeros(3), "blur"), target=2, n_steps=64
    )
    maps = explain(run, clips, method="integrated_gradients", target=2, layer=layer, **QUIET)
    assert maps.steps is not None and maps.steps[0] == 64
    np.testing.assert_allclose(maps.values.reshape(1, -1), by_hand.sum(-1).detach(), atol=1e-5)


def test_gradient_x_activation_of_pixels_equals_captums_input_x_gradient(folder):
    from captum.attr import InputXGradient

    run, clips = family_run("vjepa2", folder), random_clips(1)
    x = run.tml.backbone.prepare(clips)
    by_hand = InputXGradient(TaskOutput(run.tml, "action")).attribute(x.requires_grad_(), target=1).detach()
    maps = explain(run, clips, method="gradient_x_activation", target=1, layer="pixels", **QUIET)
    t, h, w = maps.grid
    tubes = by_hand.reshape(1, t, 8 // t, 3, h, 32 // h, w, 32 // w).sum((2, 3, 5, 7))
    np.testing.assert_allclose(maps.values, tubes, atol=1e-5)


@pytest.mark.parametrize("name", ["videomae", "timesformer", "vjepa2", "dinov2"])
def test_grad_cam_equals_the_formula_on_tokens(folder, name):
    """max(0, sum over D of (mean over tokens of the gradient) * token); Captum on a block pools the wrong axis."""
    run, clips = family_run(name, folder), random_clips()
    model, kept = run.tml, []
    x = model.backbone.prepare(clips)

    def keep(_module, _args, hidden):
        kept.append(hidden[0] if isinstance(hidden, tuple) else hidden)
        kept[0].retain_grad()

    hook = model.backbone.blocks[0].register_forward_hook(keep)
    model(x)["action"][torch.arange(2), [0, 1]].sum().backward()
    hook.remove()
    tokens, gradient = (model.backbone.tokens_of(t).tokens.detach() for t in (kept[0], kept[0].grad))
    model.zero_grad(set_to_none=True)
    by_hand = torch.einsum("bnd,bd->bn", tokens, gradient.mean(1)).clamp_min(0)
    maps = explain(run, clips, method="grad_cam", layer=0, target=[0, 1], **QUIET)
    np.testing.assert_allclose(maps.values.reshape(2, -1), by_hand, rtol=1e-3, atol=1e-5 * by_hand.max().item())
    assert not maps.signed and maps.layer == 0
    if name == "videomae":
        wrong = LayerGradCam(TaskOutput(model, "action"), model.backbone.blocks[0]).attribute(x, target=[0, 1])
        assert wrong.shape == (2, 1, model.backbone.hidden_size)


def test_noise_samples_average_the_maps_of_noisy_clips(folder):
    """The same noise by hand: torch.normal after the same seed, one copy at a time."""
    run, clips = family_run("videomae", folder), random_clips()
    model = run.tml
    x = model.backbone.prepare(clips)
    spread = float(0.1 * (x.max() - x.min()))
    options = {"method": "gradient_x_activation", "layer": "pixels", "target": 1, **QUIET}
    maps = explain(run, clips, noise_samples=3, noise_std=0.1, seed=5, **options)
    torch.manual_seed(5)
    parts = []
    for _ in range(3):
        noisy = (x + torch.normal(0, torch.full_like(x, spread))).requires_grad_()
        (gradient,) = torch.autograd.grad(model(noisy)["action"][:, 1].sum(), noisy)
        parts.append(places(gradient * noisy.detach(), model.backbone))
    np.testing.assert_allclose(maps.values.reshape(2, -1), torch.stack(parts).mean(0), atol=1e-5)
    assert "3 noisy copies" in repr(maps)
    assert np.abs(maps.values - explain(run, clips, **options).values).max() > 1e-4


@pytest.mark.parametrize("method", ["rollout", "attnlrp", "integrated_gradients", "grad_cam"])
def test_noise_runs_over_any_method(folder, method):
    run, clips = family_run("videomae", folder), random_clips(1)
    maps = explain(run, clips, method=method, steps=4, noise_samples=2, target=0, **QUIET)
    assert maps.values.shape == (1, *maps.grid) and maps.completeness_error is None
    assert hooks_of(run.tml) == 0


def test_explain_on_bf16_weights_says_what_to_do(folder):
    run = family_run("videomae", folder)
    run.tml.bfloat16()
    with pytest.raises(ValueError, match="float32"):
        explain(run, random_clips(), **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 2, "method": "attnlrp"}, "one of 2 blocks"),
        ({"layer": 0, "method": "rollout"}, "takes no layer"),
        ({"head": 0, "method": "attnlrp"}, "takes no head"),
        ({"tube": (3, 1, 1), "method": "occlusion"}, "does not divide"),
        ({"permutations": 0}, "at least 1"),
        ({"noise_std": 0}, "above 0"),
        ({"noise_samples": -1}, "at least 0"),
    ],
)
def test_explain_refuses_options_that_do_not_fit(folder, options, message):
    with pytest.raises(ValueError, match=message):
        explain(family_run("videomae", folder), random_clips(1), **options, **QUIET)


def test_check_layer_counts_from_the_end(folder):
    backbone = family_run("videomae", folder).tml.backbone
    assert check_layer(backbone, -1) == 1 and check_layer(backbone, "pixels") == "pixels"
    with pytest.raises(ValueError, match="'tokens'"):
        check_layer(backbone, "tokens")


def test_integrated_gradients_alone_equal_captums_on_pixels(folder):
    run, clips = family_run("videomae", folder), random_clips(1)
    x = run.tml.backbone.prepare(clips)
    by_hand = IntegratedGradients(TaskOutput(run.tml, "action")).attribute(
        x, baseline_pixels(x, torch.zeros(3), "mean"), target=0, n_steps=64, internal_batch_size=32
    )
    maps = explain(run, clips, method="integrated_gradients", layer="pixels", baseline="mean", target=0, **QUIET)
    np.testing.assert_allclose(maps.values.reshape(1, -1), places(by_hand, run.tml.backbone).detach(), atol=1e-5)


@pytest.mark.parametrize("family", ["videomae", "timesformer"])
def test_captums_deeplift_is_not_complete_and_its_lrp_stops_which_is_why_they_are_not_offered(family, tmp_path):
    run = family_run(family, tmp_path)
    output, x = TaskOutput(run.tml, "action"), run.tml.backbone.prepare(random_clips(2))
    x0 = x.mean((1, 3, 4), keepdim=True).expand_as(x).contiguous()
    with evaluating(run.tml):
        found = DeepLift(output).attribute(x, x0, target=1)
        missed = found.flatten(1).sum(1) - (output(x) - output(x0))[:, 1]
        assert (missed.abs() / (output(x) - output(x0))[:, 1].abs()).max() > 0.1
        with pytest.raises(TypeError, match="no rule"):
            LRP(output).attribute(x, target=1)
