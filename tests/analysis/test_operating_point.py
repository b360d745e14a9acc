"""Thresholds by hand and against scikit-learn's curve; intervals against SciPy's beta quantiles."""

import doctest

import numpy as np
import pytest
from scipy.stats import beta
from sklearn import metrics as sk

from workbench.analysis import operating_point
from workbench.analysis.operating_point import OperatingPoint, choose_threshold, realised_rate


def test_choose_threshold_by_hand() -> None:
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.8, 0.35, 0.9])
    target = np.array([0, 0, 0, 0, 0, 1, 1])
    point = choose_threshold(target, score, max_rate=0.4)  # two of five negatives: 0.8 and 0.4, so from above 0.3
    assert point == OperatingPoint(pytest.approx(0.325), 0.4, 0.4, 1.0, 5, 2)
    assert choose_threshold(target, score, max_rate=0.2).recall == 0.5
    assert str(point) == "flag at 0.325 and above: 40.0% of 5 negatives (asked: at most 0.4), 100.0% of 2 positives"


@pytest.mark.parametrize("max_rate", [0.01, 0.05, 0.3])
def test_choose_threshold_finds_what_scikit_learns_curve_allows(max_rate: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        target = rng.integers(0, 2, 400).astype(float)
        score = np.round(rng.normal(size=400) + target, 1)  # many ties
        target[::7] = np.nan
        known = ~np.isnan(target)
        false, true, _ = sk.roc_curve(target[known], score[known], drop_intermediate=False)
        point = choose_threshold(target, score, max_rate=max_rate)
        assert point.false_positive_rate <= max_rate
        assert point.recall == true[false <= max_rate].max()


def test_choose_threshold_flags_nothing_where_the_negatives_tie_at_the_top() -> None:
    point = choose_threshold(np.array([0] * 20 + [1]), np.ones(21), max_rate=0.05)
    assert point.threshold == np.inf and point.false_positive_rate == 0 and point.recall == 0


def test_realised_rate_has_the_exact_interval_and_says_whether_the_promise_holds() -> None:
    target, score = np.repeat([0.0, 1.0], [100, 10]), np.zeros(110)
    score[:9], score[100:104] = 1.0, 1.0
    found = realised_rate(OperatingPoint(0.5, 0.05, 0.05, 0.5, 100, 10), target, score)
    assert (found.false_positives, found.rate, found.recall) == (9, 0.09, 0.4)
    assert found.low == pytest.approx(beta.ppf(0.025, 9, 92)) and found.high == pytest.approx(beta.ppf(0.975, 10, 91))
    assert found.recall_low == pytest.approx(beta.ppf(0.025, 4, 7))
    assert found.within and found.as_promised  # 4.2 % to 16.4 %
    score[:20] = 1.0
    worse = realised_rate(OperatingPoint(0.5, 0.05, 0.05, 0.5, 100, 10), target, score)
    assert not worse.within and not worse.as_promised
    better = realised_rate(OperatingPoint(2.0, 0.05, 0.05, 0.5, 100, 10), target, score)
    assert better.rate == 0 and not better.within and better.as_promised  # 0 % to 3.6 %


def test_realised_rate_of_the_threshold_covers_its_own_rate_as_often_as_it_says() -> None:
    """A threshold of known rate: the exact interval holds it in at least 95 % of many test sets."""
    rng, point = np.random.default_rng(0), OperatingPoint(0.95, 0.05, 0.05, 1.0, 1000, 1)
    hits = [realised_rate(point, np.zeros(300), rng.random(300)).within for _ in range(400)]
    assert np.mean(hits) >= 0.93


@pytest.mark.parametrize(
    ("target", "score", "rate", "message"),
    [
        ([0, 0], [0.1, 0.2], 0.5, "no positive clip"),
        ([0, 1], [0.1, 0.2], 0.05, "1 negative clip.* at least 20"),
        ([0, 1], [0.1, 0.2], 1.5, "max_rate=1.5"),
        ([0, 2], [0.1, 0.2], 0.5, r"found \[2.0\]"),
        ([0, 1], [0.1, np.nan], 0.5, "not finite"),
        ([0, 1, 1], [0.1, 0.2], 0.5, r"must both be \(n,\)"),
    ],
)
def test_choose_threshold_refuses_what_cannot_give_one(target: list, score: list, rate: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_threshold(np.array(target, float), np.array(score), max_rate=rate)


def test_realised_rate_needs_negatives() -> None:
    with pytest.raises(ValueError, match="no negative clip"):
        realised_rate(OperatingPoint(0.5, 0.05, 0.05, 0.5, 100, 10), np.ones(3), np.ones(3))


def test_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(operating_point).failed == 0
