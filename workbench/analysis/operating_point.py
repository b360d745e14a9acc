"""Where to set the alarm: a threshold chosen on val for a false positive rate, and the rate it then has elsewhere."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from workbench.analysis.bootstrap import CONFIDENCE


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the positive's probability: a clip is flagged where ``score >= threshold``."""

    threshold: float
    """Infinite where not even the highest score can be flagged at that rate: nothing is."""
    max_rate: float
    """The false positive rate that was asked for."""
    false_positive_rate: float
    recall: float
    """Both on the clips by which the threshold was chosen, so the rate is a little too good elsewhere."""
    negatives: int
    positives: int

    def __str__(self) -> str:
        return (
            f"flag at {self.threshold:.4g} and above: {self.false_positive_rate:.1%} of {self.negatives} negatives "
            f"(asked: at most {self.max_rate:g}), {self.recall:.1%} of {self.positives} positives"
        )


@dataclass(frozen=True)
class RealisedRate:
    """What a threshold does on clips that had no part in choosing it."""

    false_positives: int
    negatives: int
    rate: float
    low: float
    high: float
    """The exact (Clopper and Pearson, 1934) 95 % interval of the rate; it takes clips as independent, so clips of one
    source make it too narrow."""
    recall: float
    recall_low: float
    recall_high: float
    positives: int
    max_rate: float

    @property
    def as_promised(self) -> bool:
        """Whether the rate asked for lies in the interval or above it: the threshold is not shown to flag more."""
        return self.low <= self.max_rate

    @property
    def within(self) -> bool:
        """Whether the rate asked for lies in the interval."""
        return self.low <= self.max_rate <= self.high


def choose_threshold(target: np.ndarray, score: np.ndarray, *, max_rate: float) -> OperatingPoint:
    """The lowest threshold that flags at most ``max_rate`` of the negatives of these (val) clips.

    ``target`` (n,) 0, 1 or NaN (left out); ``score`` (n,), higher is more likely positive. The threshold lies half way
    between the last score that is flagged and the next below, so that neither decides by a rounding error. Raises
    ValueError without a positive or without enough negatives to know such a rate: below ``1 / max_rate`` not one may
    be flagged, and the threshold would be where the worst of a few clips happens to lie.

    >>> choose_threshold(np.array([0, 0, 1, 0, 1]), np.array([0.1, 0.2, 0.5, 0.7, 0.9]), max_rate=0.34).threshold
    0.35
    """
    negative, positive = _sides(target, score)
    if not 0 < max_rate < 1:
        raise ValueError(f"max_rate={max_rate!r} must lie between 0 and 1, for example 0.05")
    if not len(positive):
        raise ValueError("no positive clip: a threshold needs both classes in the split that chooses it")
    if len(negative) * max_rate < 1:
        raise ValueError(
            f"{len(negative)} negative clip(s) cannot show a rate of {max_rate:g}: at least "
            f"{int(np.ceil(1 / max_rate))} are needed; ask for a higher rate or label more clips"
        )
    levels = np.unique(np.concatenate([negative, positive]))
    flagged = len(negative) - np.searchsorted(np.sort(negative), levels, side="left")
    allowed = np.flatnonzero(flagged <= max_rate * len(negative))
    if not len(allowed):
        threshold = float("inf")
    else:
        first = int(allowed[0])
        threshold = float(levels[first]) if first == 0 else float((levels[first - 1] + levels[first]) / 2)
    return OperatingPoint(
        threshold, max_rate, float((negative >= threshold).mean()), float((positive >= threshold).mean()),
        len(negative), len(positive),
    )  # fmt: skip


def realised_rate(point: OperatingPoint, target: np.ndarray, score: np.ndarray) -> RealisedRate:
    """The false positive rate and recall of ``point`` on other (test) clips, with exact binomial 95 % intervals.

    ``target`` and ``score`` as for :func:`choose_threshold`. Raises ValueError without a negative; the recall of no
    positive is NaN.
    """
    negative, positive = _sides(target, score)
    if not len(negative):
        raise ValueError("no negative clip: there is no false positive rate")
    wrong, found = int((negative >= point.threshold).sum()), int((positive >= point.threshold).sum())
    low, high = _interval(wrong, len(negative))
    recall_low, recall_high = _interval(found, len(positive))
    return RealisedRate(
        wrong, len(negative), wrong / len(negative), low, high, found / len(positive) if len(positive) else np.nan,
        recall_low, recall_high, len(positive), point.max_rate,
    )  # fmt: skip


def _interval(count: int, of: int) -> tuple[float, float]:
    if not of:
        return np.nan, np.nan
    interval = binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def _sides(target: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the negatives and of the positives."""
    target, score = np.asarray(target, float), np.asarray(score, float)
    if target.shape != score.shape or target.ndim != 1:
        raise ValueError(f"target {target.shape} and score {score.shape} must both be (n,)")
    known = ~np.isnan(target)
    if not np.isfinite(score[known]).all():
        raise ValueError(f"{int((~np.isfinite(score[known])).sum())} score(s) are not finite")
    if odd := sorted(set(target[known].tolist()) - {0.0, 1.0}):
        raise ValueError(f"target must be 0 or 1, or NaN where it is missing; found {odd[:3]}")
    return score[known & (target == 0)], score[known & (target == 1)]
