"""What loss weights trade: drag a task's weight, and see which trained model comes nearest and what it scores."""

from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.views.mailing import MailableBox
from workbench.views.multitask_plots import front_plot
from workbench.views.parts import FigureBox, dropdown, frozen, heading, note, row
from workbench.views.still import still
from workbench.views.style import VIEW_CSS, Html, table_html


class TradeoffView(MailableBox):
    """A sweep of loss weights in a notebook: every point is a trained model, and nothing in between is made up.

    Args:
        front: a :class:`~workbench.analysis.balance_front.Front`, as :func:`workbench.balance_front` gives it.

    ``weights`` (task: weight), ``x`` and ``y`` (the two tasks drawn) are its state; ``shown`` follows: the name of the
    trained point whose weights are nearest, as ratios.
    """

    weights = traitlets.Dict(help="weight of each task's loss")
    x = traitlets.Unicode(help="task drawn along")
    y = traitlets.Unicode(help="task drawn up")
    shown = traitlets.Unicode(read_only=True, help="the trained point that is nearest")

    def __init__(self, front: Any) -> None:
        self.front = front
        tasks = list(front.tasks)
        low, high = _range(front)
        self._sliders = {
            task: ipywidgets.FloatLogSlider(
                value=1.0,
                base=2,
                min=low,
                max=high,
                step=0.25,
                description=task,
                readout_format=".2f",
                style={"description_width": "initial"},
                layout=ipywidgets.Layout(width="340px", max_width="100%"),
            )  # fmt: skip
            for task in tasks
        }
        self._menus = {"x": dropdown("Across", tasks, value=tasks[0]), "y": dropdown("Up", tasks, value=tasks[1])}
        self._box, self._words, self._table = FigureBox(), ipywidgets.HTML(), ipywidgets.HTML()
        controls = row(*self._sliders.values())
        self._ready = False
        super().__init__(
            [ipywidgets.HTML(VIEW_CSS), controls, row(*self._menus.values()), self._words, self._box.box, self._table],
            weights=dict.fromkeys(tasks, 1.0), x=tasks[0], y=tasks[1],
        )  # fmt: skip
        self.add_class("wb-view")
        for name, menu in self._menus.items():
            traitlets.link((self, name), (menu, "value"))
        for slider in self._sliders.values():
            slider.observe(self._dragged, "value")
        self.observe(lambda _: self._refresh(), ["weights", "x", "y"])
        self._ready = True
        self._refresh()

    @traitlets.validate("weights")
    def _known_weights(self, proposal: Any) -> dict[str, float]:
        given = {str(task): float(weight) for task, weight in dict(proposal["value"]).items()}
        if set(given) != set(self.front.tasks) or not all(0 <= w < float("inf") for w in given.values()):
            raise traitlets.TraitError(f"weights={given} must give each of {list(self.front.tasks)} a weight from 0 up")
        return given

    @traitlets.validate("x", "y")
    def _known_task(self, proposal: Any) -> str:
        if proposal["value"] not in self.front.tasks:
            raise traitlets.TraitError(f"no task {proposal['value']!r}; there are {list(self.front.tasks)}")
        return str(proposal["value"])

    def table(self) -> pd.DataFrame:
        """Per task the score of the point shown and of the plain sum (where the sweep has it)."""
        mine = self.front.at(self.shown)
        shown = mine[["task", "metric", "value", "low", "high"]]
        if "sum" in set(self.front.points.name):
            shown = shown.assign(plain_sum=self.front.at("sum").value)
        return shown

    def figure(self) -> go.Figure:
        """The two tasks' scores of every trained balance, the one shown marked."""
        return front_plot(self.front, self.x, self.y, shown=self.shown)

    def _dragged(self, _: Any) -> None:
        if self._ready:
            self.weights = {task: slider.value for task, slider in self._sliders.items()}

    def _refresh(self) -> None:
        self.set_trait("shown", self.front.nearest(self.weights))
        self._ready = False  # the sliders follow without asking back
        for task, slider in self._sliders.items():
            slider.value = min(max(self.weights[task], 2**slider.min), 2**slider.max)
        self._ready = True
        self._words.value = self._sentence()
        self._box.show(self.figure())
        self._table.value = self._table_html()

    def _sentence(self) -> str:
        asked = ", ".join(f"{task} {weight:.2g}" for task, weight in self.weights.items())
        rows = self.front.points.set_index("name")
        trained = ", ".join(f"{task} {rows.loc[self.shown, f'weight_{task}']:g}" for task in self.front.tasks)
        by = rows.loc[self.shown, "dominated_by"]
        place = "on the front" if rows.loc[self.shown, "on_front"] else f"behind {by}" if by else "behind a method"
        return note(f"Weights {asked}: nearest trained are {trained} ({self.shown}); {place}.")

    def _table_html(self) -> str:
        return table_html(self.table(), names={"plain_sum": "plain sum"}) + note(self.front.caption)

    def freeze(self) -> Html:
        """The point shown as static HTML: the plot as inline SVG, and its scores."""
        drawn = still(self.figure(), label=f"{self.x} against {self.y}")
        return frozen(
            "What loss weights trade", self._sentence(), heading(f"{self.x} against {self.y}"), drawn,
            self._table_html(),
        )  # fmt: skip


def _range(front: Any) -> tuple[float, float]:
    """Exponents of 2 between which the sweep's weights lie, with a step to spare."""
    static = front.points[front.points.kind == "static"]
    weights = static[[f"weight_{task}" for task in front.tasks]].to_numpy(float)
    exponents = np.log2(np.maximum(weights, 2.0**-6))
    return float(np.floor(exponents.min())) - 1, float(np.ceil(exponents.max())) + 1
