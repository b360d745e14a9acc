"""Ways to choose clips in the error view: a confusion cell, a reliability bin, a slice, a lasso, a suspect label."""

from typing import Any, ClassVar

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.analysis.errors import ErrorTable
from workbench.analysis.mistakes.calibration import Calibration, calibration
from workbench.analysis.mistakes.label_errors import LabelErrors, label_errors
from workbench.analysis.mistakes.slices import Slices, slices
from workbench.views.error_panels_state import ANY, ErrorState
from workbench.views.error_plots import (
    CHOSEN_PX,
    POINT_PX,
    confusion_plot,
    reliability_plot,
    residual_plot,
    slices_plot,
    suspects_plot,
)
from workbench.views.parts import dropdown
from workbench.views.style import shorten

_PAIRS = 5000  # clips beyond which a view does not search pairs of properties by itself


class Look:
    """One way to choose clips. Its state lives in the view's traits, its controls are linked to them."""

    name: ClassVar[str]
    words: ClassVar[str]
    traits: ClassVar[tuple[str, ...]] = ()
    """Traits of the view that change what it chooses."""

    def __init__(self, view: ErrorState) -> None:
        self.view = view
        self.controls: tuple[ipywidgets.Widget, ...] = ()

    def offered(self) -> bool:
        """Whether the view has what this needs, for the task shown."""
        return True

    def start(self) -> None:
        """Fill the controls for the task shown."""

    def figure(self) -> go.Figure:
        raise NotImplementedError

    def still_figure(self) -> go.Figure:
        """The figure to freeze."""
        return self.figure()

    def wire(self, widget: Any) -> None:
        """Make the figure's widget choose clips."""

    def highlight(self, widget: Any) -> None:
        """Show in the figure what is chosen now, without making the figure anew."""

    def rows(self) -> pd.DataFrame:
        raise NotImplementedError

    def caption(self) -> str:
        raise NotImplementedError

    def chosen(self) -> str:
        """What is chosen, in words."""
        return ""

    def _menu(self, trait: str, label: str, options: list[tuple[str, Any]]) -> ipywidgets.Dropdown:
        menu = dropdown(label, options)
        traitlets.link((self.view, trait), (menu, "value"))
        self.controls = (*self.controls, menu)
        return menu


class Confusion(Look):
    """Cells of the confusion matrix; ``any`` and ``any`` are all mistakes, the most confident first."""

    name, words, traits = "confusion", "confusion matrix", ("truth", "predicted")

    def __init__(self, view: ErrorState) -> None:
        super().__init__(view)
        self._truth = self._menu("truth", "Truth", [("any", ANY)])
        self._predicted = self._menu("predicted", "Predicted", [("any", ANY)])

    def start(self) -> None:
        options = [("any (all mistakes)", ANY)]
        options += [
            (f"{shorten(str(c), 40)} ({int(n)})", str(c)) for c, n in self.view.cells().sum(axis=1).items() if n
        ]  # fmt: skip
        self._fill(self._truth, "truth", options)
        self.offer_predicted()

    def offer_predicted(self) -> None:
        """Only the predictions that the chosen truth has."""
        counts, truth = self.view.cells(), self.view.truth
        if truth != ANY:
            counts = counts.loc[[truth]]
        options = [("any wrong class", ANY)]
        options += [(f"{shorten(str(c), 40)} ({int(n)})", str(c)) for c, n in counts.sum(axis=0).items() if n]
        self._fill(self._predicted, "predicted", options)

    def _fill(self, menu: ipywidgets.Dropdown, trait: str, options: list[tuple[str, str]]) -> None:
        kept = getattr(self.view, trait)
        chosen = kept if kept in [v for _, v in options] else ANY
        if tuple(menu.options) != tuple(options):
            menu.options = options
        menu.disabled = len(options) == 1
        setattr(self.view, trait, chosen)
        menu.value = chosen

    def figure(self) -> go.Figure:
        table = self.view.table
        return residual_plot(table) if table.confusion.empty else confusion_plot(table)

    def wire(self, widget: Any) -> None:
        if not self.view.table.confusion.empty:
            widget.data[0].on_click(self.on_click)

    def on_click(self, _trace: Any, points: Any, _state: Any) -> None:
        if points.xs:
            classes = self.view.table.confusion.index
            self.view.choose(str(classes[int(points.ys[0])]), str(classes[int(points.xs[0])]))

    def rows(self) -> pd.DataFrame:
        view, table = self.view, self.view.table
        if (view.truth, view.predicted) == (ANY, ANY):
            return table.mistakes
        rows = table.mistakes if isinstance(view.run, ErrorTable) else view.all_clips()
        if view.truth != ANY:
            rows = rows[rows["truth"] == view.truth]
        if view.predicted != ANY:
            return rows[rows["predicted"] == view.predicted]
        return rows[rows["truth"] != rows["predicted"]]

    def caption(self) -> str:
        return self.view.table.caption

    def chosen(self) -> str:
        return f"truth {self.view.truth}, predicted {self.view.predicted}"


class Computed(Look):
    """A look at a table of analysis, given to the view or computed when it is first looked at, once per task."""

    def __init__(self, view: ErrorState, given: Any = None) -> None:
        super().__init__(view)
        self._given, self._known = given, dict[str, Any]()

    def compute(self, task: str) -> Any:
        raise NotImplementedError

    @property
    def found(self) -> Any:
        task = self.view.task
        if self._given is not None and self._given.task.name == task:
            return self._given
        if task not in self._known:
            self._known[task] = self.compute(task)
        return self._known[task]

    def given_for_task(self) -> bool:
        return self._given is not None and self._given.task.name == self.view.task

    def caption(self) -> str:
        return str(self.found.caption)


class Reliability(Computed):
    """Bins of the reliability diagram."""

    name, words, traits = "calibration", "reliability (calibration)", ("bin",)
    found: Calibration

    def __init__(self, view: ErrorState, given: Calibration | None) -> None:
        super().__init__(view, given)
        self._bins = self._menu("bin", "Bin", [("all", -1)])

    def offered(self) -> bool:
        return self.given_for_task() or self.view.has_probabilities()

    def compute(self, task: str) -> Calibration:
        return calibration(self.view.run, task=task, split=self.view.split, resamples=500)

    def start(self) -> None:
        bins = self.found.bins[self.found.bins.clips > 0]
        options = [("all", -1)]
        options += [(f"{r.low:.2f} to {r.high:.2f} ({r.clips})", int(i)) for i, r in zip(bins.index, bins.itertuples(),
                                                                                       strict=True)]  # fmt: skip
        self._bins.options = options
        self.view.bin = self.view.bin if self.view.bin in [v for _, v in options] else -1
        self._bins.value = self.view.bin

    def figure(self) -> go.Figure:
        return reliability_plot(self.found, chosen=self.view.bin)

    def wire(self, widget: Any) -> None:
        widget.data[1].on_click(self.on_click)

    def highlight(self, widget: Any) -> None:
        trace = widget.data[1]
        trace.marker.size = [CHOSEN_PX if i == self.view.bin else POINT_PX for i in trace.customdata]

    def on_click(self, trace: Any, points: Any, _state: Any) -> None:
        if points.point_inds:
            self.view.bin = int(trace.customdata[points.point_inds[0]])

    def rows(self) -> pd.DataFrame:
        clips = self.view.all_clips()
        return clips if self.view.bin < 0 else clips[clips.clip_id.isin(self.found.clips(self.view.bin))]

    def chosen(self) -> str:
        if self.view.bin < 0:
            return "all bins"
        low, high = self.found.bins.loc[self.view.bin, ["low", "high"]]
        return f"probability {low:.2f} to {high:.2f}"


class Failing(Computed):
    """Slices on which the run fails more."""

    name, words, traits = "slices", "slices that fail more", ("slice",)
    found: Slices

    def __init__(self, view: ErrorState, given: Slices | None) -> None:
        super().__init__(view, given)
        self._slices = self._menu("slice", "Slice", [("all clips", -1)])

    def offered(self) -> bool:
        return self.given_for_task() or (self.view.clips is not None and not isinstance(self.view.run, ErrorTable))

    def compute(self, task: str) -> Slices:
        # What the table says alone: measuring what clips look like takes minutes, and a click does not wait.
        depth = 2 if len(self.view.all_clips()) <= _PAIRS else 1
        return slices(
            self.view.run, self.view.clips, task=task, split=self.view.split, properties=pd.DataFrame(), depth=depth,
            resamples=500,
        )  # fmt: skip

    def start(self) -> None:
        table = self.found.table
        options = [("all clips", -1)]
        options += [(f"{shorten(r.slice, 60)} ({r.clips} clips)", i) for i, r in enumerate(table.itertuples())]
        self._slices.options = options
        self.view.slice = self.view.slice if self.view.slice < len(table) else -1
        self._slices.value = self.view.slice

    def figure(self) -> go.Figure:
        return slices_plot(self.found, chosen=self.view.slice)

    def wire(self, widget: Any) -> None:
        for trace in widget.data:
            trace.on_click(self.on_click)

    def highlight(self, widget: Any) -> None:
        for trace in widget.data:
            trace.marker.size = [CHOSEN_PX if i == self.view.slice else POINT_PX for i in trace.customdata]

    def on_click(self, trace: Any, points: Any, _state: Any) -> None:
        if points.point_inds:
            self.view.slice = int(trace.customdata[points.point_inds[0]])

    def rows(self) -> pd.DataFrame:
        clips = self.view.all_clips()
        return clips if self.view.slice < 0 else clips[clips.clip_id.isin(self.found.clips(self.view.slice))]

    def caption(self) -> str:
        hint = "" if self._given is not None else (
            " Searched by the table's columns; give slices=wb.slices(run, clips) to search what clips look like too."
        )  # fmt: skip
        return self.found.caption + hint

    def chosen(self) -> str:
        return "all clips" if self.view.slice < 0 else str(self.found.table.slice[self.view.slice])


class Suspects(Computed):
    """Labels that look wrong, the worst first."""

    name, words = "labels", "labels that look wrong"
    found: LabelErrors

    def offered(self) -> bool:
        return self.given_for_task() or self.view.has_probabilities()

    def compute(self, task: str) -> LabelErrors:
        return label_errors(self.view.run, task=task, splits=[self.view.split])

    def figure(self) -> go.Figure:
        return suspects_plot(self.found)

    def rows(self) -> pd.DataFrame:
        names = {"given": "truth", "suggested": "predicted", "p_suggested": "confidence"}
        return self.found.table.rename(columns=names)[
            ["clip_id", "path", "truth", "predicted", "confidence", "flagged"]
        ]

    def chosen(self) -> str:
        return f"{int(self.found.table.flagged.sum())} flagged of {len(self.found.table)}, the most suspect first"
