"""Paired tests against closed forms and other implementations; win/loss clips, agreement, classes, front, seeds."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm, spearmanr, ttest_1samp
from scipy.stats import t as student
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar

from tests.analysis.test_compare import ACTION, PROTOCOL, QUALITY, SAFETY, action_run, rows, three_task_run
from workbench.analysis.bootstrap import bootstrap, percentile_interval
from workbench.analysis.compare import compare
from workbench.analysis.comparing.front import pareto
from workbench.analysis.comparing.paired import (
    delong,
    expanded_interval,
    expanded_tail,
    level,
    mcnemar,
    paired_p_value,
)
from workbench.analysis.comparing.setups import same_setup
from workbench.analysis.evaluate import Predictions
from workbench.data.tables import Task


def test_mcnemar_equals_statsmodels_and_the_mid_p_lies_half_a_point_below():
    for b, c in [(0, 0), (1, 7), (5, 5), (12, 3), (40, 61)]:
        exact = sm_mcnemar([[3, b], [c, 9]], exact=True).pvalue
        assert float(mcnemar(b, c, mid_p=False)) == pytest.approx(min(1.0, exact))
        below = binom.pmf(np.arange(min(b, c)), b + c, 0.5).sum() + binom.pmf(min(b, c), b + c, 0.5) / 2
        assert float(mcnemar(b, c)) == pytest.approx(2 * below)
    with pytest.raises(ValueError, match="0 or more"):
        mcnemar(-1, 3)


def components(target: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components from their definition, pair by pair."""
    x, y = score[target == 1], score[target == 0]
    psi = np.where(x[:, None] > y, 1.0, np.where(x[:, None] == y, 0.5, 0.0))
    return psi.mean(1), psi.mean(0)


def test_delong_equals_its_definition_and_the_auroc_of_sklearn():
    rng = np.random.default_rng(0)
    target = (rng.random(60) < 0.3).astype(float)
    scores = np.round(rng.normal(size=(3, 60)) + target, 1)  # rounded: with ties
    found = delong(target, scores)
    assert found.auroc == pytest.approx([roc_auc_score(target, s) for s in scores])
    m, n = int(target.sum()), int((1 - target).sum())
    v10, v01 = zip(*(components(target, s) for s in scores), strict=True)
    assert found.covariance == pytest.approx(np.cov(v10) / m + np.cov(v01) / n)
    contrast = np.array([1.0, -1.0, 0.0])
    z = (contrast @ found.auroc) / math.sqrt(contrast @ (np.cov(v10) / m + np.cov(v01) / n) @ contrast)
    assert found.p_value(0, 1) == pytest.approx(2 * norm.sf(abs(z)))


def test_delong_by_hand():
    # Positives 0.8, 0.6 and negatives 0.7, 0.2: three of four pairs in order; components (1, .5) and (.5, 1).
    found = delong(np.array([1, 1, 0, 0]), np.array([[0.8, 0.6, 0.7, 0.2]]))
    assert found.auroc.tolist() == [0.75] and found.covariance[0, 0] == pytest.approx(0.125 / 2 + 0.125 / 2)


def test_delong_of_equal_rankings_is_one_and_of_one_class_undefined():
    target, score = np.array([1, 0, 1, 0, 0, 1]), np.array([0.9, 0.1, 0.4, 0.5, 0.3, 0.8])
    assert delong(target, np.stack([score, score**3])).p_value(0, 1) == 1.0
    assert math.isnan(delong(np.ones(4), np.ones((2, 4))).p_value(0, 1))
    assert math.isnan(delong(np.array([1, 0, 0]), np.random.default_rng(0).random((2, 3))).p_value(0, 1))


def _mean_of(values: np.ndarray):
    return lambda weights: (weights @ values / weights.sum(1))[None]


def test_expanded_interval_of_a_mean_is_students():
    # The bootstrap of a mean is normal with variance s^2 (n - 1) / n / n; widened it must give the t interval.
    for n in (8, 20, 60):
        values = np.random.default_rng(n).normal(size=n)
        draws = bootstrap(_mean_of(values), np.arange(n), resamples=40000, seed=0)[0]
        half = student.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
        found = expanded_interval(draws, n)
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.07)
        plain = percentile_interval(draws)
        assert (plain.high - plain.low) / 2 < 0.96 * half or n > 20
    assert expanded_tail(0.025, 10**6) == pytest.approx(0.025, rel=1e-3)


def test_paired_p_value_is_that_of_the_t_test_and_no_less_than_a_sign_test():
    for n, shift in ((9, 0.2), (15, 0.5), (60, 0.4)):
        values = np.random.default_rng(n).normal(shift, size=n)
        draws = bootstrap(_mean_of(values), np.arange(n), resamples=20000, seed=0)[0]
        assert paired_p_value(values.mean(), draws, n) == pytest.approx(ttest_1samp(values, 0).pvalue, rel=0.1)
    assert paired_p_value(0.0, np.zeros(10), 8) == 1.0 and math.isnan(paired_p_value(0.1, np.full(5, np.nan), 8))
    assert paired_p_value(1.0, np.ones(10), 8) == 2 / 2**8 == paired_p_value(1.0, np.linspace(0.999, 1.001, 10), 8)


def test_level_leaves_room_for_the_resampling():
    # Of R resamples a share of 5 % has the standard error sqrt(.05 * .95 / R): .00487 of 2000.
    assert level(199) == 0
    assert level(2000) == pytest.approx(0.05 - 2 * 0.004873, abs=1e-5) and level(10**9) == pytest.approx(0.05, abs=1e-4)
    found = {}
    for lost in (12, 15):  # 28 clips won of 200 and so many lost: z = 2.53, then 1.98
        a, b = np.zeros(200), np.zeros(200)
        b[:28], a[28 : 28 + lost] = 1, 1
        found[lost] = compare([action_run("a", a), action_run("b", b)], resamples=2000).table.iloc[1]
    assert found[12].verdict == "better" and found[12].p_holm < level(2000)
    assert found[15].verdict == "no clear difference" and level(2000) < found[15].p_holm < 0.05


def test_pairs_hold_every_pair_of_every_task_and_the_tests_that_fit():
    found = compare(
        [three_task_run(name, skill, k) for k, (name, skill) in enumerate([("a", 0.1), ("b", 0.5), ("c", 0.9)])]
    )
    table = found.pairs().table
    assert table.groupby("task", sort=False).size().tolist() == [3, 3, 3]
    assert table.test.tolist() == ["McNemar mid-p"] * 3 + ["DeLong"] * 3 + [""] * 3
    assert (table.loc[table.test != "", "test_note"] == "takes clips of one group for independent: too sure").all()
    for row in table.itertuples():
        mine = found.table.set_index(["task", "run"]).value
        assert row.difference == pytest.approx(mine[row.task, row.first] - mine[row.task, row.second])
    best = table.query("task == 'action' and first == 'a' and second == 'c'").iloc[0]
    assert best.verdict == "c" and best.high < 0 and best.second_only > best.first_only
    assert (table.p_holm >= table.p - 1e-12).all() and table.p_holm.max() <= 1
    alone = found.pairs("action").table
    assert (alone.p_holm <= table.p_holm[:3] + 1e-12).all()  # fewer pairs, a milder correction


def test_pairs_with_the_reference_are_those_of_the_table():
    found = compare([three_task_run("a", 0.2, 1), three_task_run("b", 0.6, 2)])
    table, pairs = found.table[found.table.run == "b"], found.pairs().table
    assert pairs.difference.to_numpy() == pytest.approx(-table.difference.to_numpy())
    assert pairs.low.to_numpy() == pytest.approx(-table.difference_high.to_numpy())
    assert pairs.p_holm.to_numpy() == pytest.approx(table.p_holm.to_numpy())


def test_pairs_say_too_few_groups_undefined_and_too_few_resamples():
    group = [f"g{i % 5}" for i in range(40)]
    few = compare([action_run(n, np.arange(40) < k, group=group) for n, k in (("a", 5), ("b", 35))]).pairs()
    assert few.table.verdict.tolist() == ["too few groups"] and math.isnan(few.table.p_holm[0])
    one_class = Predictions("x", (SAFETY,), rows(SAFETY, np.ones(20), np.ones(20), np.full((20, 2), 0.5)), PROTOCOL)
    assert compare({"a": one_class, "b": one_class}, resamples=20).pairs().table.verdict.tolist() == ["undefined"]
    many = {f"r{k}": action_run("x", np.arange(30) < 10 + k) for k in range(8)}
    assert "100 resamples are too few for a verdict on 28 pairs" in compare(many, resamples=100).pairs().caption
    assert "too few" not in compare(many, resamples=2000).pairs().caption
    assert compare({"a": one_class}, resamples=20).pairs().table.empty


def test_pairs_html_escapes_names():
    bad = "<img src=x onerror=alert(1)>"
    shown = compare({bad: action_run("x", np.ones(12)), "b": action_run("x", np.zeros(12))}, resamples=50).pairs()
    assert "<img" not in shown._repr_html_() and "&lt;img" in shown._repr_html_() and bad in str(shown)


def test_compare_of_ties_finds_no_clear_difference():
    """The fast part of benchmarks/ties.py, which measures 1,000 trials."""
    rng, clear = np.random.default_rng(1), 0
    for seed in range(60):
        hard = rng.normal(size=40)
        a, b = (action_run(name, hard + rng.normal(size=40) > 0) for name in "ab")
        clear += compare([a, b], resamples=400, seed=seed).table.verdict[1] != "no clear difference"
    assert clear <= binom.ppf(0.999, 60, 0.05)


def test_compare_by_another_metric_and_on_chosen_tasks():
    runs = [three_task_run("low", 0.2, 1), three_task_run("high", 0.9, 2)]
    found = compare(runs, tasks=["quality", "action"], metrics={"action": "macro_f1", "quality": "rmse"}, resamples=400)
    assert found.table.metric.tolist() == ["rmse", "rmse", "macro_f1", "macro_f1"]
    rmse = found.table.iloc[1]
    assert rmse.difference < 0 and rmse.verdict == "better"  # lower is better
    assert found.pairs("quality").table.verdict.tolist() == ["high"]
    with pytest.raises(ValueError, match=r"'auroc' is no metric of the multiclass task 'action'"):
        compare(runs, metrics={"action": "auroc"})
    with pytest.raises(ValueError, match=r"no run has the task\(s\) \['x'\]"):
        compare(runs, tasks=["x"])


def test_compare_reports_peak_memory_where_a_run_recorded_it():
    run = action_run("a", np.ones(12))
    known = replace(run, name="b", record={"device": {"peak_memory_bytes": 3 * 2**20}})
    found = compare([run, known], resamples=20)
    assert math.isnan(found.table.peak_memory_mib[0]) and found.table.peak_memory_mib[1] == 3
    assert "3 MiB" in str(found) and "memory" not in str(compare([run], resamples=20))


def test_clips_are_won_and_lost_as_counted_by_hand():
    right = {"a": [1, 1, 0, 0, 1, 0], "b": [1, 0, 1, 0, 0, 0]}
    found = compare([action_run(name, np.array(r)) for name, r in right.items()], resamples=20)
    table = found.clips("a", "b")
    assert table.outcome.tolist() == ["first", "first", "second", "both", "neither", "neither"]
    assert set(table[table.outcome == "first"].clip_id) == {"clip0001", "clip0004"}
    assert table[table.outcome == "second"].clip_id.tolist() == ["clip0002"]
    won = table[table.outcome == "first"]
    assert (won["first"] == won.truth).all() and (won["second"] != won.truth).all()
    turned = found.clips("b", "a").outcome.value_counts().to_dict()
    assert turned == {"first": 1, "second": 2, "both": 1, "neither": 2}
    with pytest.raises(ValueError, match="no run 'z'"):
        found.clips("a", "z")
    with pytest.raises(ValueError, match="name two runs"):
        found.clips("a", "a")


def test_clips_come_by_the_confidence_of_what_was_said():
    target, sure = np.zeros(4), np.array([0.6, 0.9, 0.7, 0.8])
    first = rows(ACTION, target, np.zeros(4), np.c_[sure, 1 - sure])
    second = rows(ACTION, target, np.ones(4), np.c_[np.full(4, 0.4), np.full(4, 0.6)])
    runs = [Predictions(n, (ACTION,), f, PROTOCOL) for n, f in (("a", first), ("b", second))]
    table = compare(runs, resamples=20).clips("a", "b")
    assert table.first_confidence.tolist() == [0.9, 0.8, 0.7, 0.6] and set(table.second_confidence) == {0.6}


def test_clips_of_regression_say_who_was_nearer():
    target = np.array([0.0, 1.0, 2.0])
    runs = [
        Predictions(n, (QUALITY,), rows(QUALITY, target, p), PROTOCOL)
        for n, p in (("a", [0.1, 1.5, 2.2]), ("b", [0.9, 1.0, 2.2]))
    ]
    table = compare(runs, resamples=20).clips("a", "b")
    assert table.clip_id.tolist() == ["clip0000", "clip0001", "clip0002"]  # gaps 0.8, 0.5, 0
    assert table.outcome.tolist() == ["first", "second", "both"]


def test_agreement_equals_sklearn_and_scipy():
    runs = [three_task_run(n, s, k) for k, (n, s) in enumerate([("a", 0.2), ("b", 0.6), ("c", 0.9)])]
    found = compare(runs, resamples=20)
    said = {r.name: r.predictions.query("task == 'action'").prediction.to_numpy() for r in runs}
    values = {r.name: r.predictions.query("task == 'quality'").prediction.to_numpy() for r in runs}
    share, kappa, srcc = found.agreement("action"), found.agreement("action", "kappa"), found.agreement("quality")
    for a in "abc":
        assert share.loc[a, a] == kappa.loc[a, a] == 1
        for b in "abc":
            assert share.loc[a, b] == pytest.approx((said[a] == said[b]).mean())
            assert kappa.loc[a, b] == pytest.approx(cohen_kappa_score(said[a], said[b]))
            assert srcc.loc[a, b] == pytest.approx(spearmanr(values[a], values[b]).statistic)
    with pytest.raises(ValueError, match="measure='srcc' does not fit the multiclass task"):
        found.agreement("action", "srcc")


def test_agreement_of_runs_that_name_one_class_is_full_and_its_kappa_undefined():
    constant = Predictions("x", (ACTION,), rows(ACTION, np.arange(10) % 2, np.zeros(10)), PROTOCOL)
    found = compare({"a": constant, "b": constant}, resamples=20)
    assert found.agreement().loc["a", "b"] == 1 and math.isnan(found.agreement(None, "kappa").loc["a", "b"])


def test_per_class_interval_is_the_cluster_robust_one_of_statsmodels():
    rng = np.random.default_rng(0)
    group = [f"g{i // 3}" for i in range(120)]
    runs = [action_run(n, rng.random(120) < p, group=group) for n, p in (("a", 0.8), ("b", 0.6))]
    found = compare(runs, resamples=20)
    table = found.per_class("a", "b").set_index("class")
    one = found.evidence["action"]
    for k, name in enumerate(ACTION.classes):
        mine = one.target == k
        won = (one.right("a").astype(float) - one.right("b"))[mine]
        codes = np.unique(one.groups[mine], return_inverse=True)[1]
        fit = OLS(won, np.ones(len(won))).fit(
            cov_type="cluster", cov_kwds={"groups": codes, "use_correction": True}, use_t=True
        )
        row = table.loc[name]
        # statsmodels also multiplies the variance by (n - 1) / (n - 1) for one coefficient: the same number.
        assert row.difference == pytest.approx(won.mean()) and row.groups == len(set(codes))
        assert [row.low, row.high] == pytest.approx(fit.conf_int()[0])
        assert row.p == pytest.approx(fit.pvalues[0])


def test_per_class_gives_no_interval_where_groups_are_few_or_agree():
    three = Task("action", "multiclass", ("few", "same", "absent"))
    target = np.r_[np.zeros(5), np.ones(20)]
    right = np.r_[2, target[1:]]  # of the five groups of the first class four are won
    frames = [rows(three, target, p) for p in (right, np.full(25, 2.0))]
    runs = [Predictions(n, (three,), f, PROTOCOL) for n, f in zip("ab", frames, strict=True)]
    table = compare(runs, resamples=20).per_class("a", "b")
    assert table["class"].tolist() == ["few", "same"] and table.difference.tolist() == [0.8, 1.0]
    assert table[["low", "high", "p", "p_holm"]].isna().all(axis=None) and table.groups.tolist() == [5, 20]
    with pytest.raises(ValueError, match="no prediction is plainly right or wrong"):
        compare([three_task_run("a", 0.5, 1), three_task_run("b", 0.5, 2)], resamples=20).per_class("a", "b", "quality")


def test_pareto_equals_brute_force_on_random_tables():
    rng = np.random.default_rng(0)
    for trial in range(100):
        n = int(rng.integers(1, 40))
        table = pd.DataFrame({"value": rng.random(n).round(1), "cost": rng.random(n).round(1)})  # with ties
        table = table.mask(rng.random(table.shape) < 0.1)
        higher = bool(trial % 2)
        score = table.value if higher else -table.value
        expected = [
            bool(np.isfinite(s) and np.isfinite(c))
            and not any((s2 >= s and c2 <= c) and (s2 > s or c2 < c) for s2, c2 in zip(score, table.cost, strict=True))
            for s, c in zip(score, table.cost, strict=True)
        ]
        assert pareto(table, "value", "cost", higher_is_better=higher).tolist() == expected
    with pytest.raises(ValueError, match=r"no column\(s\) \['price'\]"):
        pareto(table, "value", "price")


def with_setup(name: str, seed: int, skill: float, **setup) -> Predictions:
    run = three_task_run(name, skill, 100 + seed)
    record = {"setup": {"strategy": name.split("-")[0], "lr": 1e-3, "seed": seed} | setup, "data": {"fingerprint": "f"}}
    return replace(run, record=record)


def test_same_setup_joins_seeds_and_nothing_else():
    runs = {
        "full-seed0": with_setup("full", 0, 0.5), "full-seed1": with_setup("full", 1, 0.5),
        "full-fast": with_setup("full", 0, 0.5, lr=1e-2), "linear": with_setup("linear", 0, 0.5),
        "bare": three_task_run("bare", 0.5, 1), "again": with_setup("full", 0, 0.5),
    }  # fmt: skip
    other = with_setup("full", 2, 0.5)
    runs["other data"] = replace(other, record=other.record | {"data": {"fingerprint": "g"}})
    assert same_setup(runs) == {
        "full": {0: "full-seed0", 1: "full-seed1"}, "full-fast": {0: "full-fast"}, "linear": {0: "linear"},
        "bare": {0: "bare"}, "again": {0: "again"}, "other data": {2: "other data"},
    }  # fmt: skip


def test_over_seeds_means_the_seeds_and_withholds_a_verdict_under_six():
    runs = {f"{n}-seed{s}": with_setup(n, s, skill) for n, skill in (("low", 0.1), ("high", 0.9)) for s in range(3)}
    found = compare(runs, resamples=200)
    table = found.over_seeds("action").table.set_index("setup")
    each = found.table[found.table.task == "action"].set_index("run").value
    assert table.loc["high", "value"] == pytest.approx(each.filter(like="high").mean())
    assert table.loc["high", "seed_sd"] == pytest.approx(each.filter(like="high").std())
    assert table.loc["high", "seed_high"] == each.filter(like="high").max()
    assert table.verdict.tolist() == ["reference", "too few seeds"] and table.seeds.tolist() == [3, 3]
    assert table.loc["high", "difference"] == pytest.approx(table.loc["high", "value"] - table.loc["low", "value"])
    assert "differ in their seed only" in found.caption
    six = {f"{n}-seed{s}": with_setup(n, s, skill) for n, skill in (("low", 0.1), ("high", 0.9)) for s in range(6)}
    assert compare(six, resamples=400).over_seeds("action").table.verdict.tolist() == ["reference", "better"]


def test_over_seeds_of_setups_without_a_shared_seed_says_so():
    runs = {"a-seed0": with_setup("a", 0, 0.2), "b-seed1": with_setup("b", 1, 0.8)}
    row = compare(runs, resamples=50).over_seeds("action").table.iloc[1]
    assert row.verdict == "undefined" and row.note == "no seed shared with 'a-seed0'"


def test_differences_show_what_differs_and_nothing_else():
    runs = {"a": with_setup("full", 0, 0.5), "b": with_setup("full", 1, 0.5, lr=0.01, tasks=["x", "y"])}
    found = compare(runs, resamples=20).differences()
    assert found.to_dict("index") == {
        "setup.lr": {"a": "0.001", "b": "0.01"}, "setup.seed": {"a": "0", "b": "1"},
        "setup.tasks": {"a": "–", "b": "x, y"},
    }  # fmt: skip
    assert compare({"a": runs["a"], "b": runs["a"]}, resamples=20).differences().empty


def test_comparison_without_evidence_says_how_to_get_it():
    found = compare([three_task_run("a", 0.5, 1)], resamples=20)
    with pytest.raises(ValueError, match=r"make it with wb.compare"):
        replace(found, evidence={}).agreement()
    with pytest.raises(ValueError, match="no task 'x' in this comparison"):
        found.pairs("x")
