"""The tables of a comparison as HTML: runs with their caption, pairs, and what differs."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.views.parts import note
from workbench.views.style import Html, table_html

MOST_PAIRS = 40


def comparison_table(comparison: Any, task: str | None = None) -> Html:
    """The comparison as a formatted table of one or all tasks, with the caption that says how it was made."""
    rows: pd.DataFrame = comparison.formatted()
    shown = rows if task is None else rows[rows["task"] == task]
    return Html(table_html(shown) + "".join(note(line) for line in comparison.caption.splitlines()))


def differences_table(comparison: Any) -> Html:
    """What differs between the runs, as a table; words where nothing does or nothing is recorded."""
    rows: pd.DataFrame = comparison.differences()
    return Html(table_html(rows, index=True) if len(rows) else note("Nothing recorded differs between these runs."))


def pairs_table(pairs: Any, names: Sequence[str]) -> Html:
    """The pairs among the runs named, the surest differences first, at most 40 of them; see ``comparison.pairs()``."""
    rows: pd.DataFrame = pairs.formatted()
    shown = rows[rows["first"].isin(names) & rows["second"].isin(names)]
    if shown.empty:
        return Html(note("One run alone: there is no pair."))
    order = pairs.table.p.loc[shown.index].sort_values(kind="stable").index[:MOST_PAIRS]
    lines = pairs.caption.splitlines()
    if len(order) < len(rows):
        lines.append(f"Shown are {len(order)} of the {len(rows)} pairs that were corrected for.")
    told = [name for name in ("task", "metric") if rows[name].nunique() == 1]  # the menus above say so
    return Html(table_html(shown.loc[order].drop(columns=told)) + "".join(note(line) for line in lines))
