"""Plots of runs, comparisons and errors: plotly figures that read on light and dark pages; and a filmstrip."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.comparing.curves import curves_of
from workbench.views.compare_plots import curve_bands, legend_below
from workbench.views.error_plots import confusion_plot, residual_plot
from workbench.views.players import heat_scale, overlay
from workbench.views.style import GREY, LineStyle, base_figure, gaps, line_styles, plot_text, shorten, words_only

__all__ = [
    "comparison_plot", "confusion_plot", "difference_plot", "filmstrip", "heat_curve", "learning_curves", "named_runs",
    "residual_plot",
]  # fmt: skip

NAME_LIMIT = 34


def named_runs(runs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Runs by name, whether they come as a mapping or as a list of runs with a ``.name``."""
    if isinstance(runs, Mapping):
        return {str(k): v for k, v in runs.items()}
    named = {str(r.name): r for r in runs}
    if len(named) != len(runs):
        raise ValueError(f"two runs share a name: {[r.name for r in runs]}; pass a mapping with names of your own")
    return named


def learning_curves(
    runs: Mapping[str, Any] | Sequence[Any],
    *,
    task: str | None = None,
    styles: Mapping[str, LineStyle] | None = None,
    setups: Mapping[str, Mapping[int, str]] | None = None,
) -> go.Figure:
    """Train loss and validation score by epoch, one line per run in its own colour; the larger dot is the epoch kept.

    ``task`` shows that task's own validation metric (``val_<task>``) where the history has it. ``setups`` (``{setup:
    {seed: run}}``, as ``comparison.setups``) draws runs that differ in their seed only as one line, their mean, in a
    band from the worst to the best seed.
    """
    named = named_runs(runs)
    groups = setups if setups is not None else {name: {0: name} for name in named}
    known = {name: [run for run in members.values() if run in named] for name, members in groups.items()}
    members = {name: own for name, own in known.items() if own}
    styles = styles or line_styles(named)
    drawn = {name: styles[own[0]] for name, own in members.items()}
    fig = make_subplots(
        rows=1,
        cols=2,
        horizontal_spacing=0.11,
        subplot_titles=("train loss", plot_text(f"validation score{f', {task}' if task else ''}")),
    )
    curves = curves_of(named, groups, task)
    for name, part in curves.groupby("setup", sort=False):
        style = drawn[str(name)]
        record = getattr(named[members[str(name)][0]], "record", None) or {}
        best = record.get("kept_epoch") if len(members[str(name)]) == 1 else None
        for column, key in ((1, "train_loss"), (2, "score")):
            fig.add_scatter(
                x=part["epoch"], y=gaps(part[key]), row=1, col=column, meta=members[str(name)][0],
                **_line(str(name), style, legend=column == 1),
                marker_size=[11 if column == 2 and e == best else 5 for e in part["epoch"]],
                hovertemplate=f"{plot_text(name)}<br>epoch %{{x}}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
    curve_bands(curves, fig, drawn)
    base_figure(fig, 300)
    if not named:
        return words_only(fig, "no runs")
    fig.update_xaxes(title_text="epoch", title_standoff=6)
    return legend_below(fig, list(members))


def _line(name: str, style: LineStyle, *, legend: bool) -> dict[str, Any]:
    return {
        "mode": "lines+markers",
        "name": plot_text(name, NAME_LIMIT),
        "legendgroup": plot_text(name),
        "showlegend": legend,
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"color": style.colour, "symbol": style.symbol, "line": {"width": 0}},
    }


def comparison_plot(
    comparison: Any,
    task: str | None = None,
    *,
    chance: Mapping[str, float] | None = None,
    styles: Mapping[str, LineStyle] | None = None,
) -> go.Figure:
    """Main metric of each run as a dot with its 95 % interval, one panel per task; a dashed line marks ``chance``.

    ``comparison.table`` has one row per run and task with ``run, task, metric, value, low, high`` (and ``n``).
    """
    return _dots(
        comparison.table, task, ("value", "low", "high"), marks=chance or {}, mark_name="guessing", styles=styles
    )


def difference_plot(
    comparison: Any, task: str | None = None, *, styles: Mapping[str, LineStyle] | None = None
) -> go.Figure:
    """Difference of each run to the reference with its paired 95 % interval; the line at 0 is "no difference".

    Uses the columns ``difference, difference_low, difference_high, verdict`` of ``comparison.table``.
    """
    table: pd.DataFrame = comparison.table
    styles = styles or line_styles(table["run"])
    shown = table[table["difference"].notna()]
    zero = {str(t): 0.0 for t in table["task"].unique()}
    columns = ("difference", "difference_low", "difference_high")
    return _dots(shown, task, columns, marks=zero, mark_name="no difference", styles=styles)


def _dots(
    table: pd.DataFrame,
    task: str | None,
    columns: tuple[str, str, str],
    *,
    marks: Mapping[str, float],
    mark_name: str,
    styles: Mapping[str, LineStyle] | None,
) -> go.Figure:
    styles = styles or line_styles(table["run"])
    tasks = [str(t) for t in table["task"].unique()] if task is None else [task]
    parts = [table[table["task"] == t] for t in tasks]
    if task is not None and parts[0].empty and not table.empty:
        raise ValueError(f"no task {task!r} in this comparison; it has {sorted(table['task'].unique())}")
    rows = [max(1, len(p)) for p in parts] or [1]
    height = 60 * len(rows) + 30 * sum(rows)
    fig = make_subplots(
        rows=len(rows),
        cols=1,
        row_heights=rows,
        vertical_spacing=62 / max(height, 1) if len(rows) > 1 else 0,
        subplot_titles=[_panel_title(p, t, mark_name, marks) for p, t in zip(parts, tasks, strict=True)],
    )
    base_figure(fig, height + 20)
    fig.update_annotations(x=0, xanchor="left", font={"size": 13})
    if table.empty:
        return words_only(fig, "nothing to compare")
    for i, (part, name) in enumerate(zip(parts, tasks, strict=True), start=1):
        _dot_panel(fig, i, part, columns, styles)
        _fit_range(fig, i, part, columns, marks.get(name))
        if name in marks:
            fig.add_vline(x=marks[name], line={"color": GREY, "dash": "dash", "width": 1.5}, row=i, col=1)
    return fig


def _panel_title(part: pd.DataFrame, task: str, mark_name: str, marks: Mapping[str, float]) -> str:
    if part.empty:
        return plot_text(task)
    first = part.iloc[0]
    n = f", n = {int(first['n'])}" if "n" in part and pd.notna(first["n"]) else ""
    mark = f"  (dashed: {mark_name})" if task in marks else ""
    return plot_text(f"{shorten(task)}: {first['metric']}{n}{mark}")


def _fit_range(fig: go.Figure, row: int, part: pd.DataFrame, columns: Sequence[str], mark: float | None) -> None:
    """Room around the outermost interval and the marked value, so that neither lies on the edge."""
    values = np.append(part[list(columns)].to_numpy(float).ravel(), np.nan if mark is None else mark)
    if np.isfinite(values).any():
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        pad = 0.04 * (high - low) or 0.05
        fig.update_xaxes(range=[low - pad, high + pad], row=row, col=1)


def _dot_panel(
    fig: go.Figure, row: int, part: pd.DataFrame, columns: tuple[str, str, str], styles: Mapping[str, LineStyle]
) -> None:
    middle, low, high = columns
    traces = []
    for y, (_, line) in enumerate(part.iterrows()):
        style = styles[str(line["run"])]
        verdict = f"<br>{plot_text(line['verdict'])}" if middle == "difference" and line.get("verdict") else ""
        traces.append(
            go.Scatter(
                x=gaps([line[middle]]), y=[y], mode="markers", name=plot_text(line["run"], NAME_LIMIT),
                showlegend=False, meta=str(line["run"]),
                marker={"color": style.colour, "size": 11, "symbol": style.symbol},
                error_x={
                    "type": "data", "symmetric": False, "color": style.colour, "thickness": 2, "width": 5,
                    "array": gaps([line[high] - line[middle]]), "arrayminus": gaps([line[middle] - line[low]]),
                },
                hovertemplate=f"{plot_text(line['run'])}<br>{plot_text(line['metric'])} {line[middle]:.3f}"
                f" [{line[low]:.3f}, {line[high]:.3f}]{verdict}<extra></extra>",
            )
        )  # fmt: skip
    # All at once: each call checks the whole figure again.
    fig.add_traces(traces, rows=[row] * len(traces), cols=[1] * len(traces))
    # Positions instead of category names: two long names that shorten to the same text stay two rows.
    fig.update_yaxes(
        row=row,
        col=1,
        tickvals=list(range(len(part))),
        ticktext=[plot_text(n, NAME_LIMIT) + "  " for n in part["run"]],
        range=[len(part) - 0.4, -0.6],
        showgrid=False,
    )


def heat_curve(heats: Mapping[str, np.ndarray]) -> go.Figure:
    """Mean absolute heat of each frame, one line per name; ``heats`` are float ``(T, H, W)`` per frame."""
    fig = go.Figure()
    styles = line_styles(heats)
    for name, heat in heats.items():
        fig.add_scatter(
            x=list(range(len(heat))), y=np.abs(heat).mean(axis=(1, 2)),
            **_line(name, styles[name], legend=len(heats) > 1),
            hovertemplate=f"{plot_text(name)}<br>frame %{{x}}: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    base_figure(fig, 190, t=10)
    fig.update_xaxes(title_text="frame", title_standoff=4)
    fig.update_yaxes(title_text="mean |heat|", rangemode="tozero", nticks=5)
    return fig


class ShownFigure(matplotlib.figure.Figure):
    """A figure that shows itself as a cell's value, whichever Matplotlib backend the notebook has set."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()


def filmstrip(
    frames: np.ndarray, heat: np.ndarray | None = None, *, signed: bool = False, columns: int = 8, opacity: float = 0.7
) -> ShownFigure:
    """``columns`` frames spread over a clip uint8 ``(T, H, W, 3)``; with ``heat`` (T, H, W) a tinted row below."""
    rows = [frames]
    if heat is not None:
        rows.append(overlay(frames, heat, signed=signed, opacity=opacity, scale=heat_scale([heat], signed=signed)))
    picks = np.unique(((np.arange(columns) + 0.5) * len(frames) / columns).astype(int))
    ratio = frames.shape[1] / frames.shape[2]
    figure = ShownFigure(figsize=(1.4 * len(picks), (1.4 * ratio + 0.1) * len(rows) + 0.25), dpi=100)
    axes = figure.subplots(len(rows), len(picks), squeeze=False)
    for r, row in enumerate(rows):
        for c, t in enumerate(picks):
            axes[r, c].imshow(row[t])
            axes[r, c].set_axis_off()
            if r == 0:
                axes[r, c].set_title(f"frame {t}", fontsize=9, color=GREY)
    figure.patch.set_alpha(0)
    figure.subplots_adjust(0, 0, 1, 1 - 0.25 / figure.get_figheight(), 0.03, 0.03)
    return figure
