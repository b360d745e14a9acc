"""The fitted curve against SciPy's own front end, on scales that are and are not logistic."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import curve_fit

from workbench.training.logistic_fit import fit_logistic, logistic


def by_scipy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The literature's call, its slopes by finite differences."""

    def curve(v: np.ndarray, top: float, bottom: float, centre: float, width: float) -> np.ndarray:
        return (top - bottom) / (1 + np.exp(-(v - centre) / np.abs(width))) + bottom

    start = [y.max(), y.min(), x.mean(), x.std() / 4]
    found, _ = curve_fit(curve, x, y, p0=start, maxfev=100_000, ftol=1e-13, xtol=1e-13)
    return curve(x, *found)


@pytest.mark.parametrize("seed", range(12))
def test_fit_logistic_equals_scipys_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(40, 300))
    x = rng.normal(size=n) * rng.choice([0.1, 1, 30]) + rng.normal()
    z = (x - x.mean()) / x.std()
    y = 50 + 20 * (1 if seed % 3 else -1) / (1 + np.exp(-3 * z)) + rng.normal(scale=1.5, size=n)
    curve = fit_logistic(x, y)
    assert curve is not None
    ours, theirs = logistic(x, curve), by_scipy(x, y)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.ptp(y))
    ours_plcc, theirs_plcc = (stats.pearsonr(mapped, y).statistic for mapped in (ours, theirs))
    assert ours_plcc == pytest.approx(theirs_plcc, abs=1e-6)
    assert (curve[0] < curve[1]) == (seed % 3 == 0)


def test_fit_logistic_finds_the_parameters_of_a_curve_without_noise() -> None:
    x = np.linspace(-3, 5, 60)
    curve = fit_logistic(x, logistic(x, np.array([80.0, 10.0, 0.5, 0.8])))
    assert curve is not None
    np.testing.assert_allclose([*curve[:3], abs(curve[3])], [80, 10, 0.5, 0.8], rtol=1e-6)


@pytest.mark.parametrize("bent", [lambda z: z, lambda z: np.exp(z / 2)])
def test_fit_logistic_of_a_scale_that_is_no_logistic_is_no_worse_than_a_straight_line(bent: object) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=150)
    y = bent(x) + rng.normal(scale=0.3, size=150)  # type: ignore[operator]
    curve = fit_logistic(x, y)
    assert curve is not None
    assert stats.pearsonr(logistic(x, curve), y).statistic > stats.pearsonr(x, y).statistic - 1e-4


@pytest.mark.parametrize("seed", [1, 2, 26, 27, 28, 38, 47, 56])
def test_fit_logistic_of_hardly_any_relation_leaves_no_more_error_than_scipys(seed: int) -> None:
    """The correlations can be 1e-5 apart here: the curve is nearly straight, and SciPy's search ends first."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=int(rng.integers(40, 300)))
    y = 0.1 * x + rng.normal(size=len(x))
    curve = fit_logistic(x, y)
    assert curve is not None
    ours, theirs = (((mapped - y) ** 2).sum() for mapped in (logistic(x, curve), by_scipy(x, y)))
    assert ours <= theirs * (1 + 1e-6)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0, 1.0], [0.0, 1.0]), ([0.0, 1.0], [2.0, 2.0])])
def test_fit_logistic_without_spread_is_none(x: list[float], y: list[float]) -> None:
    assert fit_logistic(np.array(x), np.array(y)) is None
