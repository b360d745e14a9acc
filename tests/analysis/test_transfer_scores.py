"""Each score against a slow independent computation, a closed form, or a case worked by hand."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, ortho_group

from workbench.analysis.transfer_scores import SCORES, h_score, knn_score, logme, probe_score, separation


def problem(n: int, width: int, *, classes: int = 3, signal: float = 1.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Gaussian features whose class means differ by ``signal``; groups of two clips."""
    rng = np.random.default_rng(seed)
    target = np.arange(n) % classes
    means = rng.normal(size=(classes, width)) * signal
    return means[target] + rng.normal(size=(n, width)), target.astype(float), np.arange(n) // 2


def evidence(x: np.ndarray, y: np.ndarray, log_a: float, log_b: float) -> float:
    """log N(y; 0, I / b + x x' / a), as SciPy has it: O(n^3)."""
    covariance = np.eye(len(y)) / np.exp(log_b) + x @ x.T / np.exp(log_a)
    return float(multivariate_normal.logpdf(y, cov=covariance, allow_singular=True))


@pytest.mark.parametrize(("n", "width"), [(30, 5), (24, 40)])
def test_logme_is_the_maximum_of_the_evidence(n: int, width: int) -> None:
    """Against a direct search over both hyper-parameters; a case with more features than clips too."""
    x, target, _ = problem(n, width, signal=0.7)
    found = []
    for label in np.unique(target):
        y = (target == label).astype(float)
        starts = [(np.log(width) + a, b) for a in (-2.0, 2.0) for b in (0.0, 3.0)]
        found.append(
            max(
                -minimize(
                    lambda p, y=y: -evidence(x, y, *p), start, method="Nelder-Mead", bounds=[(-20, 20), (-20, 20)]
                ).fun
                for start in starts
            )
        )
    assert logme(x, target, "multiclass") == pytest.approx(np.mean(found) / n, abs=1e-6)


def test_logme_equals_the_fixed_point_of_the_paper() -> None:
    """The paper's iteration (Algorithm 1): m, gamma, then alpha = gamma / m'm and beta = (n - gamma) / residual."""
    x, target, _ = problem(60, 8, signal=1.0, seed=3)
    n, width = x.shape
    u, s, v = np.linalg.svd(x, full_matrices=False)
    found = []
    for label in np.unique(target):
        y, alpha, beta = (target == label).astype(float), 1.0, 1.0
        for _ in range(2000):
            a = alpha * np.eye(width) + beta * x.T @ x
            m = beta * np.linalg.solve(a, x.T @ y)
            gamma = float((beta * s**2 / (alpha + beta * s**2)).sum())
            residual = float(((y - x @ m) ** 2).sum())
            alpha, beta = gamma / float(m @ m), (n - gamma) / residual
        log_det = np.linalg.slogdet(alpha * np.eye(width) + beta * x.T @ x)[1]
        found.append(
            n / 2 * np.log(beta) + width / 2 * np.log(alpha) - n / 2 * np.log(2 * np.pi)
            - beta / 2 * residual - alpha / 2 * float(m @ m) - log_det / 2
        )  # fmt: skip
    assert logme(x, target, "multiclass") == pytest.approx(np.mean(found) / n, abs=1e-7)


def test_logme_of_features_that_tell_nothing_is_that_of_noise_alone() -> None:
    """Features orthogonal to every label column: the evidence is n/2 (log(n / y'y) - log 2 pi - 1), nothing gained."""
    target = np.array([0.0, 0, 1, 1] * 6)
    x = np.tile(np.array([[1.0], [-1.0]]), (12, 1))  # +1, -1 within each class
    n, y2 = 24, 12.0
    assert logme(x, target, "binary") == pytest.approx(0.5 * (np.log(n / y2) - np.log(2 * np.pi) - 1), abs=1e-6)


@pytest.mark.parametrize("name", ["logme", "h_score", "knn", "separation"])
def test_scores_do_not_depend_on_rotation_scale_or_the_names_of_classes(name: str) -> None:
    x, target, groups = problem(42, 6, seed=1)
    rotated = 3.0 * x @ ortho_group.rvs(6, random_state=0)
    renamed, order = (target + 1) % 3, np.random.default_rng(0).permutation(42)
    expected = SCORES[name](x, target, groups, "multiclass")
    for features, labels, rows in ((rotated, target, slice(None)), (x, renamed, slice(None)), (x, target, order)):
        found = SCORES[name](features[rows], labels[rows], groups[rows], "multiclass")
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize("kind", ["multiclass", "binary"])
def test_scores_rise_with_the_signal(name: str, kind: str) -> None:
    classes = 3 if kind == "multiclass" else 2
    values = []
    for signal in (0.0, 0.4, 2.0):
        x, target, groups = problem(120, 12, classes=classes, signal=signal)
        values.append(SCORES[name](x, target, groups, kind))
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", ["logme", "knn", "probe"])
def test_scores_of_a_regression_rise_with_the_signal(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6))
    values = []
    for noise in (100.0, 1.0, 0.1):
        target = 50 + x @ np.arange(6) + noise * rng.normal(size=120)
        values.append(SCORES[name](x, target, np.arange(120) // 2, "regression"))
    assert values[0] < values[1] < values[2]
    assert np.isnan(SCORES["h_score"](x, target, np.arange(120), "regression"))


def test_logme_of_a_regression_ignores_its_unit() -> None:
    x, target, _ = problem(40, 5, classes=7)
    assert logme(x, target, "regression") == pytest.approx(logme(x, 1000 * target - 3, "regression"), rel=1e-9)


def test_h_score_equals_a_plain_computation_with_the_formula_of_ledoit_and_wolf() -> None:
    x, target, _ = problem(50, 7, seed=5)
    n, width = x.shape
    x = x - x.mean(0)
    sample = x.T @ x / n
    mu = np.trace(sample) / width
    # Ledoit and Wolf 2004: s = min(b2, d2) / d2
    d2 = ((sample - mu * np.eye(width)) ** 2).sum() / width
    b2 = sum(((np.outer(row, row) - sample) ** 2).sum() for row in x) / n**2 / width
    shrinkage = min(b2, d2) / d2
    shrunk = (1 - shrinkage) * sample + shrinkage * mu * np.eye(width)
    between = np.zeros((width, width))
    for label in range(3):
        mean = x[target == label].mean(0)
        between += (target == label).mean() * np.outer(mean, mean)
    expected = (1 - shrinkage) * np.trace(np.linalg.inv(shrunk) @ between)
    assert h_score(x, target) == pytest.approx(expected, rel=1e-9)


def test_h_score_of_perfect_features_is_the_number_of_classes_minus_one() -> None:
    target = np.arange(4000) % 4
    x = np.eye(4)[target] + 1e-6 * np.random.default_rng(0).normal(size=(4000, 4))
    assert h_score(x, target.astype(float)) == pytest.approx(3, abs=0.02)


def test_separation_by_hand() -> None:
    x = np.array([[0.0], [2.0], [10.0], [12.0]])  # means 1 and 11 around 6: between 25, within 1
    assert separation(x, np.array([0.0, 0, 1, 1])) == pytest.approx(25.0)


def test_knn_score_by_hand_leaves_out_the_own_group() -> None:
    """On a circle; each clip's nearest is its own group's twin of the same class, which does not count."""
    angles = np.deg2rad([0.0, 1.0, 10.0, 11.0, 90.0, 91.0, 100.0, 101.0])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    target, groups = np.array([0.0, 0, 1, 1, 0, 0, 0, 0]), np.array([0, 0, 1, 1, 2, 2, 3, 3])
    # k = 1: clips 0-3 are given the other pair's class, wrong; 4-7 are right.
    assert knn_score(x, target, groups, "multiclass", k=1) == pytest.approx(4 / 8)
    own = knn_score(x, target, np.arange(8), "multiclass", k=1)
    assert own == 1.0


def test_knn_score_gives_a_tie_to_the_nearest() -> None:
    angles = np.deg2rad([0.0, 5.0, 20.0, 180.0, 185.0, 170.0])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    target = np.array([0.0, 0, 1, 1, 1, 0])
    # k = 2 and by hand, nearest first: 0 -> (1, 2) 0; 1 -> (0, 2) 0; 2 -> (1, 0) 0; 3 -> (4, 5) 1; 4 -> (3, 5) 1;
    # 5 -> (3, 4) 1. Right: clips 0, 1, 3, 4.
    assert knn_score(x, target, np.arange(6), "multiclass", k=2) == pytest.approx(4 / 6)


def test_probe_score_of_held_out_groups_sees_no_leak() -> None:
    """Labels that depend on the group alone: a probe that saw the group would be right, one that did not is not."""
    rng = np.random.default_rng(0)
    groups = np.arange(200) // 4
    x = rng.normal(size=(50, 60))[groups] + 0.01 * rng.normal(size=(200, 60))
    target = rng.integers(0, 2, 50)[groups].astype(float)
    assert abs(probe_score(x, target, groups, "binary") - 0.5) < 0.2
    assert probe_score(x, target, np.arange(200), "binary") > 0.95


@pytest.mark.parametrize(
    ("x", "target", "message"),
    [
        (np.ones((4, 2)), np.zeros(4), "same label"),
        (np.ones((4, 2)), np.array([0, 1, np.nan, 1]), "finite"),
        (np.ones((4, 2)), np.array([0.0, 1]), r"\(n, D\) and \(n,\)"),
        (np.zeros((4, 2)), np.array([0.0, 1, 0, 1]), "all features are zero"),
    ],
)
def test_logme_refuses_what_means_nothing(x: np.ndarray, target: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logme(x, target, "multiclass")
