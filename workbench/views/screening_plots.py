"""A screening as figures: what a video's timeline says when, and where model and rule disagree."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.screening import REVIEW, Screening
from workbench.analysis.timeline import Timeline
from workbench.data.synthetic.flash import MAX_TRANSITIONS
from workbench.views.style import GREY, OKABE_ITO, base_figure, gaps, plot_text, words_only

REVIEW_COLOURS = dict(zip(REVIEW, (OKABE_ITO[1], OKABE_ITO[5], OKABE_ITO[3], OKABE_ITO[2]), strict=True))
_MINUTES_FROM = 180.0  # a video longer than this has its axis in minutes
_PANEL_PX = 150


def timeline_plot(timeline: Timeline) -> go.Figure:
    """The safety probability (smoothed; dotted as it was said) with its threshold and the events as bars above it; the
    quality, where the run has one; and the flashes in any one second with the rule's limit, where they were counted."""
    table, roles = timeline.table, timeline.roles
    unit, scale = ("min", 60.0) if timeline.duration_seconds > _MINUTES_FROM else ("s", 1.0)
    middle = (table["start_seconds"] + table["end_seconds"]).to_numpy(float) / 2 / scale
    judged = bool(table["rule_unsafe"].notna().any())
    titles = [f"probability of {plot_text(roles.safety.classes[1] if roles.safety.classes else roles.safety.name)}"]
    titles += [plot_text(roles.quality.name)] if roles.quality else []
    titles += ["flashes in a second"] if judged else []
    fig = make_subplots(rows=len(titles), cols=1, shared_xaxes=True, vertical_spacing=0.22 / len(titles))
    base_figure(fig, 70 + _PANEL_PX * len(titles))
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"})
    for row, title in enumerate(titles, 1):
        fig.update_yaxes(title_text=title, row=row, col=1)
    raw = ("each window", GREY, "dot") if timeline.smoothing > 1 else ("each window", OKABE_ITO[0], "solid")
    _line(fig, 1, middle, table[f"{roles.safety.name}_raw"], *raw)
    if timeline.smoothing > 1:
        name = f"mean of {timeline.smoothing} windows"
        _line(fig, 1, middle, table[timeline.safety_column], name, OKABE_ITO[0], "solid")
    _events(fig, timeline, scale)
    if np.isfinite(timeline.operating_point.threshold):
        _limit(fig, 1, timeline.operating_point.threshold)
    fig.update_yaxes(range=[-0.03, 1.12], row=1, col=1)
    if roles.quality:
        _line(fig, 2, middle, table[roles.quality.name], plot_text(roles.quality.name), OKABE_ITO[2], "solid")
    if judged:
        for column, colour in (("general_flashes", OKABE_ITO[4]), ("red_flashes", OKABE_ITO[1])):
            _line(fig, len(titles), middle, table[column], column.replace("_", " "), colour, "solid")
        _limit(fig, len(titles), MAX_TRANSITIONS / 2)
        fig.update_yaxes(rangemode="tozero", row=len(titles), col=1)
    fig.update_xaxes(range=[0, timeline.duration_seconds / scale])
    fig.update_xaxes(title_text=f"time in the video ({unit})", title_standoff=6, row=len(titles), col=1)
    return fig


def _line(fig: go.Figure, row: int, x: np.ndarray, y: object, name: str, colour: str, dash: str) -> None:
    fig.add_scatter(
        x=x, y=gaps(np.asarray(y, float)), row=row, col=1, mode="lines", name=name, showlegend=True,
        line={"color": colour, "dash": dash, "width": 2 if dash == "solid" else 1.2}, marker={"color": colour},
        hovertemplate=f"{name}<br>%{{x:.2f}}: %{{y:.3f}}<extra></extra>",
    )  # fmt: skip


def _limit(fig: go.Figure, row: int, value: float) -> None:
    fig.add_hline(y=value, line={"color": GREY, "dash": "dash", "width": 1.2}, row=row, col=1)


def _events(fig: go.Figure, timeline: Timeline, scale: float) -> None:
    """One bar per event above the curve, coloured by who flags it."""
    for review in REVIEW[:3]:
        part = timeline.events[timeline.events["review"] == review]
        if not len(part):
            continue
        x = [v for s, e in zip(part["start_seconds"], part["end_seconds"], strict=True) for v in (s, e, np.nan)]
        fig.add_scatter(
            x=gaps(np.array(x) / scale), y=[1.06] * len(x), row=1, col=1, mode="lines", showlegend=True,
            name=f"event: {review}", line={"color": REVIEW_COLOURS[review], "width": 6}, hoverinfo="name",
            marker={"color": REVIEW_COLOURS[review]},
        )  # fmt: skip


def agreement_plot(screening: Screening) -> go.Figure:
    """How many clips the model flags, and how many the flash rule does, as a table of two by two.

    A clip that the rule could not judge is left out. Says so in words where the rule was not asked.
    """
    known = screening.table[screening.table["rule_unsafe"].notna()]
    fig = base_figure(go.Figure(), 230)
    if known.empty:
        return words_only(fig, "the flash rule was not asked")
    flagged, unsafe = known["flagged"].to_numpy(bool), known["rule_unsafe"].to_numpy(bool)
    counts = np.array([[int(((flagged == f) & (unsafe == u)).sum()) for u in (False, True)] for f in (True, False)])
    fig.add_heatmap(
        z=counts / max(1, counts.max()), text=counts.astype(str), texttemplate="%{text}", zmin=0, zmax=1,
        colorscale="Blues", showscale=False, x=[0, 1], y=[0, 1], hoverinfo="text",
    )  # fmt: skip
    fig.update_xaxes(tickvals=[0, 1], ticktext=["within the limit", "over the limit"], title_text="flash rule")
    fig.update_yaxes(
        tickvals=[0, 1], ticktext=["flagged", "not flagged"], title_text="model", autorange="reversed", showgrid=False
    )
    fig.update_layout(meta={"max_width": 460})
    return fig
