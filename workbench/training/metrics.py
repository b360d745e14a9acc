"""Metrics with a weight per clip, for many weightings at once: the bootstrap needs each metric thousands of times.

A resample of clips with replacement is a row of whole-number weights, so every formula below takes ``weights (R, n)``
and returns ``(R,)``; a weight of ones is the plain metric. Weight *w* means the clip is there *w* times, exactly.
Undefined (one class only, no spread) is NaN. Ties share their rank, as in scikit-learn and SciPy. One metric holds
something fixed over the weightings: ``plcc_fitted`` maps the predictions by the curve that all clips together give.
"""

from collections.abc import Callable, Iterable

import numpy as np

from workbench.data.tables import Task
from workbench.training.logistic_fit import fit_logistic, logistic

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray], np.ndarray]


def _accuracy(target: np.ndarray, prediction: np.ndarray, _: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    return _ratio(weights @ (target == prediction), weights.sum(1))


def _macro_f1(target: np.ndarray, prediction: np.ndarray, _: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that occur as truth or as prediction (scikit-learn's default)."""
    classes = np.unique(np.concatenate([target, prediction]))
    true, said = target[:, None] == classes, prediction[:, None] == classes  # (n, K)
    counted = weights @ true.astype(float) + weights @ said.astype(float)  # (R, K): 2 TP + FP + FN
    f1 = _ratio(2 * (weights @ (true & said).astype(float)), counted)
    present = counted > 0
    return _ratio(np.where(present, f1, 0.0).sum(1), present.sum(1))


def _auroc(target: np.ndarray, _: np.ndarray, probabilities: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    """Share of (positive, negative) pairs in the right order, ties counting a half."""
    positive, negative = _by_score(target, probabilities, weights)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(1) * negative.sum(1)
    return _ratio((positive * (below + negative / 2)).sum(1), pairs)


def _average_precision(
    target: np.ndarray, _: np.ndarray, probabilities: np.ndarray | None, weights: np.ndarray
) -> np.ndarray:
    """Precision averaged over the positives, from the highest score down; NaN with one class: nothing is ranked."""
    positive, negative = (side[:, ::-1] for side in _by_score(target, probabilities, weights))
    found = np.cumsum(positive, axis=1)
    precision = _ratio(found, found + np.cumsum(negative, axis=1))
    total = positive.sum(1)
    value = _ratio((positive * np.where(positive > 0, precision, 0.0)).sum(1), total)
    return np.where(negative.sum(1) > 0, value, np.nan)


def _srcc(target: np.ndarray, prediction: np.ndarray, _: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    return _correlation(_ranks(target, weights), _ranks(prediction, weights), weights)


def _plcc(target: np.ndarray, prediction: np.ndarray, _: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    return _correlation(target[None], prediction[None], weights)


def _rmse(target: np.ndarray, prediction: np.ndarray, _: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    return np.sqrt(_ratio(weights @ (target - prediction) ** 2, weights.sum(1)))


def _top5_accuracy(
    target: np.ndarray, _: np.ndarray, probabilities: np.ndarray | None, weights: np.ndarray
) -> np.ndarray:
    """Share of clips whose class is among the five likeliest; a tie at the border counts as a miss, so that a model
    that says the same of all classes scores nothing. NaN with five classes or fewer, where it would always be one."""
    given = _needed(probabilities)
    if given.shape[1] <= 5:
        return np.full(len(weights), np.nan)
    own = np.take_along_axis(given, target.astype(int)[:, None], axis=1)
    return _ratio(weights @ ((given >= own).sum(1) <= 5), weights.sum(1))


def _recall_at(max_rate: float) -> Metric:
    """The most positives that a threshold finds while it flags at most this share of the negatives."""

    def recall(target: np.ndarray, _: np.ndarray, probabilities: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
        positive, negative = (np.cumsum(side[:, ::-1], axis=1) for side in _by_score(target, probabilities, weights))
        allowed = negative <= max_rate * negative[:, -1:]
        found = np.where(allowed, positive, 0.0).max(axis=1)
        value = _ratio(found, positive[:, -1])
        return np.where(negative[:, -1] > 0, value, np.nan)

    return recall


def _krcc(target: np.ndarray, prediction: np.ndarray, _: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    """Kendall's tau-b: pairs in the right order less pairs in the wrong one, of the pairs that are no ties."""
    total = weights.sum(1)
    pairs, agreeing = total * (total - 1) / 2, np.zeros(len(weights))
    rows = max(1, _PAIRS // max(1, len(target)))
    for i in range(0, len(target), rows):
        part = slice(i, i + rows)
        order = np.sign(target[part, None] - target) * np.sign(prediction[part, None] - prediction)
        agreeing += ((weights[:, part] @ order) * weights).sum(1) / 2
    free = []
    for values in (target, prediction):
        inverse = np.unique(values, return_inverse=True)[1].reshape(-1)
        order = np.argsort(inverse, kind="stable")
        count = np.add.reduceat(weights[:, order], _starts(inverse[order]), axis=1)
        free.append(pairs - (count * (count - 1) / 2).sum(1))
    return _ratio(agreeing, np.sqrt(free[0] * free[1]))


def _plcc_fitted(target: np.ndarray, prediction: np.ndarray, _: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation after the logistic curve of the quality literature; negative where that curve falls.

    The curve is fitted once, to all clips, and not anew for each weighting: its four parameters are few against the
    clips that set them, and where the relation is nearly straight a fit takes a tenth of a second.
    """
    curve = fit_logistic(prediction, target)
    if curve is None:
        return np.full(len(weights), np.nan)
    value = _correlation(target[None], logistic(prediction, curve)[None], weights)
    return value if curve[0] >= curve[1] else -value


def _over_classes(one: Metric) -> Metric:
    """A binary metric per class of a multilabel task, where that class is known; the mean over the classes for which
    it is defined under that weighting."""

    def mean(target: np.ndarray, _: np.ndarray, probabilities: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
        given = _needed(probabilities)
        rows = []
        for k in range(target.shape[1]):
            known = ~np.isnan(target[:, k])
            if known.any():
                score = np.stack([1 - given[known, k], given[known, k]], axis=1)
                rows.append(one(target[known, k], score[:, 1], score, weights[:, known]))
        if not rows:
            return np.full(len(weights), np.nan)
        values = np.stack(rows)  # (K, R)
        defined = ~np.isnan(values)
        return _ratio(np.where(defined, values, 0.0).sum(0), defined.sum(0))

    return mean


METRICS: dict[str, dict[str, Metric]] = {
    "multiclass": {"accuracy": _accuracy, "macro_f1": _macro_f1},
    "binary": {"auroc": _auroc, "average_precision": _average_precision, "accuracy": _accuracy},
    "multilabel": {"mean_average_precision": _over_classes(_average_precision), "macro_auroc": _over_classes(_auroc)},
    "regression": {"srcc": _srcc, "plcc": _plcc, "rmse": _rmse},
}
"""Metrics per kind of task. The first is the main one; for each main metric, higher is better."""

MORE_METRICS: dict[str, dict[str, Metric]] = {
    "multiclass": {"top5_accuracy": _top5_accuracy},
    "binary": {"recall_at_1_fpr": _recall_at(0.01), "recall_at_5_fpr": _recall_at(0.05)},
    "multilabel": {},
    "regression": {"plcc_fitted": _plcc_fitted, "krcc": _krcc},
}
"""What a full report adds: recall at a false positive rate of 1 and 5 %, Kendall's tau-b, ..."""

RANKED_BY_PROBABILITY = ("auroc", "average_precision", "recall_at_1_fpr", "recall_at_5_fpr")
_NEEDS_PROBABILITIES = (*RANKED_BY_PROBABILITY, "top5_accuracy", "mean_average_precision", "macro_auroc")
_PAIRS = 2_000_000
"""Pairs of clips compared at a time."""


def main_metric(kind: str) -> str:
    """The metric by which setups are compared on a task of this kind."""
    return next(iter(METRICS[kind]))


def metric_names(task: Task, *, more: bool = True) -> list[str]:
    """The metrics to report of a task, the main one first; ``more`` with those of :data:`MORE_METRICS` that say
    something of it (top-5 does not of five classes)."""
    added = [name for name in MORE_METRICS[task.kind] if name != "top5_accuracy" or len(task.classes) > 5]
    return [*METRICS[task.kind], *(added if more else [])]


def weighted_metrics(
    kind: str,
    names: Iterable[str],
    *,
    target: np.ndarray,
    prediction: np.ndarray,
    probabilities: np.ndarray | None,
    weights: np.ndarray,
) -> np.ndarray:
    """The metrics ``names`` under each weighting: ``(len(names), R)``, NaN where one is undefined.

    ``target`` and ``prediction`` are ``(n,)`` without NaN in ``target``, but for a multilabel task ``target`` is
    ``(n, K)`` of 0, 1 and NaN; ``probabilities`` ``(n, K)`` or None; ``weights`` ``(R, n)``, how often each clip is
    counted.
    """
    known, rows = METRICS[kind] | MORE_METRICS[kind], []
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no metric of a {kind} task; use one of {', '.join(known)}")
        used = probabilities if name in _NEEDS_PROBABILITIES else prediction
        if used is None or len(target) == 0 or not np.isfinite(used).all():
            rows.append(np.full(len(weights), np.nan))
        else:
            rows.append(known[name](target, prediction, probabilities, weights))
    return np.stack(rows)


def confusion(target: np.ndarray, prediction: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """Clips of each true class (rows) by predicted class (columns) under each weighting: ``(R, K, K)``."""
    cell = target.astype(int) * classes + prediction.astype(int)
    return np.stack([np.bincount(cell, row, minlength=classes**2) for row in weights]).reshape(-1, classes, classes)


def _needed(probabilities: np.ndarray | None) -> np.ndarray:
    if probabilities is None:
        raise ValueError("this metric needs the probabilities of the classes")
    return probabilities


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """``above / below``, NaN where ``below`` is zero."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below != 0)


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Where each run of equal values starts in a sorted array."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _by_score(
    target: np.ndarray, probabilities: np.ndarray | None, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives and of the negatives at each distinct score, ascending: two of ``(R, U)``."""
    if probabilities is None:
        raise ValueError("a ranking metric needs the positives' probabilities")
    score = probabilities[:, 1]
    order = np.argsort(score, kind="stable")
    starts, positive = _starts(score[order]), target[order] == 1
    ordered = weights[:, order]
    return np.add.reduceat(ordered * positive, starts, axis=1), np.add.reduceat(ordered * ~positive, starts, axis=1)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean rank of each clip when clip *i* is there ``weights[r, i]`` times: ``(R, n)``."""
    distinct, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    count = np.add.reduceat(weights[:, order], _starts(inverse[order]), axis=1)  # (R, U)
    rank = np.cumsum(count, axis=1) - (count - 1) / 2
    return rank[:, inverse.reshape(-1)] if len(distinct) else weights


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation of ``x`` and ``y`` ``(1 or R, n)``; NaN where either has no spread."""
    total = weights.sum(1, keepdims=True)
    parts = []
    for values in (x, y):
        centred = values - (weights * values).sum(1, keepdims=True) / total
        variance = (weights * centred**2).sum(1) / total[:, 0]
        # A constant's mean is off by rounding only: below this its spread is not real (SciPy uses 1e-13 of the mean).
        flat = variance <= (1e-12 * np.abs(values).max(axis=1)) ** 2
        parts.append((centred, np.where(flat, 0.0, variance)))
    (dx, vx), (dy, vy) = parts
    value = _ratio((weights * dx * dy).sum(1) / total[:, 0], np.sqrt(vx * vy))
    return np.clip(value, -1.0, 1.0)
