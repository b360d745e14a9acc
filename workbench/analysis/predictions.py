"""The prediction table that all of ``analysis`` reads: one row per clip and task, from a run or from elsewhere."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from typing import Protocol as Interface

import numpy as np
import pandas as pd

from workbench.data.protocol import Protocol
from workbench.data.tables import Task


class Predicted(Interface):
    """What analysis needs of a run: a :class:`~workbench.training.runs.Run`, or :class:`Predictions` from elsewhere."""

    @property
    def name(self) -> str: ...
    @property
    def tasks(self) -> Sequence[Task]: ...
    @property
    def predictions(self) -> pd.DataFrame: ...
    @property
    def protocol(self) -> Protocol: ...


@dataclass(frozen=True)
class Predictions:
    """Predictions without a run folder, e.g. from a CSV: everything in ``analysis`` works on them too.

    ``predictions`` has one row per clip and task: ``clip_id, task, target, prediction`` (class index, 0/1 or value; NaN
    for a missing target) and optionally ``probabilities`` (a list, or its JSON text: K numbers for multiclass,
    ``[1 - p, p]`` for binary), ``split``, ``group`` and ``path``. Without ``group``, clips are taken as independent. A
    multilabel task takes its K labels (1, 0, NaN or None where not known) from a column ``targets`` and one probability
    per class; ``target`` and ``prediction`` are numbers of classes.
    """

    name: str
    tasks: tuple[Task, ...]
    predictions: pd.DataFrame
    protocol: Protocol
    record: dict[str, Any] = field(default_factory=dict)
    """What ``run.json`` holds, as far as known (parameters, timings, quarantined)."""


@dataclass(frozen=True)
class TaskRows:
    """The labelled clips of one task and split, sorted by ``clip_id``; arrays are ``(n,)`` but ``probabilities``, and
    ``target`` of a multilabel task, which is ``(n, K)``."""

    clip_id: np.ndarray
    path: np.ndarray
    group_name: np.ndarray
    target: np.ndarray
    prediction: np.ndarray
    probabilities: np.ndarray | None
    """float64 ``(n, K)``, ``(n, 2)`` for binary; None where the table has none."""
    missing: int
    """Clips of this split without a label for this task: masked."""

    def __len__(self) -> int:
        return len(self.clip_id)

    @property
    def groups(self) -> np.ndarray:
        """Group codes ``0 .. G-1``, ``(n,)``."""
        return np.unique(self.group_name, return_inverse=True)[1].reshape(-1)

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.group_name))

    @property
    def rarer_class_groups(self) -> int:
        """Binary: groups that hold the class found in fewer groups; a ranking is no surer than these allow."""
        return min(len(np.unique(self.group_name[self.target == c])) for c in (0, 1))


def task_rows(run: Predicted, task: Task, split: str) -> TaskRows:
    """The rows of ``run.predictions`` for one task and split, checked and without missing targets.

    Raises ``ValueError`` on a missing column, a split or class index that is not there, or a clip given twice.
    """
    frame = _of_split(run, split)
    frame = frame[frame.task == task.name]
    frame = frame.assign(clip_id=frame.clip_id.astype(str)).sort_values("clip_id")
    twice = frame.clip_id[frame.clip_id.duplicated()].unique()
    if len(twice):
        raise ValueError(f"run {run.name!r} predicts task {task.name!r} more than once for clip(s) {list(twice[:3])}")
    labelled = frame[frame.target.notna()]
    clip_id = labelled.clip_id.to_numpy(object)
    rows = TaskRows(
        clip_id=clip_id,
        path=_optional(labelled, "path", clip_id),
        group_name=_optional(labelled, "group", np.array([f"clip {c}" for c in clip_id], dtype=object)),
        target=_sets(run, task, labelled) if task.kind == "multilabel" else labelled.target.to_numpy(float),
        prediction=labelled.prediction.to_numpy(float),
        probabilities=_probabilities(run, task, labelled),
        missing=len(frame) - len(labelled),
    )
    _check_classes(run, task, rows)
    return rows


def _of_split(run: Predicted, split: str) -> pd.DataFrame:
    frame = run.predictions
    absent = [c for c in ("clip_id", "task", "target", "prediction") if c not in frame.columns]
    if absent:
        raise ValueError(
            f"the predictions of {run.name!r} lack the column(s) {absent}; they have {list(frame.columns)}"
        )
    known = sorted(frame.split.dropna().unique()) if "split" in frame.columns else [run.protocol.split]
    if split not in known:
        raise ValueError(f"run {run.name!r} has no predictions for split={split!r}; it has {known}")
    return frame[frame.split == split] if "split" in frame.columns else frame


def _optional(frame: pd.DataFrame, column: str, fallback: np.ndarray) -> np.ndarray:
    """A text column, or ``fallback`` where the column or a value is missing."""
    if column not in frame.columns:
        return fallback
    values = frame[column]
    return np.where(values.isna(), fallback, values.astype(str).to_numpy(object)).astype(object)


def _probabilities(run: Predicted, task: Task, frame: pd.DataFrame) -> np.ndarray | None:
    if task.kind == "regression" or "probabilities" not in frame.columns or frame.empty:
        return None
    lists = [json.loads(p) if isinstance(p, str) else p for p in frame.probabilities]
    sizes = [0 if p is None or np.ndim(p) == 0 else len(p) for p in lists]
    if not any(sizes):
        return None
    width = 2 if task.kind == "binary" else len(task.classes)
    odd = sum(size != width for size in sizes)
    if odd:
        raise ValueError(
            f"run {run.name!r}, task {task.name!r}: {odd} of {len(lists)} rows do not have {width} probabilities; "
            "give them to all clips or to none"
        )
    return np.array([np.asarray(p, float) for p in lists])


def _sets(run: Predicted, task: Task, frame: pd.DataFrame) -> np.ndarray:
    """Labels of a multilabel task, ``(n, K)`` of 0, 1 and NaN."""
    given = list(frame.targets) if "targets" in frame.columns else [None] * len(frame)
    lists = [json.loads(t) if isinstance(t, str) else t for t in given]
    odd = sum(t is None or np.ndim(t) != 1 or len(t) != len(task.classes) for t in lists)
    if odd:
        raise ValueError(
            f"run {run.name!r}, task {task.name!r}: {odd} of {len(lists)} labelled rows do not have "
            f"{len(task.classes)} labels in the column 'targets', one per class"
        )
    return np.array([np.asarray(t, float) for t in lists]).reshape(len(lists), len(task.classes))


def _check_classes(run: Predicted, task: Task, rows: TaskRows) -> None:
    if task.kind in ("regression", "multilabel"):
        return
    allowed = np.arange(max(2, len(task.classes)))
    for name, values in (("target", rows.target), ("prediction", rows.prediction)):
        odd = np.setdiff1d(values[np.isfinite(values)], allowed)
        if len(odd):
            raise ValueError(
                f"run {run.name!r}, task {task.name!r}: {name} {odd[:3].tolist()} is no class index; "
                f"expected 0 to {allowed[-1]}"
            )


def tasks_of(run: Predicted, task: str | None) -> tuple[Task, ...]:
    """All tasks of a run, or the named one; ``ValueError`` with the names it has."""
    if task is None:
        return tuple(run.tasks)
    found = tuple(t for t in run.tasks if t.name == task)
    if not found:
        raise ValueError(f"run {run.name!r} has no task {task!r}; it has {[t.name for t in run.tasks]}")
    return found


def quarantined(run: Predicted) -> int:
    """How many clips of the run's data could not be decoded, as far as its record says."""
    count = dict(getattr(run, "record", None) or {}).get("data", {}).get("quarantined", 0)
    return len(count) if isinstance(count, Sequence | Mapping) else int(count or 0)
