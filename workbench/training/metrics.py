"""Metrics with a weight per clip, for many weightings at once: the bootstrap needs each metric thousands of times.

A resample of clips with replacement is a row of whole-number weights, so every formula below takes ``weights (R, n)``
and returns ``(R,)``; a weight of ones is the plain metric. Weight *w* means the clip is there *w* times, exactly.
Undefined (one class only, no spread) is NaN. Ties share their rank, as in scikit-learn and SciPy.
"""

from collections.abc import Callable, Iterable

import numpy as np

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


METRICS: dict[str, dict[str, Metric]] = {
    "multiclass": {"accuracy": _accuracy, "macro_f1": _macro_f1},
    "binary": {"auroc": _auroc, "average_precision": _average_precision, "accuracy": _accuracy},
    "regression": {"srcc": _srcc, "plcc": _plcc, "rmse": _rmse},
}
"""Metrics per kind of task. The first is the main one; for each main metric, higher is better."""

RANKED_BY_PROBABILITY = ("auroc", "average_precision")


def main_metric(kind: str) -> str:
    """The metric by which setups are compared on a task of this kind."""
    return next(iter(METRICS[kind]))


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

    ``target`` and ``prediction`` are ``(n,)`` without NaN in ``target``; ``probabilities`` ``(n, K)`` or None;
    ``weights`` ``(R, n)``, how often each clip is counted.
    """
    rows = []
    for name in names:
        needed = probabilities[:, 1] if name in RANKED_BY_PROBABILITY and probabilities is not None else prediction
        lacks = name in RANKED_BY_PROBABILITY and probabilities is None
        if lacks or len(target) == 0 or not np.isfinite(needed).all():
            rows.append(np.full(len(weights), np.nan))
        else:
            rows.append(METRICS[kind][name](target, prediction, probabilities, weights))
    return np.stack(rows)


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
