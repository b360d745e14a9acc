"""Planted shortcuts raise the alarm, chance does not, and the metrics equal scikit-learn's."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from workbench.data.checks import shortcuts
from workbench.data.checks.shortcuts import held_out, shortcut_alarms
from workbench.data.tables import ClipTable, Task

RNG = np.random.default_rng(0)


def make(n: int, groups: int, target: np.ndarray, task: Task) -> ClipTable:
    frame = pd.DataFrame({"path": [f"{i}.mp4" for i in range(n)], task.name: target, "group": np.arange(n) % groups})
    frame = frame.assign(clip_id=frame.path, start_seconds=np.nan, end_seconds=np.nan, split="train")
    return ClipTable(frame, [task])


def test_metric_equals_scikit_learn_under_group_weights() -> None:
    n, groups = 200, 30
    target, group = RNG.integers(0, 2, n), np.arange(n) % groups
    score = RNG.integers(0, 6, n) / 5 + 0.3 * target  # many ties
    weights = RNG.multinomial(groups, np.full(groups, 1 / groups), size=4).astype(float)
    found = shortcuts._metric(weights, shortcuts._sufficient(score, target, group, "AUROC"), "AUROC")
    assert found == pytest.approx([roc_auc_score(target, score, sample_weight=w[group]) for w in weights])
    many, votes = RNG.integers(0, 4, n), RNG.random((n, 4))
    table = shortcuts._sufficient(votes, many, group, "balanced accuracy")
    found = shortcuts._metric(weights, table, "balanced accuracy")
    expected = [balanced_accuracy_score(many, votes.argmax(1), sample_weight=w[group]) for w in weights]
    assert found == pytest.approx(expected)
    x, y = RNG.random(n), RNG.random(n)
    table = shortcuts._sufficient(x, y, group, "rank correlation")
    whole = shortcuts._metric(np.ones((1, groups)), table, "rank correlation")[0]
    assert whole == pytest.approx(pd.Series(x).corr(pd.Series(y), method="spearman"))


def test_shortcut_alarms_finds_the_planted_fact_and_only_that() -> None:
    n = 120
    label = RNG.integers(0, 2, n)
    facts = pd.DataFrame(
        {
            "width": 320, "height": 240, "fps": RNG.choice([15.0, 25.0, 30.0], n), "seconds": RNG.random(n),
            "brightness": 100 + 10 * RNG.random(n) + 8 * label, "file_bytes": RNG.random(n), "has_audio": label == 1,
        }
    )  # fmt: skip
    facts.loc[::5, "has_audio"] = ~facts.has_audio[::5]
    found = shortcut_alarms(make(n, 40, label, Task("y", "binary")), facts, resamples=200).set_index("fact")
    assert found.index[found.alarm == "held out"].tolist() == ["brightness", "audio", "all together"]
    audio = facts.has_audio.to_numpy()
    by_hand = (audio[label == 1].mean() + 1 - audio[label == 0].mean()) / 2  # the AUROC of one bit
    assert found.in_sample["audio"] == pytest.approx(by_hand) and 0.6 < found.held_out["audio"] <= by_hand
    assert found.held_out["resolution"] == 0.5 and (found.in_sample >= 0.5).all()


def test_shortcut_alarms_calls_what_only_known_groups_give_away_in_sample() -> None:
    groups, each = 24, 6
    label_of = RNG.permutation(np.arange(groups) % 2)
    size_of = RNG.permutation(groups)  # every camera has its own size, unrelated to the label
    group = np.arange(groups * each) % groups
    facts = pd.DataFrame({"width": size_of[group] * 10.0, "height": 100.0, "fps": RNG.random(len(group))})
    found = shortcut_alarms(make(len(group), groups, label_of[group], Task("y", "binary")), facts, resamples=200)
    row = found.set_index("fact").loc["resolution"]
    assert row.alarm == "in sample" and row.in_sample > 0.65 and row.low < 0.5


def test_held_out_stays_at_chance_without_a_shortcut() -> None:
    n = 240
    target, group = RNG.integers(0, 3, n), np.arange(n) % 60
    score = held_out(RNG.random((n, 2)), target, group, "balanced accuracy", resamples=200)
    assert score.low < 1 / 3 < score.high and score.high - score.low < 0.25


def test_shortcut_alarms_measures_regression_by_rank() -> None:
    n = 150
    facts = pd.DataFrame({"width": 64.0, "height": 64.0, "brightness": RNG.random(n), "fps": RNG.random(n)})
    target = facts.brightness.to_numpy() ** 3
    found = shortcut_alarms(make(n, 50, target, Task("y", "regression")), facts, resamples=200).set_index("fact")
    assert found.metric["brightness"] == "rank correlation" and found.held_out["brightness"] > 0.9
    assert found.alarm["brightness"] == "held out" and found.alarm["fps"] == ""


def test_shortcut_alarms_skips_what_cannot_be_held_out() -> None:
    label = np.array([0, 1] * 20)
    facts = pd.DataFrame({"fps": RNG.random(40)})
    assert shortcut_alarms(make(40, 4, label, Task("y", "binary")), facts).empty  # too few groups
    assert shortcut_alarms(make(40, 40, label * 0, Task("y", "binary")), facts).empty  # one class
    rare = label.astype(float)
    rare[:] = 0
    rare[0] = 1
    assert shortcut_alarms(make(40, 40, rare, Task("y", "binary")), facts).empty  # a class of one group
