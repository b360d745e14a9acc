"""What damage to the clips does to a run's score: corruption by severity, with intervals paired to the clean score."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.bootstrap import percentile_interval
from workbench.analysis.comparing.evidence import Evidence
from workbench.analysis.predictions import Predictions
from workbench.analysis.shown import ShownReport, interval_text
from workbench.analysis.stress.answers import answers, chance, damaged, evidence_of
from workbench.data.corruptions import CORRUPTIONS, SEVERITIES
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task
from workbench.models.tml import TML
from workbench.training.predict import decode_for, pick_device
from workbench.training.runs import Run

CLEAN = "clean"


@dataclass(frozen=True, repr=False)
class Robustness(ShownReport):
    """Scores under damage. Made by :func:`robustness`.

    ``table``: one row per run, task, corruption and severity, and one with corruption ``clean`` and severity 0:
    ``run, task, metric, corruption, severity, value, low, high, change, change_low, change_high`` (to the clean score,
    on the same resamples of groups), ``n, groups``.

    ``summary``: one row per run and task: ``clean``, ``mean`` over corruptions and severities with ``low, high``,
    ``kept`` with ``kept_low, kept_high`` (what is left of the score's distance from chance; NaN where the clean score's
    interval reaches chance), ``worst`` (the corruption with the lowest mean) and ``mce``: for accuracy, and where
    several runs are compared, the mean over corruptions of the run's summed error by the ``reference`` run's (Hendrycks
    & Dietterich 2019, arXiv:1903.12261, section 4.3, there in percent; below 1 is better than the reference).
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    protocols: Mapping[str, Protocol]
    reference: str
    lost: Mapping[str, str]
    """Clips left out everywhere since they could not be damaged, with the reason."""
    predictions: Mapping[tuple[str, str, int], Predictions]
    """By run, corruption and severity."""

    @property
    def caption(self) -> str:
        """What was done and what the numbers mean."""
        protocol = next(iter(self.protocols.values()))
        several = f" Errors relative to {self.reference!r} (mce)." if self.summary.mce.notna().any() else ""
        lost = f" {len(self.lost)} clip(s) could not be damaged and are left out everywhere." if self.lost else ""
        return (
            "Each corruption at each severity, at the model's resolution (numbers: workbench.data.corruptions); "
            "intervals: 95 % over resamples of groups, changes paired with the clean score. 'kept' is the share of the "
            f"clean score's distance from chance that is left on average.{several}{lost}\n"
            f"Protocol: {protocol.describe()}."
        )

    def curve(self, run: str, task: str, corruption: str) -> pd.DataFrame:
        """Severity 0 (clean) and up, of one corruption. Raises ValueError for what was not measured."""
        rows = self.table[(self.table.run == run) & (self.table.task == task)]
        found = rows[rows.corruption.isin([CLEAN, corruption])]
        if not (found.corruption == corruption).any():
            known = {name: list(self.table[name].unique()) for name in ("run", "task", "corruption")}
            raise ValueError(f"no {corruption!r} of task {task!r} and run {run!r}; there are {known}")
        return found.sort_values("severity").reset_index(drop=True)

    def formatted(self) -> pd.DataFrame:
        """The summary as text, for reading."""
        rows = self.summary
        shown = {
            "run": rows.run, "task": rows.task, "metric": rows.metric, "clean": rows.clean.map("{:.3f}".format),
            "mean under damage": [interval_text(*v) for v in rows[["mean", "low", "high"]].to_numpy(float)],
            "kept": [interval_text(*v) for v in rows[["kept", "kept_low", "kept_high"]].to_numpy(float)],
            "worst": rows.worst,
        }  # fmt: skip
        if rows.mce.notna().any():
            shown["mce"] = [interval_text(v, math.nan, math.nan) for v in rows.mce]
        return pd.DataFrame(shown)


def robustness(
    runs: Run | Mapping[str, Run] | Sequence[Run],
    clips: ClipTable,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    split: str = "test",
    task: str | None = None,
    reference: str | None = None,
    seed: int = 0,
    resamples: int = 2000,
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
) -> Robustness:
    """Score ``runs`` (one, a list or ``{name: run}``) on damaged copies of the clips of ``split``.

    ``corruptions`` and ``severities`` (1 to 5): :mod:`workbench.data.corruptions`. What is done to a clip depends on
    ``seed`` and its id alone, so all runs that read clips alike see the same pictures. ``task`` None takes all tasks of
    the first run that the table has labels of. Clips are read and damaged in child processes; nothing is stored.

    Cost: a decoding of every clip per corruption, and a forward pass per clip, corruption, severity and run. Raises
    ValueError for an unknown corruption, severity, task or reference, and where a split has no clips.
    """
    named = named_runs(runs)
    _check(named, corruptions, severities, reference)
    reference = reference or next(iter(named))
    chosen = clips.split(split)
    if not len(chosen):
        raise ValueError(f"the clip table has no clips for split={split!r}; {clips!r}")
    loaded = {name: (run, run.model(str(pick_device(device)))) for name, run in named.items()}
    cells: dict[tuple[str, str, int], Predictions] = {}
    lost: dict[str, str] = {}
    for members in _alike(loaded).values():
        some = members[next(iter(members))][0]
        frames, table = decode_for(some, chosen, workers=workers, progress=progress)
        for name, (run, model) in members.items():
            cells[name, CLEAN, 0] = answers(run, model, table, frames, split)
        for kind in corruptions:
            made, bad = damaged(
                members, table, kind, severities, seed=seed, split=split, workers=workers, progress=progress
            )
            lost |= {str(table.frame.clip_id.iloc[row]): f"{kind}: {reason}" for row, reason in bad.items()}
            cells |= {(name, kind, s): p for name, of_run in made.items() for s, p in of_run.items()}
    lines, totals = [], []
    for one in tasks_in(next(iter(named.values())), clips, task):
        found = _scored(one, cells, split, resamples, seed)
        lines += [line for name in named for line in _rows(name, found[name])]
        totals += [_total(name, found, reference) for name in named]
    protocols = {name: replace(run.protocol, split=split) for name, run in named.items()}
    return Robustness(pd.DataFrame(lines), pd.DataFrame(totals), protocols, reference, lost, cells)


def named_runs(runs: Run | Mapping[str, Run] | Sequence[Run]) -> dict[str, Run]:
    """``{name: run}`` of one run, a list or a mapping; ValueError without any or with a name twice."""
    if isinstance(runs, Mapping):
        named = {str(name): run for name, run in runs.items()}
    else:
        listed = list(runs) if isinstance(runs, Sequence) else [runs]
        named = {run.name: run for run in listed}
        if len(named) < len(listed):
            raise ValueError("two runs have one name; give a mapping with a name for each: {'a': run, 'b': run}")
    if not named:
        raise ValueError("there is no run; give one, a list or {name: run}")
    return named


def tasks_in(run: Run, clips: ClipTable, task: str | None) -> tuple[Task, ...]:
    """The run's tasks that the table has labels of, or the one named; ValueError where there is none."""
    known = {t.name for t in clips.tasks}
    found = tuple(t for t in run.tasks if t.name in known and task in (None, t.name))
    if not found:
        raise ValueError(
            f"task={task!r}: run {run.name!r} has {[t.name for t in run.tasks]}, the table labels of {sorted(known)}"
        )
    return found


def _check(named: Mapping[str, Run], kinds: Sequence[str], severities: Sequence[int], reference: str | None) -> None:
    if isinstance(kinds, str) or not kinds or (odd := [k for k in kinds if k not in SEVERITIES]):
        raise ValueError(
            f"corruptions={kinds!r}: give a list of some of {', '.join(CORRUPTIONS)}"
            + (f"; {odd[0]!r} is none" if not isinstance(kinds, str) and kinds else "")
        )
    if not len(severities) or any(s not in range(1, 6) for s in severities):
        raise ValueError(f"severities={list(severities)}: give some of 1 to 5")
    if reference is not None and reference not in named:
        raise ValueError(f"reference={reference!r} is not among the runs {list(named)}")


def _alike(loaded: Mapping[str, tuple[Run, TML]]) -> dict[str, dict[str, tuple[Run, TML]]]:
    """Runs that read clips in the same way, together."""
    found: dict[str, dict[str, tuple[Run, TML]]] = {}
    for name, pair in loaded.items():
        found.setdefault(repr(sorted(pair[0].protocol.reading().items())), {})[name] = pair
    return found


Found = dict[tuple[str, int], str]


def _scored(
    task: Task, cells: Mapping[tuple[str, str, int], Predictions], split: str, resamples: int, seed: int
) -> dict[str, tuple[Evidence, Found]]:
    """By run: the shared evidence, and under which key it holds each corruption and severity."""
    keys = {f"{name} | {kind} | {severity}": (name, kind, severity) for name, kind, severity in cells}
    one = evidence_of(task, {key: cells[cell] for key, cell in keys.items()}, split, resamples=resamples, seed=seed)
    runs: dict[str, Found] = {}
    for key, (name, kind, severity) in keys.items():
        runs.setdefault(name, {})[kind, severity] = key
    return {name: (one, found) for name, found in runs.items()}


def _rows(name: str, scored: tuple[Evidence, Found]) -> list[dict[str, Any]]:
    one, found = scored
    base = found[CLEAN, 0]
    lines = []
    for (kind, severity), key in found.items():
        own, gap = percentile_interval(one.draws[key]), percentile_interval(one.draws[key] - one.draws[base])
        lines.append(
            {
                "run": name, "task": one.task.name, "metric": one.metric, "corruption": kind, "severity": severity,
                "value": one.values[key], "low": own.low, "high": own.high,
                "change": one.values[key] - one.values[base], "change_low": gap.low, "change_high": gap.high,
                "n": len(one.clip_id), "groups": one.num_groups,
            }
        )  # fmt: skip
    return lines


def _total(name: str, scored: Mapping[str, tuple[Evidence, Found]], reference: str) -> dict[str, Any]:
    """The row of ``summary`` of one run on one task."""
    one, found = scored[name]
    base, guess = found[CLEAN, 0], chance(one)
    hurt = {cell: key for cell, key in found.items() if cell[0] != CLEAN}
    values = np.array([one.values[key] for key in hurt.values()])
    draws = np.mean([one.draws[key] for key in hurt.values()], axis=0)
    mean, whole = percentile_interval(draws), percentile_interval(one.draws[base])
    kept = (math.nan,) * 3
    if whole.low > guess:
        above = one.draws[base] - guess
        share = np.divide(draws - guess, above, out=np.full_like(draws, np.nan), where=above > 0)
        spread = percentile_interval(share)
        kept = ((float(values.mean()) - guess) / (one.values[base] - guess), spread.low, spread.high)
    by_kind = pd.Series(values).groupby([kind for kind, _ in hurt]).mean()
    relative = math.nan
    if one.metric == "accuracy" and len(scored) > 1:
        relative = _relative_error(one, found, scored[reference][1])
    return {
        "run": name, "task": one.task.name, "metric": one.metric, "chance": guess, "clean": one.values[base],
        "mean": float(values.mean()), "low": mean.low, "high": mean.high, "kept": kept[0], "kept_low": kept[1],
        "kept_high": kept[2], "worst": str(by_kind.idxmin()) if by_kind.notna().any() else "", "mce": relative,
        "n": len(one.clip_id), "groups": one.num_groups,
    }  # fmt: skip


def _relative_error(one: Evidence, mine: Found, theirs: Found) -> float:
    """Mean over corruptions of summed error by summed error; NaN where the reference makes no error."""
    kinds = list(dict.fromkeys(kind for kind, _ in mine if kind != CLEAN))
    sums = [
        [sum(1 - one.values[key] for (k, _), key in found.items() if k == kind) for kind in kinds]
        for found in (mine, theirs)
    ]
    own, base = np.array(sums)
    return float(np.mean(own / base)) if (base > 0).all() else math.nan
