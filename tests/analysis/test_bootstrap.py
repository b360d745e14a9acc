"""Intervals against SciPy, a closed form, and what resampling groups must mean."""

import numpy as np
import pytest
from scipy import stats

from workbench.analysis.bootstrap import bootstrap, group_weights, holm, percentile_interval, sign_p_value


def mean_of(values: np.ndarray):
    return lambda weights: ((weights @ values) / weights.sum(1))[None]


def interval(values: np.ndarray, groups: np.ndarray, *, resamples: int = 4000, seed: int = 0) -> tuple[float, float]:
    found = percentile_interval(bootstrap(mean_of(values), groups, resamples=resamples, seed=seed)[0])
    return found.low, found.high


def test_group_weights_draw_as_many_groups_as_there_are_and_whole_ones():
    groups = np.array([0, 1, 1, 2, 2, 2, 3])
    weights = np.concatenate(list(group_weights(groups, resamples=500, seed=1)))
    assert weights.shape == (500, 7)
    first_of_group = weights[:, [0, 1, 3, 6]]
    assert (first_of_group.sum(1) == 4).all()
    assert (weights == first_of_group[:, groups]).all()
    # Drawn evenly: each group once per resample on average (standard error 0.04).
    assert first_of_group.mean(0) == pytest.approx(np.ones(4), abs=0.15)


def test_group_weights_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch):
    groups = np.arange(9) // 2
    whole = np.concatenate(list(group_weights(groups, resamples=50, seed=3)))
    monkeypatch.setattr("workbench.analysis.bootstrap.CHUNK_ELEMENTS", 30)
    chunks = list(group_weights(groups, resamples=50, seed=3))
    assert len(chunks) > 5
    assert (np.concatenate(chunks) == whole).all()


def test_interval_agrees_with_scipy_on_clips_without_groups():
    values = np.random.default_rng(0).gamma(2.0, size=80)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=5).confidence_interval
    # Two Monte Carlo runs of 20,000: their percentiles differ by about 0.004.
    assert interval(values, np.arange(80), resamples=20000) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_interval_of_an_accuracy_agrees_with_the_binomial():
    right = np.repeat([1.0, 0.0], [140, 60])
    half = 1.96 * np.sqrt(0.7 * 0.3 / 200)
    # Steps of 1/200, and the normal approximation: one step either way.
    assert interval(right, np.arange(200), resamples=20000) == pytest.approx((0.7 - half, 0.7 + half), abs=0.0075)


def test_copies_in_one_group_leave_the_interval_as_it_was():
    right = (np.random.default_rng(2).random(40) < 0.7).astype(float)
    plain = interval(right, np.arange(40))
    assert interval(np.repeat(right, 5), np.repeat(np.arange(40), 5)) == pytest.approx(plain, abs=1e-12)
    low, high = interval(np.repeat(right, 5), np.arange(200))
    # What a bootstrap over clips would claim: narrower by the square root of five.
    assert (high - low) * np.sqrt(5) == pytest.approx(plain[1] - plain[0], rel=0.15)


@pytest.mark.parametrize("per_group", [1, 4])
def test_interval_covers_the_truth_about_as_often_as_it_says(per_group: int):
    rng, inside = np.random.default_rng(7), 0
    groups = np.repeat(np.arange(50), per_group)
    for trial in range(300):
        # Clips of a group share most of their luck.
        values = 1.0 + np.repeat(rng.normal(size=50), per_group) + 0.3 * rng.normal(size=50 * per_group)
        low, high = interval(values, groups, resamples=300, seed=trial)
        inside += low <= 1.0 <= high
    # 95 % nominal; binomial standard error 1.3 %, and percentile intervals of 50 groups fall a little short.
    assert 0.90 <= inside / 300 <= 0.98


def test_bootstrap_of_one_group_is_nan_not_an_interval_without_width():
    values = bootstrap(mean_of(np.arange(5.0)), np.zeros(5, int), resamples=20, seed=0)
    assert values.shape == (1, 20) and np.isnan(values).all()
    found = percentile_interval(values[0])
    assert np.isnan(found.low) and (found.used, found.skipped) == (0, 20)


def test_percentile_interval_skips_and_counts_undefined_resamples():
    found = percentile_interval(np.array([np.nan, *np.arange(101.0), np.nan]))
    assert (found.low, found.high) == pytest.approx((2.5, 97.5))
    assert (found.used, found.skipped) == (101, 2)


def test_bootstrap_refuses_no_resamples():
    with pytest.raises(ValueError, match="resamples=0"):
        bootstrap(mean_of(np.ones(3)), np.arange(3), resamples=0, seed=0)


def test_sign_p_value_by_hand():
    # 3 of 99 at or below zero: 2 * (3 + 1) / (99 + 1).
    assert sign_p_value(np.array([-1.0, -1.0, 0.0, *[1.0] * 96, np.nan])) == pytest.approx(0.08)
    assert sign_p_value(np.zeros(50)) == 1.0
    assert np.isnan(sign_p_value(np.array([np.nan])))


def test_holm_by_hand():
    # Sorted: .01*4, .02*3, .03*2 -> kept monotone at .06, .5*1; NaN is no test.
    adjusted = holm(np.array([0.5, 0.01, np.nan, 0.03, 0.02]))
    assert adjusted == pytest.approx([0.5, 0.04, np.nan, 0.06, 0.06], nan_ok=True)
    assert holm(np.array([0.6, 0.9])) == pytest.approx([1.0, 1.0])
