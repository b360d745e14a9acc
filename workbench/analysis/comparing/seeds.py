"""Setups trained with several seeds: one row each, with what the seed does to the score."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.bootstrap import holm
from workbench.analysis.comparing.evidence import Evidence
from workbench.analysis.comparing.paired import ALPHA
from workbench.analysis.crossed import MIN_SEEDS, Resamples, Scored, pair, verdict_of
from workbench.analysis.predictions import Predicted
from workbench.analysis.shown import ShownReport, interval_text
from workbench.training.metrics import main_metric


@dataclass(frozen=True, repr=False)
class OverSeeds(ShownReport):
    """Setups over their seeds; shows itself as a table.

    ``table``: one row per task and setup: ``task, setup, metric, value`` (mean over seeds), ``low, high`` (95 %, over
    groups of clips and, with several, seeds), ``seeds``, ``seed_low, seed_high`` (worst and best seed), ``seed_sd``,
    ``difference, difference_low, difference_high`` to the reference setup on the seeds that both have, ``p_holm``,
    ``verdict`` (``better``, ``worse``, ``no clear difference``, ``too few seeds``: under 6, ``too few groups``,
    ``undefined``, ``reference``) and ``note``.
    """

    table: pd.DataFrame
    reference: str
    resamples: int

    @property
    def caption(self) -> str:
        """What the intervals cover."""
        return (
            f"Mean over seeds; intervals from {self.resamples} resamples of groups of clips and of seeds, crossed; with"
            f" one seed they say nothing of other seeds. Differences are to {self.reference!r}, on shared seeds and "
            f"clips; under {MIN_SEEDS} shared seeds there is no verdict; Holm over all pairs here."
        )

    def formatted(self) -> pd.DataFrame:
        """The table as text, for reading."""
        rows = self.table
        return pd.DataFrame(
            {
                "task": rows.task, "setup": rows.setup, "metric": rows.metric,
                "value": [interval_text(*v, digits=3) for v in rows[["value", "low", "high"]].to_numpy(float)],
                "seeds": rows.seeds,
                "worst to best seed": [
                    f"{low:.3f} to {high:.3f}" if n > 1 else ""
                    for low, high, n in zip(rows.seed_low, rows.seed_high, rows.seeds, strict=True)
                ],
                f"difference to {self.reference}": [
                    interval_text(*v, digits=3, signed=True)
                    for v in rows[["difference", "difference_low", "difference_high"]].to_numpy(float)
                ],
                "verdict": rows.verdict,
            }
        )  # fmt: skip


def over_seeds_of(
    evidence: Mapping[str, Evidence],
    runs: Mapping[str, Predicted],
    setups: Mapping[str, Mapping[int, str]],
    *,
    reference: str,
    split: str,
    resamples: int,
    seed: int = 0,
) -> OverSeeds:
    """Score every setup (``{setup: {seed: run}}``) on every task by its main metric; ``reference`` names a run."""
    base = next(name for name, members in setups.items() if reference in members.values())
    lines: list[dict[str, Any]] = []
    for task, one in evidence.items():
        own = {name: {s: r for s, r in m.items() if r in one.values} for name, m in setups.items()}
        lines += _of_task(task, one, runs, {n: m for n, m in own.items() if m}, base, split, resamples, seed)
    table = pd.DataFrame(lines)
    if len(table):
        judged = table.verdict.isin(["better", "worse", "no clear difference"])
        table["p_holm"] = holm(table.pop("p").where(judged).to_numpy(float))
        unsure = table.verdict.isin(["better", "worse"]) & (table.p_holm > ALPHA)
        table.loc[unsure, "verdict"] = "no clear difference"
    return OverSeeds(table, base, resamples)


def _of_task(
    task: str,
    one: Evidence,
    runs: Mapping[str, Predicted],
    setups: Mapping[str, Mapping[int, str]],
    base: str,
    split: str,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    groups = sorted({str(name) for name in one.group_name})
    lines: list[dict[str, Any]] = []
    for name, members in setups.items():
        line: dict[str, Any] = {
            "task": task, "setup": name, "metric": main_metric(one.task.kind), "value": math.nan, "low": math.nan,
            "high": math.nan, "seeds": len(members), "seed_low": math.nan, "seed_high": math.nan, "seed_sd": math.nan,
            "difference": math.nan, "difference_low": math.nan, "difference_high": math.nan, "p": math.nan,
            "verdict": "reference" if name == base else "undefined", "note": "",
        }  # fmt: skip
        if groups:

            def score(which: Mapping[int, str], seeds: list[int]) -> Scored:
                drawn = Resamples.draw(groups, seeds, resamples=resamples, seed=seed)
                return drawn.score({s: runs[which[s]] for s in seeds}, task, split=split)

            mine = score(members, sorted(members))
            spread, each = mine.spread(len(members)), np.array(list(mine.by_seed.values()))
            line |= {"value": mine.value, "low": spread.low, "high": spread.high, "note": mine.note}
            line |= {"seed_low": each.min(), "seed_high": each.max()}
            line["seed_sd"] = float(each.std(ddof=1)) if len(each) > 1 else math.nan
            shared = sorted(set(members) & set(setups.get(base, {})))
            if name != base and shared:
                gap = pair(score(members, shared), score(setups[base], shared), task)
                change = gap.spread(len(shared))
                line |= {"difference": change.value, "difference_low": change.low, "difference_high": change.high}
                line["p"] = gap.p_value()
                line["verdict"] = verdict_of(
                    change, seeds=len(shared), deciding=mine.deciding, names=("better", "worse")
                )
            elif name != base:
                line["note"] = "; ".join(filter(None, [mine.note, f"no seed shared with {base!r}"]))
        lines.append(line)
    return lines
