"""Plots of tasks that share a model: what each gains or loses, who gains from whom, and what weights trade."""

from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.views.plots import NAME_LIMIT, ShownFigure
from workbench.views.style import GREY, OKABE_ITO, base_figure, gaps, line_styles, plot_text, shorten, words_only

STATIC, METHOD, SHOWN = OKABE_ITO[0], OKABE_ITO[1], OKABE_ITO[2]


def delta_plot(report: Any) -> go.Figure:
    """What training together did to each task, with 95 % intervals: the difference in its metric, and in per cent of
    what it reaches alone; below them delta-m. Right of the dashed line is better.

    ``report`` is a :class:`~workbench.analysis.multitask.MultitaskReport`. A task without a relative change (alone it
    is not clearly above zero) has no dot on the right.
    """
    rows: pd.DataFrame = report.table
    names, tasks = list(dict.fromkeys(rows.setup)), list(dict.fromkeys(rows.task))
    fig = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.04, shared_yaxes=True,
        subplot_titles=("difference in the metric", "relative change, %"),
    )  # fmt: skip
    base_figure(fig, 110 + max(34, 20 * len(names)) * (len(tasks) + 1), l=10)
    if rows.empty:
        return words_only(fig, "no tasks")
    styles = line_styles(names)
    totals = report.totals.set_index("setup")
    for i, name in enumerate(names):
        part = rows[rows.setup == name].set_index("task").loc[tasks]
        place = np.arange(len(tasks)) + 0.16 * (i - (len(names) - 1) / 2) * 2
        left = part[["difference", "low", "high"]].to_numpy(float)
        right = 100 * part[["relative", "relative_low", "relative_high"]].to_numpy(float)
        whole = 100 * totals.loc[name, ["delta_m", "delta_m_low", "delta_m_high"]].to_numpy(float)
        right, all_places = np.vstack([right, whole]), np.append(place, len(tasks) + place[0])
        for column, values, places, unit in ((1, left, place, ""), (2, right, all_places, " %")):
            fig.add_scatter(
                x=gaps(values[:, 0]), y=places, row=1, col=column, mode="markers", name=plot_text(name, NAME_LIMIT),
                showlegend=column == 1 and len(names) > 1, legendgroup=plot_text(name),
                marker={"color": styles[name].colour, "symbol": styles[name].symbol, "size": 10},
                error_x=_bars(values, styles[name].colour),
                hovertemplate=f"{plot_text(name)}<br>%{{x:+.3g}}{unit}<extra></extra>",
            )  # fmt: skip
    labels = [f"{plot_text(t, NAME_LIMIT)} ({plot_text(m)})  " for t, m in
              zip(tasks, rows.drop_duplicates("task").metric, strict=True)]  # fmt: skip
    fig.update_yaxes(
        tickvals=list(range(len(tasks) + 1)), ticktext=[*labels, "delta-m  "], range=[len(tasks) + 0.6, -0.6],
        showgrid=False,
    )  # fmt: skip
    for column in (1, 2):
        fig.add_vline(x=0, line={"color": GREY, "dash": "dash", "width": 1.5}, row=1, col=column)
    return fig


def affinity_plot(affinity: Any) -> ShownFigure:
    """Who gains from whom, as a heat map: the task that changes by row, the one it is trained with by column.

    Cells show the difference of the task's metric to training alone, its interval below; bold where that excludes zero
    and enough seeds and groups stand behind it. Blue is better, red worse, on one scale about zero.
    """
    matrix = affinity.matrix()
    cells = affinity.table.set_index(["task", "partner"])
    values = matrix.to_numpy(float)
    limit = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    count = len(matrix)
    figure = ShownFigure(figsize=(2.2 + 1.5 * count, 1.0 + 0.85 * count), dpi=110)
    axes = figure.subplots()
    norm = matplotlib.colors.Normalize(-(limit or 1.0), limit or 1.0)
    shades = matplotlib.colormaps["RdBu"]
    axes.imshow(values, cmap=shades, norm=norm, aspect="auto")
    for (task, partner), row in cells.iterrows():
        r, c = matrix.index.get_loc(task), matrix.columns.get_loc(partner)
        dark = abs(norm(row.difference) - 0.5) > 0.32
        text = f"{row.difference:+.3f}"
        if np.isfinite(row.low):
            text += f"\n[{row.low:+.3f}, {row.high:+.3f}]"
        strong = row.verdict in ("gain", "negative transfer")
        axes.text(
            c, r, text, ha="center", va="center", fontsize=9, color="#ffffff" if dark else "#111111",
            weight="bold" if strong else "normal", parse_math=False,
        )  # fmt: skip
    for axis, names in ((axes.xaxis, matrix.columns), (axes.yaxis, matrix.index)):
        axis.set_ticks(range(count), [shorten(str(n), NAME_LIMIT) for n in names], color=GREY, parse_math=False)
    axes.set_xlabel("trained with", color=GREY)
    axes.set_ylabel("task", color=GREY)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    figure.tight_layout()
    return figure


def front_plot(front: Any, x: str, y: str, *, shown: str | None = None) -> go.Figure:
    """Scores of two tasks for every trained balance, with 95 % intervals; fixed weights that none beats in both are
    joined by a line. ``shown`` marks one point by name.

    ``front`` is a :class:`~workbench.analysis.balance_front.Front`. Raises ValueError on an unknown task or point.
    """
    if odd := [task for task in (x, y) if task not in front.tasks]:
        raise ValueError(f"no task {odd[0]!r} in this sweep; it has {list(front.tasks)}")
    fig = base_figure(go.Figure(), 430, b=90)
    edge = [_point(front, name, x, y) for name in front.edge(x, y)]
    fig.add_scatter(
        x=[p[0][0] for p in edge], y=[p[1][0] for p in edge], mode="lines", name="front of fixed weights",
        showlegend=True, line={"color": STATIC, "width": 1.5, "dash": "dot"},
        marker={"color": STATIC, "symbol": "circle"}, hoverinfo="skip",
    )  # fmt: skip
    kinds = {"static": ("fixed weights", STATIC, "circle"), "method": ("methods", METHOD, "diamond")}
    for kind, (title, colour, symbol) in kinds.items():
        for i, name in enumerate(front.points.name[front.points.kind == kind]):
            _add_point(fig, _point(front, name, x, y), name, title if i == 0 else None, colour, symbol, title)
    if shown is not None:
        _add_point(fig, _point(front, shown, x, y), shown, plot_text(f"shown: {shown}", 60), SHOWN, "square", "shown")
    metrics = front.scores.drop_duplicates("task").set_index("task").metric
    fig.update_xaxes(title_text=plot_text(f"{x}: {metrics[x]}"), title_standoff=6)
    fig.update_yaxes(title_text=plot_text(f"{y}: {metrics[y]}"))
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}
    fig.update_layout(legend=legend)
    return fig


def _point(front: Any, name: str, x: str, y: str) -> np.ndarray:
    """Value, low and high of both tasks (2, 3)."""
    return np.asarray(front.at(name).set_index("task").loc[[x, y], ["value", "low", "high"]], float)


def _add_point(
    fig: go.Figure, point: np.ndarray, name: str, legend: str | None, colour: str, symbol: str, group: str
) -> None:
    across, along = point[:1], point[1:]
    fig.add_scatter(
        x=gaps(across[:, 0]), y=gaps(along[:, 0]), mode="markers", name=legend or plot_text(name, NAME_LIMIT),
        showlegend=legend is not None, legendgroup=group,
        marker={"color": colour, "symbol": symbol, "size": 14 if group == "shown" else 9},
        error_x=_bars(across, colour), error_y=_bars(along, colour),
        hovertemplate=f"{plot_text(name)}<br>%{{x:.3f}}, %{{y:.3f}}<extra></extra>",
    )  # fmt: skip


def _bars(values: np.ndarray, colour: str) -> dict[str, Any]:
    """Error bars of rows (n, 3) of value, low, high; none where the interval is unknown."""
    return {
        "type": "data", "symmetric": False, "color": colour, "thickness": 1.2, "width": 3,
        "array": np.maximum(np.nan_to_num(values[:, 2] - values[:, 0]), 0),
        "arrayminus": np.maximum(np.nan_to_num(values[:, 0] - values[:, 1]), 0),
    }  # fmt: skip
