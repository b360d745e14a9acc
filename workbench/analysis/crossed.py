"""A score of a training repeated over seeds on the same clips: one interval for other clips *and* other seeds.

Every seed is tested on the same clips, so clips and seeds are crossed, not nested. Groups of clips and seeds are drawn
anew independently of each other (Owen's pigeonhole bootstrap, https://doi.org/10.1214/07-AOAS122, which errs on the
wide side). Each resample draws one group, and one seed, less than there are: as many would make a mean's variance too
small where there are few (Rao and Wu, 1988). What is scored on one :class:`Resamples` shares its draws and is paired.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.analysis.bootstrap import CHUNK_ELEMENTS, MIN_GROUPS, group_weights, percentile_interval, sign_p_value
from workbench.analysis.evaluate import deciding_groups, why_undefined
from workbench.analysis.predictions import Predicted, TaskRows, task_rows, tasks_of
from workbench.analysis.repeats import Spread
from workbench.training.metrics import main_metric, weighted_metrics

MIN_SEEDS = 6
"""Fewer seeds than this cannot show a difference: even if all agree in sign, a two-sided sign test gives
``p = 2 / 2**seeds > 0.05`` up to five."""


@dataclass(frozen=True)
class Drawn:
    """A number on all clips and seeds, and on each resample (resamples,); NaN where it is undefined."""

    value: float
    draws: np.ndarray

    def __sub__(self, other: "Drawn") -> "Drawn":
        return Drawn(self.value - other.value, self.draws - other.draws)

    def as_share_of(self, base: "Drawn") -> "Drawn":
        """This, a difference, in units of ``base``; NaN where that is not above zero: a share of nothing means
        nothing."""
        below = np.append(base.draws, base.value)
        above = np.append(self.draws, self.value)
        share = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
        return Drawn(float(share[-1]), share[:-1])

    def spread(self, n: int) -> Spread:
        """Value and 95 % percentile interval."""
        interval = percentile_interval(self.draws)
        return Spread(self.value, interval.low, interval.high, n)

    def p_value(self) -> float:
        """Two-sided, of "it is zero"; NaN without resamples."""
        return sign_p_value(self.draws)


def mean_of(parts: Sequence[Drawn]) -> Drawn:
    """The mean of several numbers, resample by resample; NaN without any."""
    if not parts:
        return Drawn(math.nan, np.full(1, np.nan))
    return Drawn(float(np.mean([p.value for p in parts])), np.mean([p.draws for p in parts], axis=0))


@dataclass(frozen=True)
class Scored(Drawn):
    """A task's main metric, on average over seeds."""

    metric: str
    by_seed: dict[int, float]
    n: int
    """Labelled clips."""
    groups: int
    deciding: int
    """Groups that the metric rests on: for AUROC those of the rarer class."""
    note: str
    """Why the value is NaN, or empty."""
    clips: tuple[tuple[str, str, str], ...]
    """Clip id, group and target of each labelled clip: what two scores must share to be compared."""


@dataclass(frozen=True)
class Resamples:
    """Draws of groups and seeds that several scores share."""

    groups: tuple[str, ...]
    seeds: tuple[int, ...]
    by_group: np.ndarray
    """How often each group is drawn (resamples, groups)."""
    by_seed: np.ndarray
    """How often each seed is drawn (resamples, seeds)."""

    @staticmethod
    def draw(groups: Sequence[str], seeds: Sequence[int], *, resamples: int = 2000, seed: int = 0) -> "Resamples":
        """Of these groups and seeds, in this order; ``seed`` fixes the draws. A single seed (or group) is kept as it
        is, and the interval then says nothing of other seeds (or is NaN). Raises ValueError without groups or seeds."""
        if resamples < 1:
            raise ValueError(f"resamples={resamples} must be at least 1; 2000 is usual")
        if not len(groups) or not len(seeds):
            raise ValueError(f"groups ({len(groups)}) and seeds ({len(seeds)}): at least one of each is needed")
        drawn = []
        for stream, count in enumerate((len(groups), len(seeds))):
            own = int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])
            weights = group_weights(np.arange(count), resamples=resamples, seed=own, draws=max(1, count - 1))
            drawn.append(np.concatenate(list(weights)))
        return Resamples(tuple(groups), tuple(seeds), *drawn)

    def score(self, runs: Mapping[int, Predicted], task: str, *, split: str = "test") -> Scored:
        """The main metric of ``task`` over ``runs``, one per seed.

        Raises ValueError where a seed has no run, runs saw other clips, labels or groups, or lack task or split.
        """
        if missing := [s for s in self.seeds if s not in runs]:
            raise ValueError(f"there is no run of seed(s) {missing}; the runs are of seeds {sorted(runs)}")
        (found,) = tasks_of(runs[self.seeds[0]], task)
        rows = {s: task_rows(runs[s], found, split) for s in self.seeds}
        first = rows[self.seeds[0]]
        identity = _clips(first)
        if odd := [s for s in self.seeds if _clips(rows[s]) != identity]:
            raise ValueError(f"task {task!r}: seeds {self.seeds[0]} and {odd[0]} were tested on other clips or labels")
        if unknown := sorted(set(first.group_name) - set(self.groups)):
            raise ValueError(f"task {task!r}: group {unknown[0]!r} is not among the {len(self.groups)} drawn from")
        place = {name: i for i, name in enumerate(self.groups)}
        columns = np.array([place[name] for name in first.group_name], int)
        metric = main_metric(found.kind)
        plain = np.array([_metric(found.kind, metric, rows[s], np.ones((1, len(first))))[0] for s in self.seeds])
        draws = np.full(len(self.by_group), np.nan)
        if first.num_groups > 1:
            per_seed = np.stack([self._drawn(found.kind, metric, rows[s], columns) for s in self.seeds])  # (S, R)
            draws = (self.by_seed.T * per_seed).sum(0) / self.by_seed.sum(1)
        value = float(plain.mean())
        # A prediction of some seed may be what makes the metric undefined.
        reasons = [why_undefined(metric, rows[s]) for s, v in zip(self.seeds, plain, strict=True) if math.isnan(v)]
        return Scored(
            value, draws, metric, dict(zip(self.seeds, plain.tolist(), strict=True)), len(first), first.num_groups,
            deciding_groups(metric, first), reasons[0] if reasons else "", identity,
        )  # fmt: skip

    def _drawn(self, kind: str, metric: str, rows: TaskRows, columns: np.ndarray) -> np.ndarray:
        """The metric of one seed on each resample of the groups (resamples,)."""
        step = max(1, CHUNK_ELEMENTS // max(1, len(columns)))
        parts = [
            _metric(kind, metric, rows, self.by_group[start : start + step][:, columns])
            for start in range(0, len(self.by_group), step)
        ]
        return np.concatenate(parts)


def pair(together: Scored, alone: Scored, task: str) -> Drawn:
    """``together`` minus ``alone``. Raises ValueError unless both were measured on the same clips and labels."""
    if together.clips != alone.clips:
        differing = len(set(together.clips) ^ set(alone.clips))
        raise ValueError(
            f"task {task!r}: the two sides were not tested on the same clips ({differing} rows differ in clip, group "
            "or label); train both on one table"
        )
    return together - alone


def verdict_of(change: Spread, *, seeds: int, deciding: int, names: tuple[str, str] = ("gain", "loss")) -> str:
    """What a paired difference allows to say: one of ``names`` where its interval excludes zero."""
    if math.isnan(change.value):
        return "undefined"
    if seeds < MIN_SEEDS:
        return "too few seeds"
    if deciding < MIN_GROUPS:
        return "too few groups"
    if change.low > 0:
        return names[0]
    return names[1] if change.high < 0 else "no clear difference"


def groups_of(runs: Mapping[int, Predicted], tasks: Sequence[str], *, split: str = "test") -> list[str]:
    """All groups that hold a labelled clip of one of ``tasks``, in order."""
    some = runs[min(runs)]
    rows = [task_rows(some, tasks_of(some, task)[0], split) for task in tasks]
    return sorted({str(name) for part in rows for name in part.group_name})


def _clips(rows: TaskRows) -> tuple[tuple[str, str, str], ...]:
    targets = [np.array2string(t, precision=6) for t in rows.target]
    return tuple(zip(map(str, rows.clip_id), map(str, rows.group_name), targets, strict=True))


def _metric(kind: str, metric: str, rows: TaskRows, weights: np.ndarray) -> np.ndarray:
    return weighted_metrics(
        kind, [metric], target=rows.target, prediction=rows.prediction, probabilities=rows.probabilities,
        weights=weights,
    )[0]  # fmt: skip
