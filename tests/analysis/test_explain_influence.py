"""Influence against TracIn written out, and on training clips with planted wrong labels."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tests.analysis.family_runs import ACTION, SAFETY, family_run, hooks_of, random_clips
from tests.models.tiny import save
from workbench.analysis.explaining.influence import _Side, influence
from workbench.data.synthetic.planted import planted_clips
from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.models.tml import TML

QUALITY = Task("quality", "regression")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("influence")


@pytest.mark.parametrize("head", ["mean", "query"])
@pytest.mark.parametrize("task", ["action", "safety", "quality"])
def test_influence_equals_the_product_of_gradients_of_the_last_layers_weights(folder, head, task):
    run = family_run("videomae", folder, head, (ACTION, SAFETY, QUALITY))
    model, train, test = run.tml, random_clips(5), random_clips(2, seed=1)
    known: dict[str, list[float]] = {
        "action": [0, 1, 2, 1, 0],
        "safety": [0, 1, 1, 0, 1],
        "quality": [0.5, -1, 2, 0, 1],
    }
    labels = known[task]
    test_labels = labels[1:3]
    found = influence(
        run, train, test, task=task, train_labels=labels, test_labels=test_labels, of="label", progress=False
    )
    linear = model.head.linears[["action", "safety", "quality"].index(task)]

    def gradient(clip, label):
        y = model(model.backbone.prepare(clip[None]))[task][0]
        loss = {
            "action": lambda: F.cross_entropy(y, torch.tensor(int(label))),
            "safety": lambda: F.binary_cross_entropy_with_logits(y, torch.tensor(float(label))),
            "quality": lambda: (y - label) ** 2,
        }[task]()
        return torch.autograd.grad(loss, linear.weight)[0].flatten()

    a = torch.stack([gradient(*pair) for pair in zip(test, test_labels, strict=True)])
    b = torch.stack([gradient(*pair) for pair in zip(train, labels, strict=True)])
    np.testing.assert_allclose(found.scores, a @ b.T, rtol=1e-3, atol=1e-4 * (a @ b.T).abs().max().item())
    np.testing.assert_allclose(found.own, (b * b).sum(-1), rtol=1e-3, atol=1e-5)
    assert hooks_of(model) == 0 and all(p.grad is None for p in model.parameters())


def test_influence_of_predictions_needs_no_test_labels_and_of_two_states_is_their_sum(folder):
    run, other = (family_run("videomae", folder, head) for head in ("mean", "query"))
    train, test, labels = random_clips(4), random_clips(2, seed=1), [0, 1, 2, 0]
    options = {"train_labels": labels, "progress": False}
    said = run.tml(run.tml.backbone.prepare(test))["action"].argmax(-1).tolist()
    one, two = (influence(r, train, test, of="label", test_labels=said, **options) for r in (run, other))
    both = influence([run, other], train, test, of="label", test_labels=said, **options)
    np.testing.assert_allclose(influence(run, train, test, **options).scores, one.scores)
    np.testing.assert_allclose(both.scores, one.scores + two.scores)
    assert both.checkpoints == 2 and "2 checkpoint" in repr(both)


def test_table_lists_the_most_helpful_and_harmful_clips(folder):
    found = influence(
        family_run("videomae", folder), random_clips(6), random_clips(2, seed=1), train_labels=[0, 1, 2, 0, 1, np.nan],
        progress=False,
    )  # fmt: skip
    assert found.train_ids == tuple(f"clip {i}" for i in range(5))  # without the one that has no label
    table = found.table(2)
    assert len(table) == 8
    first = table[(table.test_clip == "clip 1") & (table["rank"] == 1)].set_index("effect").score
    assert first.helpful == found.scores[1].max() and first.harmful == found.scores[1].min()


def _mislabelled(labels, share, seed):
    """Labels of which ``share`` are another class, and which."""
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(labels), int(share * len(labels)), replace=False)
    labels = labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 4, len(wrong))) % 4
    return labels, {f"clip {i}" for i in wrong}


def test_suspects_of_a_probe_are_wrong_labels_once_its_penalty_is_chosen_on_clips_held_out(folder):
    """Random features, a logistic probe. With a penalty of 1e-3 it underfits: mean precision 0.73 over ten draws, 0.60
    to 0.85. Fitted anew with the penalty that clips held out ask for (no true label is seen): 0.93, 0.85 to 1.00; a
    head that knows 3600 clips with true labels ranks its wrong labels at 0.90."""
    hits: list[float] = []
    underfit: list[float] = []
    for seed in (0, 1):
        planted = planted_clips(400, seed=seed, cues=("colour",))
        run = family_run("vivit", folder, tasks=planted.tasks)
        labels, wrong = _mislabelled(planted.labels["colour"], 0.05, seed + 1)
        _fit(run.tml, planted.frames, labels)
        for refit, kept in ((True, hits), (False, underfit)):
            found = influence(run, planted.frames, planted.frames[:1], train_labels=labels, refit=refit, progress=False)
            suspects = found.suspects(20)
            assert isinstance(suspects, pd.DataFrame) and suspects.self_influence.is_monotonic_decreasing
            assert len(found.penalties) == refit
            kept.append(len(wrong & set(suspects.train_clip)) / 20)
    assert min(hits) >= 0.8 and np.mean(hits) > np.mean(underfit)


@pytest.mark.slow
def test_suspects_of_a_trained_model_are_wrong_labels(tmp_path):
    """All held-out clips right; precision@20 was 1.00 for each of three seeds."""
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96, "tubelet_size": 2}
    planted = planted_clips(2048, seed=0)
    labels, wrong = _mislabelled(planted.labels["stripes"], 0.05, 0)
    torch.manual_seed(0)
    backbone = load_backbone(str(save("videomae", tmp_path / "videomae", **sizes)), weights="random")
    model = TML(backbone, planted.tasks).train()
    x, y = backbone.prepare(planted.frames), torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=400)
    for _ in range(400):
        rows = torch.randint(len(x), (32,))
        loss = F.cross_entropy(model(x[rows])["stripes"], y[rows])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    run = SimpleNamespace(model=lambda device: model.eval())
    suspects = influence(run, planted.frames, planted.frames[:1], train_labels=labels, progress=False).suspects(20)
    assert len(wrong & set(suspects.train_clip)) / 20 >= 0.8


def test_clips_without_a_label_are_left_out_with_their_groups():
    side = object.__new__(_Side)
    side.features, side.labels, side.ids = torch.arange(3.0)[:, None], np.array([0, np.nan, 1]), ("a", "b", "c")
    side.groups = ["scene 1", "scene 2", "scene 3"]
    side.keep(~np.isnan(side.labels))
    assert (side.features[:, 0].tolist(), side.ids, side.groups) == ([0, 2], ("a", "c"), ["scene 1", "scene 3"])
    assert side.labels.tolist() == [0, 1]


def _fit(model, frames, labels):
    """Multinomial regression of the labels on the mean tokens."""
    with torch.no_grad():
        pooled = torch.cat([
            model.backbone.pool(model.backbone(model.backbone.prepare(frames[i : i + 50])).tokens)
            for i in range(0, len(frames), 50)
        ])  # fmt: skip
    linear, y = model.head.linears[0], torch.from_numpy(labels)
    optimiser = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = F.cross_entropy(linear(pooled), y) + 1e-3 * linear.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "truth"}, "prediction, label"),
        ({"train_labels": None}, "train_clips has no labels"),
        ({"train_labels": [0]}, "one number per clip"),
        ({"of": "label"}, "test_clips has no labels"),
    ],
)
def test_influence_refuses_what_it_cannot_use(folder, options, message):
    with pytest.raises(ValueError, match=message):
        influence(
            family_run("videomae", folder), random_clips(2), random_clips(1),
            **({"train_labels": [0, 1], "progress": False} | options),
        )  # fmt: skip
