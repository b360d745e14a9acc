import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from workbench.analysis import explain as module
from workbench.analysis.explain import (
    baseline_pixels,
    evaluating,
    explain,
    integrate_gradients,
    resolve_target,
    rollout,
)
from workbench.analysis.maps import Maps
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task
from workbench.models.backbones import load_backbone
from workbench.models.tml import TML
from workbench.models.tokens import dense_attentions
from workbench.training import predict

ACTION = Task("action", "multiclass", ("left", "right", "up"))
SAFETY = Task("safety", "binary", ("safe", "unsafe"))
QUALITY = Task("quality", "regression")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Two blocks, three heads, grid (2, 4, 4); weights wide enough for attention to be far from even."""
    folder = tmp_path_factory.mktemp("tiny")
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, tubelet_size=4, hidden_size=24, num_labels=3,
        num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, use_mean_pooling=True,
        hidden_dropout_prob=0.3,
    )  # fmt: skip
    model = VideoMAEForVideoClassification(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25 if "embeddings" not in name else 0.05)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder


@pytest.fixture
def make_run(checkpoint):
    def make(head="mean", tasks=(ACTION, SAFETY, QUALITY), **options):
        torch.manual_seed(0)
        model = TML(load_backbone(checkpoint), tasks, head=head, **options)
        for linear in model.head.linears:
            torch.nn.init.normal_(linear.get_parameter("weight"), std=0.5)
        return SimpleNamespace(model=lambda device: model.to(device), tasks=tasks, tml=model)

    return make


@pytest.fixture
def clips():
    return np.random.default_rng(5).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Linear(torch.nn.Module):
    """f_k(x) = sum_i W_ki * 2 x_i; ``twice`` gives 2x, so its attributions are W * (2x - 2x0)."""

    def __init__(self):
        super().__init__()
        self.weight = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]])
        self.twice = torch.nn.Linear(3, 3, bias=False)
        self.twice.weight = torch.nn.Parameter(2 * torch.eye(3))

    def forward(self, x):
        return self.twice(x) @ self.weight.T


def test_rollout_equals_the_matrix_product_by_hand():
    """Two layers, one of two heads each; B = 1, N = 2. Worked on paper."""
    first = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    second = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]], [[0.5, 0.5], [1.0, 0.0]]]])  # head mean [[.25, .75], [.5, .5]]
    a1 = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    a2 = torch.tensor([[0.625, 0.375], [0.25, 0.75]])
    by_hand = torch.tensor([[0.625 + 0.375 * 0.25, 0.375 * 0.75], [0.25 + 0.75 * 0.25, 0.75 * 0.75]])
    torch.testing.assert_close(a2 @ a1, by_hand)
    torch.testing.assert_close(rollout([first, second])[0], by_hand)


def test_rollout_renormalises_rows_of_attention_that_does_not_sum_to_one():
    out = rollout([torch.rand(2, 3, 5, 5), torch.rand(2, 3, 5, 5)])
    torch.testing.assert_close(out.sum(-1), torch.ones(2, 5))


def test_rollout_without_attention_says_where_to_get_it():
    with pytest.raises(ValueError, match="forward_with_attention"):
        rollout([])


@pytest.mark.parametrize("head", ["mean", "query"])
def test_explain_rollout_equals_a_numpy_rollout_read_by_the_head(make_run, clips, head):
    run = make_run(head)
    maps = explain(run, clips, method="rollout", task="safety", progress=False)
    model = run.tml.eval()
    with torch.no_grad():
        tokens, attentions = model.backbone.forward_with_attention(model.backbone.prepare(clips))
        product = np.stack([np.eye(32)] * 2)
        for a in attentions:
            a = 0.5 * a.double().numpy().mean(1) + 0.5 * np.eye(32)
            product = np.stack([m @ p for m, p in zip(a / a.sum(-1, keepdims=True), product, strict=True)])
        if head == "mean":
            expected = product.mean(1)
        else:
            reading = model.forward_tokens_with_attention(tokens)[1]["safety"].double().numpy()
            expected = np.stack([r @ p for r, p in zip(reading, product, strict=True)])
    assert maps.values.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(maps.values.reshape(2, 32), expected, atol=1e-6)
    np.testing.assert_allclose(maps.values.sum((1, 2, 3)), 1, atol=1e-5)
    assert not maps.signed and maps.converged and maps.completeness_error is None


@pytest.mark.parametrize("head", ["mean", "query"])
def test_explain_attention_equals_each_heads_weights_read_by_the_head(make_run, clips, head):
    run = make_run(head)
    maps = explain(run, clips, method="attention", task="action", progress=False)
    model = run.tml.eval()
    with torch.no_grad():
        tokens, attentions = model.backbone.forward_with_attention(model.backbone.prepare(clips))
        reading = torch.full((2, 32), 1 / 32)
        if head == "query":
            reading = model.forward_tokens_with_attention(tokens)[1]["action"]
    assert maps.values.shape == (2, 2, 3, 2, 4, 4)
    assert (maps.num_layers, maps.num_heads) == (2, 3)
    for b, layer, a in np.ndindex(2, 2, 3):
        expected = reading[b] @ attentions[layer][b, a]
        np.testing.assert_allclose(maps.values[b, layer, a].ravel(), expected, atol=1e-6)
    np.testing.assert_allclose(maps.values.sum((3, 4, 5)), 1, atol=1e-5)


@pytest.fixture
def with_cls(tmp_path):
    """A run on a tiny model with a CLS token, of the named family."""

    def make(family):
        options = {"image_size": 32, "num_frames": 8, "hidden_size": 24, "num_hidden_layers": 2,
                   "num_attention_heads": 3, "intermediate_size": 48}  # fmt: skip
        own = {"Vivit": {"tubelet_size": [2, 8, 8]}, "Timesformer": {"patch_size": 8}}[family]
        config = getattr(transformers, f"{family}Config")(**options, **own)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = getattr(transformers, f"{family}ForVideoClassification")(config)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(tmp_path / family)
        text = json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
        (tmp_path / family / "preprocessor_config.json").write_text(text)
        tml = TML(load_backbone(str(tmp_path / family)), (ACTION,))
        return SimpleNamespace(model=lambda device: tml.to(device), tasks=(ACTION,), tml=tml)

    return make


@pytest.mark.parametrize(("family", "softmaxes"), [("Vivit", 2), ("Timesformer", 4)])
def test_explain_leaves_the_cls_token_out_and_the_places_sum_to_one(with_cls, clips, family, softmaxes):
    run = with_cls(family)
    backbone = run.tml.eval().backbone
    n = int(np.prod(backbone.grid))
    maps = explain(run, clips, method="rollout", task="action", progress=False)
    with torch.no_grad():
        dense = dense_attentions(backbone.forward_with_attention(backbone.prepare(clips))[1])
    assert len(dense) == softmaxes
    assert dense[0].shape[-1] == 1 + n
    product = np.stack([np.eye(1 + n)] * 2)
    for a in dense:
        a = 0.5 * a.double().numpy().mean(1) + 0.5 * np.eye(1 + n)
        product = np.stack([m @ p for m, p in zip(a, product, strict=True)])
    expected = product[:, 1:].mean(1)[:, 1:]  # read from the places alone, then without what came from CLS
    np.testing.assert_allclose(
        maps.values.reshape(2, n), expected / expected.sum(-1, keepdims=True), rtol=1e-4, atol=1e-7
    )
    heads = explain(run, clips, method="attention", task="action", progress=False)
    assert heads.values.shape == (2, softmaxes, 3, *backbone.grid)
    np.testing.assert_allclose(heads.values.sum((3, 4, 5)), 1, atol=1e-5)


def test_explain_rollout_differs_between_tasks_only_under_a_query_head(make_run, clips):
    for head, differs in (("mean", False), ("query", True)):
        run = make_run(head)
        a, b = (explain(run, clips, method="rollout", task=t, progress=False).values for t in ("action", "safety"))
        assert (np.abs(a - b).max() > 1e-5) == differs


def test_integrate_gradients_on_a_linear_model_is_w_times_the_difference():
    model = Linear()
    x, x0 = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]]), torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    attributions, error, steps = integrate_gradients(model, model.twice, x, x0, [0, 1], first_steps=4)
    expected = torch.stack([model.weight[0] * 2 * (x - x0)[0], model.weight[1] * 2 * (x - x0)[1]])
    torch.testing.assert_close(attributions, expected)
    assert error.max() < 1e-5 and steps.tolist() == [4, 4]
    assert hooks_of(model) == 0


class Quintic(Linear):
    """f(x) = (sum of x)^5: Gauss-Legendre is exact from three points on, so one and two steps must not satisfy."""

    def forward(self, x):
        return self.twice(x).sum(-1, keepdim=True) ** 5


def test_integrate_gradients_doubles_steps_until_it_converges():
    model = Quintic()
    attributions, error, steps = integrate_gradients(
        model, model.twice, torch.ones(1, 3), torch.zeros(1, 3), [0], first_steps=1, tolerance=1e-4
    )
    assert steps.tolist() == [4]
    assert error[0] < 1e-5
    torch.testing.assert_close(attributions, torch.full((1, 3), 6.0**5 / 3), rtol=1e-4, atol=0)


def test_integrate_gradients_reports_the_error_by_hand_where_it_cannot_converge():
    """One step is the midpoint rule: 5 (1/2)^4 = 0.3125 of the true integral, an error of 0.6875."""
    model = Quintic()
    _, error, steps = integrate_gradients(
        model, model.twice, torch.ones(1, 3), torch.zeros(1, 3), [0], first_steps=1, max_steps=1
    )
    assert error[0] == pytest.approx(0.6875, abs=1e-5)
    assert steps.tolist() == [1]


@pytest.mark.parametrize("head", ["mean", "query"])
@pytest.mark.parametrize("baseline", ["blur", "mean", "black"])
def test_explain_integrated_gradients_is_complete(make_run, clips, head, baseline):
    run = make_run(head)
    maps = explain(run, clips, method="integrated_gradients", task="action", baseline=baseline, progress=False)
    assert maps.converged and maps.signed and maps.baseline == baseline
    assert maps.completeness_error is not None and maps.completeness_error.max() < 0.01
    backbone = run.tml.backbone
    pixel_values = backbone.prepare(clips)
    start = baseline_pixels(pixel_values, torch.full((3,), -2.0), baseline)  # (0 - 0.5) / 0.25
    with torch.no_grad():
        logits, logits0 = (run.tml.eval()(p)["action"] for p in (pixel_values, start))
    for b in range(2):
        k = int(logits[b].argmax())
        assert maps.target[b] == ACTION.classes[k]
        assert maps.values[b].sum() == pytest.approx((logits - logits0)[b, k].item(), rel=0.011)


@pytest.mark.parametrize("task", ["safety", "quality"])
def test_explain_integrated_gradients_explains_the_one_output_of_other_tasks(make_run, clips, task):
    run = make_run()
    maps = explain(run, clips, method="integrated_gradients", task=task, baseline="mean", progress=False)
    pixel_values = run.tml.backbone.prepare(clips)
    start = baseline_pixels(pixel_values, torch.zeros(3), "mean")
    with torch.no_grad():
        difference = run.tml.eval()(pixel_values)[task] - run.tml(start)[task]
    np.testing.assert_allclose(maps.values.sum((1, 2, 3)), difference.numpy(), rtol=0.011)
    assert maps.target == (("unsafe",) if task == "safety" else ("quality",)) * 2


def test_explain_integrated_gradients_puts_the_attribution_where_the_evidence_is(make_run):
    """The clip differs from its black baseline in one token of tubelet 1, row 2, column 3 and nowhere else."""
    run = make_run()
    clips = np.zeros((1, 8, 32, 32, 3), np.uint8)
    clips[0, 4:8, 16:24, 24:32] = 255
    maps = explain(run, clips, method="integrated_gradients", task="action", baseline="black", progress=False)
    lit = np.zeros((2, 4, 4), bool)
    lit[1, 2, 3] = True
    assert np.abs(maps.values[0][lit]).max() > 0.01
    assert np.abs(maps.values[0][~lit]).max() == 0


def test_explain_integrated_gradients_follows_the_target(make_run, clips):
    run = make_run(tasks=(ACTION,))
    options: dict[str, Any] = {"method": "integrated_gradients", "progress": False}
    by_name, by_index = (explain(run, clips, target=t, **options) for t in ("up", 2))
    other = explain(run, clips, target="left", **options)
    mixed = explain(run, clips, target=["left", 2], **options)
    np.testing.assert_array_equal(by_name.values, by_index.values)
    assert np.abs(by_name.values - other.values).max() > 0.01
    np.testing.assert_array_equal(mixed.values, np.stack([other.values[0], by_name.values[1]]))
    assert mixed.target == ("left", "up")


def test_explain_begins_with_the_steps_asked_for(make_run, clips):
    maps = explain(make_run(), clips[:1], method="integrated_gradients", steps=3, progress=False)
    assert maps.steps is not None and maps.steps[0] in (3, 6, 12, 24, 48)


def test_explain_flags_maps_that_did_not_converge(make_run, clips, monkeypatch, caplog):
    run = make_run()
    with torch.no_grad():
        for block in run.tml.backbone.blocks:
            block.attention.attention.query.weight.mul_(3000)  # attention jumps from token to token along the path
    maps = explain(run, clips, method="integrated_gradients", baseline="black", progress=False)
    assert maps.completeness_error is not None and maps.steps is not None
    assert maps.completeness_error.max() > 0.01 and maps.steps.max() == 512
    assert not maps.converged
    assert "NOT CONVERGED" in repr(maps) and "did not converge" in caplog.text


@pytest.mark.parametrize("method", module.METHODS)
def test_explain_leaves_no_hooks_and_the_attention_and_mode_as_they_were(make_run, clips, method):
    run = make_run("query")
    run.tml.train()
    before = {n: p.clone() for n, p in run.tml.named_parameters()}
    values = explain(run, clips[:1], method=method, progress=False).values
    np.testing.assert_array_equal(values, explain(run, clips[:1], method=method, progress=False).values)  # no dropout
    assert hooks_of(run.tml) == 0
    assert run.tml.backbone.config._attn_implementation == "sdpa"
    assert run.tml.training and run.tml.backbone.training
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in run.tml.named_parameters())


@pytest.mark.parametrize("method", module.METHODS)
def test_explain_cleans_up_after_an_error(make_run, clips, method, monkeypatch):
    run = make_run("query")
    run.tml.train()
    calls = []

    def explode(_module, _inputs, _output):
        calls.append(1)
        # Break while hooks are set; without an output of their own, methods begin with a pass that only predicts.
        if len(calls) > (0 if method in module._OWN_PASS else 1):
            raise RuntimeError("boom")

    own = run.tml.backbone.blocks[1].register_forward_hook(explode)
    with pytest.raises(RuntimeError, match="boom"):
        explain(run, clips, method=method, progress=False)
    own.remove()
    assert hooks_of(run.tml) == 0
    assert run.tml.backbone.config._attn_implementation == "sdpa"
    assert run.tml.training


def test_explain_takes_a_tensor_like_an_array_and_the_first_task_by_default(make_run, clips):
    run = make_run()
    a, b = explain(run, clips, progress=False), explain(run, torch.from_numpy(clips), progress=False)
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.frames, clips)
    assert a.task == "action" and a.clip_ids == ("clip 0", "clip 1")


def test_explain_decodes_a_table_by_the_runs_protocol(make_run, clips, monkeypatch, tmp_path):
    import pandas as pd

    names = ["a", "broken", "b"]
    frame = pd.DataFrame(
        {"clip_id": names, "path": [f"{n}.mp4" for n in names], "start_seconds": np.nan, "end_seconds": np.nan,
         "split": "test", "group": names}
    )  # fmt: skip
    table = ClipTable(frame, [], root=tmp_path)
    seen = {}

    def decode(asked, **options):
        seen.update(options)
        return SimpleNamespace(clips=clips, table=asked[np.array([0, 2])])

    monkeypatch.setattr(predict, "decode_table", decode)
    run = make_run()
    run.protocol = Protocol(num_frames=8, size_px=32, fit="pad", sampling="single", decoder="pyav")
    maps = explain(run, table, progress=False)
    assert maps.clip_ids == ("a", "b")
    np.testing.assert_array_equal(maps.values, explain(run, clips, progress=False).values)
    expected = {"num_frames": 8, "size_px": 32, "fit": "pad", "sampling": "single", "decoder": "pyav"}
    assert expected.items() <= seen.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gradcam"}, "attention, rollout, task_attention"),
        ({"steps": 0}, "at least 1"),
        ({"baseline": "noise"}, "blur, mean, black, frozen"),
        ({"task": "colour"}, "'action', 'safety', 'quality'"),
        ({"target": "down"}, "'left', 'right', 'up'"),
        ({"target": 3}, "'left', 'right', 'up'"),
        ({"target": ["left"] * 3}, "3 targets for 2 clips"),
        ({"task": "quality", "target": 0}, "must be None"),
    ],
)
def test_explain_refuses_with_what_is_accepted(make_run, clips, options, message):
    with pytest.raises(ValueError, match=message):
        explain(make_run(), clips, progress=False, **options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((1, 16, 32, 32, 3), np.uint8), "num_frames=8"),
        (np.zeros((1, 8, 32, 32, 3), np.float32), "uint8"),
        (np.zeros((0, 8, 32, 32, 3), np.uint8), "no clip to explain"),
    ],
)
def test_explain_refuses_clips_it_cannot_use(make_run, bad, message):
    with pytest.raises(ValueError, match=message):
        explain(make_run(), bad, progress=False)


def test_resolve_target_without_target_takes_the_prediction():
    outputs = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert resolve_target(ACTION, None, outputs) == ([1, 0], ("right", "left"))
    assert resolve_target(ACTION, np.int64(2), outputs) == ([2, 2], ("up", "up"))


def test_evaluating_refuses_half_precision():
    with pytest.raises(ValueError, match="float32 weights"), evaluating(torch.nn.Linear(2, 2).bfloat16()):
        pass


def test_baseline_pixels_blur_keeps_the_mean_and_removes_motion_and_shape():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(1.5, 1, (2, 8, 3, 32, 32)).astype(np.float32))
    x[:, 4:] += 1
    out = baseline_pixels(x, torch.zeros(3), "blur")
    assert out.shape == x.shape and out.dtype == x.dtype
    torch.testing.assert_close(out.mean(), x.mean(), atol=0.05, rtol=0)
    assert out.std() < 0.35 * x.std()
    flat = torch.full((1, 8, 3, 32, 32), 0.7)
    torch.testing.assert_close(baseline_pixels(flat, torch.zeros(3), "blur"), flat)


def test_baseline_pixels_mean_and_black_by_hand():
    x = torch.arange(2 * 2 * 3 * 2 * 2, dtype=torch.float32).view(2, 2, 3, 2, 2)
    mean = baseline_pixels(x, torch.zeros(3), "mean")
    assert mean[0, 1, 2, 0, 1] == x[0, :, 2].mean()
    black = baseline_pixels(x, torch.tensor([1.0, 2.0, 3.0]), "black")
    assert black[1, 0, :, 1, 1].tolist() == [1.0, 2.0, 3.0]


def maps_of(values, method="rollout", frame_shape=(8, 32, 32), **options):
    n = len(values)
    parts: dict[str, Any] = {
        "method": method, "task": "action", "target": ("left",) * n, "values": np.asarray(values, np.float32),
        "signed": False, "frames": np.zeros((n, *frame_shape, 3), np.uint8), "clip_ids": tuple("abcdef"[:n]),
    }  # fmt: skip
    return Maps(**(parts | options))


def test_upsampled_interpolates_between_token_centres_by_hand():
    """Two tubelets of two frames: centres at 0.5 and 2.5 frames, so frames read 0, .25, .75, 1."""
    values = np.stack([np.zeros((2, 2)), np.ones((2, 2))])[None]
    fine = maps_of(values, frame_shape=(4, 4, 4)).upsampled(0)
    assert fine.shape == (4, 4, 4) and fine.dtype == np.float32
    np.testing.assert_allclose(fine[:, 1, 2], [0, 0.25, 0.75, 1])
    across = maps_of(values.transpose(0, 2, 3, 1), frame_shape=(4, 4, 4)).upsampled(0)
    np.testing.assert_allclose(across[3, 0], [0, 0.25, 0.75, 1])


def test_upsampled_picks_layer_and_head_and_averages_without():
    values = np.arange(2 * 3, dtype=float).reshape(1, 2, 3, 1, 1, 1) * np.ones((1, 2, 3, 2, 4, 4))
    maps = maps_of(values, "attention")
    assert maps.upsampled(0, layer=1, head=2).max() == 5
    assert maps.upsampled(0, layer=1).max() == 4
    assert maps.upsampled(0, head=0).max() == 1.5
    assert maps.upsampled(0).max() == 2.5


def test_upsampled_refuses_a_layer_where_there_is_none():
    with pytest.raises(ValueError, match="no layers or heads"):
        maps_of(np.zeros((1, 2, 4, 4))).upsampled(0, layer=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": np.zeros((2, 2, 4, 4)), "frames": np.zeros((1, 8, 32, 32, 3), np.uint8)}, "for 1 clips"),
        ({"values": np.zeros((1, 2, 3, 2, 4, 4), np.float32)}, r"T', H', W'"),
        ({"method": "attention"}, "L, A"),
        ({"frames": np.zeros((1, 8, 32, 32, 3), np.float32)}, "expected uint8"),
        ({"frames": np.zeros((1, 9, 32, 32, 3), np.uint8)}, "does not divide"),
        ({"target": ()}, "0 targets"),
        ({"completeness_error": np.zeros(2)}, "completeness_error"),
    ],
)
def test_maps_refuses_shapes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        maps_of(**({"values": np.zeros((1, 2, 4, 4))} | {"clip_ids": ("a",), "target": ("left",)} | options))


def test_maps_repr_shows_shapes_not_data():
    text = repr(maps_of(np.zeros((1, 2, 4, 4)), completeness_error=np.array([0.004]), baseline="blur"))
    assert "(1, 2, 4, 4)" in text and "(1, 8, 32, 32, 3)" in text and "0.40%" in text and "array" not in text
    assert maps_of(np.zeros((1, 2, 4, 4))).tokens_per_clip == 32
