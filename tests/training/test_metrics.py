"""Every metric against scikit-learn or SciPy on rows that are repeated as often as the weight says."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from workbench.training.metrics import METRICS, main_metric, weighted_metrics

ORACLES = {
    ("multiclass", "accuracy"): lambda t, y, p: sk.accuracy_score(t, y),
    ("multiclass", "macro_f1"): lambda t, y, p: sk.f1_score(t, y, average="macro"),
    ("binary", "auroc"): lambda t, y, p: sk.roc_auc_score(t, p[:, 1]),
    ("binary", "average_precision"): lambda t, y, p: sk.average_precision_score(t, p[:, 1]),
    ("binary", "accuracy"): lambda t, y, p: sk.accuracy_score(t, y),
    ("regression", "srcc"): lambda t, y, p: stats.spearmanr(t, y).statistic,
    ("regression", "plcc"): lambda t, y, p: stats.pearsonr(t, y).statistic,
    ("regression", "rmse"): lambda t, y, p: sk.root_mean_squared_error(t, y),
}


def sample(kind: str, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, predictions and probabilities with many ties."""
    rng = np.random.default_rng(11)
    if kind == "regression":
        target = rng.integers(0, 6, n) / 5
        return target, np.round(target + rng.normal(scale=0.4, size=n), 1), np.empty((n, 0))
    classes = 2 if kind == "binary" else 5
    target = rng.integers(0, classes, n).astype(float)
    scores = np.round(rng.dirichlet(np.ones(classes), n) + 0.4 * np.eye(classes)[target.astype(int)], 1)
    return target, scores.argmax(1).astype(float), scores / scores.sum(1, keepdims=True)


@pytest.mark.parametrize(("kind", "name"), ORACLES)
def test_weighted_metrics_equal_the_metric_on_repeated_rows(kind: str, name: str):
    target, prediction, probabilities = sample(kind)
    weights = np.random.default_rng(4).integers(0, 4, size=(25, len(target))).astype(float)
    weights[0] = 1
    ours = weighted_metrics(
        kind, [name], target=target, prediction=prediction, probabilities=probabilities, weights=weights
    )[0]
    for value, row in zip(ours, weights.astype(int), strict=True):
        again = np.repeat(np.arange(len(target)), row)
        assert value == pytest.approx(ORACLES[kind, name](target[again], prediction[again], probabilities[again]))


def test_every_metric_has_an_oracle_and_the_main_ones_are_as_promised():
    assert {(kind, name) for kind, names in METRICS.items() for name in names} == set(ORACLES)
    assert [main_metric(k) for k in ("multiclass", "binary", "regression")] == ["accuracy", "auroc", "srcc"]


def test_weighted_metrics_are_undefined_only_for_the_weighting_without_both_classes():
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    values = weighted_metrics(
        "binary", ["auroc", "average_precision", "accuracy"], target=np.array([0.0, 1.0, 1.0]),
        prediction=np.array([0.0, 1.0, 0.0]), probabilities=np.array([[0.8, 0.2], [0.1, 0.9], [0.9, 0.1]]),
        weights=weights,
    )  # fmt: skip
    assert values[0] == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)
    assert values[1] == pytest.approx([(1 + 2 / 3) / 2, np.nan, np.nan], nan_ok=True)
    assert values[2] == pytest.approx([2 / 3, 2 / 3, 1.0])


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3])
def test_correlations_with_a_constant_are_undefined_whatever_its_rounding(constant: float):
    values = weighted_metrics(
        "regression", ["srcc", "plcc", "rmse"], target=np.linspace(0, 1, 7), prediction=np.full(7, constant),
        probabilities=None, weights=np.ones((1, 7)),
    )[:, 0]  # fmt: skip
    assert np.isnan(values[:2]).all() and np.isfinite(values[2])


def test_weighted_metrics_of_no_clips_are_undefined():
    nothing = np.empty(0)
    for kind, names in METRICS.items():
        values = weighted_metrics(
            kind, names, target=nothing, prediction=nothing, probabilities=np.empty((0, 2)), weights=np.ones((2, 0))
        )
        assert values.shape == (len(names), 2) and np.isnan(values).all()
