"""One look for every view: colours, escaping, tables and the small style sheet that follows light and dark pages."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

# Okabe & Ito (2008), distinguishable with every common colour-vision deficiency. Its black and yellow are left out:
# one vanishes on a dark page, the other on a light one.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up")

GREY = "#777777"  # 4.5:1 on white and 4.2:1 on JupyterLab's dark background: text that no style sheet reaches
GRID = "rgba(128,128,128,0.25)"


class Html(str):
    """HTML text that a notebook shows as HTML when it is the value of a cell."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


@dataclass(frozen=True)
class LineStyle:
    """How one run is drawn in every plot: colour first, then dash and marker once the six colours are used up."""

    colour: str
    dash: str
    symbol: str


def line_styles(names: Iterable[str]) -> dict[str, LineStyle]:
    """One style per name by its position, so a run keeps its colour over the plots of one page."""
    return {
        name: LineStyle(OKABE_ITO[i % 6], DASHES[i // 6 % 4], SYMBOLS[i // 6 % 4])
        for i, name in enumerate(dict.fromkeys(names))
    }


def escape(value: object) -> str:
    """Text safe inside HTML elements and quoted attributes."""
    return html.escape(str(value), quote=True)


def plot_text(value: object, limit: int | None = None) -> str:
    """Text that plotly shows as it is: plotly reads a subset of HTML, and TeX between dollar signs."""
    text = str(value) if limit is None else shorten(str(value), limit)
    return html.escape(text, quote=False).replace("$", "&#36;")


def shorten(text: str, limit: int = 30) -> str:
    """At most ``limit`` characters, the middle replaced by an ellipsis: names often differ at their ends."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return text[:head] + "…" + text[len(text) - (limit - 1 - head) :]


def base_figure(fig: go.Figure, height: int, **margin: int) -> go.Figure:
    """The look all figures share: no background of their own, room made for labels."""
    fig.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 13, "family": "system-ui, sans-serif"},
        height=height,
        margin={"l": 10, "r": 20, "t": 34, "b": 10} | margin,
        hoverlabel={"align": "left", "namelength": -1},
        hovermode="closest",
    )
    axis = {
        "automargin": True,
        "title_font_size": 13,
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "ticks": "",
        "showline": False,
    }
    fig.update_xaxes(axis)
    fig.update_yaxes(axis)
    fig.update_annotations(font={"size": 13})
    return fig


def words_only(fig: go.Figure, text: str) -> go.Figure:
    """A figure that says ``text`` in place of a plot."""
    fig.add_annotation(text=plot_text(text), x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return fig


def gaps(values: Iterable[float]) -> list[float | None]:
    """Numbers for a plot, None where one is not finite: JSON, and so a widget, has no NaN."""
    return [float(v) if np.isfinite(v) else None for v in values]


def max_width(fig: Any) -> int | None:
    """Width in px beyond which a plotly figure of ours should not be stretched; None where it may fill the page."""
    return (fig.layout.meta or {}).get("max_width")


def number(value: object) -> str:
    """A number as a table shows it: counts with separators, floats with three figures, a dash for missing."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, float | np.floating):
        size = abs(float(value))
        if np.isinf(size):
            return str(value)
        if size and (size < 0.001 or size >= 1e6):
            return f"{value:.2e}"
        return f"{value:,.3f}" if size < 10 else f"{value:,.1f}"
    return str(value)


def table_html(frame: pd.DataFrame, *, names: Mapping[str, str] | None = None, index: bool = False) -> Html:
    """A frame as an escaped HTML table that scrolls inside itself instead of widening the page.

    ``names`` renames columns for the reader; ``index=True`` shows the index as a first column.
    """
    shown = frame.reset_index() if index else frame
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in shown.dtypes]
    left = ' style="text-align:left"'  # Jupyter's own sheet sets text flush right
    heads = "".join(
        f'<th scope="col"{" class=wb-num" if n else left}>{escape((names or {}).get(str(c), c))}</th>'
        for c, n in zip(shown.columns, numeric, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=wb-num' if n else left}>{escape(number(v))}</td>" for v, n in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in shown.itertuples(index=False, name=None)
    )
    return Html(
        f'<div class="wb-table" tabindex="0" role="region" aria-label="table"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


# Colours come from the page (currentColor), so the same rules read on light and dark notebooks.
VIEW_CSS = """<style>
.wb-table{overflow-x:auto;max-width:100%}
.wb-table table{border-collapse:collapse;font-size:13px;line-height:1.5;margin:6px 0;width:auto}
.wb-table th,.wb-table td{padding:4px 12px 4px 0;text-align:left;border-bottom:1px solid rgba(128,128,128,.25);
white-space:nowrap;vertical-align:top}
.wb-table th{font-weight:600}
.wb-table .wb-num{text-align:right;font-variant-numeric:tabular-nums}
.wb-note{font-size:13px;line-height:1.5;opacity:.8;max-width:75ch;margin:4px 0 8px}
.wb-plot svg{max-width:100%;height:auto}
.jupyter-widgets .js-plotly-plot .main-svg :is(.xtick,.ytick,.xaxislayer-above,.yaxislayer-above,.infolayer) text{
fill:var(--jp-ui-font-color1,#777)!important}
.wb-view .widget-html-content{min-width:0;max-width:100%}
</style>"""
