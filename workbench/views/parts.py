"""What the dashboards share: a figure that updates in place, labelled controls, frozen sections."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go

from workbench.views.style import VIEW_CSS, Html, escape, max_width


class FigureBox:
    """A place for a plotly figure that changes.

    A FigureWidget drops changes that arrive before its script (5 MB) runs in the browser. So until the browser has
    answered, a changed figure is a new widget, complete from its creation; from then on the same widget is refilled.
    """

    def __init__(self) -> None:
        self.widget: Any = None
        self.live = False
        self._left: list[Any] = []
        # A plot fits its box: a box that could scroll would have to take the keyboard's focus.
        self.box = ipywidgets.Box(layout=ipywidgets.Layout(width="100%", display="block", overflow="visible"))

    def show(self, fig: go.Figure) -> None:
        """Show ``fig`` in place of what was there."""
        self.box.layout.max_width = f"{max_width(fig)}px" if max_width(fig) else "1000px"
        if self.live:
            self.widget.data = ()
            self.widget.layout = fig.layout
            self.widget.add_traces(list(fig.data))
            return
        old, self.widget = self.widget, go.FigureWidget(fig)
        # A dashboard's plots are read, not edited; the tool bar would cover their titles.
        self.widget._config = self.widget._config | {"displayModeBar": False, "responsive": True}
        self.widget.observe(self._answered, ["_js2py_layoutDelta", "_js2py_traceDeltas"])
        self.box.children = (self.widget,)
        if old is not None:
            self._left.append(old)  # closed now, it would fail in a browser that is still loading it

    def _answered(self, change: Any) -> None:
        self.live = self.live or (change["owner"] is self.widget and change["new"] is not None)
        if self.live:
            while self._left:
                self._left.pop().close()


def outlines_of(message: Mapping[str, Any] | None) -> list[np.ndarray] | None:
    """What a browser's relayout message of a FigureWidget says was selected by lasso or box: outlines ``(n, 2)`` in the
    axes' units, none where a selection was taken away; None where it speaks of something else.

    >>> lasso = {"type": "path", "path": "M0,1L2,1L2,3Z"}
    >>> [outline.tolist() for outline in outlines_of({"relayout_data": {"selections": [lasso]}})]
    [[[0.0, 1.0], [2.0, 1.0], [2.0, 3.0]]]
    """
    found = ((message or {}).get("relayout_data") or {}).get("selections")
    if found is None:
        return None
    outlines = []
    for one in found:
        if one.get("type") == "path":
            numbers = re.findall(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?", str(one["path"]), re.IGNORECASE)
            outlines.append(np.array(numbers, float).reshape(-1, 2))
        else:
            (left, right), (low, high) = sorted((one["x0"], one["x1"])), sorted((one["y0"], one["y1"]))
            outlines.append(np.array([[left, low], [right, low], [right, high], [left, high]], float))
    return outlines


def dropdown(label: str, options: Sequence[Any], **settings: Any) -> ipywidgets.Dropdown:
    """A dropdown whose label is never cut."""
    return ipywidgets.Dropdown(
        options=options,
        description=label,
        style={"description_width": "initial"},
        layout=ipywidgets.Layout(width="auto", max_width="100%"),
        **settings,
    )


def row(*children: ipywidgets.Widget) -> ipywidgets.HBox:
    """Controls side by side that wrap on a narrow page."""
    return ipywidgets.HBox(
        children, layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px 16px")
    )


def heading(text: str) -> str:
    """A small heading inside a view, as HTML."""
    return f'<div style="font-weight:600;font-size:13px;margin-top:8px">{escape(text)}</div>'


def note(text: str) -> str:
    """A line of plain text under a view, as HTML."""
    return f'<p class="wb-note">{escape(text)}</p>'


def frozen(title: str, *parts: str) -> Html:
    """One static section: nothing in it needs a kernel, a script or the network."""
    return Html(
        f'{VIEW_CSS}<section class="wb-frozen"><h4 style="margin:12px 0 4px">{escape(title)}</h4>'
        f"{''.join(parts)}</section>"
    )
