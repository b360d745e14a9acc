"""Metrics of prediction tables: values by hand and by scikit-learn, what is masked, and what is said about doubt."""

import doctest
import json
import logging
import sys
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from workbench.analysis import evaluate as module
from workbench.analysis.evaluate import Predictions, evaluate, metrics_for
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task

ACTION = Task("action", "multiclass", ("left", "right", "up"))
SAFETY = Task("safety", "binary")
QUALITY = Task("quality", "regression")
PROTOCOL = Protocol(num_frames=16, size_px=64)


def table(task: Task, target, prediction, probabilities=None, *, group=None, split="test") -> pd.DataFrame:
    n = len(target)
    return pd.DataFrame(
        {
            "clip_id": [f"clip{i:04d}" for i in range(n)],
            "path": [f"videos/{i}.mp4" for i in range(n)],
            "group": [f"g{i}" for i in range(n)] if group is None else group,
            "split": split,
            "task": task.name,
            "target": np.asarray(target, float),
            "prediction": np.asarray(prediction, float),
            "probabilities": [[] for _ in range(n)] if probabilities is None else np.asarray(probabilities).tolist(),
        }
    )


def run_of(*frames: pd.DataFrame, tasks: tuple[Task, ...], record: dict | None = None) -> Predictions:
    return Predictions("nano", tasks, pd.concat(frames, ignore_index=True), PROTOCOL, record or {})


def mixed_run(n: int = 60) -> Predictions:
    """Three tasks, two clips per group, some labels missing."""
    rng = np.random.default_rng(0)
    group = [f"g{i // 2}" for i in range(n)]
    action, score = rng.integers(0, 3, n).astype(float), rng.dirichlet(np.ones(3), n)
    safety, danger = (rng.random(n) < 0.3).astype(float), rng.random(n)
    quality = rng.random(n)
    frames = (
        table(ACTION, action, score.argmax(1), score, group=group),
        table(SAFETY, safety, danger >= 0.5, np.c_[1 - danger, danger], group=group),
        table(QUALITY, quality, quality + rng.normal(scale=0.3, size=n), group=group),
    )
    for k, frame in enumerate(frames):
        frame.loc[rng.permutation(n)[: 3 * k], "target"] = np.nan
    return run_of(*frames, tasks=(ACTION, SAFETY, QUALITY), record={"data": {"quarantined": 2}})


def test_metrics_for_by_hand():
    found = metrics_for(ACTION, np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]))
    # F1: left 2*1/(2+0+1), right 2*1/(2+2+0), up 0.
    assert list(found) == ["accuracy", "macro_f1"]
    assert found == pytest.approx({"accuracy": 0.5, "macro_f1": (2 / 3 + 0.5 + 0) / 3})
    found = metrics_for(QUALITY, np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    assert found == pytest.approx({"srcc": 0.5, "plcc": 0.5, "rmse": np.sqrt((81 + 784 + 289) / 3)})
    assert list(found)[0] == "srcc"


def test_metrics_for_leaves_missing_targets_out():
    target, probabilities = np.array([0, 1, 1, 0.0]), np.array([0.1, 0.4, 0.8, 0.5])
    short = metrics_for(SAFETY, target, probabilities > 0.5, np.c_[1 - probabilities, probabilities])
    assert short["auroc"] == pytest.approx(roc_auc_score(target, probabilities))
    more = np.r_[0.99, probabilities]
    assert metrics_for(SAFETY, np.r_[np.nan, target], more > 0.5, np.c_[1 - more, more]) == short


def test_metrics_for_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        metrics_for(QUALITY, np.ones(3), np.ones(2))


def test_evaluate_lists_every_metric_with_n_groups_quarantined_and_protocol():
    run = mixed_run()
    found = evaluate(run, resamples=200)
    assert list(found.columns[:11]) == [
        "run", "task", "metric", "value", "low", "high", "n", "groups", "quarantined", "protocol", "missing"
    ]  # fmt: skip
    assert found.metric.tolist() == [
        "accuracy", "macro_f1", "auroc", "average_precision", "accuracy", "srcc", "plcc", "rmse"
    ]  # fmt: skip
    assert found.n.tolist() == [60] * 2 + [57] * 3 + [54] * 3
    assert found.missing.tolist() == [0] * 2 + [3] * 3 + [6] * 3
    assert set(found.quarantined) == {2} and set(found.seeds) == {1}
    assert set(found.protocol) == {PROTOCOL.describe()}
    assert ((found.low < found.value) & (found.value < found.high)).all()
    only = evaluate(run, task="safety", resamples=200)
    pd.testing.assert_frame_equal(only, found[found.task == "safety"].reset_index(drop=True))


def test_evaluate_interval_agrees_with_scipy_on_clips_without_groups():
    rng = np.random.default_rng(3)
    target = rng.random(70)
    prediction = target + rng.normal(scale=0.3, size=70)
    frame = table(QUALITY, target, prediction).drop(columns="group")
    ours = evaluate(run_of(frame, tasks=(QUALITY,)), resamples=4000).set_index("metric").loc["srcc"]
    theirs = stats.bootstrap(
        (target, prediction), lambda x, y: stats.spearmanr(x, y).statistic, paired=True, vectorized=False,
        method="percentile", n_resamples=1000, rng=1,
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert ours.groups == 70


def test_evaluate_does_not_depend_on_the_order_of_rows():
    run = mixed_run()
    shuffled = replace(run, predictions=run.predictions.sample(frac=1, random_state=5))
    pd.testing.assert_frame_equal(evaluate(shuffled, resamples=100), evaluate(run, resamples=100))


def test_evaluate_ignores_what_is_predicted_where_the_target_is_missing():
    run = mixed_run()
    changed = run.predictions.copy()
    gone = changed.target.isna()
    changed.loc[gone, "prediction"] = np.nan
    assert gone.sum() == 9
    pd.testing.assert_frame_equal(
        evaluate(replace(run, predictions=changed), resamples=50), evaluate(run, resamples=50)
    )


def test_evaluate_reads_a_table_that_went_through_csv(tmp_path):
    run = mixed_run()
    out = run.predictions.assign(probabilities=[json.dumps(p) for p in run.predictions.probabilities])
    out.to_csv(tmp_path / "p.csv", index=False)
    back = replace(run, predictions=pd.read_csv(tmp_path / "p.csv"))
    pd.testing.assert_frame_equal(evaluate(back, resamples=50), evaluate(run, resamples=50))


def test_evaluate_says_why_a_metric_is_undefined(caplog: pytest.LogCaptureFixture):
    n = 12
    probability = np.linspace(0.1, 0.9, n)
    one_class = table(SAFETY, np.zeros(n), probability >= 0.5, np.c_[1 - probability, probability])
    flat = table(QUALITY, np.arange(n), np.full(n, 0.3))
    unlabelled = table(ACTION, np.full(n, np.nan), np.zeros(n))
    with caplog.at_level(logging.WARNING):
        found = evaluate(run_of(one_class, flat, unlabelled, tasks=(SAFETY, QUALITY, ACTION)), resamples=50)
    notes = found.set_index(["task", "metric"]).note
    values = found.set_index(["task", "metric"]).value
    assert values[[("safety", "auroc"), ("quality", "srcc"), ("action", "accuracy")]].isna().all()
    assert values["safety", "accuracy"] == 0.5
    assert notes["safety", "auroc"] == "only one class among the targets (0)"
    assert notes["quality", "srcc"] == "all predictions are equal"
    assert notes["action", "accuracy"] == "no clip carries this label"
    assert "auroc is undefined: only one class" in caplog.text


def test_evaluate_does_not_rank_by_hard_labels_or_hide_a_diverged_run():
    bare = evaluate(run_of(table(SAFETY, [0, 1] * 6, [0, 1] * 6), tasks=(SAFETY,)), resamples=50).set_index("metric")
    assert np.isnan(bare.value["auroc"]) and bare.note["auroc"] == "needs probabilities"
    assert bare.value["accuracy"] == 1.0
    diverged = evaluate(run_of(table(QUALITY, np.arange(9), [np.nan] * 2 + [1.0] * 7), tasks=(QUALITY,)), resamples=50)
    assert diverged.value.isna().all() and diverged.note[0] == "2 prediction(s) are not finite"


def test_evaluate_counts_resamples_in_which_a_metric_was_undefined():
    probability = np.linspace(0.1, 0.9, 10)
    frame = table(SAFETY, [1] + [0] * 9, probability >= 0.5, np.c_[1 - probability, probability])
    row = evaluate(run_of(frame, tasks=(SAFETY,)), resamples=4000).set_index("metric").loc["auroc"]
    # The one positive group is not drawn with probability (9/10)^10 = 0.349; standard error 0.008.
    assert row.skipped / 4000 == pytest.approx(0.9**10, abs=0.03)
    assert f"undefined in {row.skipped} of 4000 resamples" in row.note
    assert "only 1 group(s) hold the rarer class" in row.note


def test_evaluate_warns_of_few_groups_and_gives_no_interval_for_one():
    right = [0, 1, 0, 1, 0, 1, 0, 0]
    one = evaluate(run_of(table(ACTION, [0] * 8, right, group=["a"] * 8), tasks=(ACTION,)), resamples=50).iloc[0]
    assert one.value == 5 / 8 and np.isnan(one.low) and one.note == "one group: no interval"
    two = evaluate(run_of(table(ACTION, [0] * 8, right, group=list("aabbaabb")), tasks=(ACTION,)), resamples=50).iloc[0]
    assert two.note == "only 2 group(s): the interval is rough" and two.low <= two.value <= two.high
    perfect = evaluate(run_of(table(ACTION, [0] * 8, [0] * 8), tasks=(ACTION,)), resamples=50).iloc[0]
    assert perfect.low == perfect.high == 1 and "true interval is wider" in perfect.note


def test_evaluate_uses_only_the_split_and_tells_which_there_are():
    wrong = table(ACTION, [0] * 8, [1] * 8, split="val")
    right = table(ACTION, [0] * 8, [0] * 8).assign(clip_id=[f"t{i}" for i in range(8)])
    run = run_of(wrong, right, tasks=(ACTION,))
    assert evaluate(run, resamples=10).value[0] == 1.0
    val = evaluate(run, split="val", resamples=10)
    assert val.value[0] == 0.0 and val.protocol[0].endswith("val split")
    with pytest.raises(ValueError, match=r"split='train'; it has \['test', 'val'\]"):
        evaluate(run, split="train")
    with pytest.raises(ValueError, match=r"no task 'speed'; it has \['action'\]"):
        evaluate(run, task="speed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns=["target"]), r"lack the column\(s\) \['target'\]"),
        (lambda f: pd.concat([f, f.head(1)]), "more than once for clip"),
        (lambda f: f.assign(prediction=3.0), "expected 0 to 2"),
        (lambda f: f.assign(target=0.5), r"target \[0.5\] is no class index"),
        (lambda f: f.assign(probabilities=[[0.5, 0.5]] + [[0.2, 0.3, 0.5]] * 5), "1 of 6 rows do not have 3"),
    ],
)
def test_evaluate_refuses_a_table_it_would_misread(change, message: str):
    frame = change(table(ACTION, [0, 1, 2] * 2, [0, 1, 1] * 2, [[0.2, 0.3, 0.5]] * 6))
    with pytest.raises(ValueError, match=message):
        evaluate(run_of(frame, tasks=(ACTION,)), resamples=10)


def test_evaluate_with_clips_predicts_on_them_and_counts_what_did_not_decode(monkeypatch: pytest.MonkeyPatch):
    stored = table(ACTION, [0] * 8, [1] * 8)
    fresh = table(ACTION, [0] * 7, [0] * 7, split="val")
    frame = pd.DataFrame(
        {
            "clip_id": [f"clip{i:04d}" for i in range(10)], "path": [f"{i}.mp4" for i in range(10)],
            "start_seconds": np.nan, "end_seconds": np.nan, "split": ["val"] * 8 + ["train"] * 2,
            "group": "g", "action": "left",
        }
    )  # fmt: skip
    asked = []

    def predict_table(run: Predictions, clips: ClipTable, *, split: str, protocol: Protocol | None) -> pd.DataFrame:
        asked.append((run.name, len(clips), split, protocol))
        return fresh

    fake = types.ModuleType("workbench.training.predict")
    fake.predict_table = predict_table  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "workbench.training.predict", fake)
    clips, run = ClipTable(frame, [ACTION]), run_of(stored, tasks=(ACTION,))
    found = evaluate(run, clips, split="val", resamples=10)
    assert asked == [("nano", 8, "val", None)]
    assert (found.value[0], found.n[0], found.quarantined[0]) == (1.0, 7, 1)
    wider = replace(run.protocol, level="video", num_clips=5, num_crops=3)
    found = evaluate(run, clips, protocol=wider, split="val", resamples=10)
    assert asked[-1] == ("nano", 8, "val", wider)
    assert found.protocol[0].startswith("video-level, 5x3 view(s)") and "val split" in found.protocol[0]
    with pytest.raises(ValueError, match="needs clips to predict on"):
        evaluate(run, protocol=wider)
    with pytest.raises(ValueError, match="no clips for split='test'"):
        evaluate(run, clips, resamples=10)


def test_evaluate_says_when_the_splits_leak() -> None:
    run = run_of(table(ACTION, [0, 1, 2], [0, 1, 1]), tasks=(ACTION,))
    assert "lie in more than one split" not in " ".join(evaluate(run, resamples=10).note)
    leaking = replace(run, record={"data": {"leaking_groups": 3}})
    assert all("3 group(s) lie in more than one split" in note for note in evaluate(leaking, resamples=10).note)


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(module).attempted > 0 and doctest.testmod(module).failed == 0
