"""One way of training, several times: what splits, seeds and groups do to its score, and to a difference of two.

Two questions, two intervals. *Would other clips give the same?* :func:`over_groups` draws whole groups of test clips
anew, in every split. *Would other seeds?* :func:`over_seeds` is Student's t interval on one number per seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.analysis.bootstrap import CONFIDENCE, group_weights, percentile_interval
from workbench.analysis.predictions import Predicted, task_rows, tasks_of
from workbench.training.metrics import main_metric, weighted_metrics

Part = tuple[int, int]
"""(split, seed) of one training."""


@dataclass(frozen=True)
class Spread:
    """A mean with its 95 % interval; ``n``: over how many seeds, or groups. Bounds are NaN where there is one alone."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Repeated(Spread):
    """A score over splits and seeds; ``draws (resamples,)`` hold it for each resample of the groups."""

    draws: np.ndarray
    cells: dict[int, tuple[tuple[str, ...], tuple[int, ...]]]
    """Per split its groups in order, and the seeds; two scores are paired where these agree."""
    by_part: dict[Part, float]


def over_groups(parts: Mapping[Part, pd.DataFrame], kind: str, *, resamples: int = 2000, seed: int = 0) -> Repeated:
    """The main metric of a task, on average over splits and, within each, over seeds; interval over groups.

    ``parts`` maps (split, seed) to the test rows of that run's predictions: ``group, target, prediction,
    probabilities`` of one task. A resample draws groups of a split's test set, split by split, with replacement, one
    less than there are: as many would make a mean's variance too small, by a quarter where a fold holds four (Rao and
    Wu, 1988). All seeds of a split get the same draw, and so has any other score on the same splits (``seed`` fixes
    it).
    ``n`` counts groups of all splits. Resamples in which the metric is undefined are left out.

    Raises ValueError without parts, or where the seeds of a split saw other groups or targets.
    """
    if not parts:
        raise ValueError("there is nothing to average: parts holds no predictions")
    draws: list[np.ndarray] = []
    values: list[float] = []
    by_part: dict[Part, float] = {}
    cells: dict[int, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for split in sorted({s for s, _ in parts}):
        seeds = tuple(sorted(k for s, k in parts if s == split))
        frames = [_in_order(parts[split, k]) for k in seeds]
        first = frames[0]
        for k, frame in zip(seeds, frames, strict=True):
            if not frame[["clip_id", "group", "target"]].equals(first[["clip_id", "group", "target"]]):
                raise ValueError(f"split {split}: seeds {seeds[0]} and {k} were tested on other clips; pair like runs")
        names, groups = np.unique(first.group.to_numpy(str), return_inverse=True)
        # One stream per split: a split left out does not change how the others are drawn.
        rows = [np.ones((1, len(first)))]
        if len(names) > 1:
            rows += group_weights(groups, resamples=resamples, seed=_stream(seed, split), draws=len(names) - 1)
        scores = np.stack([np.concatenate([_metric(f, kind, w) for w in rows]) for f in frames])  # (seeds, 1 + R)
        by_part |= {(split, k): float(v) for k, v in zip(seeds, scores[:, 0], strict=True)}
        values.append(float(scores[:, 0].mean()))
        draws.append(scores[:, 1:].mean(0) if len(names) > 1 else np.full(resamples, np.nan))
        cells[split] = (tuple(names), seeds)
    drawn = np.mean(draws, axis=0)
    interval = percentile_interval(drawn)
    groups_in_all = sum(len(names) for names, _ in cells.values())
    return Repeated(float(np.mean(values)), interval.low, interval.high, groups_in_all, drawn, cells, by_part)


def difference(first: Repeated, second: Repeated) -> Spread:
    """``first`` minus ``second`` on the same draws of the same groups. Raises ValueError where the splits differ."""
    if {s: g for s, (g, _) in first.cells.items()} != {s: g for s, (g, _) in second.cells.items()}:
        raise ValueError(
            f"scores over splits {sorted(first.cells)} and {sorted(second.cells)} do not share their test groups, "
            "so they cannot be paired"
        )
    interval = percentile_interval(first.draws - second.draws)
    return Spread(first.value - second.value, interval.low, interval.high, first.n)


def score_of(run: Predicted, task: str, *, split: str = "test") -> tuple[str, float]:
    """A task's main metric, by name, and its value for ``run``. Raises ValueError where the run lacks task or split."""
    (found,) = tasks_of(run, task)
    rows = task_rows(run, found, split)
    metric = main_metric(found.kind)
    value = weighted_metrics(
        found.kind, [metric], target=rows.target, prediction=rows.prediction, probabilities=rows.probabilities,
        weights=np.ones((1, len(rows))),
    )  # fmt: skip
    return metric, float(value[0, 0])


def over_seeds(values: Sequence[float] | np.ndarray) -> Spread:
    """Mean of one number per seed (or of one paired difference per seed) with Student's t interval.

    It takes the numbers for independent draws from something near a normal distribution; few seeds make it wide, and
    one gives none. Raises ValueError without numbers or on one that is missing.
    """
    numbers = np.asarray(values, float)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(f"values={numbers.tolist()} must be finite numbers, one per seed")
    mean, n = float(numbers.mean()), len(numbers)
    if n < 2:
        return Spread(mean, math.nan, math.nan, n)
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(numbers.std(ddof=1)) / math.sqrt(n)
    return Spread(mean, mean - half, mean + half, n)


def _stream(seed: int, split: int) -> int:
    return int(np.random.SeedSequence([seed, split]).generate_state(1)[0])


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Labelled rows by clip, so that runs can be laid side by side."""
    return frame[frame.target.notna()].sort_values("clip_id", kind="stable").reset_index(drop=True)


def _metric(frame: pd.DataFrame, kind: str, weights: np.ndarray) -> np.ndarray:
    probabilities = None if kind == "regression" else np.array(frame.probabilities.tolist(), float)
    return weighted_metrics(
        kind, [main_metric(kind)], target=frame.target.to_numpy(float), prediction=frame.prediction.to_numpy(float),
        probabilities=probabilities, weights=weights,
    )[0]  # fmt: skip
