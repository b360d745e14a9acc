"""How a multi-task report and an affinity show themselves: tables, and captions that say what they leave out."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.analysis.crossed import MIN_SEEDS
from workbench.analysis.shown import ShownReport, html_caption, html_table
from workbench.data.protocol import Protocol

DELTA_M = (
    "delta-m is the mean over tasks of (together - alone) / alone, in per cent; positive is better (Vandenhende et "
    "al., https://arxiv.org/abs/2004.13379). Every metric here is one where higher is better."
)


@dataclass(frozen=True, repr=False)
class MultitaskReport(ShownReport):
    """Tasks trained together against each trained alone; shows itself as two tables.

    ``table``: per setup and task ``setup, task, metric`` (the main one), ``alone, together`` and their difference, each
    with its interval (``alone_low`` ...; ``low, high`` of the difference), ``relative`` (difference / alone),
    ``verdict`` (``gain``, ``negative transfer``, ``no clear difference``, ``too few seeds``, ``too few groups``,
    ``undefined``), ``seeds_better`` of ``seeds``, ``n, groups, note``.
    ``totals``: per setup ``delta_m`` with its interval over ``tasks_counted`` of ``tasks``, ``verdict``,
    ``mean_difference``, and what it cost: ``train_seconds`` against ``alone_train_seconds`` (all tasks),
    ``train_ratio``, and the fields of :class:`~workbench.analysis.costs.Costs`.
    """

    table: pd.DataFrame
    totals: pd.DataFrame
    seeds: tuple[int, ...]
    protocol: Protocol
    split: str
    resamples: int
    runs: dict[str, dict[int, Any]]
    """Trained together, by name and seed."""
    singles: dict[str, dict[int, Any]]
    """Trained alone, by task and seed."""

    @property
    def negative_transfer(self) -> list[str]:
        """``setup: task`` wherever the interval of the difference lies below zero."""
        rows = self.table[self.table.verdict == "negative transfer"]
        return [f"{row.setup}: {row.task}" for row in rows.itertuples()]

    @property
    def caption(self) -> str:
        """What the numbers mean and what they leave out."""
        lines = [
            f"{len(self.seeds)} seed(s), each tested on the same clips; 95 % intervals from {self.resamples} resamples "
            "that draw groups of clips and seeds anew, together and alone alike. Each is for its line alone.",
            DELTA_M,
            f"Protocol: {self.protocol.describe()}.",
        ]
        if len(self.seeds) < MIN_SEEDS:
            lines.append(f"Fewer than {MIN_SEEDS} seeds: no verdict, however the intervals look.")
        left = self.totals[self.totals.tasks_counted < self.totals.tasks]
        for row in left.itertuples():
            lines.append(f"{row.setup}: delta-m counts {row.tasks_counted} of {row.tasks} tasks; the notes say why.")
        found = self.negative_transfer
        lines.append("Negative transfer: " + ("; ".join(found) if found else "none shown") + ".")
        if self.split != "test":
            lines.append(f"{self.split} is not test: a split that chose anything flatters.")
        return "\n".join(lines)

    def formatted(self) -> pd.DataFrame:
        """Per task, as text."""
        rows = self.table
        text = pd.DataFrame({
            "setup": rows.setup, "task": rows.task, "metric": rows.metric,
            "alone": _spreads(rows, "alone", "alone_low", "alone_high"),
            "together": _spreads(rows, "together", "together_low", "together_high"),
            "difference": _spreads(rows, "difference", "low", "high", signed=True),
            "relative, %": _spreads(rows, "relative", "relative_low", "relative_high", signed=True, percent=True),
            "verdict": rows.verdict,
            "seeds better": [f"{b} of {s}" for b, s in zip(rows.seeds_better, rows.seeds, strict=True)],
            "clips": rows.n, "groups": rows.groups,
        })  # fmt: skip
        return text.assign(note=rows.note) if rows.note.astype(bool).any() else text

    def formatted_totals(self) -> pd.DataFrame:
        """delta-m and costs, as text; a ratio is together / all tasks alone."""
        rows = self.totals
        text = {
            "setup": rows.setup,
            "delta-m, %": _spreads(rows, "delta_m", "delta_m_low", "delta_m_high", signed=True, percent=True),
            "tasks": [f"{c} of {t}" for c, t in zip(rows.tasks_counted, rows.tasks, strict=True)],
            "verdict": rows.verdict,
            "training": [
                _against(m, t, r, "s")
                for m, t, r in zip(rows.train_seconds, rows.alone_train_seconds, rows.train_ratio, strict=True)
            ],
            "inference per clip": [
                _against(m, t, r, "ms")
                for m, t, r in zip(rows.inference_ms, rows.alone_inference_ms, rows.inference_ratio, strict=True)
            ],
            "training memory": [
                _against(m, t, m / t, "MiB") for m, t in zip(rows.memory_mib, rows.alone_memory_mib, strict=True)
            ],
            "parameters": [
                _against(m / 1e6, t / 1e6, m / t, "M")
                for m, t in zip(rows.parameters, rows.alone_parameters, strict=True)
            ],
        }
        frame = pd.DataFrame(text)
        return frame.loc[:, frame.astype(bool).any()]  # without what nobody measured

    def __str__(self) -> str:
        tables = (self.formatted().to_string(index=False), self.formatted_totals().to_string(index=False))
        return "\n\n".join([*tables, self.caption])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{html_table(self.formatted())}{html_table(self.formatted_totals())}{html_caption(self.caption)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``; what is unknown is ``None``."""
        return {
            "seeds": list(self.seeds), "split": self.split, "resamples": self.resamples,
            "protocol": self.protocol.to_json(), "tasks": _records(self.table), "totals": _records(self.totals),
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Affinity(ShownReport):
    """Who gains from whom. ``table``: per ``task`` and ``partner`` the columns of :class:`MultitaskReport`'s table."""

    table: pd.DataFrame
    tasks: tuple[str, ...]
    seeds: int
    resamples: int

    def matrix(self, column: str = "difference") -> pd.DataFrame:
        """``column`` with the task that gains or loses by row, and by column the one it is trained with; NaN on the
        diagonal."""
        return self.table.pivot(index="task", columns="partner", values=column).reindex(self.tasks, columns=self.tasks)

    @property
    def caption(self) -> str:
        """What the numbers mean."""
        few = f" Fewer than {MIN_SEEDS} seeds: no verdict." if self.seeds < MIN_SEEDS else ""
        return (
            f"Main metric of the task, trained with the partner minus trained alone; {self.seeds} seed(s), 95 % "
            f"intervals from {self.resamples} resamples of groups and seeds, each for its line alone.{few}"
        )

    def formatted(self) -> pd.DataFrame:
        rows = self.table
        return pd.DataFrame({
            "task": rows.task, "trained with": rows.partner, "metric": rows.metric,
            "alone": _spreads(rows, "alone", "alone_low", "alone_high"),
            "difference": _spreads(rows, "difference", "low", "high", signed=True),
            "relative, %": _spreads(rows, "relative", "relative_low", "relative_high", signed=True, percent=True),
            "verdict": rows.verdict,
        })  # fmt: skip


def _spreads(
    rows: pd.DataFrame, value: str, low: str, high: str, *, signed: bool = False, percent: bool = False
) -> list[str]:
    scale, digits = (100.0, 1) if percent else (1.0, 3)
    show = f"{{:{'+' if signed else ''}.{digits}f}}".format
    texts = []
    for v, a, b in zip(rows[value], rows[low], rows[high], strict=True):
        whole = "" if math.isnan(v) else show(scale * v)
        texts.append(whole if not whole or math.isnan(a) else f"{whole} [{show(scale * a)}, {show(scale * b)}]")
    return texts


def _against(mine: float, theirs: float, ratio: float, unit: str) -> str:
    """``12.0 against 30.1 s (0.40x)``; empty where it was not measured."""
    if math.isnan(mine) or math.isnan(theirs):
        return ""
    return f"{_short(mine)} against {_short(theirs)} {unit} ({ratio:.2f}x)"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(k): None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in frame.to_dict("records")
    ]
