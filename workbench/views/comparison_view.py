"""Which setup is better: metric with intervals, difference to the reference, learning curves and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.views.parts import FigureBox, dropdown, frozen, heading, note, row
from workbench.views.plots import comparison_plot, difference_plot, learning_curves, named_runs
from workbench.views.still import still
from workbench.views.style import VIEW_CSS, Html, line_styles, table_html

ALL_TASKS = "all tasks"
SCORES = "Score on the clips held out, with 95 % interval"
DIFFERENCES = "Difference to the reference run, with paired 95 % interval"
CURVES = "Learning curves"


class ComparisonView(ipywidgets.VBox):
    """Compare runs in a notebook.

    Args:
        runs: runs by name or as a list (compared here by :func:`workbench.analysis.compare.compare`), or a finished
            ``Comparison``.
        histories: the runs to draw learning curves of, when ``runs`` is a ``Comparison`` that does not carry them.
        chance: score of guessing by task name, drawn as a dashed line.
    """

    task = traitlets.Unicode(ALL_TASKS, help="the task shown, or 'all tasks'")

    def __init__(
        self,
        runs: Any,
        *,
        histories: Mapping[str, Any] | Sequence[Any] | None = None,
        split: str = "test",
        chance: Mapping[str, float] | None = None,
    ) -> None:
        if hasattr(runs, "table"):
            self.comparison = runs
            source = histories if histories is not None else getattr(runs, "runs", None) or {}
        else:
            from workbench.analysis.compare import compare

            self.comparison, source = compare(runs, split=split), runs
        self.runs = {k: v for k, v in named_runs(source).items() if hasattr(v, "history")}
        self.chance = dict(chance or {})
        self.styles = line_styles([*self.comparison.table["run"], *self.runs])
        self.tasks = [str(t) for t in self.comparison.table["task"].unique()]
        self._picker = dropdown("Task", [ALL_TASKS, *self.tasks])
        self._boxes = {title: FigureBox() for title in (SCORES, DIFFERENCES, CURVES)}
        self._sections = [
            ipywidgets.VBox([ipywidgets.HTML(heading(title)), box.box]) for title, box in self._boxes.items()
        ]
        self._table = ipywidgets.HTML()
        super().__init__([ipywidgets.HTML(VIEW_CSS), row(self._picker), *self._sections, self._table])
        self.add_class("wb-view")
        traitlets.link((self, "task"), (self._picker, "value"))
        self.observe(lambda _: self._refresh(), "task")
        self._refresh()

    @traitlets.validate("task")
    def _known_task(self, proposal: Any) -> str:
        if proposal["value"] != ALL_TASKS and proposal["value"] not in self.tasks:
            raise traitlets.TraitError(f"no task {proposal['value']!r}; there are {self.tasks}")
        return str(proposal["value"])

    @property
    def _chosen(self) -> str | None:
        return None if self.task == ALL_TASKS else self.task

    def table(self) -> pd.DataFrame:
        """The rows of the task shown."""
        frame: pd.DataFrame = self.comparison.table
        return frame if self._chosen is None else frame[frame["task"] == self._chosen]

    def figures(self) -> dict[str, go.Figure]:
        """The plots of the task shown, by what they show."""
        shown = {SCORES: self._plot(comparison_plot, chance=self.chance)}
        if self.table()["difference"].notna().any():
            shown[DIFFERENCES] = self._plot(difference_plot)
        if self.runs:
            shown[CURVES] = learning_curves(self.runs, task=self._chosen, styles=self.styles)
        return shown

    def _plot(self, plot: Any, **options: Any) -> go.Figure:
        return plot(self.comparison, self._chosen, styles=self.styles, **options)

    def _refresh(self) -> None:
        figures = self.figures()
        for section, (title, box) in zip(self._sections, self._boxes.items(), strict=True):
            section.layout.display = None if title in figures else "none"
            if title in figures:
                box.show(figures[title])
        self._table.value = self._table_html()

    def _table_html(self) -> str:
        return comparison_table(self.comparison, self._chosen)

    def freeze(self) -> Html:
        """The task shown as static HTML: plots as inline SVG, and the table."""
        plots = [heading(name) + still(fig, label=name) for name, fig in self.figures().items()]
        return frozen(f"Comparison: {self.task}", *plots, self._table_html())


def comparison_table(comparison: Any, task: str | None = None) -> Html:
    """The comparison as a formatted table of one or all tasks, with the caption that says how it was made."""
    rows: pd.DataFrame = comparison.formatted()
    shown = rows if task is None else rows[rows["task"] == task]
    return Html(table_html(shown) + "".join(note(line) for line in comparison.caption.splitlines()))
