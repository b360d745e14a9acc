"""Paired differences: planted, absent, refused; and how a comparison is shown."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.analysis.compare import compare
from workbench.analysis.comparison import _count, _interval
from workbench.analysis.evaluate import Predictions, evaluate
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

ACTION = Task("action", "multiclass", ("left", "right"))
SAFETY = Task("safety", "binary")
QUALITY = Task("quality", "regression")
PROTOCOL = Protocol(num_frames=16, size_px=64)


def rows(task: Task, target, prediction, probabilities=None, *, group=None) -> pd.DataFrame:
    n = len(target)
    return pd.DataFrame(
        {
            "clip_id": [f"clip{i:04d}" for i in range(n)],
            "path": [f"{i}.mp4" for i in range(n)],
            "group": [f"g{i}" for i in range(n)] if group is None else group,
            "split": "test",
            "task": task.name,
            "target": np.asarray(target, float),
            "prediction": np.asarray(prediction, float),
            "probabilities": [[] for _ in range(n)] if probabilities is None else np.asarray(probabilities).tolist(),
        }
    )


def action_run(name: str, right: np.ndarray, *, group=None, protocol: Protocol = PROTOCOL) -> Predictions:
    """A run that is right on the clips marked, among alternating classes."""
    target = np.arange(len(right)) % 2
    prediction = np.where(np.asarray(right, bool), target, 1 - target)
    return Predictions(name, (ACTION,), rows(ACTION, target, prediction, group=group), protocol)


def three_task_run(name: str, skill: float, seed: int, n: int = 120) -> Predictions:
    """The same clips for every seed; predictions better with skill."""
    truth, noise = np.random.default_rng(0), np.random.default_rng(seed)
    group = [f"g{i // 2}" for i in range(n)]
    action, safety, quality = truth.integers(0, 2, n), (truth.random(n) < 0.3).astype(int), truth.random(n)
    said = np.where(noise.random(n) < 0.5 + skill / 2, action, 1 - action)
    danger = 1 / (1 + np.exp(-(4 * skill * (safety - 0.5) + noise.normal(size=n))))
    frames = [
        rows(ACTION, action, said, group=group),
        rows(SAFETY, safety, danger >= 0.5, np.c_[1 - danger, danger], group=group),
        rows(QUALITY, quality, skill * quality + noise.normal(scale=0.2, size=n), group=group),
    ]
    record = {"parameters": {"trainable": 1_234_567}, "timings": {"train_seconds": 33.25, "clips_per_second": 120.0}}
    return Predictions(name, (ACTION, SAFETY, QUALITY), pd.concat(frames, ignore_index=True), PROTOCOL, record)


def test_compare_finds_a_planted_difference_on_every_kind_of_task():
    found = compare([three_task_run("low", 0.1, 1), three_task_run("high", 0.9, 2)]).table.set_index(["task", "run"])
    assert found.metric.tolist() == ["accuracy"] * 2 + ["auroc"] * 2 + ["srcc"] * 2
    for task in ("action", "safety", "quality"):
        high = found.loc[(task, "high")]
        assert high.verdict == "better" and 0 < high.difference_low < high.difference < high.difference_high
        assert high.difference == pytest.approx(high.value - found.loc[(task, "low")].value)
        assert found.loc[(task, "low")].verdict == "reference" and np.isnan(found.loc[(task, "low")].difference)
    turned = compare([three_task_run("low", 0.1, 1), three_task_run("high", 0.9, 2)], reference="high").table
    assert turned[turned.run == "low"].verdict.tolist() == ["worse"] * 3


def test_compare_values_and_intervals_are_those_of_evaluate():
    run = three_task_run("a", 0.4, 3)
    both = evaluate(run).merge(compare([run, three_task_run("b", 0.8, 4)]).table, on=["run", "task", "metric"])
    assert len(both) == 3
    for column in ("value", "low", "high", "n", "groups"):
        assert both[f"{column}_x"].to_numpy() == pytest.approx(both[f"{column}_y"].to_numpy())


def test_compare_of_identical_predictions_is_exactly_zero():
    run = three_task_run("a", 0.5, 1)
    found = compare({"a": run, "again": run}).table
    again = found[found.run == "again"]
    assert (again[["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    assert again.verdict.tolist() == ["no clear difference"] * 3 and again.p_holm.tolist() == [1.0] * 3


def test_compare_pairs_the_clips():
    # b is right wherever a is, and on 20 more of 200 clips: the paired standard error is sqrt(.1 * .9 / 200) = .0212,
    # that of two independent accuracies .049, under which +0.10 would hang on a thread.
    right = np.arange(200) < 100
    found = compare([action_run("a", right), action_run("b", np.arange(200) < 120)], resamples=8000).table.iloc[1]
    assert found.difference == pytest.approx(0.1)
    assert found.difference_high - found.difference_low == pytest.approx(2 * 1.96 * 0.0212, rel=0.1)
    assert found.verdict == "better"


def test_compare_counts_groups_not_clips():
    # b wins 8 of 12 clips and loses 4: nothing. Twenty copies of each clip in its group must not make it something.
    a, b = np.array([0] * 8 + [1] * 4), np.array([1] * 8 + [0] * 4)
    few = compare([action_run("a", a), action_run("b", b)]).table.iloc[1]
    group = np.repeat([f"g{i}" for i in range(12)], 20)
    copies = [action_run(name, np.repeat(r, 20), group=group) for name, r in (("a", a), ("b", b))]
    many = compare(copies).table.iloc[1]
    assert few.verdict == many.verdict == "no clear difference"
    assert many.difference_high - many.difference_low == pytest.approx(
        few.difference_high - few.difference_low, rel=0.1
    )
    as_if_independent = [action_run(name, np.repeat(r, 20)) for name, r in (("a", a), ("b", b))]
    assert compare(as_if_independent).table.iloc[1].verdict == "better"


def test_compare_rarely_calls_luck_a_difference():
    rng, calls = np.random.default_rng(0), 0
    for seed in range(50):
        a, b = (action_run(name, rng.random(40) < 0.6) for name in "ab")
        calls += compare([a, b], resamples=400, seed=seed).table.verdict[1] in ("better", "worse")
    # 5 % nominal, standard error 3.1 %; percentile intervals of 40 groups run slightly over.
    assert calls <= 7


def test_compare_corrects_the_verdict_for_many_pairs():
    # Alone, 10 clips won and 2 lost of 120 count (z = 8 / sqrt(12 - 64 / 120) = 2.36); among twenty pairs no longer.
    a, b = np.zeros(120), np.zeros(120)
    a[:2], b[2:12] = 1, 1
    alone = compare([action_run("a", a), action_run("b", b)]).table.iloc[1]
    assert alone.verdict == "better" and 0.005 < alone.p_holm < 0.05
    noise = [action_run(f"n{k}", np.roll(a, 30 + k)) for k in range(19)]
    among = compare([action_run("a", a), action_run("b", b), *noise]).table.iloc[1]
    assert among.difference_low == alone.difference_low > 0
    assert among.verdict == "no clear difference" and among.p_holm > alone.p_holm


def test_compare_gives_no_verdict_on_few_groups():
    group = [f"g{i % 5}" for i in range(100)]
    found = compare([action_run("a", np.zeros(100), group=group), action_run("b", np.ones(100), group=group)]).table
    assert found.verdict[1] == "too few groups" and np.isnan(found.p_holm[1])
    probability = np.linspace(0, 1, 100)
    safe = rows(SAFETY, [1] * 5 + [0] * 95, probability >= 0.5, np.c_[1 - probability, probability])
    other = rows(SAFETY, [1] * 5 + [0] * 95, probability < 0.5, np.c_[probability, 1 - probability])
    runs = [Predictions(name, (SAFETY,), frame, PROTOCOL) for name, frame in (("a", safe), ("b", other))]
    assert compare(runs).table.verdict[1] == "too few groups"


def test_compare_of_an_undefined_metric_is_undefined_with_its_reason():
    target = np.r_[np.ones(10), np.full(10, np.nan)]
    frame = rows(SAFETY, target, np.ones(20), np.full((20, 2), 0.5))
    found = compare([Predictions(name, (SAFETY,), frame, PROTOCOL) for name in "ab"], resamples=50)
    assert found.table.verdict.tolist() == ["reference", "undefined"]
    assert set(found.table.note) == {"only one class among the targets (1)"}
    assert found.table.n.tolist() == [10, 10] and found.to_json()["rows"][1]["value"] is None


def test_compare_refuses_other_protocols_and_names_the_fields():
    other = action_run("b", np.ones(20), protocol=replace(PROTOCOL, num_frames=8, decoder="pyav"))
    with pytest.raises(ValueError, match="num_frames: 16 against 8; decoder: decord against pyav"):
        compare([action_run("a", np.ones(20)), other])


def test_compare_refuses_other_clips_targets_or_groups_and_counts_them():
    run = action_run("a", np.ones(20))
    frame = run.predictions
    fewer = replace(run, name="b", predictions=frame.iloc[3:])
    with pytest.raises(ValueError, match=r"'a' and 'b'.*'action'.*3 labelled clip\(s\) only in 'a'"):
        compare([run, fewer])
    unlabelled = replace(run, name="b", predictions=frame.assign(target=frame.target.where(frame.index != 4)))
    with pytest.raises(ValueError, match="1 labelled clip"):
        compare([run, unlabelled])
    relabelled = replace(run, name="b", predictions=frame.assign(target=frame.target.where(frame.index > 1, 1.0)))
    with pytest.raises(ValueError, match=r"1 clip\(s\) have another target"):
        compare([run, relabelled])
    regrouped = replace(run, name="b", predictions=frame.assign(group=["x"] * 2 + frame.group.tolist()[2:]))
    with pytest.raises(ValueError, match=r"2 clip\(s\) have another group"):
        compare([run, regrouped])


def test_compare_refuses_names_and_tasks_it_cannot_tell_apart():
    run = action_run("a", np.ones(8))
    with pytest.raises(ValueError, match=r"two runs are called \['a'\]"):
        compare([run, run])
    with pytest.raises(ValueError, match="reference='c' is not among the runs"):
        compare({"a": run, "b": run}, reference="c")
    with pytest.raises(ValueError, match="no run to compare"):
        compare([])
    with pytest.raises(ValueError, match=r"list of runs .* not Predictions"):
        compare(run)
    swapped = replace(run, name="b", tasks=(Task("action", "multiclass", ("right", "left")),))
    with pytest.raises(ValueError, match="task 'action' is .* in run 'a' but .* in run 'b'"):
        compare([run, swapped])


def test_compare_takes_names_from_a_mapping_and_leaves_out_tasks_that_the_reference_lacks():
    single = replace(three_task_run("ignored", 0.4, 3), tasks=(ACTION,))
    found = compare({"single": single, "multi": three_task_run("ignored", 0.4, 4)}, resamples=200).table
    assert found[["run", "task"]].to_numpy().tolist() == [
        ["single", "action"], ["multi", "action"], ["multi", "safety"], ["multi", "quality"]
    ]  # fmt: skip
    assert found.verdict.tolist()[2:] == ["undefined"] * 2
    assert found.note.tolist()[2] == "'single' lacks this task"


def test_compare_does_not_depend_on_the_order_of_rows():
    runs = [three_task_run("a", 0.2, 1), three_task_run("b", 0.5, 2)]
    shuffled = [replace(r, predictions=r.predictions.sample(frac=1, random_state=k)) for k, r in enumerate(runs)]
    pd.testing.assert_frame_equal(compare(shuffled, resamples=100).table, compare(runs, resamples=100).table)


def test_comparison_shows_numbers_as_a_person_writes_them():
    found = compare([three_task_run("low", 0.1, 1), three_task_run("high", 0.9, 2)], resamples=400)
    row = found.table.iloc[1]
    line = next(line for line in str(found).splitlines() if line.split()[:2] == ["action", "high"])
    assert f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]" in line
    assert f"+{row.difference:.2f} [+{row.difference_low:.2f}, +{row.difference_high:.2f}]" in line
    for part in ("better", "1.2 M", "33.2 s", "120"):
        assert part in line
    for part in ("1 seed", "400 resamples", "not of the training seed", "Holm", PROTOCOL.describe(), "Quarantined"):
        assert part in found.caption
    assert (found.reference, found.protocol) == ("low", PROTOCOL)


def test_comparison_says_when_resamples_are_too_few_for_a_verdict_and_when_split_is_not_test():
    runs = {f"r{k}": action_run("x", np.arange(30) < 10 + k) for k in range(5)}
    assert "too few for a verdict on 4 pairs" in compare(runs, resamples=100).caption
    assert "too few" not in compare(runs, resamples=2000).caption
    val = {n: replace(r, predictions=r.predictions.assign(split="val")) for n, r in runs.items()}
    assert "val is not test" in compare(val, split="val").caption


def test_comparison_html_escapes_names():
    bad = '<img src=x onerror="alert(1)">'
    shown = compare({bad: action_run("x", np.ones(12)), "b": action_run("x", np.zeros(12))}, resamples=50)._repr_html_()
    assert "<img" not in shown and "&lt;img" in shown


def test_comparison_json_is_plain_and_complete():
    found = compare([three_task_run("low", 0.1, 1), action_run_like_low()], resamples=100)
    back = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert back["reference"] == "low" and back["protocol"] == PROTOCOL.to_json() and len(back["rows"]) == 6
    assert back["rows"][0]["difference"] is None and back["rows"][1]["train_seconds"] is None
    assert back["rows"][1]["value"] == found.table.value[1]


def action_run_like_low() -> Predictions:
    return replace(three_task_run("bare", 0.3, 5), record={})


def test_numbers_keep_a_digit_where_two_would_round_a_bound_to_zero():
    assert _interval(0.812, 0.744, 0.871) == "0.81 [0.74, 0.87]"
    assert _interval(0.02, 0.004, 0.04, signed=True) == "+0.020 [+0.004, +0.040]"
    assert _interval(0.5, float("nan"), float("nan")) == "0.50" and _interval(*[float("nan")] * 3) == ""
    assert [_count(v) for v in (950, 12_345, 1_234_567, float("nan"))] == ["950", "12.3 k", "1.2 M", ""]
