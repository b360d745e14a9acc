"""How far a number would move with other clips: the bootstrap over groups.

Clips of one group (video, person, scene) resemble each other, so whole groups are drawn with replacement; drawing
clips would count one video five times and give an interval that is too narrow. The intervals are percentile intervals
(Efron 1979); they know nothing of the training seed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95

MIN_GROUPS = 6
"""Fewer groups than this cannot show a difference: even if all agree in sign, a two-sided sign test gives
``p = 2 / 2**groups > 0.05`` up to five."""

CHUNK_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval and how many resamples it rests on (``skipped``: the metric was undefined there)."""

    low: float
    high: float
    used: int
    skipped: int


def group_weights(groups: np.ndarray, *, resamples: int, seed: int, draws: int | None = None) -> Iterator[np.ndarray]:
    """How often each clip is drawn, ``(r, n)`` at a time, ``resamples`` rows in all.

    ``groups (n,)`` are codes ``0 .. G-1``; each row draws ``draws`` groups (None: G) with replacement, and a clip's
    weight is how often its group was drawn. The same groups and seed give the same rows, which is what pairs two runs.
    """
    count = int(groups.max()) + 1
    taken = count if draws is None else draws
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_ELEMENTS // max(len(groups), count))
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        drawn = rng.integers(count, size=(rows, taken)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, groups].astype(float)


def bootstrap(
    statistics: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, *, resamples: int, seed: int
) -> np.ndarray:
    """``statistics`` (weights ``(r, n)`` -> ``(S, r)``) on each resample: ``(S, resamples)``.

    One group alone cannot be resampled: every value is then NaN, never an interval of width zero.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1; 2000 is usual")
    if groups.max() == 0:
        rows = len(statistics(np.ones((1, len(groups)))))
        return np.full((rows, resamples), np.nan)
    return np.concatenate([statistics(w) for w in group_weights(groups, resamples=resamples, seed=seed)], axis=1)


def percentile_interval(values: np.ndarray) -> Interval:
    """The middle 95 % of the resampled values ``(resamples,)``, without those where the metric was undefined (NaN)."""
    kept = values[~np.isnan(values)]
    if not len(kept):
        return Interval(np.nan, np.nan, 0, len(values))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(kept, [tail, 100 - tail])
    return Interval(float(low), float(high), len(kept), len(values) - len(kept))


def sign_p_value(differences: np.ndarray) -> float:
    """Two-sided bootstrap p-value of "no difference": twice the smaller share of resamples at or beyond zero.

    One is added to count and total, so it is never zero (Davison and Hinkley 1997, eq. 4.11). NaN without resamples.
    """
    kept = differences[~np.isnan(differences)]
    if not len(kept):
        return float("nan")
    beyond = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(kept) + 1))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's (1979) step-down adjustment of p-values ``(m,)``; NaN is not counted as a test and stays NaN."""
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted
