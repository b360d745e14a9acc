"""Choosing clips on a map of features: a lasso, a box, a click, or what lies around the clip that is open."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.path import Path as Outline

from workbench.analysis.mistakes.embedding import Embedding, embedding
from workbench.views.error_panels import Computed
from workbench.views.error_panels_state import ALL, AROUND, LASSO, WRONG, ErrorState
from workbench.views.error_plots import embedding_plot
from workbench.views.parts import outlines_of

NEAR = 24
_STILL_POINTS = 2000  # of a map frozen as SVG


class Map(Computed):
    """A lasso or box on the map of features, or what lies around the clip that is open."""

    name, words, traits = "map", "map of features", ("points", "selected", "drag")
    found: Embedding

    def __init__(self, view: ErrorState, given: Embedding | None) -> None:
        super().__init__(view, given)
        self._menu(
            "points", "Points",
            [("all clips", ALL), ("all mistakes", WRONG), ("selected on the map", LASSO),
             (f"the {NEAR} nearest to the open clip", AROUND)],
        )  # fmt: skip
        self._menu("drag", "Select with", [("a lasso", "lasso"), ("a box", "select")])

    def offered(self) -> bool:
        return self.given_for_task() or (self.view.clips is not None and hasattr(self.view.run, "model"))

    def compute(self, task: str) -> Embedding:
        clips = self.view.table_of_clips()
        return embedding(self.view.run, clips, task=task, split=self.view.split, progress=False)

    def figure(self) -> go.Figure:
        marked = self.view.selected if self.view.points in (LASSO, AROUND) else ()
        return embedding_plot(self.found, selected=marked, drag=self.view.drag)

    def still_figure(self) -> go.Figure:
        found = self.found
        step = -(-len(found.table) // _STILL_POINTS)
        return embedding_plot(dataclasses.replace(found, table=found.table.iloc[::step].reset_index(drop=True)))

    def wire(self, widget: Any) -> None:
        for trace in widget.data:
            trace.on_click(self.on_click)
        # Not `trace.on_selection`: the browser's message of a selection is overwritten by that of the hover after it
        # before it is sent (plotly 7.1). The outline itself arrives.
        widget.observe(self.on_relayout, "_js2py_relayout")

    def highlight(self, widget: Any) -> None:
        if widget.layout.dragmode != self.view.drag:
            widget.layout.dragmode = self.view.drag
        ids, chosen = self.found.table.clip_id.to_numpy(object), set(self.view.selected)
        some = self.view.points in (LASSO, AROUND)
        for trace in widget.data:
            places = [i for i, row in enumerate(trace.customdata) if str(ids[row]) in chosen] if some else None
            if trace.selectedpoints != places:
                trace.selectedpoints = places

    def on_relayout(self, change: Any) -> None:
        """A lasso or box was drawn, or taken away: what lies inside is selected."""
        outlines = outlines_of(change["new"])
        if outlines is None:
            return
        points = self.found.table[["x", "y"]].to_numpy(float)
        inside = np.zeros(len(points), bool)
        for outline in outlines:
            inside |= Outline(outline).contains_points(points)
        self.view.select([str(c) for c in self.found.table.clip_id.to_numpy(object)[inside]])

    def on_click(self, trace: Any, points: Any, _state: Any) -> None:
        if points.point_inds:
            self.view.select([str(self.found.table.clip_id.iloc[trace.customdata[points.point_inds[0]]])])

    def around(self, clip_id: str) -> list[str]:
        """The clips nearest to one on the map, itself first; empty where it is not on the map."""
        table = self.found.table
        at = np.flatnonzero((table.clip_id == clip_id).to_numpy())
        if not len(at):
            return []
        points = table[["x", "y"]].to_numpy(float)
        away = ((points - points[at[0]]) ** 2).sum(1)
        return [str(c) for c in table.clip_id.to_numpy(object)[np.argsort(away, kind="stable")[: NEAR + 1]]]

    def rows(self) -> pd.DataFrame:
        clips = self.view.all_clips()
        if self.view.points == WRONG:
            return self.view.table.mistakes
        if self.view.points == ALL:
            return clips
        places = {c: i for i, c in enumerate(self.view.selected)}
        chosen = clips[clips.clip_id.isin(places)]
        if self.view.points == AROUND:
            return chosen.iloc[np.argsort(chosen.clip_id.map(places).to_numpy(), kind="stable")]
        return chosen

    def chosen(self) -> str:
        return {ALL: "all clips", WRONG: "all mistakes", LASSO: "selected on the map", AROUND: "around one clip"}[
            self.view.points
        ]
