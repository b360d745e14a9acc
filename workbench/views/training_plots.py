"""One run while it trains and after: its curves with what the training doctor found, how its tasks pull at each other,
and the learning-rate finder's curve."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.core.getipython import get_ipython
from IPython.display import display
from plotly.subplots import make_subplots

from workbench.training.checking.findings import Finding
from workbench.training.checking.rate_finder import RateCurve
from workbench.views.still import still
from workbench.views.style import (
    GREY,
    OKABE_ITO,
    Html,
    base_figure,
    escape,
    gaps,
    line_styles,
    plot_text,
    words_only,
)  # fmt: skip

_MARKS = ("triangle-up", "diamond", "square")


def training_curves(run: Any, *, findings: Sequence[Finding] | None = None) -> go.Figure:
    """Loss on train and val, and the val score of each task, by epoch; a mark where the doctor found something.

    ``run`` is a run or a history (a DataFrame). A mark sits on the train loss of its epoch (of the first, for what was
    found before training); what is only a note has none.
    """
    history: pd.DataFrame = run if isinstance(run, pd.DataFrame) else run.history
    found = findings if findings is not None else getattr(run, "findings", [])
    fig = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.11, subplot_titles=("loss", "validation score")
    )  # fmt: skip
    base_figure(fig, 340)
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"})
    if history.empty:
        return words_only(fig, "no epoch yet")
    scores = [c for c in history if c.startswith("val_") and c not in ("val_loss", "val_score")]
    lines = [(1, "train_loss", "train loss"), (1, "val_loss", "val loss")]
    lines += [(2, column, column.removeprefix("val_")) for column in scores]
    for i, (column, key, name) in enumerate(line for line in lines if line[1] in history):
        fig.add_scatter(
            x=history["epoch"], y=gaps(history[key]), row=1, col=column, mode="lines+markers", name=plot_text(name),
            line={"color": OKABE_ITO[i % 6], "width": 2}, marker={"color": OKABE_ITO[i % 6], "size": 5},
            showlegend=True, hovertemplate=f"{plot_text(name)}<br>epoch %{{x}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    _mark(fig, history, [f for f in found if f.severity != "note"])
    last = int(history["epoch"].iloc[-1])
    ticks = list(range(1, last + 1, -(-last // 10)))  # whole epochs only
    fig.update_yaxes(rangemode="tozero", row=1, col=2)  # no negative scores where there are none
    fig.update_xaxes(title_text="epoch", title_standoff=6, tickvals=ticks, ticktext=[str(t) for t in ticks])
    return fig


def _mark(fig: go.Figure, history: pd.DataFrame, findings: Sequence[Finding]) -> None:
    losses = dict(zip(history["epoch"], history["train_loss"], strict=True))
    for i, code in enumerate(dict.fromkeys(f.code for f in findings)):
        same = [f for f in findings if f.code == code]
        epochs = [max(f.epoch, int(history["epoch"].iloc[0])) for f in same]
        fig.add_scatter(
            x=epochs, y=gaps([losses.get(epoch, np.nan) for epoch in epochs]), row=1, col=1, mode="markers",
            name=plot_text(code), showlegend=True, marker={"color": GREY, "size": 12, "symbol": _MARKS[i % 3]},
            text=[plot_text(str(f)) for f in same], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip


def conflict_curves(run: Any) -> go.Figure:
    """How several tasks learn together, by epoch: each one's training loss, its weight, the length of its gradient
    where the tasks meet, and the cosine between each pair's (below the grey line, which is 0, they pull apart).

    ``run`` is a run or a history (a DataFrame). Lengths and cosines are drawn where the setup compares gradients: with
    ``measure_conflict``, or a balance that does. The weights of an aggregation are those of the tasks' gradients.
    """
    history: pd.DataFrame = run if isinstance(run, pd.DataFrame) else run.history
    tasks = [c.removeprefix("loss_") for c in history if c.startswith("loss_")]
    pairs = {f"{a} and {b}": f"cosine_{a}_{b}" for a, b in combinations(tasks, 2)}
    measured = any(column in history and history[column].notna().any() for column in pairs.values())
    titles = ("training loss", "weight", "length of the gradient", "cosine between gradients")
    rows = 2 if measured else 1
    fig = make_subplots(
        rows=rows, cols=2, horizontal_spacing=0.11, vertical_spacing=0.16, subplot_titles=titles[: 2 * rows]
    )
    base_figure(fig, 560 if measured else 320)
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"})
    if history.empty or not tasks:
        return words_only(fig, "one task only: nothing to compare" if not history.empty else "no epoch yet")
    what = ("loss", "weight", "norm")[: 3 if measured else 2]
    lines = [(panel, f"{kind}_{task}", task) for panel, kind in enumerate(what) for task in tasks]
    lines += [(3, column, name) for name, column in pairs.items() if measured]
    styles = line_styles([*tasks, *pairs])
    for panel, column, name in (line for line in lines if line[1] in history):
        style = styles[name]
        fig.add_scatter(
            x=history["epoch"], y=gaps(history[column]), row=1 + panel // 2, col=1 + panel % 2, mode="lines+markers",
            name=plot_text(name), legendgroup=plot_text(name), showlegend=panel in (0, 3),
            line={"color": style.colour, "dash": style.dash, "width": 2},
            marker={"color": style.colour, "symbol": style.symbol, "size": 5},
            hovertemplate=f"{plot_text(name)}<br>epoch %{{x}}: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    if measured:
        _zero_line(fig, row=2, col=2)
    last = int(history["epoch"].iloc[-1])
    ticks = list(range(1, last + 1, -(-last // 10)))
    fig.update_xaxes(tickvals=ticks, ticktext=[str(t) for t in ticks], range=[0.8, last + 0.2])
    fig.update_xaxes(title_text="epoch", title_standoff=6, row=rows)
    for row, col in ((1, 1), (1, 2), (2, 1))[: len(what)]:
        fig.update_yaxes(rangemode="tozero", row=row, col=col)
    return fig


def layer_conflict_plot(frame: pd.DataFrame) -> go.Figure:
    """Cosine between each pair of tasks' gradients by layer, from the input on: a dot per batch and their mean, as
    :func:`~workbench.training.layer_conflict.layer_conflict` gives them."""
    fig = base_figure(go.Figure(), 340)
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"})
    layers = list(dict.fromkeys(frame["layer"]))
    groups = {f"{a} and {b}": part for (a, b), part in frame.groupby(["task", "other"], sort=False)}
    for name, style in line_styles(groups).items():
        part, place = groups[name], {layer: i for i, layer in enumerate(layers)}
        means = part.groupby("layer", sort=False)["cosine"].mean().reindex(layers)
        fig.add_scatter(
            x=[place[layer] for layer in part["layer"]], y=gaps(part["cosine"]), mode="markers", showlegend=False,
            marker={"color": style.colour, "size": 5, "opacity": 0.4}, hoverinfo="skip", name=plot_text(name),
        )  # fmt: skip
        fig.add_scatter(
            x=list(range(len(layers))), y=gaps(means), mode="lines+markers", name=plot_text(name), showlegend=True,
            line={"color": style.colour, "dash": style.dash, "width": 2},
            marker={"color": style.colour, "symbol": style.symbol, "size": 7}, customdata=layers,
            hovertemplate=f"{plot_text(name)}<br>%{{customdata}}: %{{y:.2f}}<extra></extra>",
        )  # fmt: skip
    _zero_line(fig)
    fig.update_xaxes(tickvals=list(range(len(layers))), ticktext=[plot_text(layer) for layer in layers])
    fig.update_yaxes(title_text="cosine between gradients")
    return fig


def _zero_line(fig: go.Figure, **where: int) -> None:
    """Where two tasks neither help nor hurt each other."""
    fig.add_hline(y=0, line={"color": GREY, "width": 1}, **where)


def findings_html(findings: Sequence[Finding]) -> Html:
    """The findings as a list for a cell: what was seen, and what to do."""
    if not findings:
        return Html('<p class="wb-note">The training doctor found nothing.</p>')
    rows = "".join(
        f"<li><b>{escape(f.code)}</b> ({escape(f.severity)}, "
        f"{f'epoch {f.epoch}' if f.epoch else 'before training'}): {escape(f.message)}.<br><i>{escape(f.fix)}.</i></li>"
        for f in findings
    )
    return Html(f'<ul style="max-width:80ch;line-height:1.5">{rows}</ul>')


def rate_plot(curve: RateCurve) -> go.Figure:
    """Loss against learning rate, on a logarithmic scale; a dashed line at the suggested rate.

    The axis is the rate of the backbone, or of the heads where the backbone is frozen. What lies far above the loss at
    the start (it diverges there) is left out of the picture.
    """
    frame = curve.frame
    name = "lr" if (frame["lr"] > 0).any() else "head_lr"
    x = np.log10(frame[name])
    fig = go.Figure()
    fig.add_scatter(
        x=x, y=gaps(frame["loss"]), mode="markers", name="each batch", showlegend=True,
        marker={"color": OKABE_ITO[4], "size": 5}, customdata=frame[name],
        hovertemplate=f"{name} %{{customdata:.1e}}: %{{y:.3f}}<extra></extra>",
    )  # fmt: skip
    fig.add_scatter(
        x=x, y=gaps(frame["smoothed"]), mode="lines", name="smoothed", showlegend=True,
        line={"color": OKABE_ITO[0], "width": 2}, marker={"color": OKABE_ITO[0]}, hoverinfo="skip",
    )  # fmt: skip
    base_figure(fig, 320, t=40)
    ticks = list(range(int(np.ceil(x.min())), int(np.floor(x.max())) + 1))
    fig.update_xaxes(title_text=name, title_standoff=6, tickvals=ticks, ticktext=[f"1e{t}" for t in ticks])
    low, start = float(np.nanmin(frame["smoothed"])), float(frame["smoothed"].iloc[0])
    fig.update_yaxes(title_text="training loss", range=[low - 0.1 * (start - low), start + 0.8 * (start - low)])
    fig.update_layout(title={"text": plot_text(curve.note), "font": {"size": 13}, "x": 0, "xanchor": "left"})
    if curve.suggestion:
        fig.add_vline(x=float(np.log10(curve.suggestion[name])), line={"color": GREY, "dash": "dash", "width": 1.5})
    return fig


class LiveCurves:
    """Curves that grow while a run trains: ``wb.fine_tune(setup, clips, watch=LiveCurves())``.

    Draws in the output of the cell that trains, anew after every epoch, as SVG: it stays readable in a saved notebook.
    Outside a notebook it only keeps the latest ``figure``.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self.figure = training_curves(pd.DataFrame())

    def __call__(self, history: pd.DataFrame) -> None:
        self.figure = training_curves(history)
        if get_ipython() is None:
            return
        drawn = still(self.figure, label=f"training, epoch {int(history['epoch'].iloc[-1])}")
        if self._handle is None:
            self._handle = display(drawn, display_id=True)
        else:
            self._handle.update(drawn)
