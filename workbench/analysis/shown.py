"""How a report shows itself: a table of text and a caption, in a shell and, escaped, in a notebook."""

import html
import math

import pandas as pd


class ShownReport:
    """What has a ``caption`` and a ``formatted`` table is shown as both."""

    @property
    def caption(self) -> str:
        """What the numbers mean; lines of plain text."""
        raise NotImplementedError

    def formatted(self) -> pd.DataFrame:
        """The numbers as text, for reading."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.formatted().to_string(index=False)}\n\n{self.caption}"

    def __repr__(self) -> str:  # what a shell shows
        return str(self)

    def _repr_html_(self) -> str:
        return f"{html_table(self.formatted())}{html_caption(self.caption)}"


def html_table(frame: pd.DataFrame) -> str:
    """A frame as an escaped table, set flush left."""
    with pd.option_context("display.max_colwidth", None):
        table = frame.to_html(index=False, escape=True, border=0, classes="workbench-comparison")
    for cell in ("td", "th"):  # Jupyter's own sheet sets them flush right
        table = table.replace(f"<{cell}>", f'<{cell} style="text-align:left;vertical-align:top">')
    return table


def html_caption(text: str) -> str:
    """Lines of plain text under a table."""
    return f'<p class="workbench-caption">{"<br>".join(html.escape(line) for line in text.splitlines())}</p>'


def interval_text(value: float, low: float, high: float, *, digits: int = 2, signed: bool = False) -> str:
    """``0.81 [0.74, 0.87]``; without bounds the value alone, and empty for NaN.

    >>> interval_text(0.812, 0.74, 0.87), interval_text(0.1, float("nan"), float("nan"), signed=True)
    ('0.81 [0.74, 0.87]', '+0.10')
    """
    if math.isnan(value):
        return ""
    show = f"{{:{'+' if signed else ''}.{digits}f}}".format
    return show(value) if math.isnan(low) else f"{show(value)} [{show(low)}, {show(high)}]"
