"""Plots of errors: a confusion matrix, and predicted against true values."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.views.style import GREY, OKABE_ITO, base_figure, gaps, plot_text, words_only

TEXT_IN_CELLS = 25  # more classes than this and counts no longer fit into the cells of a confusion matrix


def confusion_plot(errors: Any, *, title: str = "") -> go.Figure:
    """Counts per true (rows) and predicted class (columns); the colour is the share of the true class.

    ``errors.confusion`` is a square frame of counts with classes as index and columns. Empty cells are left blank.
    """
    counts: pd.DataFrame = errors.confusion
    classes = [str(c) for c in counts.index]
    values = counts.to_numpy(float)
    fig = go.Figure()
    if not len(classes):
        return words_only(base_figure(fig, 200), "nothing to confuse: this task has no classes")
    share = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    legend = {"text": "share of<br>true class", "font": {"size": 12}}
    few = len(classes) <= TEXT_IN_CELLS
    labels = [plot_text(c, 24) for c in classes]
    places = list(range(len(classes)))
    hover = [
        [f"{int(values[t, p])} clip(s)<br>truth: {plot_text(classes[t])}<br>predicted: {plot_text(classes[p])}"
         for p in places] for t in places
    ]  # fmt: skip
    fig.add_heatmap(
        z=[gaps(row) for row in np.where(values > 0, share, np.nan)],
        x=places,
        y=places,
        text=[[f"{int(v)}" if few and v else "" for v in row] for row in values],
        texttemplate="%{text}",
        hovertext=hover,
        hoverinfo="text",
        colorscale="Blues",
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        colorbar={"title": legend, "thickness": 12, "len": 0.8, "outlinewidth": 0},
    )
    size = int(np.clip(150 + 30 * len(classes), 300, 760))
    base_figure(fig, size, r=10, t=50 if title else 10)
    fig.update_layout(meta={"max_width": int(np.clip(300 + 60 * len(classes), 520, 900))})
    # With many classes every tick would overlap its neighbour; hovering a cell still names both.
    step = max(1, len(classes) // 30)
    ticks: dict[str, Any] = {"tickvals": places[::step], "ticktext": labels[::step], "showgrid": False}
    crowded = sum(len(t) + 2 for t in ticks["ticktext"]) > 60
    fig.update_xaxes(title_text="predicted", tickangle=-45 if crowded else 0, **ticks)
    fig.update_yaxes(title_text="truth", autorange="reversed", **ticks)
    if title:
        fig.update_layout(title={"text": plot_text(title, 80), "font": {"size": 14}, "x": 0, "xref": "paper"})
    return fig


def residual_plot(errors: Any) -> go.Figure:
    """Predicted against true value of every clip of a regression task; on the diagonal a prediction is exact."""
    rows: pd.DataFrame = errors.mistakes
    fig = go.Figure()
    base_figure(fig, 380, t=10)
    fig.update_layout(meta={"max_width": 640})
    if rows.empty:
        return words_only(fig, "no clips")
    ends = [float(f(f(rows["truth"]), f(rows["predicted"]))) for f in (min, max)]
    fig.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dash", "width": 1.5}, marker_color=GREY,
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    fig.add_scatter(
        x=gaps(rows["truth"]),
        y=gaps(rows["predicted"]),
        mode="markers",
        marker={"color": OKABE_ITO[0], "size": 8, "opacity": 0.6, "symbol": "circle"},
        showlegend=False,
        text=[plot_text(c, 60) for c in rows["clip_id"]],
        hovertemplate="%{text}<br>truth %{x:.3f}, predicted %{y:.3f}<extra></extra>",
    )
    fig.update_xaxes(title_text="truth")
    fig.update_yaxes(title_text="predicted")
    return fig
