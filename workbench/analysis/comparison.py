"""How a comparison of runs shows itself: a table with intervals, and a caption that says what they leave out."""

import html
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.data.protocol import Protocol

ALPHA = 0.05
"""A verdict may be wrong this often over all pairs of one table."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Runs side by side; shows itself as a table in a notebook and in a shell.

    ``table`` has one row per task and run: ``run, task, metric`` (the task's main one), ``value, low, high``,
    ``difference, difference_low, difference_high`` (to ``reference``, on the same resampled groups), ``p_holm``,
    ``verdict``, ``n, groups, skipped, quarantined``, ``trainable_parameters, train_seconds, clips_per_second``
    (NaN when unknown), ``protocol`` and ``note``.
    """

    table: pd.DataFrame
    reference: str
    protocol: Protocol
    resamples: int = 2000

    @property
    def caption(self) -> str:
        """What the numbers mean and what they leave out."""
        rows = self.table
        pairs = int(rows.p_holm.notna().sum())
        lines = [
            f"Each task's main metric (higher is better) with its 95 % interval from {self.resamples} resamples of "
            "whole groups of clips; 1 seed per run: the intervals cover the choice of clips, not of the training seed.",
            f"Differences are to {self.reference!r}, paired on the same resamples; each interval is for its pair "
            f"alone, the verdict is corrected for {pairs} pair(s) (Holm, {ALPHA:.0%}).",
            f"Protocol: {self.protocol.describe()}. {_quarantine_line(rows)}",
        ]
        if self.protocol.split != "test":
            lines.append(f"{self.protocol.split} is not test: a split that chose the checkpoint flatters every run.")
        if 2 / (self.resamples + 1) * pairs > ALPHA:
            lines.append(f"{self.resamples} resamples are too few for a verdict on {pairs} pairs; use 2000 or more.")
        return "\n".join(lines)

    def formatted(self) -> pd.DataFrame:
        """The table as text, for reading."""
        rows = self.table
        text = pd.DataFrame(
            {
                "task": rows.task,
                "run": rows.run,
                "metric": rows.metric,
                "value": [_interval(*v) for v in zip(rows.value, rows.low, rows.high, strict=True)],
                f"difference to {self.reference}": [
                    _interval(*v, signed=True)
                    for v in zip(rows.difference, rows.difference_low, rows.difference_high, strict=True)
                ],
                "verdict": rows.verdict,
                "clips": rows.n,
                "groups": rows.groups,
                "trainable": [_count(v) for v in rows.trainable_parameters],
                "training": [_seconds(v) for v in rows.train_seconds],
                "clips/s": [_rate(v) for v in rows.clips_per_second],
            }
        )
        if rows.note.astype(bool).any():
            text["note"] = rows.note
        return text

    def __str__(self) -> str:
        return f"{self.formatted().to_string(index=False)}\n\n{self.caption}"

    __repr__ = __str__  # what a shell shows

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            table = self.formatted().to_html(index=False, escape=True, border=0, classes="workbench-comparison")
        for cell in ("td", "th"):  # Jupyter's own sheet sets them flush right
            table = table.replace(f"<{cell}>", f'<{cell} style="text-align:left;vertical-align:top">')
        caption = "<br>".join(html.escape(line) for line in self.caption.splitlines())
        return f'{table}<p class="workbench-caption">{caption}</p>'

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``: what is unknown or undefined is ``None``."""
        rows = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            for row in self.table.to_dict("records")
        ]
        return {
            "reference": self.reference,
            "protocol": self.protocol.to_json(),
            "resamples": self.resamples,
            "rows": rows,
        }


def _quarantine_line(rows: pd.DataFrame) -> str:
    counts = rows.groupby("run", sort=False).quarantined.max()
    if counts.nunique() == 1:
        return f"Quarantined clips: {int(counts.iloc[0])}."
    return "Quarantined clips: " + ", ".join(f"{name} {int(count)}" for name, count in counts.items()) + "."


def _interval(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """``0.81 [0.74, 0.87]``; a third digit where two would round a bound to zero; empty for NaN."""
    if math.isnan(value):
        return ""
    digits = 3 if any(0 < abs(v) < 0.005 for v in (value, low, high)) else 2
    show = f"{{:{'+' if signed else ''}.{digits}f}}".format
    return show(value) if math.isnan(low) else f"{show(value)} [{show(low)}, {show(high)}]"


def _count(value: float) -> str:
    """``950``, ``12.3 k``, ``1.2 M``; empty for NaN."""
    if math.isnan(value):
        return ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f}"


def _rate(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _seconds(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"
