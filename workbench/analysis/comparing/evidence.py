"""What a comparison rests on, kept: the same labelled clips, what each run said of them, and the shared resamples."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from workbench.analysis.bootstrap import MIN_GROUPS, bootstrap
from workbench.analysis.evaluate import deciding_groups
from workbench.analysis.predictions import TaskRows
from workbench.data.tables import Task
from workbench.training.metrics import METRICS, main_metric, weighted_metrics

LOWER_IS_BETTER = ("rmse",)


@dataclass(frozen=True, repr=False)
class Evidence:
    """One task: arrays ``(n,)`` over the labelled clips of a split, in the order of their ids; by run where they
    differ."""

    task: Task
    metric: str
    clip_id: np.ndarray
    path: np.ndarray
    group_name: np.ndarray
    target: np.ndarray
    """``(n,)``; ``(n, K)`` of a multilabel task."""
    prediction: Mapping[str, np.ndarray]
    confidence: Mapping[str, np.ndarray]
    """Probability of the class that was predicted; NaN where the run has none."""
    positive: Mapping[str, np.ndarray]
    """Binary: probability of the second class, by run that has probabilities."""
    values: Mapping[str, float]
    draws: Mapping[str, np.ndarray]
    """The metric on each resample ``(resamples,)``, the same draws of groups for all runs."""
    deciding: int
    """Groups that the metric rests on: for AUROC those of the rarer class."""

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def groups(self) -> np.ndarray:
        """Group codes ``0 .. G-1``, ``(n,)``."""
        return np.unique(self.group_name.astype(str), return_inverse=True)[1].reshape(-1)

    @property
    def num_groups(self) -> int:
        return len(set(self.group_name))

    @property
    def too_few(self) -> bool:
        """Whether no test on these groups could tell two runs apart."""
        return self.deciding < MIN_GROUPS

    @property
    def higher_is_better(self) -> bool:
        return self.metric not in LOWER_IS_BETTER

    def right(self, run: str) -> np.ndarray:
        """``(n,)`` bool: whether the run named the true class. Raises ValueError for a task without one."""
        if self.task.kind not in ("multiclass", "binary"):
            raise ValueError(
                f"task {self.task.name!r} is {self.task.kind}: no prediction is plainly right or wrong there; "
                "compare its metric, or look at the clips by residual"
            )
        return np.asarray(self.prediction[run] == self.target)

    def check(self, *runs: str) -> None:
        """Raises ValueError for a run that was not compared on this task."""
        for run in runs:
            if run not in self.values:
                raise ValueError(f"no run {run!r} on task {self.task.name!r}; there are {list(self.values)}")


def gather(task: Task, rows: Mapping[str, TaskRows], metric: str | None, *, resamples: int, seed: int) -> Evidence:
    """Score every run of ``rows`` (by name, on the same clips) on one task, on all clips and on shared resamples of
    their groups. ``metric`` None is the task's main one; raises ValueError for one that it has not."""
    metric = main_metric(task.kind) if metric is None else metric
    if metric not in METRICS[task.kind]:
        raise ValueError(
            f"{metric!r} is no metric of the {task.kind} task {task.name!r}; use one of {list(METRICS[task.kind])}"
        )
    first = next(iter(rows.values()))

    def statistics(weights: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                weighted_metrics(
                    task.kind, [metric], target=r.target, prediction=r.prediction,
                    probabilities=r.probabilities, weights=weights,
                )
                for r in rows.values()
            ]
        )  # fmt: skip

    values = dict(zip(rows, statistics(np.ones((1, len(first))))[:, 0].tolist(), strict=True))
    drawn = np.full((len(rows), 1), np.nan)
    if len(first):
        drawn = bootstrap(statistics, first.groups, resamples=resamples, seed=seed)
    return Evidence(
        task, metric, first.clip_id, first.path, first.group_name, first.target,
        prediction={name: r.prediction for name, r in rows.items()},
        confidence={name: _confidence(r) for name, r in rows.items()},
        positive={
            name: r.probabilities[:, 1]
            for name, r in rows.items()
            if task.kind == "binary" and r.probabilities is not None
        },
        values=values, draws=dict(zip(rows, drawn, strict=True)), deciding=deciding_groups(metric, first),
    )  # fmt: skip


def _confidence(rows: TaskRows) -> np.ndarray:
    sure = np.full(len(rows), np.nan)
    if rows.probabilities is not None and rows.target.ndim == 1:
        known = np.isfinite(rows.prediction)
        sure[known] = rows.probabilities[known, rows.prediction[known].astype(int)]
    return sure
