"""Plots of errors: confusion, residuals, reliability, failing slices, a map of clips, suspect labels."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.views.style import GREY, OKABE_ITO, base_figure, gaps, plot_text, shorten, words_only

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


SHOWN_SLICES = 12
POINT_PX, CHOSEN_PX = 10, 16
MANY_POINTS = 4000  # beyond this a browser needs WebGL to pan a scatter plot


def reliability_plot(calibration: Any, *, chosen: int = -1) -> go.Figure:
    """Share right against confidence per bin with 95 % intervals; on the diagonal a probability is true.

    ``calibration.bins`` has ``clips, confidence, rate, rate_low, rate_high``; empty bins are left out. ``chosen``: the
    row drawn larger.
    """
    fig = go.Figure()
    base_figure(fig, 360, t=10)
    fig.update_layout(meta={"max_width": 560})
    bins: pd.DataFrame = calibration.bins[calibration.bins["clips"] > 0]
    fig.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dash", "width": 1.5}, marker_color=GREY,
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    fig.add_scatter(
        x=gaps(bins["confidence"]),
        y=gaps(bins["rate"]),
        mode="markers",
        marker={"color": OKABE_ITO[0], "size": _sizes(bins.index, chosen), "symbol": "circle"},
        error_y={
            "type": "data", "symmetric": False, "color": OKABE_ITO[0], "thickness": 1.5, "width": 4,
            "array": gaps(bins["rate_high"] - bins["rate"]), "arrayminus": gaps(bins["rate"] - bins["rate_low"]),
        },
        showlegend=False,
        customdata=[int(i) for i in bins.index],
        text=[f"{n} clip(s)" for n in bins["clips"]],
        hovertemplate="%{text}<br>confidence %{x:.3f}, right %{y:.3f}<extra></extra>",
    )  # fmt: skip
    binary = calibration.task.kind == "binary"
    positive = plot_text((calibration.task.classes or ("0", "1"))[1], 24)
    fig.update_xaxes(title_text=f"probability of {positive}" if binary else "confidence", range=[-0.03, 1.03])
    fig.update_yaxes(title_text=f"share {positive}" if binary else "share right", range=[-0.03, 1.03])
    return fig


def _sizes(rows: Iterable[int], chosen: int) -> list[int]:
    return [CHOSEN_PX if i == chosen else POINT_PX for i in rows]


def slices_plot(slices: Any, *, chosen: int = -1) -> go.Figure:
    """Rate of failure of the clearest slices with 95 % intervals; filled where the verdict is "fails more".

    ``slices.table`` has ``slice, clips, rate, low, high, verdict``; the dashed line is the rate over all clips.
    """
    table: pd.DataFrame = slices.table.head(SHOWN_SLICES)
    fig = go.Figure()
    base_figure(fig, 90 + 30 * max(1, len(table)), t=10)
    if table.empty:
        return words_only(fig, "no slice fails more than the rest")
    for verdict, colour, symbol in (
        ("fails more", OKABE_ITO[1], "diamond"), ("no clear difference", OKABE_ITO[0], "circle")
    ):  # fmt: skip
        part = table[table["verdict"] == verdict]
        fig.add_scatter(
            x=gaps(part["rate"]),
            y=[int(i) for i in part.index],
            mode="markers",
            name=verdict,
            marker={"color": colour, "symbol": symbol, "size": _sizes(part.index, chosen)},
            error_x={
                "type": "data", "symmetric": False, "color": colour, "thickness": 2, "width": 4,
                "array": gaps(part["high"] - part["rate"]), "arrayminus": gaps(part["rate"] - part["low"]),
            },
            customdata=[int(i) for i in part.index],
            text=[f"{plot_text(r.slice)}<br>{r.clips} clips, p = {r.p:.3g}" for r in part.itertuples()],
            hovertemplate="%{text}<br>%{x:.3f}<extra></extra>",
            showlegend=True,
        )  # fmt: skip
    fig.add_vline(x=slices.overall, line={"color": GREY, "dash": "dash", "width": 1.5})
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"})
    words = [plot_text(f"{shorten(r.slice, 48)} ({r.clips})") + "  " for r in table.itertuples()]
    ticks = list(range(len(table)))
    fig.update_yaxes(tickvals=ticks, ticktext=words, range=[len(table) - 0.5, -0.5], showgrid=False)
    regression = slices.task.kind == "regression"
    fig.update_xaxes(title_text="mean absolute residual" if regression else "share wrong", rangemode="tozero")
    return fig


def embedding_plot(embedding: Any, *, selected: Sequence[str] = (), drag: str = "lasso") -> go.Figure:
    """Clips on a plane, right and wrong ones in their own colour and sign; where ids are ``selected`` the rest fades.

    ``embedding.table`` has ``clip_id, x, y, truth, predicted, wrong``. Each point's ``customdata`` is its row.
    """
    table: pd.DataFrame = embedding.table
    fig = go.Figure()
    base_figure(fig, 440, t=10, b=40)
    fig.update_layout(meta={"max_width": 760}, dragmode=drag)
    if table.empty:
        return words_only(fig, "no clips")
    kind = "scattergl" if len(table) > MANY_POINTS else "scatter"
    known = table["predicted"].notna().to_numpy()
    wrong, chosen = table["wrong"].to_numpy(bool), table["clip_id"].isin(list(selected)).to_numpy()
    groups = (
        ("right", known & ~wrong, OKABE_ITO[0], "circle"), ("wrong", known & wrong, OKABE_ITO[1], "diamond"),
        ("no prediction", ~known, GREY, "square"),
    )  # fmt: skip
    for name, mask, colour, symbol in groups:
        if not mask.any():
            continue
        part = table[mask]
        fig.add_trace({
            "type": kind, "mode": "markers", "name": name, "x": gaps(part["x"]), "y": gaps(part["y"]),
            "marker": {"color": colour, "symbol": symbol, "opacity": 0.75, "line": {"width": 0}, "size": 7},
            "selectedpoints": np.flatnonzero(chosen[mask]).tolist() if len(selected) else None,
            "customdata": np.flatnonzero(mask).tolist(),
            "text": [
                f"{plot_text(r.clip_id, 60)}<br>truth {plot_text(r.truth, 40)}, predicted {plot_text(r.predicted, 40)}"
                for r in part.itertuples()
            ],
            "hovertemplate": "%{text}<extra></extra>", "showlegend": True,
        })  # fmt: skip
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"})
    fig.update_xaxes(showticklabels=False)
    fig.update_yaxes(showticklabels=False)
    return fig


def suspects_plot(found: Any) -> go.Figure:
    """Flagged labels: the label given (rows) against the class suggested (columns)."""
    flagged: pd.DataFrame = found.table[found.table["flagged"]]
    names = [c for c in (found.task.classes or ("0", "1")) if c in set(flagged["given"]) | set(flagged["suggested"])]
    counts = pd.crosstab(flagged["given"], flagged["suggested"]).reindex(index=names, columns=names, fill_value=0)
    if not names:
        return words_only(base_figure(go.Figure(), 120), "no label is flagged; the clips below are ranked all the same")
    fig = confusion_plot(SimpleNamespace(confusion=counts))
    fig.update_xaxes(title_text="suggested")
    fig.update_yaxes(title_text="label given")
    return fig
