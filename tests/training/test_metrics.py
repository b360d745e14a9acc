"""Every metric against scikit-learn or SciPy on rows that are repeated as often as the weight says."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_sensitivity_at_specificity, multilabel_average_precision

from workbench.data.tables import Task
from workbench.training.logistic_fit import fit_logistic, logistic
from workbench.training.metrics import (
    METRICS,
    MORE_METRICS,
    confusion,
    main_metric,
    metric_names,
    weighted_metrics,
)


def roc_recall(target: np.ndarray, score: np.ndarray, rate: float) -> float:
    false, true, _ = sk.roc_curve(target, score, drop_intermediate=False)
    return float(true[false <= rate].max())


ORACLES = {
    ("multiclass", "accuracy"): lambda t, y, p: sk.accuracy_score(t, y),
    ("multiclass", "macro_f1"): lambda t, y, p: sk.f1_score(t, y, average="macro"),
    ("binary", "auroc"): lambda t, y, p: sk.roc_auc_score(t, p[:, 1]),
    ("binary", "average_precision"): lambda t, y, p: sk.average_precision_score(t, p[:, 1]),
    ("binary", "accuracy"): lambda t, y, p: sk.accuracy_score(t, y),
    ("regression", "srcc"): lambda t, y, p: stats.spearmanr(t, y).statistic,
    ("regression", "plcc"): lambda t, y, p: stats.pearsonr(t, y).statistic,
    ("regression", "rmse"): lambda t, y, p: sk.root_mean_squared_error(t, y),
    ("regression", "krcc"): lambda t, y, p: stats.kendalltau(t, y).statistic,
    ("binary", "recall_at_1_fpr"): lambda t, y, p: roc_recall(t, p[:, 1], 0.01),
    ("binary", "recall_at_5_fpr"): lambda t, y, p: roc_recall(t, p[:, 1], 0.05),
    ("multiclass", "top5_accuracy"): lambda t, y, p: sk.top_k_accuracy_score(t, p, k=5, labels=range(p.shape[1])),
    ("multilabel", "mean_average_precision"): lambda t, y, p: sk.average_precision_score(t, p, average="macro"),
    ("multilabel", "macro_auroc"): lambda t, y, p: sk.roc_auc_score(t, p, average="macro"),
}
# Its curve is the same for every weighting, so that repeated rows would give another: tests of its own below.
FITTED_ONCE = ("regression", "plcc_fitted")


def sample(kind: str, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, predictions and probabilities with many ties."""
    rng = np.random.default_rng(11)
    if kind == "regression":
        target = rng.integers(0, 6, n) / 5
        return target, np.round(target + rng.normal(scale=0.4, size=n), 1), np.empty((n, 0))
    if kind == "multilabel":
        target = rng.integers(0, 2, (n, 3)).astype(float)
        return target, target.sum(1), np.round(np.clip(target * 0.3 + rng.random((n, 3)) * 0.7, 0, 1), 1)
    classes = 2 if kind == "binary" else 9
    target = rng.integers(0, classes, n).astype(float)
    scores = rng.dirichlet(np.ones(classes), n) + 0.4 * np.eye(classes)[target.astype(int)]
    if kind == "binary":
        scores = np.round(scores, 1)  # ties; of ties between classes scikit-learn's top-k takes the later class
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
    named = {(kind, name) for table in (METRICS, MORE_METRICS) for kind, names in table.items() for name in names}
    assert named == {*ORACLES, FITTED_ONCE}
    kinds = ("multiclass", "binary", "regression", "multilabel")
    assert [main_metric(k) for k in kinds] == ["accuracy", "auroc", "srcc", "mean_average_precision"]


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


def plain(kind: str, name: str, target: object, prediction: object, probabilities: object = None) -> float:
    """One metric of every clip counted once."""
    arrays = [None if a is None else np.asarray(a, float) for a in (target, prediction, probabilities)]
    assert arrays[0] is not None and arrays[1] is not None
    weights = np.ones((1, len(arrays[0])))
    return float(
        weighted_metrics(
            kind, [name], target=arrays[0], prediction=arrays[1], probabilities=arrays[2], weights=weights
        )[0, 0]
    )


def test_recall_at_a_rate_by_hand_and_as_torchmetrics() -> None:
    # 20 negatives: 5 % of them is one, 1 % is none. Positives above the highest negative: 2; above the second: 3.
    score = np.array([*np.linspace(0, 0.5, 19), 0.8, 0.95, 0.9, 0.7, 0.2])
    target = np.array([0.0] * 20 + [1.0] * 4)
    both = np.stack([1 - score, score], axis=1)
    assert plain("binary", "recall_at_1_fpr", target, target, both) == 0.5
    assert plain("binary", "recall_at_5_fpr", target, target, both) == 0.75
    rng = np.random.default_rng(0)
    for _ in range(20):
        target, score = rng.integers(0, 2, 200), rng.random(200)
        theirs, _ = binary_sensitivity_at_specificity(torch.tensor(score), torch.tensor(target), min_specificity=0.95)
        ours = plain("binary", "recall_at_5_fpr", target, target, np.stack([1 - score, score], axis=1))
        assert ours == pytest.approx(float(theirs))


def test_recall_at_a_rate_may_flag_exactly_that_share_of_the_negatives() -> None:
    # 1 % of 300 and 5 % of 60 are three: three may be flagged, a fourth not.
    for negatives, name in ((300, "recall_at_1_fpr"), (60, "recall_at_5_fpr")):
        score = np.concatenate([np.linspace(0, 1, negatives), [1 - 2.5 / (negatives - 1), 1 - 3.5 / (negatives - 1)]])
        target = np.array([0.0] * negatives + [1.0, 1.0])
        assert plain("binary", name, target, target, np.stack([1 - score, score], axis=1)) == 0.5


def test_top5_accuracy_counts_ties_at_the_border_as_misses() -> None:
    same = np.full((2, 8), 1 / 8)
    assert plain("multiclass", "top5_accuracy", [0, 7], [0, 0], same) == 0.0
    first = np.tile(np.linspace(0.3, 0.01, 8), (2, 1))
    assert plain("multiclass", "top5_accuracy", [4, 5], [0, 0], first) == 0.5
    assert np.isnan(plain("multiclass", "top5_accuracy", [1, 2], [1, 2], np.eye(5)[[1, 2]]))


def test_multilabel_metrics_leave_unknown_cells_out_of_their_class_only() -> None:
    rng = np.random.default_rng(3)
    target, score = rng.integers(0, 2, (60, 4)).astype(float), rng.random((60, 4))
    target[rng.random((60, 4)) < 0.3] = np.nan
    by_class = [
        sk.average_precision_score(target[k, j], score[k, j]) for j in range(4) for k in [~np.isnan(target[:, j])]
    ]
    value = plain("multilabel", "mean_average_precision", target, np.zeros(60), score)
    assert value == pytest.approx(np.mean(by_class))
    ignored = torch.nan_to_num(torch.tensor(target), nan=-1).long()
    theirs = multilabel_average_precision(torch.tensor(score), ignored, num_labels=4, ignore_index=-1)
    assert value == pytest.approx(float(theirs), abs=1e-6)
    # A class with positives alone ranks nothing: the mean is of the others.
    target[:, 0] = 1.0
    assert plain("multilabel", "mean_average_precision", target, np.zeros(60), score) == pytest.approx(
        np.mean(by_class[1:])
    )


def test_plcc_fitted_of_a_bent_scale_is_one_and_of_a_reversed_one_minus_one() -> None:
    prediction = np.linspace(-4, 4, 50)
    target = 20 + 60 / (1 + np.exp(-(prediction - 1) / 0.7))
    assert plain("regression", "plcc_fitted", target, prediction) == pytest.approx(1.0, abs=1e-9)
    assert plain("regression", "plcc", target, prediction) < 0.97
    assert plain("regression", "plcc_fitted", 100 - target, prediction) == pytest.approx(-1.0, abs=1e-9)
    assert np.isnan(plain("regression", "plcc_fitted", target, np.ones(50)))


def test_plcc_fitted_is_the_correlation_after_one_curve_whatever_the_weighting() -> None:
    rng = np.random.default_rng(5)
    prediction = rng.normal(size=80)
    target = np.tanh(prediction) + rng.normal(scale=0.2, size=80)
    weights = rng.multinomial(80, np.ones(80) / 80, size=10).astype(float)
    values = weighted_metrics(
        "regression", ["plcc_fitted"], target=target, prediction=prediction, probabilities=None, weights=weights
    )[0]
    curve = fit_logistic(prediction, target)
    assert curve is not None
    mapped = logistic(prediction, curve)
    for value, row in zip(values, weights.astype(int), strict=True):
        again = np.repeat(np.arange(80), row)
        assert value == pytest.approx(stats.pearsonr(mapped[again], target[again]).statistic)


def test_confusion_equals_scikit_learns_on_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    target, prediction = rng.integers(0, 4, (2, 30)).astype(float)
    weights = rng.integers(0, 3, (5, 30)).astype(float)
    for counted, row in zip(confusion(target, prediction, 5, weights), weights.astype(int), strict=True):
        again = np.repeat(np.arange(30), row)
        np.testing.assert_array_equal(counted, sk.confusion_matrix(target[again], prediction[again], labels=range(5)))


def test_metric_names_add_what_says_something_of_the_task() -> None:
    few, many = (Task("a", "multiclass", tuple(map(str, range(k)))) for k in (5, 6))
    assert metric_names(few) == ["accuracy", "macro_f1"]
    assert metric_names(many) == ["accuracy", "macro_f1", "top5_accuracy"]
    assert metric_names(Task("q", "regression"), more=False) == ["srcc", "plcc", "rmse"]
    with pytest.raises(ValueError, match="'mcc' is no metric of a binary task; use one of auroc"):
        plain("binary", "mcc", [0, 1], [0, 1])
