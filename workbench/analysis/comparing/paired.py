"""Is a difference of two runs on the same clips more than luck: bootstrap corrected for few groups, McNemar, DeLong.

A percentile interval of a difference is too narrow where there are few groups: resamples of a mean spread by
``sqrt((n - 1) / n)`` too little, and normal tails stand in for Student's. Hesterberg (2015,
https://doi.org/10.1080/00031305.2015.1089789) widens the quantiles by both: the *expanded* percentile interval, used
here for differences. Their p-values are Student's with the bootstrap's standard error.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm, rankdata
from scipy.stats import t as student

from workbench.analysis.bootstrap import CONFIDENCE, Interval

ALPHA = 0.05
"""A verdict may be wrong this often over all pairs of one table."""


MIN_RESAMPLES = 200
"""Fewer do not hold a 95 % interval: no verdict."""


def level(resamples: int) -> float:
    """The p-value a verdict needs: 5 % less two standard errors of a share of so many resamples, so that a verdict does
    not hang on which were drawn; 0 under 200 of them."""
    return float(ALPHA - 2 * np.sqrt(ALPHA * (1 - ALPHA) / resamples)) if resamples >= MIN_RESAMPLES else 0.0


def expanded_tail(tail: float, groups: int) -> float:
    """The one-sided share to cut from resamples of ``groups`` groups so that ``tail`` is cut in truth."""
    return float(norm.cdf(student.ppf(tail, groups - 1) * np.sqrt(groups / (groups - 1))))


def expanded_interval(draws: np.ndarray, groups: int) -> Interval:
    """95 % interval of a difference from its resampled values ``(resamples,)``; NaN is left out and counted."""
    kept = draws[~np.isnan(draws)]
    if not len(kept) or groups < 2:
        return Interval(np.nan, np.nan, 0, len(draws))
    tail = 100 * expanded_tail((1 - CONFIDENCE) / 2, groups)
    low, high = np.percentile(kept, [tail, 100 - tail])
    return Interval(float(low), float(high), len(kept), len(draws) - len(kept))


def paired_p_value(value: float, draws: np.ndarray, groups: int) -> float:
    """Two-sided p-value of "no difference": Student's t of the difference over its bootstrap standard error.

    Unlike a share of resamples it can be small enough to survive a correction for many pairs; but never smaller than
    ``2 / 2**groups``, a sign test's when all groups agree. NaN without resamples, or with one group.
    """
    kept = draws[~np.isnan(draws)]
    if not len(kept) or groups < 2 or np.isnan(value):
        return float("nan")
    if value == 0:
        return 1.0
    least = float(2.0 ** (1 - groups))
    error = kept.std() * np.sqrt(groups / (groups - 1))
    return max(least, float(2 * student.sf(abs(value) / error, groups - 1))) if error > 0 else least


def mcnemar(first_only: np.ndarray | int, second_only: np.ndarray | int, *, mid_p: bool = True) -> np.ndarray:
    """Two-sided p-value from the clips that only one of two runs got right; counts may be arrays.

    Exact conditional test (McNemar, 1947), by default with the mid-p correction, which holds the level nearly always
    and has more power (Fagerland, Lydersen and Laake, 2013, https://doi.org/10.1186/1471-2288-13-91). Clips count as
    independent: with several to a group it is too sure.

    >>> [round(float(mcnemar(1, 7, mid_p=mid)) * 256, 6) for mid in (False, True)]  # 2 * (1 + 8), and less 8
    [18.0, 10.0]
    """
    first_only, second_only = np.asarray(first_only), np.asarray(second_only)
    if (first_only < 0).any() or (second_only < 0).any():
        raise ValueError(f"counts must be 0 or more, not {first_only.min()} and {second_only.min()}")
    less, total = np.minimum(first_only, second_only), first_only + second_only
    p = 2 * binom.cdf(less, total, 0.5) - (binom.pmf(less, total, 0.5) if mid_p else 0.0)
    return np.asarray(np.minimum(1.0, p))


@dataclass(frozen=True)
class DeLong:
    """AUROC of several scores on the same clips ``(S,)`` and their covariance ``(S, S)``."""

    auroc: np.ndarray
    covariance: np.ndarray

    def p_value(self, first: int, second: int) -> float:
        """Two-sided, of "both have the same AUROC"; 1 where two scores rank all pairs alike, NaN where undefined."""
        gap = self.auroc[first] - self.auroc[second]
        variance = self.covariance[first, first] + self.covariance[second, second] - 2 * self.covariance[first, second]
        if np.isnan(gap + variance):
            return float("nan")
        if variance <= 1e-15:
            return 1.0 if abs(gap) < 1e-12 else float("nan")
        return float(2 * norm.sf(abs(gap) / np.sqrt(variance)))


def delong(target: np.ndarray, scores: np.ndarray) -> DeLong:
    """DeLong, DeLong and Clarke-Pearson (1988, https://doi.org/10.2307/2531595) from midranks as Sun and Xu (2014,
    https://doi.org/10.1109/LSP.2014.2337313): ``target (n,)`` of 0 and 1, ``scores (S, n)``.

    Clips count as independent. The AUROCs are NaN without both classes, the covariance with one clip of a class too.
    """
    positive, negative = scores[:, target == 1], scores[:, target == 0]
    m, n, runs = positive.shape[1], negative.shape[1], len(scores)
    if not m or not n:
        return DeLong(np.full(runs, np.nan), np.full((runs, runs), np.nan))
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    above = (ranks[:, :m] - rankdata(positive, axis=1)) / n  # (S, m): share of negatives below each positive
    below = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m  # (S, n): share of positives above each negative
    if m < 2 or n < 2:
        return DeLong(above.mean(1), np.full((runs, runs), np.nan))
    covariance = np.cov(above).reshape(runs, runs) / m + np.cov(below).reshape(runs, runs) / n
    return DeLong(above.mean(1), covariance)
