"""Which setup is better, and is that more than luck: runs on the same clips, with paired intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.bootstrap import (
    MIN_GROUPS,
    bootstrap,
    holm,
    percentile_interval,
    sign_p_value,
)
from workbench.analysis.comparison import ALPHA, Comparison
from workbench.analysis.evaluate import deciding_groups, interval_note, why_undefined
from workbench.analysis.predictions import Predicted, TaskRows, quarantined, task_rows
from workbench.data.protocol import Protocol
from workbench.data.tables import Task
from workbench.training.metrics import main_metric, weighted_metrics

__all__ = ["Comparison", "compare"]


def compare(
    runs: Mapping[str, Any] | Sequence[Any],
    *,
    split: str = "test",
    reference: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare runs on the same clips; ``runs`` are Runs or :class:`Predictions`, as a list or ``{name: run}``.

    Every run is set against ``reference`` (the first run unless named). The same groups of clips are drawn for both, so
    what makes a clip hard for both cancels out. Verdicts: ``better`` or ``worse`` when the paired 95 % interval
    excludes zero and Holm's correction over all pairs in the table agrees; else ``no clear difference``. ``too few
    groups`` (under 6, for AUROC under 6 with the rarer class: no test could tell), ``undefined`` (a metric is NaN, or
    the reference lacks the task) and ``reference`` say that there is nothing to judge.

    Raises ``ValueError`` when two runs have the same name, were evaluated under different protocols (naming the
    fields), or do not cover the same clips with the same targets and groups (saying how many differ).
    """
    named = _named(runs)
    reference = next(iter(named)) if reference is None else reference
    if reference not in named:
        raise ValueError(f"reference={reference!r} is not among the runs {list(named)}")
    protocol = _same_protocol(named, reference, split)
    lines: list[dict[str, Any]] = []
    for task, members in _shared_tasks(named).items():
        rows = {name: task_rows(run, members[name], split) for name, run in named.items() if name in members}
        _check_same_clips(task, split, rows)
        lines += _compare_task(members[next(iter(members))], rows, reference, resamples=resamples, seed=seed)
    table = pd.DataFrame(lines)
    table["p_holm"] = holm(table.pop("p").where(~table.too_few).to_numpy(float))
    table["verdict"] = [_verdict(row, reference) for row in table.itertuples()]
    table["protocol"] = protocol.describe()
    known = pd.DataFrame([_known(named[name]) for name in table.run], index=table.index)
    order = [*_COLUMNS_BEFORE, *known.columns, "protocol", "note"]
    return Comparison(pd.concat([table, known], axis=1)[order], reference, protocol, resamples)


_COLUMNS_BEFORE = (
    "run", "task", "metric", "value", "low", "high", "difference", "difference_low", "difference_high", "p_holm",
    "verdict", "n", "groups", "skipped",
)  # fmt: skip


def _named(runs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Predicted]:
    if isinstance(runs, Mapping):
        named = {str(name): run for name, run in runs.items()}
    elif isinstance(runs, Sequence) and not isinstance(runs, str):
        names = [str(run.name) for run in runs]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(
                f"two runs are called {twice}; pass a mapping with a name for each: {{'a': run, 'b': run}}"
            )
        named = dict(zip(names, runs, strict=True))
    else:
        raise ValueError(
            f"compare takes a list of runs or a mapping of them, not {type(runs).__name__}; try [run, ...]"
        )
    if not named:
        raise ValueError("there is no run to compare; pass at least one")
    return named


def _same_protocol(named: Mapping[str, Predicted], reference: str, split: str) -> Protocol:
    mine = replace(named[reference].protocol, split=split)
    for name, run in named.items():
        odd = mine.differences(replace(run.protocol, split=split))
        if odd:
            raise ValueError(
                f"runs {reference!r} and {name!r} were evaluated under different protocols ({'; '.join(odd)}); "
                "evaluate both under one before comparing"
            )
    return mine


def _shared_tasks(named: Mapping[str, Predicted]) -> dict[str, dict[str, Task]]:
    """Task name -> run name -> task, in the order met; ``ValueError`` when kinds or classes differ."""
    found: dict[str, dict[str, Task]] = {}
    for name, run in named.items():
        for task in run.tasks:
            members = found.setdefault(task.name, {})
            for other, theirs in members.items():
                if theirs != task:
                    raise ValueError(f"task {task.name!r} is {theirs} in run {other!r} but {task} in run {name!r}")
            members[name] = task
    return found


def _check_same_clips(task: str, split: str, rows: Mapping[str, TaskRows]) -> None:
    (first, mine), *others = rows.items()
    for name, theirs in others:
        only_mine, only_theirs = set(mine.clip_id) - set(theirs.clip_id), set(theirs.clip_id) - set(mine.clip_id)
        parts = [
            f"{len(ids)} labelled clip(s) only in {run!r}"
            for ids, run in ((only_mine, first), (only_theirs, name))
            if ids
        ]
        if not parts:
            for what, differs in (
                ("target", ~_alike(mine.target, theirs.target)),
                ("group", mine.group_name != theirs.group_name),
            ):
                if differs.any():
                    parts.append(f"{int(differs.sum())} clip(s) have another {what}")
        if parts:
            raise ValueError(
                f"runs {first!r} and {name!r} cannot be paired on task {task!r}, split {split!r}: {'; '.join(parts)}; "
                "evaluate both on the same clip table"
            )


def _alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``(n,)``: whether two clips have the same target; of a multilabel task, in every class."""
    same = np.isclose(first, second, rtol=1e-5, atol=1e-8, equal_nan=first.ndim == 2)
    return np.asarray(same.all(axis=tuple(range(1, same.ndim))))


def _compare_task(
    task: Task, rows: Mapping[str, TaskRows], reference: str, *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """The rows of one task, with ``p`` still uncorrected."""
    metric, some = main_metric(task.kind), next(iter(rows.values()))

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

    values = dict(zip(rows, statistics(np.ones((1, len(some))))[:, 0].tolist(), strict=True))
    drawn = np.full((len(rows), 1), np.nan)
    if len(some):
        drawn = bootstrap(statistics, some.groups, resamples=resamples, seed=seed)
    resampled = dict(zip(rows, drawn, strict=True))
    lines: list[dict[str, Any]] = []
    for name, mine in rows.items():
        undefined = math.isnan(values[name])
        own = percentile_interval(resampled[name])
        note = why_undefined(metric, mine) if undefined else interval_note(metric, own, mine)
        if reference not in rows:
            note = "; ".join(filter(None, [note, f"{reference!r} lacks this task"]))
        line = {
            "run": name, "task": task.name, "metric": metric, "value": values[name], "low": own.low, "high": own.high,
            "n": len(mine), "groups": mine.num_groups, "skipped": 0 if undefined else own.skipped, "note": note,
            "too_few": deciding_groups(metric, mine) < MIN_GROUPS,
        }  # fmt: skip
        lines.append(line | _difference(name, reference, values, resampled))
    return lines


def _difference(
    name: str, reference: str, values: Mapping[str, float], resampled: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Difference to the reference with its paired interval and uncorrected ``p``; all NaN where there is none."""
    if name == reference or math.isnan(values[name] + values.get(reference, math.nan)):
        return dict.fromkeys(("difference", "difference_low", "difference_high", "p"), math.nan)
    differences = resampled[name] - resampled[reference]
    paired = percentile_interval(differences)
    return {
        "difference": values[name] - values[reference],
        "difference_low": paired.low,
        "difference_high": paired.high,
        "p": sign_p_value(differences),
    }


def _verdict(row: Any, reference: str) -> str:
    if row.run == reference:
        return "reference"
    if math.isnan(row.difference) or (math.isnan(row.p_holm) and not row.too_few):
        return "undefined"
    if row.too_few:
        return "too few groups"
    if row.p_holm > ALPHA or row.difference_low <= 0 <= row.difference_high:
        return "no clear difference"
    return "better" if row.difference_low > 0 else "worse"


def _known(run: Predicted) -> dict[str, float]:
    """What the run's record says about size and speed; NaN where it does not."""
    record = dict(getattr(run, "record", None) or {})
    timings = record.get("timings") or {}
    return {
        "quarantined": quarantined(run),
        "trainable_parameters": _number((record.get("parameters") or {}).get("trainable")),
        "train_seconds": _number(timings.get("train_seconds")),
        "clips_per_second": _number(timings.get("clips_per_second")),
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
