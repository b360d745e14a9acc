"""From one number per method, metric and clip to intervals, ranks and a verdict against maps that know nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from workbench.analysis.bootstrap import MIN_GROUPS, bootstrap, holm, percentile_interval, sign_p_value

ALPHA = 0.05
LOWER_IS_BETTER = ("deletion_blur", "deletion_freeze", "infidelity", "sensitivity_max")
UNRANKED = ("sensitivity_max",)
"""Shown, but no evidence: a map that never looks at the clip is perfectly steady."""


@dataclass(frozen=True, repr=False)
class ExplanationReport:
    """How far each method's maps can be trusted, for one model, task and set of clips.

    ``scores``: one row per ``method, metric, clip_id, group`` with its ``value``. ``summary``: one row per method and
    metric: ``value, low, high`` (mean over clips, 95 % interval over groups), ``better`` (``lower`` or ``higher``),
    and for each prior ``vs_<prior>`` with ``_low, _high, _p``: by how much the method is better than the prior, paired
    on the same resamples (positive is better whatever the metric's direction), p corrected over the pair's metrics
    (Holm). ``ranking``: one row per method, best first: ``rank, rank_low, rank_high`` (mean over metrics; 1 is best),
    ``verdict``. ``curves`` {(method, metric): (B, S + 1)}: deletion and insertion. ``maps`` {method: (B, T', H', W')}.
    ``randomisation``: rows of :func:`~workbench.analysis.trust.randomisation.randomisation_cascade` with ``method``, or
    None. ``notes``: what a reader must know before using a number.
    """

    task: str
    target: tuple[str, ...]
    scores: pd.DataFrame
    summary: pd.DataFrame
    ranking: pd.DataFrame
    maps: Mapping[str, np.ndarray]
    curves: Mapping[tuple[str, str], np.ndarray]
    groups: int
    resamples: int
    randomisation: pd.DataFrame | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def verdicts(self) -> dict[str, str]:
        """{method: verdict}, best first; priors have none."""
        rows = self.ranking[self.ranking.verdict != ""]
        return dict(zip(rows.method, rows.verdict, strict=True))

    def formatted(self) -> pd.DataFrame:
        """The table as text: one row per method, best first, metrics side by side (with which way is better)."""
        text = pd.DataFrame({"method": self.ranking.method})
        text["mean rank"] = [
            f"{rank:.1f} [{low:.1f}, {high:.1f}]"
            for rank, low, high in self.ranking[["rank", "rank_low", "rank_high"]].itertuples(index=False)
        ]
        for metric, rows in self.summary.groupby("metric", sort=False):
            arrow = "↓" if metric in LOWER_IS_BETTER else "↑"
            shown = {
                r.method: f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" if np.isfinite(r.value) else ""
                for r in rows.itertuples()
            }
            text[f"{metric} {arrow}"] = [shown.get(name, "") for name in text.method]
        text["verdict"] = self.ranking.verdict
        return text

    @property
    def caption(self) -> str:
        """What the numbers mean and what they leave out."""
        clips = self.scores.clip_id.nunique()
        lines = [
            f"Task {self.task!r}, {clips} clips in {self.groups} groups. Means with 95 % intervals from "
            f"{self.resamples} resamples of whole groups; they cover the choice of clips, not of the training seed.",
            "random, motion and centre are maps that know nothing of the model. A verdict counts the metrics on which "
            f"a method beats each of them (Holm over the metrics, {ALPHA:.0%}); more than half are needed.",
            "The metrics disagree by nature: deletion and insertion show the model clips it never saw, infidelity asks "
            "for additivity, and masks know where the evidence was planted, not whether this model uses it.",
            *self.notes,
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"{self.formatted().to_string(index=False)}\n\n{self.caption}"


def gains(values: np.ndarray, metric: str) -> np.ndarray:
    """Values with the sign that makes higher better."""
    return -values if metric in LOWER_IS_BETTER else values


def summarise(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    groups: np.ndarray,
    *,
    priors: Sequence[str],
    resamples: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``scores`` {metric: {method: (B,)}} and group codes (B,) -> summary and ranking of :class:`ExplanationReport`.

    A clip on which a metric is undefined for one method is left out of that metric for all, so that pairs stay pairs.
    """
    cells = [(metric, name) for metric, by_method in scores.items() for name in by_method]
    values = np.stack([scores[metric][name] for metric, name in cells])  # (S, B)
    for metric in scores:
        rows = [i for i, cell in enumerate(cells) if cell[0] == metric]
        values[np.ix_(rows, np.isnan(values[rows]).any(0))] = np.nan
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)

    def means(weights: np.ndarray) -> np.ndarray:
        counts = known @ weights.T
        return np.where(counts > 0, filled @ weights.T / np.where(counts > 0, counts, 1), np.nan)

    point = means(np.ones((1, len(groups))))[:, 0]
    drawn = bootstrap(means, groups, resamples=resamples, seed=seed)  # (S, R)
    index = {cell: i for i, cell in enumerate(cells)}
    table = []
    for i, (metric, name) in enumerate(cells):
        interval = percentile_interval(drawn[i])
        row: dict[str, object] = {
            "method": name, "metric": metric, "value": point[i], "low": interval.low, "high": interval.high,
            "better": "lower" if metric in LOWER_IS_BETTER else "higher",
        }  # fmt: skip
        for prior in () if name in priors else priors:
            row |= _against(prior, metric, point, drawn, i, index.get((metric, prior)))
        table.append(row)
    summary = pd.DataFrame(table)
    for prior in priors:
        if f"vs_{prior}_p" in summary:
            for _, part in summary[~summary.method.isin(priors)].groupby("method"):
                counted = part[~part.metric.isin(UNRANKED)]
                summary.loc[counted.index, f"vs_{prior}_p"] = holm(counted[f"vs_{prior}_p"].to_numpy(float))
    return summary, _rank(cells, point, drawn, summary, priors, int(groups.max()) + 1)


def _against(
    prior: str, metric: str, point: np.ndarray, drawn: np.ndarray, own: int, other: int | None
) -> dict[str, float]:
    if other is None:
        return {}
    difference = gains(drawn[own] - drawn[other], metric)
    interval = percentile_interval(difference)
    key = f"vs_{prior}"
    return {
        key: float(gains(point[own] - point[other], metric)), f"{key}_low": interval.low, f"{key}_high": interval.high,
        f"{key}_p": sign_p_value(difference),
    }  # fmt: skip


def _rank(
    cells: Sequence[tuple[str, str]], point: np.ndarray, drawn: np.ndarray, summary: pd.DataFrame,
    priors: Sequence[str], groups: int,
) -> pd.DataFrame:  # fmt: skip
    names = list(dict.fromkeys(name for _, name in cells))
    metrics = [m for m in dict.fromkeys(m for m, _ in cells) if m not in UNRANKED]
    both = np.concatenate([point[:, None], drawn], 1)  # the estimate first, then its resamples
    found = []
    for metric in metrics:
        order = [cells.index((metric, name)) for name in names]
        better = gains(both[order], metric)
        if np.isfinite(better).all():
            found.append(rankdata(-better, axis=0))
    ranks = np.mean(found, 0) if found else np.full((len(names), both.shape[1]), np.nan)
    rows = []
    for name, row in zip(names, ranks, strict=True):
        interval = percentile_interval(row[1:])
        mine = summary[(summary.method == name) & ~summary.metric.isin(UNRANKED)]
        verdict = "" if name in priors else verdict_of(mine, priors, groups, drawn.shape[1])
        rows.append(
            {"method": name, "rank": row[0], "rank_low": interval.low, "rank_high": interval.high, "verdict": verdict}
        )
    return pd.DataFrame(rows).sort_values("rank", kind="stable", ignore_index=True)


PRIOR_NAMES = {"random": "random", "motion": "the motion prior", "centre": "the centre prior"}


def verdict_of(rows: pd.DataFrame, priors: Sequence[str], groups: int, resamples: int) -> str:
    """In words, from one method's rows of the summary: the prior that it fails to beat, or that it beats all."""
    if not priors:
        return "compared with nothing"
    if groups < MIN_GROUPS:
        return f"too few groups ({groups}; {MIN_GROUPS} are needed)"
    total, least = len(rows), len(rows)
    if 2 / (resamples + 1) * total > ALPHA:  # the least p that so many resamples can give, corrected
        return f"too few resamples ({resamples}) for {total} metrics; use 2000 or more"
    for prior in priors:
        certain = rows[f"vs_{prior}_p"] < ALPHA
        wins, losses = (int((certain & (s * rows[f"vs_{prior}"] > 0)).sum()) for s in (1, -1))
        name = PRIOR_NAMES.get(prior, prior)
        if losses > total / 2:
            return f"worse than {name} (on {losses} of {total} metrics)"
        if wins <= total / 2:
            return f"no better than {name} (better on {wins}, worse on {losses} of {total} metrics)"
        least = min(least, wins)
    return f"better than {', '.join(PRIOR_NAMES.get(p, p) for p in priors)} (on {least} or more of {total} metrics)"
