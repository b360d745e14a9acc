"""How good is a run, and how sure is that: one row per task and metric, each with its interval and its protocol."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.bootstrap import MIN_GROUPS, Interval, bootstrap, percentile_interval
from workbench.analysis.predictions import Predicted, Predictions, TaskRows, quarantined, task_rows, tasks_of
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task
from workbench.training.metrics import METRICS, RANKED_BY_PROBABILITY, weighted_metrics

__all__ = ["Predictions", "deciding_groups", "evaluate", "interval_note", "metrics_for", "why_undefined"]

logger = logging.getLogger(__name__)


def metrics_for(
    task: Task, target: np.ndarray, prediction: np.ndarray, probabilities: np.ndarray | None = None
) -> dict[str, float]:
    """The metrics of one task; the first key is the main one, by which setups are compared (higher is better).

    multiclass: ``accuracy``, ``macro_f1``; binary: ``auroc``, ``average_precision``, ``accuracy``; regression:
    ``srcc``, ``plcc`` (Spearman, Pearson), ``rmse`` in the label's unit. ``target`` and ``prediction`` are ``(n,)``,
    class indices or values; ``probabilities`` ``(n, K)`` or None. Missing targets (NaN) are left
    out; an undefined metric is NaN.

    >>> import numpy as np
    >>> metrics_for(Task("wave", "binary"), np.array([0, 1, 1]), np.array([0, 0, 1]))["accuracy"].__round__(2)
    0.67
    """
    target, prediction = np.asarray(target, float), np.asarray(prediction, float)
    several = task.kind == "multilabel"
    if len(target) != len(prediction) or prediction.ndim != 1 or target.ndim != 1 + several:
        wanted = "(n, K) and (n,)" if several else "both (n,)"
        raise ValueError(f"target {target.shape} and prediction {prediction.shape} must be {wanted}")
    keep = ~np.isnan(target).all(1) if several else ~np.isnan(target)
    names = list(METRICS[task.kind])
    values = weighted_metrics(
        task.kind,
        names,
        target=target[keep],
        prediction=prediction[keep],
        probabilities=None if probabilities is None else np.asarray(probabilities, float)[keep],
        weights=np.ones((1, int(keep.sum()))),
    )
    return dict(zip(names, values[:, 0].tolist(), strict=True))


def why_undefined(metric: str, rows: TaskRows) -> str:
    """Why a metric of these rows is NaN, in words for a table."""
    if not len(rows):
        return "no clip carries this label"
    ranked = metric in RANKED_BY_PROBABILITY
    if ranked and rows.probabilities is None:
        return "needs probabilities"
    used = rows.probabilities if ranked and rows.probabilities is not None else rows.prediction
    if not np.isfinite(used).all():
        return f"{int((~np.isfinite(used.reshape(len(rows), -1)).all(axis=1)).sum())} prediction(s) are not finite"
    if rows.target.ndim == 2:
        return "needs probabilities" if rows.probabilities is None else "no class has clips both with and without it"
    if ranked:
        return f"only one class among the targets ({int(rows.target[0])})"
    flat = [n for n, v in (("targets", rows.target), ("predictions", rows.prediction)) if len(np.unique(v)) == 1]
    return f"all {' and '.join(flat)} are equal" if flat else "no spread"


def deciding_groups(metric: str, rows: TaskRows) -> int:
    """Groups that the metric rests on: for a ranking those of the rarer class, else all."""
    return rows.rarer_class_groups if metric in RANKED_BY_PROBABILITY else rows.num_groups


def interval_note(metric: str, interval: Interval, rows: TaskRows) -> str:
    """What a reader of this interval must know; empty when nothing."""
    if rows.num_groups < 2:
        return "one group: no interval"
    notes, deciding = [], deciding_groups(metric, rows)
    if deciding < MIN_GROUPS:
        which = "group(s)" if deciding == rows.num_groups else "group(s) hold the rarer class"
        notes.append(f"only {deciding} {which}: the interval is rough")
    if interval.skipped:
        notes.append(f"undefined in {interval.skipped} of {interval.skipped + interval.used} resamples, skipped")
    if interval.used and interval.low == interval.high:
        notes.append("all resamples agree: the true interval is wider")
    return "; ".join(notes)


def leak_note(run: Predicted) -> str:
    """What a reader must know where the splits that a run was trained on cut groups in two."""
    leaks = dict(getattr(run, "record", None) or {}).get("data", {}).get("leaking_groups", 0)
    return f"{leaks} group(s) lie in more than one split: too good" if leaks else ""


def evaluate(
    run: Predicted,
    clips: ClipTable | None = None,
    *,
    protocol: Protocol | None = None,
    split: str = "test",
    task: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every metric of a run with a 95 % interval from resampling groups of clips.

    With ``clips`` the run first predicts on their ``split``, under its own protocol or the one given (for instance
    ``replace(run.protocol, level="video", num_clips=5, num_crops=3)``); without, its stored predictions are used.

    Returns one row per task and metric: ``run, task, metric, value, low, high, n`` (labelled clips), ``groups``,
    ``quarantined`` (undecodable clips, left out), ``protocol``, ``missing`` (clips without this label, left out),
    ``seeds`` (trainings behind the number: the interval covers the choice of clips, not the seed), ``skipped``
    (resamples where the metric was undefined) and ``note`` (why a value is NaN or an interval doubtful). Raises
    ``ValueError`` for a split or task that is not there.
    """
    if protocol is not None and clips is None:
        raise ValueError("another protocol needs clips to predict on; the stored predictions were made under their own")
    source: Predicted = run if clips is None else _predict(run, clips, split, protocol)
    described = replace(source.protocol, split=split).describe()
    lines = []
    for one in tasks_of(source, task):
        rows = task_rows(source, one, split)
        for metric, value, interval in _measure(one, rows, resamples=resamples, seed=seed):
            reason = why_undefined(metric, rows) if np.isnan(value) else interval_note(metric, interval, rows)
            reason = "; ".join(filter(None, (reason, leak_note(run))))
            if np.isnan(value):
                logger.warning("%s, task %s: %s is undefined: %s", run.name, one.name, metric, reason)
            lines.append(
                {
                    "run": run.name, "task": one.name, "metric": metric, "value": value,
                    "low": interval.low, "high": interval.high, "n": len(rows), "groups": rows.num_groups,
                    "quarantined": quarantined(source), "protocol": described, "missing": rows.missing,
                    "seeds": 1, "skipped": interval.skipped, "note": reason,
                }
            )  # fmt: skip
    return pd.DataFrame(lines)


def _measure(task: Task, rows: TaskRows, *, resamples: int, seed: int) -> list[tuple[str, float, Interval]]:
    """Each metric of the task with its interval; both NaN where it is undefined."""
    values = metrics_for(task, rows.target, rows.prediction, rows.probabilities)
    nothing = Interval(np.nan, np.nan, 0, 0)
    defined = [name for name, value in values.items() if not np.isnan(value)]
    if not defined or rows.num_groups < 2:
        return [(name, value, nothing) for name, value in values.items()]

    def statistics(weights: np.ndarray) -> np.ndarray:
        return weighted_metrics(
            task.kind, defined, target=rows.target, prediction=rows.prediction,
            probabilities=rows.probabilities, weights=weights,
        )  # fmt: skip

    resampled = bootstrap(statistics, rows.groups, resamples=resamples, seed=seed)
    intervals = dict(zip(defined, map(percentile_interval, resampled), strict=True))
    return [(name, value, intervals.get(name, nothing)) for name, value in values.items()]


def _predict(run: Any, clips: ClipTable, split: str, protocol: Protocol | None) -> Predictions:
    """Predictions of a run on one split of another table; what does not come back was undecodable."""
    from workbench.training.predict import predict_table

    chosen = clips.split(split)
    if not len(chosen):
        raise ValueError(f"the clip table has no clips for split={split!r}; {clips!r}")
    frame = predict_table(run, chosen, split=split, protocol=protocol)
    asked = set(chosen.frame.clip_id.astype(str))
    lost = asked - set(frame.clip_id.astype(str)) | set(clips.quarantine.clip_id.astype(str))
    made = replace(protocol or run.protocol, split=split)
    return Predictions(run.name, tuple(run.tasks), frame, made, {"data": {"quarantined": len(lost)}})
