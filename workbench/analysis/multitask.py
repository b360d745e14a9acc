"""One model for all tasks, or one per task: what sharing does to each task, in trained runs with paired intervals."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from workbench.analysis.costs import Costs, costs_of
from workbench.analysis.crossed import Drawn, Resamples, groups_of, mean_of, pair, verdict_of
from workbench.analysis.multitask_tables import Affinity, MultitaskReport
from workbench.analysis.predictions import Predicted
from workbench.data.layouts import open_clips
from workbench.data.tables import ClipTable
from workbench.training.balance_spec import BalanceSpec, parse_balance
from workbench.training.finetune import fine_tune, setup_label
from workbench.training.predict import pick_device
from workbench.training.runs import Run
from workbench.training.setup import Setup

__all__ = [
    "Affinity", "MultitaskReport", "affinity_of", "labelled_for", "multitask_report", "report_of", "setup_for",
    "task_affinity", "trained",
]  # fmt: skip

log = logging.getLogger(__name__)

BySeed = Mapping[int, Predicted]
TML_NAME = "TML"
# What must be alike, or a difference would not be one of sharing: backbone, protocol and budget per task.
_ALIKE = (
    "strategy", "backbone", "num_frames", "size_px", "epochs", "batch_size", "accumulation", "patience", "sampling",
    "sampling_rate", "fps", "short", "test_clips", "test_crops", "fit", "decoder", "precision",
)  # fmt: skip


def multitask_report(
    clips: ClipTable | str | Path,
    setups: Setup | str | Mapping[str, Setup | str],
    *,
    seeds: int | Sequence[int] = tuple(range(6)),
    singles: Setup | Mapping[str, Setup] | None = None,
    runs_dir: str | Path = "runs",
    split: str = "test",
    resamples: int = 2000,
    costs: bool = True,
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
) -> MultitaskReport:
    """Train all tasks together and each one alone, with the same seeds, and say what sharing gained, lost and cost.

    ``setups`` is one way of training together (a Setup or a strategy's name; the paper's TML is
    ``Setup(head="query")``) or several by name, for example one per balance. ``singles`` is how the tasks are trained
    alone: a Setup for all, or one per task (rates tuned on val, say); None takes the first of ``setups``. Alone a task
    is trained on the clips that have its label, so that every label is shown as often as together. Tasks are those of
    the setups, else all of the table. Runs are kept in ``runs_dir`` and found again, seed by seed; seeds come in turn,
    the joint and single trainings of one seed beside each other. ``costs`` measures inference on the first seed's runs.

    Raises ValueError with fewer than two tasks, or where joint and single setups differ in strategy, backbone, protocol
    or budget (naming the fields).
    """
    table = clips if isinstance(clips, ClipTable) else open_clips(clips)
    together = _named(setups)
    tasks = _tasks_of(table, together)
    first = next(iter(together.values()))
    alone = {task: _single(singles, first, task) for task in tasks}
    _check_alike(together, alone)
    numbers = [seeds] if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    options: dict[str, Any] = {"runs_dir": runs_dir, "device": device, "workers": workers}
    joint_runs: dict[str, dict[int, Run]] = {name: {} for name in together}
    single_runs: dict[str, dict[int, Run]] = {task: {} for task in tasks}
    bar = tqdm(total=len(numbers) * (len(together) + len(tasks)), desc="trainings", disable=not progress)
    for seed in numbers:
        for name, setup in together.items():
            joint_runs[name][seed] = trained(table, setup, tasks, seed, **options)
            bar.update()
        for task, setup in alone.items():
            single_runs[task][seed] = trained(table, setup, (task,), seed, **options)
            bar.update()
    bar.close()
    measured = {
        name: _costs({seed: joint_runs[name][seed] for seed in numbers[:1]}, single_runs, str(pick_device(device)))
        for name in (together if costs else ())
    }
    return report_of(joint_runs, single_runs, split=split, resamples=resamples, costs=measured)


def report_of(
    together: Mapping[str, BySeed],
    alone: Mapping[str, BySeed],
    *,
    split: str = "test",
    resamples: int = 2000,
    seed: int = 0,
    costs: Mapping[str, Costs] | None = None,
) -> MultitaskReport:
    """The report on runs (or predictions) that are there already: by name and seed together, by task and seed alone.

    Raises ValueError where the two sides have other seeds, clips, labels or groups.
    """
    if not together or not alone:
        raise ValueError(f"{len(together)} joint ways and {len(alone)} tasks alone: at least one of each is needed")
    tasks = list(alone)
    seeds = sorted(next(iter(together.values())))
    for name, runs in (*together.items(), *alone.items()):
        if sorted(runs) != seeds:
            raise ValueError(f"{name!r} was trained with seeds {sorted(runs)}, others with {seeds}; pair like seeds")
    first = next(iter(together.values()))
    draws = Resamples.draw(groups_of(first, tasks, split=split), seeds, resamples=resamples, seed=seed)
    base = {task: draws.score(alone[task], task, split=split) for task in tasks}
    lines, totals = [], []
    for name, runs in together.items():
        rows: list[dict[str, Any]] = []
        changes: list[Drawn] = []
        differences: list[Drawn] = []
        for task in tasks:
            mine, theirs = draws.score(runs, task, split=split), base[task]
            difference = pair(mine, theirs, task)
            differences.append(difference)
            row, relative = _task_row(name, task, mine, theirs, difference, len(seeds))
            rows.append(row)
            if not math.isnan(relative.value):
                changes.append(relative)
        lines += rows
        deciding = min(theirs.deciding for theirs in base.values())
        totals.append(_total_row(name, changes, differences, len(seeds), deciding))
        totals[-1] |= _times(runs, alone) | _cost_row((costs or {}).get(name))
    return MultitaskReport(
        pd.DataFrame(lines), pd.DataFrame(totals), tuple(seeds), first[seeds[0]].protocol, split, resamples,
        {name: dict(runs) for name, runs in together.items()}, {task: dict(runs) for task, runs in alone.items()},
    )  # fmt: skip


def task_affinity(
    clips: ClipTable | str | Path,
    setup: Setup | str,
    *,
    seeds: int | Sequence[int] = tuple(range(6)),
    runs_dir: str | Path = "runs",
    split: str = "test",
    resamples: int = 2000,
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
) -> Affinity:
    """Train each pair of tasks together and each task alone: who gains from whom.

    One training per pair, task and seed; the single ones are those of :func:`multitask_report` with the same setup and
    folder, and are not trained again. Pairs are what Standley et al. start from (https://arxiv.org/abs/1905.07553);
    what two tasks do to each other need not be what they do among others. Raises ValueError with fewer than two tasks.
    """
    table = clips if isinstance(clips, ClipTable) else open_clips(clips)
    made = Setup(strategy=setup) if isinstance(setup, str) else setup
    tasks = _tasks_of(table, {TML_NAME: made})
    pairs = [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    numbers = [seeds] if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    options: dict[str, Any] = {"runs_dir": runs_dir, "device": device, "workers": workers}
    wanted = [*((task,) for task in tasks), *pairs]
    runs: dict[tuple[str, ...], dict[int, Run]] = {names: {} for names in wanted}
    bar = tqdm(total=len(numbers) * len(wanted), desc="trainings", disable=not progress)
    for seed in numbers:
        for names in wanted:
            runs[names][seed] = trained(table, made, names, seed, **options)
            bar.update()
    bar.close()
    return affinity_of(runs, tasks, split=split, resamples=resamples)


def affinity_of(
    runs: Mapping[tuple[str, ...], BySeed], tasks: Sequence[str], *, split: str = "test", resamples: int = 2000,
    seed: int = 0,
) -> Affinity:  # fmt: skip
    """The affinity of runs that are there already, by the names of their tasks (one or two) and seed."""
    seeds = sorted(runs[(tasks[0],)])
    lines = []
    for pairing in (names for names in runs if len(names) == 2):
        for task, partner in (pairing, pairing[::-1]):
            draws = Resamples.draw(
                groups_of(runs[(task,)], [task], split=split), seeds, resamples=resamples, seed=seed
            )  # fmt: skip
            mine = draws.score(runs[pairing], task, split=split)
            theirs = draws.score(runs[(task,)], task, split=split)
            row, _ = _task_row("", task, mine, theirs, pair(mine, theirs, task), len(seeds))
            lines.append(
                {"task": task, "partner": partner} | {k: v for k, v in row.items() if k not in ("setup", "task")}
            )
    return Affinity(pd.DataFrame(lines), tuple(tasks), len(seeds), resamples)


def labelled_for(table: ClipTable, tasks: Iterable[str]) -> ClipTable:
    """The clips that have a label of at least one of ``tasks``, with these tasks only."""
    chosen = table.with_tasks(list(tasks))
    known = [~np.isnan(chosen.targets(task.name).reshape(len(chosen), -1)).all(1) for task in chosen.tasks]
    return chosen[np.any(known, axis=0)] if len(chosen) else chosen


def setup_for(setup: Setup, tasks: Sequence[str]) -> Setup:
    """``setup`` for these of its tasks: weights of others are left out, and what needs several where there is one."""
    spec = parse_balance(setup.balance, solvers=False)
    balance = setup.balance
    if spec.method == "static":
        kept = tuple((task, weight) for task, weight in spec.weights if task in tasks)
        balance = str(BalanceSpec("static", weights=kept)) if kept else "sum"
    weights: Any = setup.class_weights
    if isinstance(weights, tuple):
        weights = {task: own for task, own in setup.weights_by_task.items() if task in tasks} or None
    found = setup.replace(tasks=tuple(tasks), balance=balance, class_weights=weights)
    if len(tasks) > 1:
        return found
    return found.replace(balance="sum", task_attention=True, task_sampling="proportional", measure_conflict=0)


def _named(setups: Setup | str | Mapping[str, Setup | str]) -> dict[str, Setup]:
    pairs = setups if isinstance(setups, Mapping) else {TML_NAME: setups}
    if not pairs:
        raise ValueError("setups is empty; give a Setup, or a mapping of names to them")
    return {str(name): Setup(strategy=one) if isinstance(one, str) else one for name, one in pairs.items()}


def _tasks_of(table: ClipTable, together: Mapping[str, Setup]) -> tuple[str, ...]:
    wanted = {setup.tasks for setup in together.values()}
    if len(wanted) > 1:
        raise ValueError(f"the joint setups learn different tasks ({sorted(wanted)}); give all the same")
    tasks = wanted.pop() or tuple(task.name for task in table.tasks)
    if len(tasks) < 2:
        raise ValueError(f"tasks={list(tasks)}: there is nothing to share with fewer than two")
    for task in tasks:
        table.task(task)
    return tasks


def _single(singles: Setup | Mapping[str, Setup] | None, first: Setup, task: str) -> Setup:
    if isinstance(singles, Mapping):
        if task not in singles:
            raise ValueError(f"singles has no setup for task {task!r}; it has {list(singles)}")
        return singles[task]
    return first if singles is None else singles


def _check_alike(together: Mapping[str, Setup], alone: Mapping[str, Setup]) -> None:
    (name, mine), *_ = together.items()
    for other, setup in (*together.items(), *alone.items()):
        odd = [f"{f} {getattr(mine, f)!r} and {getattr(setup, f)!r}" for f in _ALIKE
               if getattr(mine, f) != getattr(setup, f)]  # fmt: skip
        if odd:
            raise ValueError(
                f"setups {name!r} and {other!r} differ in {'; '.join(odd)}: a difference of their scores would not be "
                "one of sharing; give both the same"
            )


def trained(table: ClipTable, setup: Setup, tasks: Sequence[str], seed: int, **options: Any) -> Run:
    """One training of these tasks on the clips that carry any of them, found again where it is there already."""
    own = setup_for(setup, tasks).replace(seed=seed)
    part = labelled_for(table, tasks)
    return fine_tune(own, part, name=f"{'+'.join(tasks)}-{setup_label(own)}", progress=False, **options)


def _task_row(
    name: str, task: str, mine: Any, theirs: Any, difference: Drawn, seeds: int
) -> tuple[dict[str, Any], Drawn]:
    """One line of the table, and the relative change (NaN where what the task reaches alone may be nothing)."""
    alone, gap = theirs.spread(seeds), difference.spread(seeds)
    relative, notes = difference.as_share_of(theirs), [theirs.note or mine.note]
    # With one seed or one group alone there is no interval to ask.
    if not alone.value > 0 or alone.low <= 0:
        relative = Drawn(math.nan, np.full(len(difference.draws), math.nan))
        notes.append(f"alone it is not clearly above zero ({alone}): no relative change")
    share, own = relative.spread(seeds), mine.spread(seeds)
    gaps = [mine.by_seed[s] - theirs.by_seed[s] for s in mine.by_seed]
    verdict = verdict_of(gap, seeds=seeds, deciding=theirs.deciding, names=("gain", "negative transfer"))
    return {
        "setup": name, "task": task, "metric": mine.metric,
        "alone": alone.value, "alone_low": alone.low, "alone_high": alone.high,
        "together": own.value, "together_low": own.low, "together_high": own.high,
        "difference": gap.value, "low": gap.low, "high": gap.high,
        "relative": share.value, "relative_low": share.low, "relative_high": share.high,
        "verdict": verdict, "seeds_better": sum(g > 0 for g in gaps), "seeds": seeds,
        "n": mine.n, "groups": mine.groups, "note": "; ".join(filter(None, notes)),
    }, relative  # fmt: skip


def _total_row(
    name: str, changes: Sequence[Drawn], differences: Sequence[Drawn], seeds: int, deciding: int
) -> dict[str, Any]:
    share, gap = mean_of(changes).spread(seeds), mean_of(differences).spread(seeds)
    return {
        "setup": name, "delta_m": share.value, "delta_m_low": share.low, "delta_m_high": share.high,
        "tasks_counted": len(changes), "tasks": len(differences),
        "verdict": verdict_of(share, seeds=seeds, deciding=deciding, names=("better", "worse")),
        "mean_difference": gap.value, "mean_difference_low": gap.low, "mean_difference_high": gap.high,
    }  # fmt: skip


def _times(together: BySeed, alone: Mapping[str, BySeed]) -> dict[str, float]:
    """Seconds of training, medians over seeds; NaN for predictions without a record."""

    def seconds(run: Predicted) -> float:
        timings = dict(getattr(run, "record", None) or {}).get("timings", {})
        return float(timings.get("train_seconds", math.nan)) + float(timings.get("encode_seconds", 0.0))

    mine = np.array([seconds(together[s]) for s in sorted(together)])
    theirs = np.array([sum(seconds(runs[s]) for runs in alone.values()) for s in sorted(together)])
    ratios = np.divide(mine, theirs, out=np.full(len(mine), np.nan), where=theirs > 0)
    return {
        "train_seconds": float(np.median(mine)), "alone_train_seconds": float(np.median(theirs)),
        "train_ratio": float(np.median(ratios)),
    }  # fmt: skip


def _costs(together: Mapping[int, Run], alone: Mapping[str, Mapping[int, Run]], device: str) -> Costs:
    ((seed, run),) = together.items()
    return costs_of(
        (run.model(device), run.setup),
        {task: (runs[seed].model(device), runs[seed].setup) for task, runs in alone.items()},
    )


def _cost_row(costs: Costs | None) -> dict[str, float]:
    unknown = dict.fromkeys(Costs.__dataclass_fields__, math.nan)
    return unknown if costs is None else costs.to_json()
