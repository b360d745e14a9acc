"""Is a way of balancing losses worth it? Trained against a grid of fixed weights, which is the baseline to beat.

Fixed weights, tuned or all alike, did as well as methods made for the purpose in two large studies (Kurin et al.,
https://arxiv.org/abs/2201.04122; Xin et al., https://openreview.net/forum?id=A2Ya5aLtyuG). So a method is called better
here only if no fixed weights are at least as good in every task, and its mean score exceeds that of the weights chosen
on val.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from workbench.analysis.bootstrap import holm
from workbench.analysis.comparison import ALPHA
from workbench.analysis.crossed import Resamples, Scored, groups_of, mean_of, verdict_of
from workbench.analysis.multitask import trained
from workbench.analysis.predictions import Predicted
from workbench.analysis.shown import ShownReport
from workbench.data.layouts import open_clips
from workbench.data.tables import ClipTable
from workbench.training.balance_spec import parse_balance
from workbench.training.runs import Run
from workbench.training.setup import Setup

METHODS = ("uncertainty", "dwa", "gradnorm", "pcgrad@tokens", "aligned@tokens")
"""Tried where nothing else is asked for: none needs a solver that is licensed under the GPL."""


def static_grid(tasks: Sequence[str], ratios: Sequence[float] = (0.25, 4.0)) -> list[str]:
    """Fixed weights to try, as a setup spells them: the plain sum, then each task in turn at each of ``ratios`` of it.

    >>> static_grid(["a", "b"], [4])
    ['sum', 'static:a=4', 'static:b=4']
    """
    if odd := [r for r in ratios if not 0 < r < math.inf or r == 1]:
        raise ValueError(f"ratios={list(ratios)}: {odd[0]} must be above 0 and not 1, which is the plain sum")
    return ["sum", *(f"static:{task}={ratio:g}" for task in tasks for ratio in ratios)]


@dataclass(frozen=True, repr=False)
class Front(ShownReport):
    """Trained balances as points; shows itself as a table.

    ``points``: one row per balance: ``name, kind`` (``static`` or ``method``), ``weight_<task>`` (NaN of a method),
    ``score`` (mean over tasks of their main metrics) with ``low, high``, ``val`` (the same on val), ``on_front`` (no
    other point is at least as good in all tasks and better in one), ``dominated_by`` (such a point, or empty), and
    ``difference`` to the static point chosen on val with its interval; of a method also ``p_holm`` and ``verdict``.
    ``scores``: one row per balance and task: ``name, task, metric, value, low, high``.
    """

    points: pd.DataFrame
    scores: pd.DataFrame
    tasks: tuple[str, ...]
    chosen: str
    """The static point with the best mean score on val."""
    seeds: tuple[int, ...]
    resamples: int
    runs: dict[str, dict[int, Any]]

    def nearest(self, weights: Mapping[str, float]) -> str:
        """The trained static point whose weights are nearest, as ratios: an optimiser such as Adam hardly sees a factor
        that all losses share. Distances are between logarithms; a weight of zero counts as 0.001."""
        if set(weights) != set(self.tasks):
            raise ValueError(f"weights are of {sorted(weights)}, but the tasks are {list(self.tasks)}")
        static = self.points[self.points.kind == "static"]
        trained = _logs(static[[f"weight_{task}" for task in self.tasks]].to_numpy(float))
        wanted = _logs(np.array([[weights[task] for task in self.tasks]], float))
        return str(static.name.iloc[int(np.argmin(((trained - wanted) ** 2).sum(1)))])

    def at(self, name: str) -> pd.DataFrame:
        """Scores of one point: ``task, metric, value, low, high``. Raises ValueError on an unknown name."""
        rows = self.scores[self.scores.name == name]
        if rows.empty:
            raise ValueError(f"no balance {name!r} in this sweep; it has {self.points.name.tolist()}")
        return rows.drop(columns="name").reset_index(drop=True)

    def edge(self, x: str, y: str) -> list[str]:
        """Static points that no other one dominates in the tasks ``x`` and ``y`` alone, by rising score in ``x``."""
        static = self.points.name[self.points.kind == "static"]
        values = {name: tuple(self.at(name).set_index("task").value[[x, y]]) for name in static}
        kept = [
            name for name, (a, b) in values.items()
            if not any(c >= a and d >= b and (c > a or d > b) for c, d in values.values())
        ]  # fmt: skip
        return sorted(kept, key=lambda name: values[name])

    @property
    def caption(self) -> str:
        """What the numbers mean and what they leave out."""
        return (
            f"Main metrics on test, mean over {len(self.seeds)} seed(s); 95 % intervals from {self.resamples} "
            "resamples of groups and seeds. Mean: over tasks, whose metrics are not of one scale. Of the static points "
            f"{self.chosen!r} is best on val; differences are to it. A method is better only if no static point is at "
            "least as good in every task, and its difference is above zero after Holm's correction."
        )

    def formatted(self) -> pd.DataFrame:
        """The points as text, a column per task."""
        rows = self.points
        text = {"balance": rows.name}
        for task in self.tasks:
            own = self.scores[self.scores.task == task].set_index("name").loc[rows.name]
            text[f"{task}: {own.metric.iloc[0]}"] = [_spread(*v) for v in own[["value", "low", "high"]].to_numpy()]
        text["mean"] = [_spread(*v) for v in rows[["score", "low", "high"]].to_numpy(float)]
        columns = ["difference", "difference_low", "difference_high"]
        text["difference"] = [_spread(*v, signed=True) for v in rows[columns].to_numpy(float)]
        text["on the front"] = ["yes" if on else f"no: {by}" if by else "no" for on, by in
                                zip(rows.on_front, rows.dominated_by, strict=True)]  # fmt: skip
        return pd.DataFrame(text | {"verdict": rows.verdict})


def balance_front(
    clips: ClipTable | str | Path,
    setup: Setup | str,
    *,
    grid: Sequence[str] | None = None,
    methods: Sequence[str] = METHODS,
    seeds: int | Sequence[int] = tuple(range(6)),
    runs_dir: str | Path = "runs",
    resamples: int = 2000,
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
) -> Front:
    """Train ``setup`` with every balance of ``grid`` (:func:`static_grid` of its tasks) and of ``methods``, per seed.

    Runs are kept in ``runs_dir`` and found again. Raises ValueError with fewer than two tasks, without static points,
    or on a balance that is given twice, ImportError where a method's solver is not installed.
    """
    table = clips if isinstance(clips, ClipTable) else open_clips(clips)
    made = Setup(strategy=setup) if isinstance(setup, str) else setup
    tasks = made.tasks or tuple(task.name for task in table.tasks)
    if len(tasks) < 2:
        raise ValueError(f"tasks={list(tasks)}: there is nothing to balance with fewer than two")
    names = [str(parse_balance(b, tasks)) for b in (*(static_grid(tasks) if grid is None else grid), *methods)]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"{twice} is given twice")
    numbers = [seeds] if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    options: dict[str, Any] = {"runs_dir": runs_dir, "device": device, "workers": workers}
    runs: dict[str, dict[int, Run]] = {name: {} for name in names}
    bar = tqdm(total=len(numbers) * len(names), desc="trainings", disable=not progress)
    for seed in numbers:
        for name in names:
            runs[name][seed] = trained(table, made.replace(balance=name), tasks, seed, **options)
            bar.update()
    bar.close()
    return front_of(runs, tasks, resamples=resamples)


def front_of(
    runs: Mapping[str, Mapping[int, Predicted]], tasks: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Front:
    """The front of runs that are there already, by balance and seed."""
    specs = {name: parse_balance(name, tasks, solvers=False) for name in runs}
    static = [name for name, spec in specs.items() if spec.method in ("sum", "static")]
    if not static:
        raise ValueError(f"{list(runs)} holds no fixed weights to compare with; add 'sum' at least")
    first = runs[static[0]]
    draws = Resamples.draw(groups_of(first, tasks), sorted(first), resamples=resamples, seed=seed)
    scores = {name: {task: draws.score(own, task) for task in tasks} for name, own in runs.items()}
    # Resamples that are drawn for test mean nothing on val: only its values are looked at.
    once = Resamples.draw(groups_of(first, tasks, split="val"), sorted(first), resamples=1, seed=seed)
    val = {
        name: float(np.nanmean([once.score(own, task, split="val").value for task in tasks]))
        for name, own in runs.items()
    }
    chosen = max(static, key=lambda name: val[name])
    lines = []
    for name, spec in specs.items():
        fixed = dict(spec.weights)
        weights = {f"weight_{t}": fixed.get(t, 1.0) if name in static else math.nan for t in tasks}
        mean = mean_of(list(scores[name].values()))
        spread = mean.spread(len(first))
        over = [other for other in runs if _dominates(scores[other], scores[name])]
        line = {"name": name, "kind": "static" if name in static else "method"} | weights
        line |= {"score": spread.value, "low": spread.low, "high": spread.high, "val": val[name]}
        line |= {"on_front": not over, "dominated_by": next((o for o in (*static, *runs) if o in over), "")}
        lines.append(line | _against(scores[name], scores[chosen], name in static, len(first)))
    points = pd.DataFrame(lines)
    points["p_holm"] = holm(points.pop("p").to_numpy(float))
    points["verdict"] = [_settled(row, chosen, static) for row in points.itertuples()]
    return Front(
        points, _long(scores, len(first)), tuple(tasks), chosen, tuple(sorted(first)), resamples,
        {name: dict(own) for name, own in runs.items()},
    )  # fmt: skip


def _against(mine: Mapping[str, Scored], base: Mapping[str, Scored], static: bool, seeds: int) -> dict[str, Any]:
    """A point's mean score less that of the chosen static point; tested for methods only."""
    gap = mean_of([mine[task] - base[task] for task in base])
    spread = gap.spread(seeds)
    deciding = min(score.deciding for score in base.values())
    said = verdict_of(spread, seeds=seeds, deciding=deciding, names=("better", "worse"))
    tested = not static and not said.startswith("too few")
    return {
        "difference": spread.value, "difference_low": spread.low, "difference_high": spread.high,
        "p": gap.p_value() if tested else math.nan, "verdict": said,
    }  # fmt: skip


def _settled(row: Any, chosen: str, static: Sequence[str]) -> str:
    if row.kind == "static":
        return "chosen on val" if row.name == chosen else ""
    if row.verdict in ("better", "worse") and not row.p_holm <= ALPHA:
        return "no clear difference"
    if row.verdict == "better" and row.dominated_by in static:
        return "no clear difference"
    return str(row.verdict)


def _dominates(other: Mapping[str, Scored], mine: Mapping[str, Scored]) -> bool:
    """Whether ``other`` is at least as good in every task and better in one."""
    gaps = [other[task].value - mine[task].value for task in mine]
    return all(gap >= 0 for gap in gaps) and any(gap > 0 for gap in gaps)


def _long(scores: Mapping[str, Mapping[str, Scored]], seeds: int) -> pd.DataFrame:
    rows = []
    for name, by_task in scores.items():
        for task, score in by_task.items():
            spread = score.spread(seeds)
            rows.append((name, task, score.metric, spread.value, spread.low, spread.high))
    return pd.DataFrame(rows, columns=["name", "task", "metric", "value", "low", "high"])


def _logs(weights: np.ndarray) -> np.ndarray:
    """Logarithms of weights (n, tasks), each row about its mean."""
    logs = np.log(np.maximum(weights, 1e-3))
    return np.asarray(logs - logs.mean(axis=1, keepdims=True))


def _spread(value: float, low: float, high: float, *, signed: bool = False) -> str:
    show = f"{{:{'+' if signed else ''}.3f}}".format
    if math.isnan(value):
        return ""
    return show(value) if math.isnan(low) else f"{show(value)} [{show(low)}, {show(high)}]"
