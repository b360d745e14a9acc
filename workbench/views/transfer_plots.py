"""Plots of strategy studies: what accuracy costs, what becomes of it with fewer labels, and what could be forecast."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.views.style import GREY, LineStyle, base_figure, line_styles, plot_text, words_only

COSTS = {"trainable_parameters": "trainable parameters", "train_seconds": "training, seconds"}


def cost_plot(
    comparison: Any,
    task: str,
    *,
    memory_mib: Mapping[str, float] | None = None,
    chance: float | None = None,
    styles: Mapping[str, LineStyle] | None = None,
) -> go.Figure:
    """Main metric of each run with its 95 % interval against what it costs, one panel per cost, on log axes.

    Costs: trainable parameters and training seconds, from ``comparison.table``; ``memory_mib`` by run adds a third
    panel. A dashed line marks ``chance``. Raises ValueError on a task that is not in the comparison.
    """
    table: pd.DataFrame = comparison.table
    rows = table[table.task == task]
    if rows.empty:
        raise ValueError(f"no task {task!r} in this comparison; it has {sorted(set(table.task))}")
    titles = dict(COSTS)
    if memory_mib is not None:
        rows = rows.assign(memory_mib=[memory_mib.get(name, math.nan) for name in rows.run])
        titles["memory_mib"] = "activations kept, MiB"
    fig = make_subplots(rows=1, cols=len(titles), shared_yaxes=True, horizontal_spacing=0.04)
    styles = styles or line_styles(rows.run)
    for name, row in rows.set_index("run").iterrows():
        for column, cost in enumerate(titles, start=1):
            if not row[cost] > 0:
                continue
            fig.add_scatter(
                x=[row[cost]], y=[row.value], row=1, col=column, **_dot(str(name), styles[str(name)], column == 1),
                error_y=_bars([row.value], [row.low], [row.high], styles[str(name)].colour),
                hovertemplate=f"{plot_text(name)}<br>{titles[cost]}: %{{x:.4g}}<br>%{{y:.3f}}<extra></extra>",
            )  # fmt: skip
    base_figure(fig, 430, b=90)
    for column, title in enumerate(titles.values(), start=1):
        fig.update_xaxes(title_text=title, type="log", dtick=1, row=1, col=column)
        if chance is not None:
            fig.add_hline(y=chance, line={"color": GREY, "dash": "dash", "width": 1}, row=1, col=column)
    fig.update_yaxes(title_text=f"{plot_text(task)}: {rows.metric.iloc[0]}", row=1, col=1)
    return _legend_below(fig)


def label_curves(
    levels: pd.DataFrame, *, metric: str = "", chance: float | None = None,
    styles: Mapping[str, LineStyle] | None = None,
) -> go.Figure:  # fmt: skip
    """One line per strategy over the number of labels per class, from ``over_levels(study)``: ``strategy, per_class,
    clips, value, low, high``. "All" (NaN) stands at the mean number of clips per class that there are."""
    if levels.empty:
        return words_only(base_figure(go.Figure(), 200), "no trainings")
    fig = go.Figure()
    styles = styles or line_styles(levels.strategy)
    known = levels.dropna(subset="per_class")
    classes = float((known.clips / known.per_class).median()) if len(known) else 1.0
    places = levels.per_class.fillna(levels.clips / classes)
    names = list(dict.fromkeys(levels.strategy))
    for i, name in enumerate(names):
        part = levels[levels.strategy == name]
        # Side by side by 2 % each, or intervals would hide each other.
        x = places[part.index] * 1.02 ** (i - (len(names) - 1) / 2)
        fig.add_scatter(
            x=x, y=part.value, **_dot(name, styles[name], True, lines=True),
            error_y=_bars(part.value, part.low, part.high, styles[name].colour),
            customdata=["all" if math.isnan(v) else f"{v:.0f}" for v in part.per_class],
            hovertemplate=f"{plot_text(name)}<br>%{{customdata}} per class: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    base_figure(fig, 430, b=90)
    ticks = sorted(
        {(float(x), "all" if math.isnan(n) else f"{n:.0f}") for x, n in zip(places, levels.per_class, strict=True)}
    )
    fig.update_xaxes(
        title_text="labels per class", type="log", tickvals=[x for x, _ in ticks], ticktext=[text for _, text in ticks]
    )
    fig.update_yaxes(title_text=plot_text(metric))
    if chance is not None:
        fig.add_hline(y=chance, line={"color": GREY, "dash": "dash", "width": 1})
    return _legend_below(fig)


def forecast_plot(table: pd.DataFrame, *, task: str | None = None, scores: Sequence[str] | None = None) -> go.Figure:
    """Each transferability score against the trained result, one dot per backbone, one panel per score.

    ``table`` is that of ``beside_runs(transferability(...), runs)``: ``backbone, task, trained``, a column per score.
    """
    rows = table if task is None else table[table.task == task]
    known = [n for n in ("logme", "h_score", "knn", "separation", "probe") if n in rows]
    names = list(scores) if scores is not None else [n for n in known if rows[n].notna().any()]
    if rows.empty or not names:
        return words_only(base_figure(go.Figure(), 200), "no scores")
    fig = make_subplots(rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.03)
    styles = line_styles(rows.backbone)
    for column, score in enumerate(names, start=1):
        for row in rows.itertuples():
            fig.add_scatter(
                x=[getattr(row, score)], y=[row.trained], row=1, col=column,
                **_dot(row.backbone, styles[row.backbone], column == 1),
                hovertemplate=f"{plot_text(row.backbone)}<br>{score} %{{x:.3g}}, trained %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
    base_figure(fig, 360, b=90)
    for column, score in enumerate(names, start=1):
        fig.update_xaxes(title_text=plot_text(score.replace("_", "-")), nticks=4, row=1, col=column)
    fig.update_yaxes(title_text="trained, on test", row=1, col=1)
    return _legend_below(fig)


def _dot(name: str, style: LineStyle, legend: bool, *, lines: bool = False) -> dict[str, Any]:
    return {
        "mode": "lines+markers" if lines else "markers", "name": plot_text(name, 30), "legendgroup": plot_text(name),
        "showlegend": legend, "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 9},
    }  # fmt: skip


def _bars(value: Any, low: Any, high: Any, colour: str) -> dict[str, Any]:
    """Error bars from interval ends; none where the interval is unknown."""
    v, below, above = (np.asarray(x, float) for x in (value, low, high))
    return {
        "type": "data", "symmetric": False, "array": np.nan_to_num(above - v), "arrayminus": np.nan_to_num(v - below),
        "color": colour, "thickness": 1.2, "width": 3,
    }  # fmt: skip


def _legend_below(fig: go.Figure) -> go.Figure:
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}
    fig.update_layout(legend=legend)
    return fig
