"""A plotly figure of ours as inline SVG: no kernel, no script, no network, and in the page's own text colour."""

import html
import io
import re
from typing import Any

import matplotlib
import matplotlib.axes
import matplotlib.colors
import matplotlib.figure
import matplotlib.ticker
import numpy as np
import plotly.graph_objects as go

from workbench.views.style import Html, max_width

_INK = "#010203"  # drawn in this colour, then replaced by currentColor
_DASH = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_SYMBOL = {"circle": "o", "diamond": "D", "square": "s", "triangle-up": "^"}
_SETTINGS: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "text.parse_math": False,
    "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.edgecolor": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.spines.bottom": False,
    "axes.linewidth": 0.6, "xtick.major.size": 0, "ytick.major.size": 0, "svg.hashsalt": "workbench",
    "grid.color": "#808080", "grid.alpha": 0.3, "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.facecolor": "none",
}  # fmt: skip
WIDTH_INCHES = 8.2
MANY_POINTS = 1000
"""A trace of more points than this becomes a picture inside the drawing."""


def still(fig: go.Figure, *, label: str = "plot") -> Html:
    """Draw ``fig`` (lines, dots with error bars, heat maps, straight lines, notes: what plots.py makes) as SVG.

    Raises ValueError for a kind of trace it does not know.
    """
    with matplotlib.rc_context(_SETTINGS):
        height = (fig.layout.height or 300) / 100
        width = min(WIDTH_INCHES, (max_width(fig) or 1000) / 100)
        figure = matplotlib.figure.Figure(figsize=(width, height))
        axes = {key: _axes(figure, fig, key) for key in _panels(fig)}
        for (_, y), ax in axes.items():
            first = next((other for (_, theirs), other in axes.items() if theirs == _axis(fig, y).matches), ax)
            if first is not ax:
                ax.sharey(first)
        for trace in fig.data:
            _draw(axes[(trace.xaxis or "x", trace.yaxis or "y")], trace)
        for (x, y), ax in axes.items():
            _dress(ax, fig, x, y)
        _words(figure, fig, list(axes.values()))
        target = io.StringIO()
        figure.patch.set_alpha(0)
        figure.savefig(target, format="svg", dpi=150, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    title = html.escape(label)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}" style="max-width:100%;height:auto" ', 1)
    return Html(f'<div class="wb-plot">{svg}</div>')


def _plain(text: Any) -> str:
    """Plotly's text (entities, line breaks) as plain text; matplotlib escapes it again for SVG."""
    return html.unescape(re.sub(r"<br\s*/?>", "\n", str(text or "")))


def _panels(fig: go.Figure) -> list[tuple[str, str]]:
    return list(dict.fromkeys((t.xaxis or "x", t.yaxis or "y") for t in fig.data))


def _axis(fig: go.Figure, name: str) -> Any:
    return fig.layout[f"{name[0]}axis{name[1:]}"]


def _axes(figure: matplotlib.figure.Figure, fig: go.Figure, key: tuple[str, str]) -> matplotlib.axes.Axes:
    (left, right), (bottom, top) = ((_axis(fig, k).domain or (0, 1)) for k in key)
    return figure.add_axes((left, bottom, right - left, top - bottom))


def _draw(ax: matplotlib.axes.Axes, trace: Any) -> None:
    if trace.type == "heatmap":
        _draw_heatmap(ax, trace)
        return
    if trace.type not in ("scatter", "scattergl"):
        raise ValueError(f"still() draws scatter and heatmap traces, not {trace.type!r}; add it in views/still.py")
    colour, name = trace.marker.color, _plain(trace.name) if trace.showlegend else None
    x, y = np.asarray(trace.x, float), np.asarray(trace.y, float)
    if trace.fill:
        _draw_band(ax, trace, x, y)
        return
    marker = _SYMBOL.get(trace.marker.symbol, "o")
    across, along = _bars(trace.error_x), _bars(trace.error_y)
    if "lines" in trace.mode:
        ax.plot(x, y, _DASH[trace.line.dash or "solid"], color=colour, lw=1.6, marker=marker, ms=3.5, label=name)
        if along is not None:
            ax.errorbar(x, y, yerr=along, fmt="none", ecolor=colour, lw=1.2, capsize=3)
        return
    if len(x) > MANY_POINTS:  # as drawn dots each would take a hundred bytes: as one picture all take a few thousand
        ax.plot(x, y, marker, color=colour, ms=2.5, alpha=0.6, mec="none", label=name, rasterized=True)
        return
    ax.errorbar(x, y, xerr=across, yerr=along, fmt=marker, color=colour, ms=7, lw=1.8, capsize=3, label=name)


def _draw_band(ax: matplotlib.axes.Axes, trace: Any, x: np.ndarray, y: np.ndarray) -> None:
    """A filled outline (``fill="toself"``), such as the band of an interval; without a legend entry of its own."""
    if trace.fill != "toself":
        raise ValueError(f"still() fills outlines with fill='toself', not {trace.fill!r}; give the closed outline")
    colour, alpha = _rgba(trace.fillcolor)
    known = np.isfinite(x) & np.isfinite(y)
    ax.fill(x[known], y[known], color=colour, alpha=alpha, lw=0, label="_band")


def _rgba(colour: str) -> tuple[Any, float]:
    """A CSS colour as matplotlib's, and its opacity: ``rgba(0,114,178,0.2)`` or ``#0072B2``."""
    found = re.fullmatch(r"rgba?\(([^)]*)\)", colour or "")
    if not found:
        return colour or "#777777", 1.0
    parts = [float(part) for part in found.group(1).split(",")]
    return tuple(part / 255 for part in parts[:3]), parts[3] if len(parts) > 3 else 1.0


def _bars(error: Any) -> np.ndarray | None:
    """Lengths of error bars, ``(2, n)``; None where the trace has none."""
    if error.array is None:
        return None
    return np.nan_to_num(np.maximum(np.array([error.arrayminus, error.array], float), 0))


def _draw_heatmap(ax: matplotlib.axes.Axes, trace: Any) -> None:
    values = np.asarray(trace.z, float)
    shades = _shades(trace.colorscale)
    image = ax.imshow(
        values, cmap=shades, vmin=trace.zmin, vmax=trace.zmax, aspect="auto", interpolation="nearest",
    )  # fmt: skip
    for r, row in enumerate(trace.text if trace.text is not None else []):
        for c, text in enumerate(row):
            if text:
                # Over a dark cell white ink; over no colour at all (NaN) the page's own.
                dark = np.dot(shades(image.norm(values[r, c]))[:3], (0.299, 0.587, 0.114)) < 0.55
                ink = ("#ffffff" if dark else "#111111") if np.isfinite(values[r, c]) else _INK
                ax.text(c, r, str(text), ha="center", va="center", color=ink)


def _shades(scale: Any) -> matplotlib.colors.Colormap:
    """Plotly's colour scale, pairs of position and CSS colour, as matplotlib's; Blues where there is none."""
    if scale is None:
        return matplotlib.colormaps["Blues"]
    pairs = [(float(place), _rgba(colour)[0]) for place, colour in scale]
    return matplotlib.colors.LinearSegmentedColormap.from_list("of the figure", pairs)


def _dress(ax: matplotlib.axes.Axes, fig: go.Figure, x: str, y: str) -> None:
    for name, axis, limits in ((x, ax.xaxis, ax.set_xlim), (y, ax.yaxis, ax.set_ylim)):
        layout = _axis(fig, name)
        axis.set_label_text(_plain(layout.title.text))
        axis.grid(layout.showgrid is not False)
        if layout.type == "log":
            (ax.set_xscale if name == x else ax.set_yscale)("log")
            axis.set_tick_params(which="minor", length=0)
            axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: _decade(value)))
            axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        elif max(map(abs, axis.get_view_interval())) >= 1e5:  # else matplotlib writes "1e6" at the axis's far end
            axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: _decade(value)))
        if layout.showticklabels is False:
            axis.set_tick_params(labelleft=False, labelbottom=False)
        if layout.tickvals is not None:
            turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if layout.tickangle else {}
            words = layout.tickvals if layout.ticktext is None else layout.ticktext
            axis.set_ticks(list(layout.tickvals), [_plain(str(t)).strip() for t in words], **turned)
        if layout.range:
            limits(*(10.0**v if layout.type == "log" else v for v in layout.range))
        if layout.rangemode == "tozero":
            limits(0, None)
    for shape in fig.layout.shapes:
        if shape.type == "line" and shape.xref == x and shape.x0 == shape.x1:
            ax.axvline(shape.x0, color="#777777", ls="--", lw=1.2)
        if shape.type == "line" and (shape.xref, shape.yref) == (f"{x} domain", y) and shape.y0 == shape.y1:
            ax.axhline(shape.y0, color="#777777", ls="--", lw=1.2)
    if fig.data[0].type == "heatmap":
        ax.grid(False)


def _decade(value: float) -> str:
    """A tick of a logarithmic axis in plain text: ``0.1``, ``10 k``, ``1 M``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _words(figure: matplotlib.figure.Figure, fig: go.Figure, panels: list[matplotlib.axes.Axes]) -> None:
    for note in fig.layout.annotations:
        side = {"left": "left", "center": "center", "right": "right"}.get(note.xanchor or "center", "center")
        figure.text(note.x, note.y + 0.01, _plain(note.text), ha=side, va="bottom")
    if fig.layout.title.text:
        figure.text(0, 1.02, _plain(fig.layout.title.text), ha="left", weight="bold")
    entries = [entry for panel in panels for entry in zip(*panel.get_legend_handles_labels(), strict=True)]
    handles, labels = [handle for handle, _ in entries], [label for _, label in entries]
    if labels:
        columns = max(1, min(4, 90 // (max(map(len, labels)) + 6)))
        below = 0.55 / figure.get_figheight()
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, -below), ncols=columns, frameon=False)
