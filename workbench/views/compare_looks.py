"""What the comparison dashboard can show: its looks, and the figure of each for the state that it is in."""

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from workbench.analysis.comparing.front import pareto
from workbench.views.compare_plots import agreement_plot, class_plot, pareto_plot, setup_plot
from workbench.views.plots import comparison_plot, difference_plot, learning_curves

ALL_TASKS = "all tasks"
MAIN = "main metric"
SCORES = "Score on the clips held out, with 95 % interval"
DIFFERENCES = "Difference to the reference run, with paired 95 % interval"
CURVES = "Learning curves"
FRONT = "Worth and cost: runs on the dotted line are beaten by none that costs less"
SETUPS = "The setups: what differs, what it costs, what it scores"
AGREEMENT = "How alike the answers of two runs are"
CLASSES = "Class by class, run A minus run B, with paired 95 % interval"
LOOKS = {
    "scores": ("Scores", (SCORES, DIFFERENCES, CURVES)), "cost": ("Cost", (FRONT,)), "setups": ("Setups", (SETUPS,)),
    "agreement": ("Pairs", (AGREEMENT,)), "classes": ("Classes", (CLASSES,)),
}  # fmt: skip
SEEN = (
    "backbone", "num_frames", "size_px", "tasks", "sampling", "sampling_rate", "fps", "short", "test_clips",
    "test_crops", "fit", "decoder",
)  # fmt: skip
"""Fields of a setup that two runs must share to be compared."""
TITLES = tuple(title for _, shown in LOOKS.values() for title in shown)


def figures(view: Any, titles: Sequence[str]) -> dict[str, go.Figure]:
    """Of a ComparisonView: the figures by title, those left out that its runs or its task do not allow."""
    several = len(view.chosen) > 1 and bool(view.comparison.evidence)
    kind = view.kind(view.one_task) if several else ""
    makers: dict[str, Callable[[Any], go.Figure] | None] = {
        SCORES: _scores,
        DIFFERENCES: _differences if view.table()["difference"].notna().any() else None,
        CURVES: _curves if set(view.runs) & set(view.chosen) else None,
        FRONT: _front if several else None,
        SETUPS: _setups if several else None,
        AGREEMENT: _agreement if several and kind != "multilabel" else None,
        CLASSES: _classes if several and kind in ("multiclass", "binary") else None,
    }
    return {title: make(view) for title in titles if (make := makers[title]) is not None}


def _scores(view: Any) -> go.Figure:
    return comparison_plot(view.shown(), view.only_task, styles=view.styles, chance=view.chance)


def _differences(view: Any) -> go.Figure:
    return difference_plot(view.shown(), view.only_task, styles=view.styles)


def _curves(view: Any) -> go.Figure:
    mine = {name: run for name, run in view.runs.items() if name in view.chosen}
    return learning_curves(mine, task=view.only_task, styles=view.styles, setups=view.comparison.setups or None)


def _front(view: Any) -> go.Figure:
    one = view.shown(view.one_task)
    better = one.evidence[view.one_task].higher_is_better
    return pareto_plot(
        one.table, pareto(one.table, "value", view.cost, higher_is_better=better), view.cost, styles=view.styles
    )


def _setups(view: Any) -> go.Figure:
    one = view.shown(view.one_task)
    return setup_plot(one.differences(), one.table, styles=view.styles)


def _agreement(view: Any) -> go.Figure:
    task, measure = view.one_task, view.measure
    whole = view.once(("agreement", task, measure), lambda: view.comparison.agreement(task, measure))
    names = [name for name in view.chosen if name in whole.index]
    return agreement_plot(whole.loc[names, names], measure)


def _classes(view: Any) -> go.Figure:
    task, first, second = view.one_task, view.duel.first, view.duel.second
    make = view.comparison.per_class
    return class_plot(view.once(("classes", task, first, second), lambda: make(first, second, task)), first, second)
