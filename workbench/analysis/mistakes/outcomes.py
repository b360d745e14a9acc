"""How every clip of a split came out: the one table that galleries, slices and maps choose their clips from."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from workbench.analysis.predictions import Predicted, TaskRows, task_rows, tasks_of
from workbench.data.protocol import Protocol
from workbench.data.tables import Task


@dataclass(frozen=True, repr=False)
class Outcomes:
    """Every labelled clip of one task and split. Made by :func:`outcomes`.

    ``table``: ``clip_id, path, group, truth, predicted, wrong`` (bool) and ``loss`` (1 where wrong, else 0; for a
    regression the absolute residual), with ``confidence`` (probability of the predicted class, NaN without
    probabilities) or, for a regression, ``residual`` (predicted - truth); sorted by ``clip_id``.
    """

    run: str
    task: Task
    protocol: Protocol
    table: pd.DataFrame
    rows: TaskRows

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in order; empty for a regression."""
        return () if self.task.kind == "regression" else self.task.classes or ("0", "1")

    def __repr__(self) -> str:
        return f"Outcomes of run {self.run!r} on task {self.task.name!r}: {len(self.table)} clips"


def outcomes(run: Predicted, *, task: str | None = None, split: str = "test") -> Outcomes:
    """How each labelled clip of ``split`` came out on one task (the run's first unless named).

    Raises ValueError for a multilabel task, a task or split that is not there, no labelled clip, or predictions that
    are not finite.
    """
    one = tasks_of(run, task)[0]
    if one.kind == "multilabel":
        raise ValueError(
            f"task {one.name!r} is multilabel: a clip has no one true class to be mistaken for another; wb.evaluate "
            "scores it, and run.predictions holds each clip's labels and probabilities"
        )
    rows = task_rows(run, one, split)
    if not len(rows):
        raise ValueError(f"run {run.name!r}: no clip of split {split!r} carries a label for task {one.name!r}")
    bad = int((~np.isfinite(rows.prediction)).sum())
    if bad:
        raise ValueError(f"run {run.name!r}, task {one.name!r}: {bad} of {len(rows)} predictions are not finite")
    table = _regression(rows) if one.kind == "regression" else _classes(one.classes or ("0", "1"), rows)
    return Outcomes(run.name, one, replace(run.protocol, split=split), table, rows)


def _regression(rows: TaskRows) -> pd.DataFrame:
    residual = rows.prediction - rows.target
    return pd.DataFrame(
        {
            "clip_id": rows.clip_id, "path": rows.path, "group": rows.group_name, "truth": rows.target,
            "predicted": rows.prediction, "wrong": np.zeros(len(rows), bool), "loss": np.abs(residual),
            "residual": residual,
        }
    )  # fmt: skip


def _classes(names: tuple[str, ...], rows: TaskRows) -> pd.DataFrame:
    truth, said = rows.target.astype(int), rows.prediction.astype(int)
    sure = np.full(len(rows), np.nan)
    if rows.probabilities is not None:
        sure = rows.probabilities[np.arange(len(rows)), said]
    labels = np.array(names, dtype=object)
    return pd.DataFrame(
        {
            "clip_id": rows.clip_id, "path": rows.path, "group": rows.group_name, "truth": labels[truth],
            "predicted": labels[said], "wrong": truth != said, "loss": (truth != said).astype(float),
            "confidence": sure,
        }
    )  # fmt: skip
