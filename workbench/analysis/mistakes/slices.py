"""On what kind of clips does it fail more? A search over groups of clips that counts how much it searched."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.analysis.bootstrap import MIN_GROUPS, Interval, bootstrap, percentile_interval
from workbench.analysis.mistakes.candidates import MOST_VALUES, Candidate, candidates
from workbench.analysis.mistakes.outcomes import Outcomes, outcomes
from workbench.analysis.mistakes.properties import clip_properties
from workbench.analysis.predictions import Predicted
from workbench.data.protocol import Protocol
from workbench.data.tables import REQUIRED, ClipTable, Task

ALPHA = 0.05
MIN_CLIPS = 10
KEPT = 50
_ALIKE = 0.8
_BLOCK = 4_000_000  # numbers at a time while shuffling
_STRATUM = 20
_INTERVAL_RESAMPLES = 1000
_WORTH = 1.0  # standard deviations by which a pair has to beat either half to be shown beside it


@dataclass(frozen=True, repr=False)
class Slices:
    """Groups of clips on which a run fails more than on the rest, the clearest first. Made by :func:`slices`.

    ``table``: ``slice`` (the rule in words), ``clips, groups, rate`` (share wrong; for a regression the mean absolute
    residual), ``low, high`` (95 % over groups), ``rest`` (the rate of all other clips), ``difference,
    difference_low, difference_high``, ``statistic``, ``p`` (corrected for the whole search) and ``verdict``: ``fails
    more`` or ``no clear difference``.
    """

    run: str
    task: Task
    protocol: Protocol
    table: pd.DataFrame
    searched: int
    """How many groups were tried: the correction is for all of them."""
    columns: tuple[str, ...]
    """What they were formed from."""
    overall: float
    n: int
    groups: int
    members: tuple[np.ndarray, ...]
    """Ids of the clips of each row."""

    @property
    def caption(self) -> str:
        """What was searched and how the verdicts are corrected."""
        what = "mean absolute residual" if self.task.kind == "regression" else "share wrong"
        clear = int((self.table.verdict == "fails more").sum()) if len(self.table) else 0
        few = "" if self.groups >= 2 * MIN_GROUPS else f" {self.groups} groups are too few for a verdict."
        return (
            f"Run {self.run!r}, task {self.task.name!r}: {what} {self.overall:.3f} over {self.n} clips in "
            f"{self.groups} groups of {self.protocol.split}. {self.searched} slices tried, by {len(self.columns)} "
            f"properties and pairs of them; {clear} shown fail more, p corrected for all that were tried (largest "
            f"statistic while whole groups trade losses, {ALPHA:.0%}). Intervals are for each slice alone.{few}"
        )

    def clips(self, row: int) -> list[str]:
        """Ids of the clips in one row of ``table``. Raises IndexError for a row that is not there."""
        if not 0 <= row < len(self.members):
            raise IndexError(f"slice {row}: there are {len(self.members)}, counted from 0")
        return [str(c) for c in self.members[row]]

    def __str__(self) -> str:
        shown = self.table.head(20).to_string(index=False, float_format=_short)
        return f"{shown if len(self.table) else 'No slice fails more than the rest.'}\n\n{self.caption}"

    __repr__ = __str__  # what a shell shows

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            body = self.table.head(20).to_html(
                index=False, escape=True, border=0, float_format=_short, classes="workbench-errors"
            )
        return f"{body}<p>{html.escape(self.caption)}</p>"


def slices(
    run: Predicted,
    clips: ClipTable | None = None,
    *,
    task: str | None = None,
    split: str = "test",
    properties: pd.DataFrame | None = None,
    columns: Sequence[str] | None = None,
    depth: int = 2,
    min_clips: int = MIN_CLIPS,
    resamples: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> Slices:
    """Search for groups of clips on which ``run`` fails more than on all others.

    ``clips``: the table, whose free columns and other tasks' labels are searched. ``properties``: a frame with
    ``clip_id`` and further columns; None measures ``clips`` (:func:`clip_properties`), an empty frame adds nothing. The
    clip's true class is searched too. ``columns`` narrows the search. ``depth``: 1 takes one property at a time, 2
    pairs as well. A slice has at least ``min_clips`` clips in at least six groups.

    If losses have nothing to do with the properties, whole groups could trade theirs. That is done ``resamples`` times,
    among groups of about one size; a slice's statistic is its mean loss, standardised by what it is under the trades,
    and its p the share of rounds in which the largest statistic of *all* slices reaches it, so that the search pays for
    its size (maxT: Westfall and Young 1993). Exact for groups of one size whose clips are exchangeable. Shown are
    slices that are not nearly the same clips as a clearer one, and pairs that say more than either half; all count.
    A slice is a finding about these clips, not a cause: dark clips may be one camera's.

    Raises ValueError where nothing can be searched, or clips of the run are not in ``clips`` or ``properties``.
    """
    if depth not in (1, 2):
        raise ValueError(f"depth={depth} must be 1 (one property) or 2 (pairs as well)")
    out = outcomes(run, task=task, split=split)
    facts = _facts(out, clips, properties, columns, progress)
    codes = out.rows.groups
    found = candidates(facts, codes, min_clips=min_clips, min_groups=MIN_GROUPS, depth=depth)
    loss = out.table.loss.to_numpy(float)
    statistic, p = _tested(loss, codes, found, resamples, seed)
    order = [i for i in np.argsort(-statistic, kind="stable") if statistic[i] > 0 and _adds(i, found, statistic)]
    kept = _unlike(order, found)
    spans = _intervals([found[i].mask for i in kept], loss, codes, min(resamples, _INTERVAL_RESAMPLES), seed)
    table = pd.DataFrame(
        [_row(found[i], loss, codes, statistic[i], p[i], s) for i, s in zip(kept, spans, strict=True)],
        columns=list(_COLUMNS),
    )
    return Slices(
        run=run.name, task=out.task, protocol=out.protocol, table=table, searched=len(found),
        columns=tuple(map(str, facts.columns)), overall=float(loss.mean()), n=len(loss), groups=out.rows.num_groups,
        members=tuple(out.rows.clip_id[found[i].mask] for i in kept),
    )  # fmt: skip


_COLUMNS = (
    "slice", "clips", "groups", "rate", "low", "high", "rest", "difference", "difference_low", "difference_high",
    "statistic", "p", "verdict",
)  # fmt: skip


def _facts(
    out: Outcomes, clips: ClipTable | None, properties: pd.DataFrame | None, columns: Sequence[str] | None,
    progress: bool,
) -> pd.DataFrame:  # fmt: skip
    """What the clips of ``out`` are known by, in their order: one column per property."""
    ids = pd.Index(out.rows.clip_id.astype(str))
    parts: list[pd.DataFrame] = []
    if out.names:
        parts.append(pd.DataFrame({"truth": out.table.truth.to_numpy()}, index=ids))
    if clips is not None:
        own = clips.frame.assign(clip_id=clips.frame.clip_id.astype(str)).set_index("clip_id")
        own = _rows(own, ids, "clips")
        if properties is None:
            wanted = clips[clips.frame.clip_id.astype(str).isin(ids).to_numpy()]
            properties = clip_properties(wanted, progress=progress)
        parts.append(own.drop(columns=[c for c in (*REQUIRED, "decoder", out.task.name) if c in own]))
    if properties is not None and len(properties.columns):
        if "clip_id" not in properties:
            raise ValueError(f"properties lack the column 'clip_id'; they have {list(properties.columns)}")
        measured = properties.assign(clip_id=properties.clip_id.astype(str)).set_index("clip_id")
        parts.append(_rows(measured, ids, "properties"))
    if not parts:
        raise ValueError("there is nothing to search by: give clips (the table) or properties (a frame with clip_id)")
    facts = pd.concat(parts, axis=1)
    facts = facts.loc[:, ~facts.columns.duplicated()]
    if columns is not None:
        if absent := [c for c in columns if c not in facts]:
            raise ValueError(f"no property {absent} to search by; there are {list(facts.columns)}")
        return facts[list(columns)]
    names = [c for c in facts if not pd.api.types.is_numeric_dtype(facts[c]) and facts[c].nunique() > MOST_VALUES]
    return facts.drop(columns=names)


def _rows(frame: pd.DataFrame, ids: pd.Index, name: str) -> pd.DataFrame:
    if absent := [i for i in ids if i not in frame.index][:3]:
        raise ValueError(f"the run predicts clips that {name} lacks, such as {absent}; give the table it was made on")
    return frame[~frame.index.duplicated()].loc[ids]


def _tested(
    loss: np.ndarray, codes: np.ndarray, found: list[Candidate], resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Statistic and corrected p-value of each candidate, both (S,)."""
    if not found:
        return np.zeros(0), np.zeros(0)
    masks = np.stack([c.mask for c in found], axis=1).astype(np.float32)  # (n, S)
    sizes = masks.sum(0)
    step = max(1, _BLOCK // len(loss))
    drawn = np.concatenate([
        _inside(block, masks, sizes) for block in _shuffled(loss, codes, resamples, step, np.random.default_rng(seed))
    ])  # fmt: skip
    centre, spread = drawn.mean(0), drawn.std(0)

    def standard(excess: np.ndarray) -> np.ndarray:
        return np.divide(excess - centre, spread, out=np.zeros_like(excess), where=spread > 1e-9)

    statistic = standard(_inside(loss[None], masks, sizes))[0]
    tops = np.sort(standard(drawn).max(1))
    beyond = len(tops) - np.searchsorted(tops, statistic - 1e-6, side="left")
    return statistic, (beyond + 1) / (len(tops) + 1)


def _inside(losses: np.ndarray, masks: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean loss of each slice for each row of losses (r, n): float64 (r, S)."""
    return (losses.astype(np.float32) @ masks).astype(float) / sizes


def _shuffled(
    loss: np.ndarray, codes: np.ndarray, rounds: int, step: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Losses handed from group to group, (r, n) at a time: each group takes over those of another of about its size.

    A group that is larger than the one it takes from repeats them, a smaller one leaves some out; groups of one size
    only ever trade whole.
    """
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    strata = _strata(sizes)
    own = codes[order]
    for first in range(0, rounds, step):
        block = np.empty((min(step, rounds - first), len(loss)))
        for row in block:
            giver = np.arange(len(sizes))
            for members in strata:
                giver[members] = rng.permutation(members)
            # Random keys within each group: clips of a group trade places too.
            rank = np.lexsort((rng.random(len(loss)), own)) - starts[own]
            taken = starts[giver[own]] + rank % sizes[giver[own]]
            row[order] = loss[order][taken]
        yield block


def _strata(sizes: np.ndarray) -> list[np.ndarray]:
    """Groups in order of size, cut where the size changes once :data:`_STRATUM` are together."""
    order = np.argsort(sizes, kind="stable")
    cuts, last = [], 0
    for i in range(1, len(order)):
        if i - last >= _STRATUM and len(order) - i >= _STRATUM and sizes[order[i]] != sizes[order[i - 1]]:
            cuts.append(i)
            last = i
    return np.split(order, cuts)


def _adds(i: int, found: list[Candidate], statistic: np.ndarray) -> bool:
    """Whether a pair says more than its halves: the best of a slice's many sub-groups beats it a little by chance."""
    return all(statistic[i] >= statistic[half] + _WORTH for half in found[i].halves)


def _unlike(order: list[int], found: list[Candidate]) -> list[int]:
    """The first :data:`KEPT` that do not hold nearly the same clips as one before them (Jaccard index over 0.8)."""
    kept: list[int] = []
    for i in order:
        if len(kept) == KEPT:
            break
        mask = found[i].mask
        if all((mask & found[k].mask).sum() <= _ALIKE * (mask | found[k].mask).sum() for k in kept):
            kept.append(i)
    return kept


def _intervals(
    masks: list[np.ndarray], loss: np.ndarray, codes: np.ndarray, resamples: int, seed: int
) -> list[tuple[Interval, Interval]]:
    """Of each slice's rate, and of its excess over the rest; groups are drawn with replacement."""
    if not masks:
        return []
    count = int(codes.max()) + 1
    sides = [m for mask in masks for m in (mask, ~mask)]
    hits, clips = (
        np.stack([np.bincount(codes, weights=side * v, minlength=count) for side in sides], axis=1)
        for v in (loss, np.ones(len(loss)))
    )  # (G, 2 S)

    def statistics(weights: np.ndarray) -> np.ndarray:  # (r, G) -> (2 S, r): rates inside, then their excesses
        size = weights @ clips
        rates = np.divide(weights @ hits, size, out=np.full(size.shape, np.nan), where=size > 0)
        return np.concatenate([rates[:, ::2], rates[:, ::2] - rates[:, 1::2]], axis=1).T

    drawn = bootstrap(statistics, np.arange(count), resamples=resamples, seed=seed)
    ends = [percentile_interval(values) for values in drawn]
    return list(zip(ends[: len(masks)], ends[len(masks) :], strict=True))


def _row(
    one: Candidate, loss: np.ndarray, codes: np.ndarray, statistic: float, p: float, spans: tuple[Interval, Interval]
) -> tuple[object, ...]:
    mask, (rate, excess) = one.mask, spans
    here, there = float(loss[mask].mean()), float(loss[~mask].mean())
    verdict = "fails more" if p <= ALPHA else "no clear difference"
    return (
        one.rule, int(mask.sum()), len(np.unique(codes[mask])), here, rate.low, rate.high, there, here - there,
        excess.low, excess.high, float(statistic), float(p), verdict,
    )  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.3g}"
