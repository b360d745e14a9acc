"""What damage, another order and other clips do to a score, as figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.robustness import CLEAN
from workbench.views.plots import NAME_LIMIT
from workbench.views.style import GREY, base_figure, gaps, line_styles, plot_text, words_only

_COLUMNS = 4


def robustness_curves(report: Any, task: str | None = None, corruptions: Sequence[str] | None = None) -> go.Figure:
    """Score against severity, a panel per corruption, a line per run with its 95 % interval; chance is dashed.

    ``report``: a :class:`~workbench.analysis.robustness.Robustness`; ``task``: None is its first. Raises ValueError for
    a task or corruption that was not measured.
    """
    task = _task(report, task)
    kinds = [k for k in report.table.corruption.unique() if k != CLEAN]
    chosen = kinds if corruptions is None else list(corruptions)
    if odd := [k for k in chosen if k not in kinds]:
        raise ValueError(f"corruption {odd[0]!r} was not measured; there are {kinds}")
    names = list(report.table.run.unique())
    rows, columns = -(-len(chosen) // _COLUMNS), min(_COLUMNS, len(chosen))
    fig = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, shared_xaxes=True, horizontal_spacing=0.02,
        vertical_spacing=0.28 / rows, subplot_titles=[plot_text(k.replace("_", " ")) for k in chosen],
    )  # fmt: skip
    base_figure(fig, 110 + 190 * rows)
    styles = line_styles(names)
    summary = report.summary[report.summary.task == task].set_index("run")
    for i, kind in enumerate(chosen):
        row, column = i // columns + 1, i % columns + 1
        for name in names:
            curve = report.curve(name, task, kind)
            value, low, high = (curve[c].to_numpy(float) for c in ("value", "low", "high"))
            fig.add_scatter(
                x=curve.severity, y=gaps(value), row=row, col=column, mode="lines+markers", showlegend=i == 0,
                name=plot_text(name, NAME_LIMIT), legendgroup=plot_text(name),
                line={"color": styles[name].colour, "dash": styles[name].dash},
                marker={"symbol": styles[name].symbol, "size": 8},
                error_y={"type": "data", "symmetric": False, "array": gaps(high - value),
                         "arrayminus": gaps(value - low), "thickness": 1, "width": 3},
                hovertemplate=f"{plot_text(name)}<br>severity %{{x}}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
        fig.add_hline(
            y=float(summary.chance.iloc[0]), line={"color": GREY, "dash": "dash", "width": 1.5}, row=row, col=column
        )
        fig.update_xaxes(tickvals=list(range(6)), row=row, col=column)
    fig.update_xaxes(title="severity", row=rows)
    fig.update_yaxes(title=plot_text(str(summary.metric.iloc[0])), col=1)
    return fig


def robustness_map(report: Any, run: str | None = None, task: str | None = None) -> go.Figure:
    """Change of the score to the clean one, corruption by severity; cells whose interval holds zero are in brackets.

    ``run`` and ``task``: None is the first.
    """
    task = _task(report, task)
    names = list(report.table.run.unique())
    run = names[0] if run is None else run
    if run not in names:
        raise ValueError(f"run {run!r} was not measured; there are {names}")
    rows = report.table[(report.table.run == run) & (report.table.task == task) & (report.table.corruption != CLEAN)]
    kinds, steps = list(dict.fromkeys(rows.corruption)), sorted(rows.severity.unique())
    cells = rows.set_index(["corruption", "severity"])
    change = np.array([[cells.change[k, s] for s in steps] for k in kinds], float)
    text = [[_cell(cells.loc[(k, s)]) for s in steps] for k in kinds]
    fig = base_figure(go.Figure(), 120 + 32 * len(kinds), l=10)
    if not np.isfinite(change).any():
        return words_only(fig, "no score is defined")
    limit = max(0.05, float(np.nanmax(np.abs(change))))
    fig.add_heatmap(
        z=change.tolist(), x=list(range(len(steps))), y=list(range(len(kinds))), text=text, texttemplate="%{text}",
        zmin=-limit, zmax=limit, colorscale="RdBu", colorbar={"title": "change"}, xgap=2, ygap=2,
        customdata=[[f"{plot_text(k)}, severity {s}" for s in steps] for k in kinds],
        hovertemplate="%{customdata}: %{z:+.3f}<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(title="severity", tickvals=list(range(len(steps))), ticktext=[str(s) for s in steps])
    fig.update_yaxes(
        tickvals=list(range(len(kinds))), ticktext=[plot_text(k.replace("_", " ")) for k in kinds],
        range=[len(kinds) - 0.5, -0.5],
    )  # fmt: skip
    return fig


def temporal_plot(probes: Any) -> go.Figure:
    """Score of each task on clips as they are and rearranged, with 95 % intervals; chance is dashed.

    ``probes``: a :class:`~workbench.analysis.stress.temporal.TemporalProbes`.
    """
    table: pd.DataFrame = probes.table
    tasks = list(dict.fromkeys(table.task))
    fig = make_subplots(rows=1, cols=len(tasks), horizontal_spacing=0.08, subplot_titles=[
        f"{plot_text(t, NAME_LIMIT)} ({plot_text(m)})"
        for t, m in zip(tasks, table.drop_duplicates("task").metric, strict=True)
    ])  # fmt: skip
    base_figure(fig, 300)
    styles = line_styles(tasks)
    chance = probes.motion.set_index("task").chance
    for i, task in enumerate(tasks, 1):
        part = table[table.task == task]
        value, low, high = (part[c].to_numpy(float) for c in ("value", "low", "high"))
        fig.add_scatter(
            x=list(range(len(part))), y=gaps(value), row=1, col=i, mode="markers", showlegend=False,
            text=[plot_text(p) for p in part.probe],
            marker={"color": styles[task].colour, "symbol": styles[task].symbol, "size": 11},
            error_y={"type": "data", "symmetric": False, "array": gaps(high - value), "arrayminus": gaps(value - low)},
            hovertemplate="%{text}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
        fig.update_xaxes(
            tickvals=list(range(len(part))), ticktext=[plot_text(p).replace(" ", "<br>") for p in part.probe],
            range=[-0.5, len(part) - 0.5], row=1, col=i,
        )  # fmt: skip
        fig.add_hline(y=float(chance[task]), line={"color": GREY, "dash": "dash", "width": 1.5}, row=1, col=i)
    return fig


def _task(report: Any, task: str | None) -> str:
    tasks = list(report.table.task.unique())
    if task is not None and task not in tasks:
        raise ValueError(f"task {task!r} was not measured; there are {tasks}")
    return tasks[0] if task is None else task


def _cell(row: Any) -> str:
    if np.isnan(row.change):
        return ""
    unsure = np.isnan(row.change_low) or row.change_low <= 0 <= row.change_high
    return f"({row.change:+.2f})" if unsure else f"{row.change:+.2f}"
