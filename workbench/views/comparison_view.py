"""Which setup is better, by how much, at what cost, and on which clips: runs side by side in a notebook."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.data.tables import ClipTable
from workbench.training.metrics import METRICS
from workbench.views import compare_looks as looks
from workbench.views.clip_duel import ClipDuel
from workbench.views.compare_looks import (
    AGREEMENT,
    ALL_TASKS,
    CLASSES,
    CURVES,
    DIFFERENCES,
    FRONT,
    LOOKS,
    MAIN,
    SCORES,
    SEEN,
    SETUPS,
)
from workbench.views.compare_plots import COSTS
from workbench.views.compare_tables import comparison_table, differences_table, pairs_table
from workbench.views.mailing import MailableBox
from workbench.views.parts import FigureBox, dropdown, frozen, heading, note, row
from workbench.views.plots import named_runs
from workbench.views.still import still
from workbench.views.style import VIEW_CSS, Html, line_styles, shorten

__all__ = [
    "AGREEMENT", "ALL_TASKS", "CLASSES", "CURVES", "DIFFERENCES", "FRONT", "LOOKS", "SCORES", "SETUPS",
    "ComparisonView", "comparison_table",
]  # fmt: skip


class ComparisonView(MailableBox):
    """Compare runs in a notebook. A click on a point of any plot shows the clips which that run got right and another
    wrong; a click on a cell of the agreement matrix takes its two runs, one on a class that class.

    Args:
        runs: runs by name or as a list (compared here by :func:`workbench.analysis.compare.compare`), or a finished
            ``Comparison``.
        clips: the table the runs were trained on: finds the files, and allows attention maps.
        runs_dir: with ``clips``, a panel that trains another setup into this folder; a finished run joins the view.
        histories: the runs to draw learning curves of, when ``runs`` is a ``Comparison``.
        chance: score of guessing by task name, drawn as a dashed line. page_size: clips per page.
    """

    task = traitlets.Unicode(ALL_TASKS, help="the task shown, or 'all tasks'")
    metric = traitlets.Unicode(MAIN, help="metric of the task shown, or 'main metric'")
    look = traitlets.Enum([*LOOKS, "launch"], "scores", help="what is looked at")
    cost = traitlets.Enum(list(COSTS), "trainable_parameters", help="cost that is drawn against the metric")
    measure = traitlets.Unicode("share", help="how agreement is measured: share, kappa, or srcc for regression")
    chosen = traitlets.List(traitlets.Unicode(), help="names of the runs shown")

    def __init__(
        self,
        runs: Any,
        *,
        clips: ClipTable | None = None,
        runs_dir: str | Path | None = None,
        histories: Mapping[str, Any] | Sequence[Any] | None = None,
        split: str = "test",
        chance: Mapping[str, float] | None = None,
        page_size: int = 4,
    ) -> None:
        if hasattr(runs, "table"):
            self.comparison, source = runs, histories if histories is not None else {}
        else:
            from workbench.analysis.compare import compare

            self.comparison, source = compare(runs, split=split), runs
        self.chance, self.duel = dict(chance or {}), ClipDuel(clips=clips, page_size=page_size)
        self.runs = {k: v for k, v in named_runs(source).items() if hasattr(v, "history")}
        self._made: dict[Any, Any] = {}
        self._in_duel: Any = None
        self._drawn: dict[str, Any] = {}
        self._empty: dict[str, bool] = {}
        self._ready = False
        self._build(clips, runs_dir)
        self._adopt(self.comparison)
        for trait, widget in self._menus.items():
            traitlets.link((self, trait), (widget, "value"))
        self.observe(lambda _: self._refresh(), ["task", "metric", "look", "cost", "measure", "chosen"])
        self.duel.observe(lambda _: self._on_duel(), ["first", "second"])
        self._ready = True
        self._refresh()

    def _build(self, clips: ClipTable | None, runs_dir: str | Path | None) -> None:
        offered = [(title, key) for key, (title, _) in LOOKS.items()]
        self._launch: Any = None
        if clips is not None and runs_dir is not None:
            from workbench.views.launch_panel import LaunchPanel

            self._launch = LaunchPanel(clips, runs_dir=runs_dir, base=self._like_reference(), on_finished=self.add)
            offered.append(("Train another", "launch"))
        self._menus: dict[str, Any] = {
            "look": ipywidgets.ToggleButtons(options=offered, description="Look at", style={"button_width": "auto"}),
            "task": dropdown("Task", [ALL_TASKS]), "metric": dropdown("Metric", [MAIN]),
            "cost": dropdown("Cost", [(title, key) for key, title in COSTS.items()]),
            "measure": dropdown("Measure", ["share"]),
        }  # fmt: skip
        self._pick = ipywidgets.SelectMultiple(description="Runs", style={"description_width": "initial"})
        self._pick.layout = ipywidgets.Layout(width="auto", max_width="100%", min_width="240px")
        self._pick.observe(self._on_pick, "value")
        self._boxes = {title: FigureBox() for title in looks.TITLES}
        panels = {t: ipywidgets.VBox([ipywidgets.HTML(heading(t)), box.box]) for t, box in self._boxes.items()}
        self._sections = [panels[title] for title in LOOKS["scores"][1]]
        self._panels, self._table, self._status = panels, ipywidgets.HTML(), ipywidgets.HTML()
        extra = [] if self._launch is None else [self._launch]
        super().__init__(
            [
                ipywidgets.HTML(VIEW_CSS), self._menus["look"],
                row(self._menus["task"], self._menus["metric"], self._menus["cost"], self._menus["measure"]),
                self._pick, self._status, *panels.values(), *extra, self._table, self.duel,
            ]
        )  # fmt: skip
        self.add_class("wb-view")

    def _like_reference(self) -> Any:
        """A plain setup that sees the frames the reference run saw and learns its tasks; None where that is unknown."""
        setup = getattr(self.comparison.sources.get(self.comparison.reference), "setup", None)
        return None if setup is None else type(setup)(**{name: getattr(setup, name) for name in SEEN})

    def _adopt(self, comparison: Any) -> None:
        """Take a comparison: its tasks and runs are offered, and nothing of an older one is kept."""
        self.comparison, self._ready = comparison, False
        self._made.clear()
        self._drawn.clear()
        self.tasks = [str(t) for t in comparison.table["task"].unique()]
        names = list(dict.fromkeys(str(name) for name in comparison.table["run"]))
        self.styles = line_styles([*names, *self.runs])
        self._menus["task"].options = [ALL_TASKS, *self.tasks]
        self._pick.options = [(shorten(name, 60), name) for name in names]
        self._pick.rows = min(6, max(2, len(names)))
        self._pick.value = tuple(names)
        self.chosen = names
        self._ready = True

    def add(self, run: Any, name: str | None = None) -> None:
        """Take a further run in, set against the same reference. One that cannot be compared is refused in words."""
        from workbench.analysis.compare import compare

        wanted = str(name or run.name)
        taken, number = set(self.comparison.sources), 2
        while wanted in taken:
            wanted, number = f"{name or run.name} ({number})", number + 1
        old = self.comparison
        try:
            found = compare(
                {**old.sources, wanted: run}, split=old.protocol.split, reference=old.reference, resamples=old.resamples
            )
        except ValueError as error:
            self._status.value = note(f"{wanted} cannot join: {error}")
            return
        if hasattr(run, "history"):
            self.runs[wanted] = run
        self._adopt(found)
        self._status.value = note(f"{wanted} has joined.")
        self._refresh()

    @traitlets.validate("task")
    def _known_task(self, proposal: Any) -> str:
        if proposal["value"] != ALL_TASKS and proposal["value"] not in self.tasks:
            raise traitlets.TraitError(f"no task {proposal['value']!r}; there are {self.tasks}")
        return str(proposal["value"])

    @traitlets.validate("chosen")
    def _known_runs(self, proposal: Any) -> list[str]:
        names = [str(n) for n in self.comparison.table["run"].unique()]
        if not proposal["value"] or set(proposal["value"]) - set(names):
            raise traitlets.TraitError(f"chosen={proposal['value']} must name some of the runs {names}")
        return [name for name in names if name in proposal["value"]]

    def _on_pick(self, change: Any) -> None:
        if change["new"] and self._ready:  # nothing selected: what was shown stays
            self.chosen = list(change["new"])

    def _on_duel(self) -> None:
        if self._ready and self.look == "classes":
            self._draw()

    @property
    def only_task(self) -> str | None:
        """The task shown, None where all are."""
        return None if self.task == ALL_TASKS else self.task

    @property
    def one_task(self) -> str:
        """The task shown, the first where all are."""
        return self.only_task or self.tasks[0]

    def shown(self, task: str | None = None) -> Any:
        """The comparison's rows of the runs chosen (and of ``task``), by the metric chosen for the task shown."""
        key = ("comparison", self.only_task, self.metric)
        if key not in self._made:
            made = self.comparison
            if self.metric != MAIN and self.only_task is not None:
                from workbench.analysis.compare import compare

                made = compare(
                    made.sources, split=made.protocol.split, reference=made.reference, resamples=made.resamples,
                    tasks=[self.only_task], metrics={self.only_task: self.metric},
                )  # fmt: skip
            self._made[key] = made
        made = self._made[key]
        table = made.table[made.table["run"].isin(self.chosen)]
        sources = {name: run for name, run in made.sources.items() if name in self.chosen}
        return replace(made, table=table if task is None else table[table["task"] == task], sources=sources)

    def table(self) -> pd.DataFrame:
        """The rows of the task and the runs shown."""
        frame: pd.DataFrame = self.shown(self.only_task).table
        return frame

    def figures(self, titles: Sequence[str] | None = None) -> dict[str, go.Figure]:
        """The plots that the runs and the task shown allow, by what they show; ``titles``: these only."""
        return looks.figures(self, looks.TITLES if titles is None else titles)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made the first time that ``key`` is asked for; forgotten when a run joins."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _refresh(self) -> None:
        if not self._ready:
            return
        self._ready = False
        kind = "" if self.only_task is None else self.kind(self.only_task)
        self._offer("metric", [MAIN, *list(METRICS[kind])[1:]] if kind else [MAIN])
        fits = ["srcc"] if self.kind(self.one_task) == "regression" else ["share", "kappa"]
        self._offer("measure", fits)
        self._ready = True
        for name, look in (("cost", "cost"), ("measure", "agreement")):
            self._menus[name].layout.display = None if self.look == look else "none"
        if self._launch is not None:
            self._launch.layout.display = None if self.look == "launch" else "none"
        key = (id(self.comparison), self.one_task, tuple(self.chosen))
        if key != self._in_duel:
            self._in_duel = key
            self._ready = False
            self.duel.show(self.comparison, self.one_task, self._names_of(self.one_task))
            self._ready = True
        self._draw()

    def _names_of(self, task: str) -> list[str]:
        """The runs shown that have the task."""
        rows = self.comparison.table
        known = set(rows["run"][rows["task"] == task])
        return [name for name in self.chosen if name in known]

    def kind(self, task: str) -> str:
        """Of a task of the comparison; empty where only its table is known."""
        return self.comparison.evidence[task].task.kind if task in self.comparison.evidence else ""

    def _offer(self, trait: str, options: list[str]) -> None:
        kept = getattr(self, trait) if getattr(self, trait) in options else options[0]
        self._menus[trait].options, self._menus[trait].disabled = options, len(options) == 1
        self._menus[trait].value = kept
        setattr(self, trait, kept)

    def _draw(self) -> None:
        """The plots of the look chosen; those of the others stay as they were, out of sight."""
        titles = LOOKS[self.look][1] if self.look in LOOKS else ()
        of = (self.task, self.metric, tuple(self.chosen), self.cost, self.measure, self.duel.first, self.duel.second)
        figures = self.figures([title for title in titles if self._drawn.get(title) != of])
        for title, panel in self._panels.items():
            if title in titles and self._drawn.get(title) != of:
                self._drawn[title] = of
                self._empty[title] = title not in figures
            panel.layout.display = None if title in titles and not self._empty[title] else "none"
            if title in figures:
                self._boxes[title].show(figures[title])
                for trace in self._boxes[title].widget.data:
                    if trace.meta is not None or trace.type == "heatmap":
                        trace.on_click(self._on_click)
        self._table.value = self._table_html()

    def _on_click(self, trace: Any, points: Any, _state: Any) -> None:
        if not points.point_inds:
            return
        if trace.type == "heatmap":
            names = self._names_of(self.one_task)
            self.duel.choose(names[int(points.xs[0])], names[int(points.ys[0])])
        elif self.look == "classes":
            self.duel.truth = str(trace.customdata[points.point_inds[0]])
        else:
            self.duel.choose(str(trace.meta))

    def _pairs_html(self) -> str:
        one = self.shown(self.one_task)
        pairs = self.once(("pairs", self.one_task, self.metric), lambda: one.pairs(self.one_task))
        return pairs_table(pairs, self.chosen)

    def _table_html(self) -> str:
        if self.look == "agreement":
            return self._pairs_html()
        if self.look == "setups":
            return differences_table(self.shown())
        return comparison_table(self.shown(), self.only_task)

    def freeze(self) -> Html:
        """The task shown as static HTML: all plots as inline SVG, the tables, and the page of clips, playing."""
        plots = [heading(name) + still(fig, label=name) for name, fig in self.figures().items()]
        parts = [*plots, comparison_table(self.shown(), self.only_task)]
        if self.duel.layout.display != "none":
            parts += [
                heading("Every pair"),
                self._pairs_html(),
                heading("What differs"),
                differences_table(self.shown()),
            ]
            parts += [self.duel.frozen_html()]
        return frozen(f"Comparison: {self.task}", *parts)
