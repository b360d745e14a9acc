"""Every run against every other on the same clips: differences with intervals, paired tests, one correction."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.bootstrap import holm
from workbench.analysis.comparing.evidence import Evidence
from workbench.analysis.comparing.paired import (
    ALPHA,
    MIN_RESAMPLES,
    DeLong,
    delong,
    expanded_interval,
    level,
    mcnemar,
    paired_p_value,
)
from workbench.analysis.shown import ShownReport, interval_text

_CLUSTERED = "takes clips of one group for independent: too sure"


@dataclass(frozen=True, repr=False)
class Pairs(ShownReport):
    """All pairs of runs; shows itself as a table.

    ``table``: one row per task and pair: ``task, metric, first, second, difference`` (first minus second) with
    ``low, high`` (95 %, same resampled groups for both), ``p`` and ``p_holm`` (over all pairs here), ``verdict`` (the
    better run's name; ``no clear difference``; ``too few groups``; ``undefined``), ``n, groups``; and a second opinion:
    ``test`` (``McNemar mid-p`` for accuracy, ``DeLong`` for AUROC, else empty), ``test_p``, ``test_p_holm``,
    ``test_note``. ``first_only, second_only``: clips that only one of the two got right (NaN where there is no right).
    """

    table: pd.DataFrame
    resamples: int

    @property
    def caption(self) -> str:
        """How the verdicts were reached."""
        count = int(self.table.p_holm.notna().sum())
        lines = [
            "Difference: first minus second, with its 95 % interval from "
            f"{self.resamples} resamples of whole groups of clips, widened for few groups. A verdict needs p < "
            f"{level(self.resamples):.3f} after Holm's correction over {count} pair(s): {ALPHA:g}, less what "
            "other resamples could change.",
            "The second opinion (McNemar for accuracy, DeLong for AUROC) is corrected in the same way and decides "
            "nothing"
            + (f": it {_CLUSTERED} where groups hold several clips." if (self.table.test_note != "").any() else "."),
        ]
        if self.resamples < MIN_RESAMPLES:
            lines.append(f"{self.resamples} resamples are too few for a verdict on {count} pairs; use 2000 or more.")
        return "\n".join(lines)

    def formatted(self) -> pd.DataFrame:
        """The table as text, for reading."""
        rows = self.table
        columns = ["difference", "low", "high"]
        return pd.DataFrame(
            {
                "task": rows.task, "metric": rows.metric, "first": rows["first"], "second": rows["second"],
                "difference": [interval_text(*v, digits=3, signed=True) for v in rows[columns].to_numpy(float)],
                "p (Holm)": [_p(v) for v in rows.p_holm], "verdict": rows.verdict,
                "second opinion": [
                    f"{row.test} {_p(row.test_p_holm)}" if row.test and not math.isnan(row.test_p_holm) else ""
                    for row in rows.itertuples()
                ],
                "clips": rows.n, "groups": rows.groups,
            }
        )  # fmt: skip


def pairs_of(evidence: Iterable[Evidence], *, resamples: int) -> Pairs:
    """All pairs within each task, corrected over all of them together."""
    table = pd.DataFrame([line for one in evidence for line in _of_task(one)], columns=list(_COLUMNS))
    table["p_holm"] = holm(table.p.where(~table.pop("too_few").astype(bool)).to_numpy(float))
    table["test_p_holm"] = holm(table.test_p.to_numpy(float))
    table["verdict"] = [_verdict(row, level(resamples)) for row in table.itertuples()]
    return Pairs(table.drop(columns="higher"), resamples)


_COLUMNS = (
    "task", "metric", "first", "second", "difference", "low", "high", "p", "n", "groups", "first_only", "second_only",
    "test", "test_p", "test_note", "too_few", "higher",
)  # fmt: skip


def _of_task(one: Evidence) -> list[dict[str, Any]]:
    known = one.task.kind in ("multiclass", "binary") and len(one.target) > 0
    right = {run: one.right(run) for run in one.runs} if known else {}
    ranked = _ranked(one) if one.metric == "auroc" else None
    grouped = one.num_groups < len(one.clip_id)
    lines = []
    for first, second in itertools.combinations(one.runs, 2):
        draws, gap = one.draws[first] - one.draws[second], one.values[first] - one.values[second]
        interval = expanded_interval(draws, one.deciding)
        line: dict[str, Any] = {
            "task": one.task.name, "metric": one.metric, "first": first, "second": second,
            "difference": gap, "low": interval.low, "high": interval.high,
            "p": paired_p_value(gap, draws, one.deciding), "n": len(one.clip_id), "groups": one.num_groups,
            "first_only": math.nan, "second_only": math.nan, "test": "", "test_p": math.nan, "test_note": "",
            "too_few": one.too_few, "higher": one.higher_is_better,
        }  # fmt: skip
        if known:
            wins = int((right[first] & ~right[second]).sum()), int((right[second] & ~right[first]).sum())
            line |= {"first_only": wins[0], "second_only": wins[1]}
            if one.metric == "accuracy":
                line |= {"test": "McNemar mid-p", "test_p": float(mcnemar(*wins))}
        if ranked and first in ranked[1] and second in ranked[1]:
            line |= {"test": "DeLong", "test_p": ranked[0].p_value(ranked[1][first], ranked[1][second])}
        lines.append(line | {"test_note": _CLUSTERED if line["test"] and grouped else ""})
    return lines


def _ranked(one: Evidence) -> tuple[DeLong, Mapping[str, int]]:
    """DeLong's covariance over the runs that have finite probabilities, and their places in it."""
    usable = [run for run in one.runs if run in one.positive and np.isfinite(one.positive[run]).all()]
    scores = np.stack([one.positive[run] for run in usable]) if usable else np.empty((0, len(one.target)))
    return delong(one.target, scores), {run: place for place, run in enumerate(usable)}


def _verdict(row: Any, needed: float) -> str:
    if math.isnan(row.difference):
        return "undefined"
    if math.isnan(row.p_holm):
        return "too few groups"
    if row.p_holm > needed or row.low <= 0 <= row.high:
        return "no clear difference"
    return str(row.first if (row.difference > 0) == row.higher else row.second)


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
