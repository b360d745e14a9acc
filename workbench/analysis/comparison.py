"""How a comparison of runs shows itself: a table with intervals, and a caption that says what they leave out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from workbench.analysis.comparing.classes import class_deltas
from workbench.analysis.comparing.clips import agreement_of, clips_of
from workbench.analysis.comparing.evidence import Evidence
from workbench.analysis.comparing.paired import ALPHA, MIN_RESAMPLES
from workbench.analysis.comparing.pairs import Pairs, pairs_of
from workbench.analysis.comparing.seeds import OverSeeds, over_seeds_of
from workbench.analysis.comparing.setups import differences_of, same_setup
from workbench.analysis.predictions import Predicted
from workbench.analysis.shown import ShownReport
from workbench.data.protocol import Protocol


@dataclass(frozen=True, repr=False)
class Comparison(ShownReport):
    """Runs side by side; shows itself as a table in a notebook and in a shell.

    ``table`` has one row per task and run: ``run, task, metric`` (the task's main one), ``value, low, high``,
    ``difference, difference_low, difference_high`` (to ``reference``, on the same resampled groups), ``p_holm``,
    ``verdict``, ``n, groups, skipped, quarantined``, ``trainable_parameters, train_seconds, clips_per_second,
    peak_memory_mib`` (of the GPU; NaN when unknown), ``protocol`` and ``note``. What else can be asked of the same runs
    are its methods: :meth:`pairs`, :meth:`over_seeds`, :meth:`differences`, :meth:`clips`, :meth:`agreement`,
    :meth:`per_class`.
    """

    table: pd.DataFrame
    reference: str
    protocol: Protocol
    resamples: int = 2000
    evidence: Mapping[str, Evidence] = field(default_factory=dict, repr=False)
    """By task: the clips, what each run said of them, and the shared resamples."""
    sources: Mapping[str, Predicted] = field(default_factory=dict, repr=False)
    """The runs compared, by name."""

    def pairs(self, task: str | None = None) -> Pairs:
        """Every run against every other, corrected over all these pairs; on one task, or on all."""
        chosen = self.evidence.values() if task is None else [self._on(task)]
        return pairs_of(chosen, resamples=self.resamples)

    def over_seeds(self, task: str | None = None) -> OverSeeds:
        """Runs that differ in nothing but their seed as one row, by each task's main metric."""
        chosen = self.evidence if task is None else {task: self._on(task)}
        return over_seeds_of(
            chosen, self.sources, self.setups, reference=self.reference, split=self.protocol.split,
            resamples=self.resamples,
        )  # fmt: skip

    @property
    def setups(self) -> dict[str, dict[int, str]]:
        """Which runs are one setup but for the seed: ``{setup: {seed: run}}``."""
        return same_setup(self.sources)

    def differences(self) -> pd.DataFrame:
        """What differs between the runs' setups, data, device and environment; see :func:`differences_of`."""
        return differences_of(self.sources)

    def clips(self, first: str, second: str, task: str | None = None) -> pd.DataFrame:
        """What two runs said of each clip, those that only one of them got right foremost; see :func:`clips_of`."""
        return clips_of(self._on(task), first, second)

    def agreement(self, task: str | None = None, measure: str | None = None) -> pd.DataFrame:
        """How alike the answers of each two runs are: ``share``, ``kappa`` or ``srcc``; see :func:`agreement_of`."""
        return agreement_of(self._on(task), measure)

    def per_class(self, first: str, second: str, task: str | None = None) -> pd.DataFrame:
        """Recall of two runs class by class with paired intervals; see :func:`class_deltas`."""
        return class_deltas(self._on(task), first, second)

    def _on(self, task: str | None) -> Evidence:
        """The evidence of a task, the first unless named."""
        if not self.evidence:
            raise ValueError("this comparison holds its table only; make it with wb.compare(runs)")
        name = next(iter(self.evidence)) if task is None else task
        if name not in self.evidence:
            raise ValueError(f"no task {name!r} in this comparison; it has {list(self.evidence)}")
        return self.evidence[name]

    @property
    def caption(self) -> str:
        """What the numbers mean and what they leave out."""
        rows = self.table
        pairs = int(rows.p_holm.notna().sum())
        lines = [
            f"Each task's metric with its 95 % interval from {self.resamples} resamples of "
            "whole groups of clips; 1 seed per run: the intervals cover the choice of clips, not of the training seed.",
            f"Differences are to {self.reference!r}, paired on the same resamples and widened for few groups; each "
            f"interval is for its pair alone, the verdict is corrected for {pairs} pair(s) (Holm, {ALPHA:.0%}).",
            f"Protocol: {self.protocol.describe()}. {_quarantine_line(rows)}",
        ]
        if any(len(members) > 1 for members in self.setups.values()):
            lines.append("Some runs differ in their seed only: .over_seeds() takes them together.")
        if self.protocol.split != "test":
            lines.append(f"{self.protocol.split} is not test: a split that chose the checkpoint flatters every run.")
        if self.resamples < MIN_RESAMPLES:
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
        if rows.peak_memory_mib.notna().any():
            text["memory"] = ["" if math.isnan(v) else f"{v:,.0f} MiB" for v in rows.peak_memory_mib]
        if rows.note.astype(bool).any():
            text["note"] = rows.note
        return text

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
