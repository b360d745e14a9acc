"""Which setup is better, and is that more than luck: runs on the same clips, with paired intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.bootstrap import holm, percentile_interval
from workbench.analysis.comparing.evidence import Evidence, gather
from workbench.analysis.comparing.paired import expanded_interval, level, paired_p_value
from workbench.analysis.comparison import Comparison
from workbench.analysis.evaluate import interval_note, why_undefined
from workbench.analysis.predictions import Predicted, TaskRows, quarantined, task_rows
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

__all__ = ["Comparison", "compare"]


def compare(
    runs: Mapping[str, Any] | Sequence[Any],
    *,
    split: str = "test",
    reference: str | None = None,
    tasks: Sequence[str] | None = None,
    metrics: Mapping[str, str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare runs on the same clips; ``runs`` are Runs or :class:`Predictions`, as a list or ``{name: run}``.

    Every run is set against ``reference`` (the first run unless named); ``.pairs()`` of the result sets all against
    all. The same groups of clips are drawn for both, so what makes a clip hard for both cancels out. ``tasks``: compare
    on these only. ``metrics``: ``{task: metric}`` where it should not be the task's main one.

    Verdicts: ``better`` or ``worse`` when the paired 95 % interval excludes zero and Holm's correction over all pairs
    in the table agrees, by a margin for the resampling; else ``no clear difference``. ``too few groups`` (under 6, for
    AUROC under 6 with the rarer class: no test could tell), ``undefined`` (a metric is NaN, or the reference lacks the
    task) and ``reference`` say that there is nothing to judge.

    Raises ``ValueError`` for a task or metric that is not there, or when two runs have the same name, were evaluated
    under different protocols (naming the fields), or do not cover the same clips with the same targets and groups
    (saying how many differ).
    """
    named = _named(runs)
    reference = next(iter(named)) if reference is None else reference
    if reference not in named:
        raise ValueError(f"reference={reference!r} is not among the runs {list(named)}")
    protocol = _same_protocol(named, reference, split)
    evidence: dict[str, Evidence] = {}
    lines: list[dict[str, Any]] = []
    for task, members in _shared_tasks(named, tasks).items():
        rows = {name: task_rows(run, members[name], split) for name, run in named.items() if name in members}
        _check_same_clips(task, split, rows)
        kept = members[next(iter(members))]
        evidence[task] = gather(kept, rows, (metrics or {}).get(task), resamples=resamples, seed=seed)
        lines += _lines(evidence[task], rows, reference)
    table = pd.DataFrame(lines)
    table["p_holm"] = holm(table.pop("p").where(~table.too_few).to_numpy(float))
    table["verdict"] = [_verdict(row, reference, level(resamples)) for row in table.itertuples()]
    table["protocol"] = protocol.describe()
    known = pd.DataFrame([_known(named[name]) for name in table.run], index=table.index)
    order = [*_COLUMNS_BEFORE, *known.columns, "protocol", "note"]
    shown = pd.concat([table, known], axis=1)[order]
    return Comparison(shown, reference, protocol, resamples, evidence=evidence, sources=named)


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


def _shared_tasks(named: Mapping[str, Predicted], wanted: Sequence[str] | None) -> dict[str, dict[str, Task]]:
    """Task name -> run name -> task, in the order met; ``ValueError`` when kinds or classes differ."""
    found: dict[str, dict[str, Task]] = {}
    for name, run in named.items():
        for task in run.tasks:
            members = found.setdefault(task.name, {})
            for other, theirs in members.items():
                if theirs != task:
                    raise ValueError(f"task {task.name!r} is {theirs} in run {other!r} but {task} in run {name!r}")
            members[name] = task
    if wanted is None:
        return found
    if missing := [task for task in wanted if task not in found]:
        raise ValueError(f"no run has the task(s) {missing}; there are {list(found)}")
    return {task: found[task] for task in wanted}


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


def _lines(one: Evidence, rows: Mapping[str, TaskRows], reference: str) -> list[dict[str, Any]]:
    """The rows of one task, with ``p`` still uncorrected."""
    lines: list[dict[str, Any]] = []
    for name, mine in rows.items():
        undefined = math.isnan(one.values[name])
        own = percentile_interval(one.draws[name])
        note = why_undefined(one.metric, mine) if undefined else interval_note(one.metric, own, mine)
        if reference not in rows:
            note = "; ".join(filter(None, [note, f"{reference!r} lacks this task"]))
        line = {
            "run": name, "task": one.task.name, "metric": one.metric, "value": one.values[name], "low": own.low,
            "high": own.high, "n": len(mine), "groups": mine.num_groups, "skipped": 0 if undefined else own.skipped,
            "note": note, "too_few": one.too_few, "higher": one.higher_is_better,
        }  # fmt: skip
        lines.append(line | _difference(name, reference, one))
    return lines


def _difference(name: str, reference: str, one: Evidence) -> dict[str, float]:
    """Difference to the reference with its paired interval and uncorrected ``p``; all NaN where there is none."""
    if name == reference or math.isnan(one.values[name] + one.values.get(reference, math.nan)):
        return dict.fromkeys(("difference", "difference_low", "difference_high", "p"), math.nan)
    differences = one.draws[name] - one.draws[reference]
    paired = expanded_interval(differences, one.deciding)
    return {
        "difference": one.values[name] - one.values[reference],
        "difference_low": paired.low,
        "difference_high": paired.high,
        "p": paired_p_value(one.values[name] - one.values[reference], differences, one.deciding),
    }


def _verdict(row: Any, reference: str, needed: float) -> str:
    if row.run == reference:
        return "reference"
    if math.isnan(row.difference) or (math.isnan(row.p_holm) and not row.too_few):
        return "undefined"
    if row.too_few:
        return "too few groups"
    if row.p_holm > needed or row.difference_low <= 0 <= row.difference_high:
        return "no clear difference"
    return "better" if (row.difference > 0) == row.higher else "worse"


def _known(run: Predicted) -> dict[str, float]:
    """What the run's record says about size and speed; NaN where it does not."""
    record = dict(getattr(run, "record", None) or {})
    timings = record.get("timings") or {}
    return {
        "quarantined": quarantined(run),
        "trainable_parameters": _number((record.get("parameters") or {}).get("trainable")),
        "train_seconds": _number(timings.get("train_seconds")),
        "clips_per_second": _number(timings.get("clips_per_second")),
        "peak_memory_mib": _number((record.get("device") or {}).get("peak_memory_bytes")) / 2**20,
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
