"""The evidence beside a map, and a report on methods as figures: metrics against priors, deletion curves, cascades."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.trust.evidence import LOWER_IS_BETTER
from workbench.analysis.trust.priors import PRIORS
from workbench.views.parts import note
from workbench.views.style import DASHES, GREY, LineStyle, base_figure, gaps, line_styles, plot_text, words_only

METRIC_NAMES = {
    "deletion_blur": "deletion, blurred", "deletion_freeze": "deletion, frozen", "insertion_blur": "insertion, blurred",
    "insertion_freeze": "insertion, frozen", "road": "ROAD", "infidelity": "infidelity",
    "sensitivity_max": "largest sensitivity", "pointing": "pointing game", "mass": "mass in mask",
    "temporal_mass": "mass in time", "auroc": "AUROC in mask",
}  # fmt: skip


def evidence_html(report: Any, name: str, maps: Any) -> str:
    """What a report found for the method of ``maps``, as a note; where it has nothing, that. ``name``: its label.

    ``report``: an :class:`~workbench.analysis.faithfulness.ExplanationReport` or None.
    """
    label = None if report is None else next((k for k in (name, maps.method) if k in report.verdicts), None)
    if label is None or report.task != maps.task:
        return note(
            "Evidence: none given for these maps. workbench.explanation_report(run, clips, methods) measures whether "
            "they beat a random and a motion map; hand it over as report=."
        )
    rows = report.summary[report.summary.method == label]
    found = [
        f"{METRIC_NAMES.get(r.metric, r.metric)} {r.value:.2f} [{r.low:.2f}, {r.high:.2f}] "
        f"({r.better} is better{_prior(report, r.metric)})"
        for r in rows.itertuples() if np.isfinite(r.value)
    ]  # fmt: skip
    clips = report.scores.clip_id.nunique()
    return note(f"Evidence, {clips} clips: {report.verdicts[label]}. " + "; ".join(found[:4]) + ".")


def _prior(report: Any, metric: str) -> str:
    row = report.summary[(report.summary.method == "motion") & (report.summary.metric == metric)]
    return f"; motion map {row.value.iloc[0]:.2f}" if len(row) else ""


def _styles(report: Any) -> dict[str, LineStyle]:
    """A method keeps its colour over the figures of one report."""
    return line_styles(name for name in report.ranking.method if name not in PRIORS)


def trust_plot(report: Any, metrics: Sequence[str] | None = None) -> go.Figure:
    """Every method and prior on several metrics, with 95 % intervals; a panel per metric, best methods on top.

    ``metrics``: None is all that the report has. Raises ValueError on one it has not.
    """
    known = list(dict.fromkeys(report.summary.metric))
    chosen = known if metrics is None else list(metrics)
    if not chosen or set(chosen) - set(known):
        raise ValueError(f"metrics={chosen}: this report has {known}")
    names, columns = list(report.ranking.method), min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    fig = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.3 / rows,
        subplot_titles=[f"{METRIC_NAMES.get(m, m)} {'↓' if m in LOWER_IS_BETTER else '↑'}" for m in chosen],
    )  # fmt: skip
    base_figure(fig, 60 + rows * (60 + 24 * len(names)))
    styles = _styles(report)
    for at, metric in enumerate(chosen):
        part = report.summary[report.summary.metric == metric].set_index("method")
        for y, name in enumerate(names):
            line = part.loc[name]
            colour = GREY if name in PRIORS else styles[name].colour
            fig.add_scatter(
                x=gaps([line.value]), y=[y], row=at // columns + 1, col=at % columns + 1, mode="markers",
                name=plot_text(name), showlegend=False,
                marker={"color": colour, "size": 9, "symbol": "square" if name in PRIORS else "circle"},
                error_x={"type": "data", "symmetric": False, "color": colour, "thickness": 2, "width": 4,
                         "array": gaps([line.high - line.value]), "arrayminus": gaps([line.value - line.low])},
                hovertemplate=f"{plot_text(name)}<br>%{{x:.3f}} [{line.low:.3f}, {line.high:.3f}]<extra></extra>",
            )  # fmt: skip
    ticks = [plot_text(n, 34) + "  " for n in names]
    fig.update_yaxes(tickvals=list(range(len(names))), ticktext=ticks, range=[len(names) - 0.4, -0.6])
    for at in range(len(chosen)):
        fig.update_yaxes(showticklabels=at % columns == 0, row=at // columns + 1, col=at % columns + 1)
    return fig


def perturbation_plot(report: Any, metric: str = "deletion_blur") -> go.Figure:
    """The output's score while tubes are taken away (or put back), most important first: mean over clips.

    Priors are grey. The area under each line, with its interval, is in :func:`trust_plot`.
    Raises ValueError where the report has no such curves.
    """
    curves = {name: curve for (name, found), curve in report.curves.items() if found == metric}
    if not curves:
        raise ValueError(f"no curves of {metric!r}; this report has {sorted({m for _, m in report.curves})}")
    fig, styles = go.Figure(), _styles(report)
    for name, curve in curves.items():
        x = np.linspace(0, 100, curve.shape[1])
        grey = name in PRIORS
        colour, dash = (GREY, DASHES[1 + PRIORS.index(name) % 3]) if grey else (styles[name].colour, "solid")
        fig.add_scatter(
            x=x, y=curve.mean(0), mode="lines+markers", name=plot_text(name), showlegend=True,
            line={"color": colour, "width": 2, "dash": dash}, marker={"color": colour, "size": 4},
            hovertemplate=f"{plot_text(name)}<br>%{{x:.0f}} %: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    base_figure(fig, 320, t=10)
    verb = "put back" if metric.startswith("insertion") else "taken away"
    fig.update_xaxes(title_text=f"tubes {verb}, %", title_standoff=6)
    fig.update_yaxes(title_text="score of the target", rangemode="tozero")
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": -0.25, "yanchor": "top"})
    return fig


def randomisation_plot(report: Any) -> go.Figure:
    """How like itself each method's map stays while weights are shuffled from the head down: Spearman, mean of clips.

    A line that stays near 1 is a map that does not depend on the model.
    """
    fig, table = base_figure(go.Figure(), 320, t=10), report.randomisation
    if table is None or table.empty:
        return words_only(fig, "not measured: explanation_report(..., randomise=True)")
    stages, styles = list(dict.fromkeys(table.stage)), _styles(report)
    for name in dict.fromkeys(table.method):
        style = styles[name]
        part = table[table.method == name].groupby("stage").spearman_absolute.mean().reindex(stages)
        fig.add_scatter(
            x=list(range(len(stages))), y=gaps(part), mode="lines+markers", name=plot_text(name), showlegend=True,
            line={"color": style.colour, "width": 2, "dash": style.dash}, marker={"color": style.colour, "size": 6},
            hovertemplate=f"{plot_text(name)}<br>%{{y:.2f}}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(tickvals=list(range(len(stages))), ticktext=[plot_text(s, 18) for s in stages])
    fig.update_xaxes(title_text="weights shuffled, from the head down to here", title_standoff=6)
    fig.update_yaxes(title_text="rank correlation with the map", range=[-0.3, 1.05])
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": -0.25, "yanchor": "top"})
    return fig
