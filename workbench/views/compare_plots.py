"""Plots of many runs: worth against cost, what their setups are, how alike their answers, class by class."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.views.style import (
    GREY,
    OKABE_ITO,
    LineStyle,
    base_figure,
    gaps,
    line_styles,
    number,
    plot_text,
    shorten,
    words_only,
)

COSTS = {
    "trainable_parameters": "trainable parameters", "train_seconds": "training, seconds",
    "peak_memory_mib": "peak memory, MiB",
}  # fmt: skip
_SHORT = {"trainable_parameters": "parameters", "train_seconds": "seconds", "peak_memory_mib": "memory, MiB"}
NAME_LIMIT = 34
TEXT_IN_CELLS = 12
MOST_CLASSES = 40
MOST_AXES = 8
MOST_TICKS = 6


def pareto_plot(
    rows: pd.DataFrame, front: pd.Series, cost: str, *, styles: Mapping[str, LineStyle] | None = None
) -> go.Figure:
    """Metric of each run with its 95 % interval against one cost; runs on the ``front`` are joined by a step line.

    ``rows``: ``run, metric, value, low, high`` and the cost, of one task; ``front`` bool by the same index, as
    :func:`~workbench.analysis.comparing.front.pareto` gives it. A run whose value or cost is unknown is left out.
    """
    shown = rows[rows["value"].notna() & rows[cost].notna()]
    fig = base_figure(go.Figure(), 400, b=70)
    if shown.empty:
        return words_only(fig, f"no run recorded its {COSTS.get(cost, cost)}")
    styles = styles or line_styles(rows["run"])
    edge = shown[front.loc[shown.index]].sort_values([cost, "value"])
    fig.add_scatter(
        x=np.repeat(edge[cost].to_numpy(float), 2)[1:], y=np.repeat(edge["value"].to_numpy(float), 2)[:-1],
        mode="lines", name="front", showlegend=True, line={"color": GREY, "width": 1.5, "dash": "dot"},
        marker={"color": GREY, "symbol": "circle", "size": 1}, hoverinfo="skip",
    )  # fmt: skip
    for place, line in shown.iterrows():
        style = styles[str(line["run"])]
        name = plot_text(line["run"], NAME_LIMIT)
        fig.add_scatter(
            x=[line[cost]], y=[line["value"]], mode="markers", name=name, showlegend=True, meta=str(line["run"]),
            marker={"color": style.colour, "symbol": style.symbol, "size": 12 if front[place] else 8},
            error_y=_bars(line["value"], line["low"], line["high"], style.colour),
            hovertemplate=f"{plot_text(line['run'])}<br>{COSTS.get(cost, cost)}: %{{x:,.4g}}<br>%{{y:.3f}}"
            f"{'<br>on the front' if front[place] else ''}<extra></extra>",
        )  # fmt: skip
    wide = shown[cost].min() > 0 and shown[cost].max() > 8 * shown[cost].min()
    axis: dict[str, Any] = {"type": "log", "dtick": 1} if wide else {"rangemode": "tozero"}
    fig.update_xaxes(title_text=COSTS.get(cost, cost), title_standoff=6, **axis)
    fig.update_yaxes(title_text=plot_text(shown["metric"].iloc[0]))
    return legend_below(fig, [str(n) for n in shown["run"]])


def setup_plot(
    differences: pd.DataFrame,
    rows: pd.DataFrame,
    *,
    styles: Mapping[str, LineStyle] | None = None,
) -> go.Figure:
    """The setups as lines over parallel axes: what differs between them, what they cost and what they score.

    ``differences``: of ``comparison.differences()``; ``rows``: of ``comparison.table`` for one task. Numbers stand by
    size (logarithmically where they span more than a factor of 20), words in the order met.
    """
    styles = styles or line_styles(rows["run"])
    runs = [str(name) for name in rows["run"]]
    axes = _setup_axes(differences, rows, runs)
    fig = base_figure(go.Figure(), 380, t=40, b=70, l=50, r=60)
    if len(runs) < 2:
        return words_only(fig, "one run alone: nothing differs")
    low, high = -0.15, len(axes) - 1 + 0.35
    words: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for place, (title, values) in enumerate(axes.items()):
        axes[title], ticks = _scaled(values)
        along = (place - low) / (high - low)
        dashed = {"color": GREY, "width": 1, "dash": "dash"}
        lines.append({"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "yref": "y domain", "line": dashed})
        words.append({"text": plot_text(title, 11), "x": along, "y": 1.03, "xanchor": "center"})
        words += [
            {"text": plot_text(text, 18), "x": along + 0.01, "y": (height + 0.06) / 1.12, "xanchor": "left",
             "yanchor": "middle"}
            for height, text in ticks
        ]  # fmt: skip
    # All at once: plotly checks the whole list again for each one that is added.
    paper = {"xref": "paper", "yref": "paper", "showarrow": False, "font": {"size": 13}}
    fig.update_layout(annotations=[word | paper for word in words], shapes=lines)
    traces = []
    for i, name in enumerate(runs):
        style = styles[name]
        traces.append(
            go.Scatter(
                x=list(range(len(axes))), y=gaps([values[i] for values in axes.values()]), mode="lines+markers",
                name=plot_text(name, NAME_LIMIT), showlegend=True, meta=name,
                line={"color": style.colour, "dash": style.dash, "width": 2},
                marker={"color": style.colour, "symbol": style.symbol, "size": 7},
                hovertemplate=f"{plot_text(name)}<extra></extra>",
            )
        )  # fmt: skip
    fig.add_traces(traces)
    fig.update_xaxes(range=[low, high], showticklabels=False, showgrid=False)
    fig.update_yaxes(range=[-0.06, 1.06], showticklabels=False, showgrid=False)
    return legend_below(fig, runs)


def _setup_axes(differences: pd.DataFrame, rows: pd.DataFrame, runs: list[str]) -> dict[str, list[Any]]:
    """Axis title -> one value per run: setup fields first, then costs that are known, the metric last."""
    fields = [what for what in differences.index if str(what).startswith("setup.") and what != "setup.seed"]
    costs = [cost for cost in COSTS if rows[cost].notna().any()]
    room = MOST_AXES - len(costs) - 1
    axes: dict[str, list[Any]] = {
        what.removeprefix("setup."): [differences.loc[what].get(run, "–") for run in runs] for what in fields[:room]
    }
    axes |= {_SHORT[cost]: rows[cost].tolist() for cost in costs}
    return axes | {str(rows["metric"].iloc[0]): rows["value"].tolist()}


def _scaled(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1, and (height, text) of the ticks."""
    try:
        numbers = np.array([float(v) for v in values])
    except (TypeError, ValueError):
        words = list(dict.fromkeys(str(v) for v in values))
        at = {word: i / max(1, len(words) - 1) if len(words) > 1 else 0.5 for i, word in enumerate(words)}
        step = max(1, math.ceil(len(words) / (2 * MOST_TICKS)))
        return [at[str(v)] for v in values], [(at[word], word) for word in words[::step]]
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return [math.nan] * len(values), []
    log = known.min() > 0 and known.max() > 20 * known.min()
    heights, sizes = (np.log(numbers), np.log(known)) if log else (numbers, known)
    span = sizes.max() - sizes.min()
    scaled = (heights - sizes.min()) / span if span > 0 else np.where(np.isfinite(heights), 0.5, np.nan)
    order = np.argsort(scaled)
    ticks: list[tuple[float, str]] = []
    for i in order[np.isfinite(scaled[order])]:
        if not ticks or scaled[i] - ticks[-1][0] > 0.08:
            ticks.append((float(scaled[i]), _brief(float(numbers[i]))))
    return scaled.tolist(), ticks


def _brief(value: float) -> str:
    """``1.2 M``, ``35.0``, ``0.001``: short enough to stand beside an axis."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def agreement_plot(table: pd.DataFrame, measure: str) -> go.Figure:
    """How alike the answers of each two runs are, as a heat map; ``table`` of ``comparison.agreement()``."""
    names = [str(n) for n in table.index]
    values = table.to_numpy(float)
    fig = go.Figure()
    places = list(range(len(names)))
    few = len(names) <= TEXT_IN_CELLS
    fig.add_heatmap(
        z=[gaps(row) for row in values],
        x=places,
        y=places,
        text=[[f"{v:.2f}" if few and np.isfinite(v) else "" for v in row] for row in values],
        texttemplate="%{text}",
        hovertext=[
            [
                f"{plot_text(a)}<br>{plot_text(b)}<br>{measure} {number(float(v))}"
                for b, v in zip(names, row, strict=True)
            ]
            for a, row in zip(names, values, strict=True)
        ],
        hoverinfo="text",
        colorscale="Blues",
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": measure, "font": {"size": 12}}, "thickness": 12, "len": 0.8, "outlinewidth": 0},
    )
    base_figure(fig, int(np.clip(150 + 34 * len(names), 260, 760)), r=10, t=10)
    fig.update_layout(meta={"max_width": int(np.clip(420 + 60 * len(names), 560, 1000))})
    ticks: dict[str, Any] = {"tickvals": places, "ticktext": [plot_text(n, 24) for n in names], "showgrid": False}
    crowded = sum(len(shorten(n, 24)) + 2 for n in names) > 60
    fig.update_xaxes(tickangle=-45 if crowded else 0, **ticks)
    fig.update_yaxes(autorange="reversed", **ticks)
    return fig


def class_plot(table: pd.DataFrame, first: str, second: str) -> go.Figure:
    """Difference in recall class by class with its paired 95 % interval; right of the line the first run is better.

    ``table`` of ``comparison.per_class(first, second)``. Of more than 40 classes those with the largest differences.
    """
    shown = table.reindex(table["difference"].abs().sort_values(ascending=False, kind="stable").index[:MOST_CLASSES])
    shown = shown.sort_values("difference", ascending=False, kind="stable")
    fig = make_subplots(rows=1, cols=1)
    base_figure(fig, 90 + 26 * max(1, len(shown)), t=30)
    if shown.empty:
        return words_only(fig, "no class has labelled clips")
    for sign, colour in ((1, OKABE_ITO[0]), (-1, OKABE_ITO[1]), (0, GREY)):
        part = shown.assign(place=range(len(shown)))[np.sign(shown["difference"]) == sign]
        if len(part):
            _class_dots(fig, part, colour)
    fig.add_vline(x=0, line={"color": GREY, "dash": "dash", "width": 1.5})
    labels = [plot_text(name, NAME_LIMIT) + "  " for name in shown["class"]]
    fig.update_yaxes(tickvals=list(range(len(shown))), ticktext=labels, range=[len(shown) - 0.4, -0.6], showgrid=False)
    ends = np.nan_to_num(shown[["difference", "low", "high"]].to_numpy(float))
    edge = 1.06 * max(0.05, float(np.abs(ends).max()))
    title = f"recall: {shorten(first, NAME_LIMIT)} minus {shorten(second, NAME_LIMIT)}"
    fig.update_xaxes(title_text=plot_text(title), range=[-edge, edge])
    return fig


def _class_dots(fig: go.Figure, part: pd.DataFrame, colour: str) -> None:
    """The classes of one sign: a stem from zero, a dot, and its interval."""
    size, places = part["difference"].tolist(), part["place"].tolist()
    fig.add_scatter(
        x=[v for end in size for v in (0, end, None)], y=[p for p in places for _ in range(3)], mode="lines",
        showlegend=False, hoverinfo="skip", line={"color": colour, "width": 6},
        marker={"color": colour, "symbol": "circle", "size": 1},
    )  # fmt: skip
    known = np.isfinite(part["low"].to_numpy(float))
    words = [
        f"{plot_text(row[1])}: {row.difference:+.3f}"
        + ("" if math.isnan(row.low) else f" [{row.low:+.2f}, {row.high:+.2f}]")
        + f"<br>{row.n} clips, {row.groups} groups"
        for row in part.itertuples(index=True)
    ]
    fig.add_scatter(
        x=size, y=places, mode="markers", showlegend=False, name="classes", meta="classes",
        customdata=[str(name) for name in part["class"]], hovertext=words,
        hovertemplate="%{hovertext}<extra></extra>", marker={"color": colour, "size": 11, "symbol": "circle"},
        error_x={
            "type": "data", "symmetric": False, "color": colour, "thickness": 1.5, "width": 4,
            "array": np.where(known, part["high"] - part["difference"], 0.0).tolist(),
            "arrayminus": np.where(known, part["difference"] - part["low"], 0.0).tolist(),
        },
    )  # fmt: skip


def curve_bands(curves: pd.DataFrame, fig: go.Figure, styles: Mapping[str, LineStyle]) -> None:
    """Add to learning curves the band from worst to best seed of every setup that has several."""
    for name, part in curves[curves["seeds"] > 1].groupby("setup", sort=False):
        for column, key in ((1, "train_loss"), (2, "score")):
            low, high = part[f"{key}_low"], part[f"{key}_high"]
            fig.add_scatter(
                x=[*part["epoch"], *part["epoch"][::-1]], y=gaps([*high, *low[::-1]]), row=1, col=column, mode="lines",
                fill="toself", fillcolor=_faint(styles[str(name)].colour), line={"width": 0}, hoverinfo="skip",
                marker={"color": styles[str(name)].colour}, showlegend=False,
            )  # fmt: skip


def _faint(colour: str) -> str:
    """A ``#rrggbb`` colour, mostly see-through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _bars(value: float, low: float, high: float, colour: str) -> dict[str, Any]:
    """Error bars from the ends of an interval; none where it is unknown."""
    known = math.isfinite(low) and math.isfinite(high)
    return {
        "type": "data", "symmetric": False, "color": colour, "thickness": 1.5, "width": 4,
        "array": [high - value if known else 0.0], "arrayminus": [value - low if known else 0.0],
    }  # fmt: skip


def legend_below(fig: go.Figure, names: list[str]) -> go.Figure:
    """Room below the plot for a legend of these names."""
    rows = -(-len(names) // max(1, 110 // (max((len(shorten(n, NAME_LIMIT)) for n in names), default=1) + 6)))
    fig.update_layout(
        height=fig.layout.height + 21 * rows,
        legend={
            "orientation": "h",
            "x": 0,
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "bgcolor": "rgba(0,0,0,0)",
        },
    )
    return fig
