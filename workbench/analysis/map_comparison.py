"""Two explanations of the same clips side by side: before and after training, two strategies, tasks or classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.analysis.bootstrap import bootstrap, percentile_interval
from workbench.analysis.explain import explain
from workbench.analysis.faithfulness import clip_maps, group_codes, token_masks
from workbench.analysis.maps import Maps
from workbench.analysis.trust.masks import mass_in_mask
from workbench.data.tables import ClipTable

UNITS = ("raw", "share")


@dataclass(frozen=True, repr=False)
class MapComparison:
    """Two sets of maps, their difference, and what changed, clip by clip.

    ``first``, ``second``, ``difference`` (second - first): float64 (B, T', H', W') in one ``unit``; ``scale``: the
    largest absolute value in either set, to draw both on. ``clips``: one row per clip and ``quantity``, with ``first``,
    ``second``, ``difference``. ``summary``: per quantity the means, and ``low, high``, the difference's 95 % interval
    over groups of clips. Quantities, of the positive values: ``mass`` (their sum), ``entropy`` (0: one token, 1: even),
    ``centre`` (mean frame, counted from 0), ``in_mask`` (share, with masks); and ``moved``, the share of the mass that
    lies elsewhere in the second (total variation), which has no first or second. A map without positive values counts
    as even.
    """

    names: tuple[str, str]
    method: str
    unit: str
    first: np.ndarray
    second: np.ndarray
    difference: np.ndarray
    scale: float
    frames: np.ndarray
    clips: pd.DataFrame
    summary: pd.DataFrame
    groups: int

    def __repr__(self) -> str:
        lines = [
            f"Maps by {self.method}: {self.names[1]!r} against {self.names[0]!r}, {len(self.first)} clips in "
            f"{self.groups} groups, unit {self.unit}, shared scale {self.scale:.3g}",
            self.summary.to_string(index=False, float_format=lambda v: f"{v:.3f}"),
            "low, high: 95 % interval of the mean difference over groups of clips, not over training seeds.",
        ]
        return "\n".join(lines)


def compare_maps(
    first: Maps, second: Maps, *, names: tuple[str, str] = ("first", "second"), masks: np.ndarray | None = None,
    groups: Sequence[Any] | None = None, unit: str = "raw", resamples: int = 2000, seed: int = 0,
) -> MapComparison:  # fmt: skip
    """What changed between two sets of maps of the same clips; identical maps give exactly zero.

    ``names`` of the two; ``masks`` bool on pixels (B, T, H, W) or tokens; ``groups``: what is resampled as one, per
    clip (None: each clip). ``unit``: ``raw`` compares the numbers as they are, which only one method, measured from one
    baseline, allows; ``share`` makes the positive part of each map sum to 1 first, and compares any two. Over layers
    and heads the mean is taken.
    Raises ValueError where clips or grids differ, or units that do not compare.
    """
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r} is not one of {', '.join(UNITS)}")
    _check(first, second, unit)
    one, two = (clip_maps(maps).astype(np.float64) for maps in (first, second))
    shares = shares_of(one), shares_of(two)
    span = first.frames.shape[1] // first.grid[0]
    known = None if masks is None else token_masks(masks, first.grid)
    quantities = [quantities_of(raw, share, span, known) for raw, share in zip((one, two), shares, strict=True)]
    table = {name: (a, quantities[1][name], quantities[1][name] - a) for name, a in quantities[0].items()}
    empty = np.full(len(one), np.nan)
    table["moved"] = (empty, empty, 0.5 * np.abs(shares[1] - shares[0]).sum((1, 2, 3)))
    if unit == "share":
        one, two = shares
    codes, labels = group_codes(None, first.clip_ids, groups)
    clips = pd.concat(
        [
            pd.DataFrame({"clip_id": first.clip_ids, "group": labels, "quantity": name, "first": a, "second": b,
            "difference": d}) for name, (a, b, d) in table.items()
        ],
        ignore_index=True,
    )  # fmt: skip
    method = first.method if first.method == second.method else f"{first.method} and {second.method}"
    return MapComparison(
        names, method, unit, one, two, two - one, float(max(np.abs(one).max(), np.abs(two).max())), first.frames, clips,
        _summary(clips, codes, resamples, seed), int(codes.max()) + 1,
    )  # fmt: skip


def compare_classes(
    run: Any, clips: ClipTable | np.ndarray | torch.Tensor, first: str | int, second: str | int, *,
    method: str = "attnlrp", task: str | None = None, masks: np.ndarray | None = None, resamples: int =
    2000, seed: int = 0, **options: Any,
) -> MapComparison:  # fmt: skip
    """Why the one class and not the other: the same clips explained for two classes of a multiclass task.

    ``options`` go to :func:`~workbench.analysis.explain.explain`. The difference of two attributions is the attribution
    of the difference of the two logits, so a token that speaks for both cancels. Attention does not know the class: its
    difference is zero, and says so by raising ValueError.
    """
    if first == second:
        raise ValueError(f"both classes are {first!r}; give two different ones")
    one = explain(run, clips, method=method, task=task, target=first, **options)
    two = explain(run, one.frames, method=method, task=task, target=second, **options)
    if not one.signed and np.array_equal(one.values, two.values):
        raise ValueError(f"method={method!r} gives every class the same map; use one that explains a class")
    groups = group_codes(clips, one.clip_ids, None)[1]
    return compare_maps(
        one, two, names=(one.target[0], two.target[0]), masks=masks, groups=groups, resamples=resamples, seed=seed
    )


def shares_of(values: np.ndarray) -> np.ndarray:
    """The positive part of each map (B, T', H', W'), made to sum to 1; an even map where there is none."""
    positive = np.maximum(values, 0)
    total = positive.sum((1, 2, 3), keepdims=True)
    even = np.full_like(positive, 1 / positive[0].size)
    return np.where(total > 0, positive / np.where(total > 0, total, 1), even)


def quantities_of(
    values: np.ndarray, shares: np.ndarray, tubelet_frames: int, masks: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """``mass``, ``entropy``, ``centre`` and, with bool masks on tokens, ``in_mask``: (B,) each."""
    flat = shares.reshape(len(shares), -1)
    surprise = -np.where(flat > 0, flat * np.log(np.where(flat > 0, flat, 1)), 0).sum(1)
    middles = (np.arange(shares.shape[1]) + 0.5) * tubelet_frames - 0.5  # frame index of a tubelet's middle
    found = {
        "mass": np.maximum(values, 0).sum((1, 2, 3)),
        "entropy": surprise / max(np.log(flat.shape[1]), np.finfo(float).tiny),
        "centre": shares.sum((2, 3)) @ middles,
    }
    return found if masks is None else found | {"in_mask": mass_in_mask(shares, masks)}


def _check(first: Maps, second: Maps, unit: str) -> None:
    if first.grid != second.grid:
        raise ValueError(f"the grids {first.grid} and {second.grid} differ; compare maps of backbones with one grid")
    if not np.array_equal(first.frames, second.frames):
        raise ValueError("the two sets of maps are of different clips; explain the same frames twice")
    if unit == "raw" and (first.method, first.baseline) != (second.method, second.baseline):
        raise ValueError(
            f"{first.method} from {first.baseline} and {second.method} from {second.baseline} have no common unit; "
            "use unit='share'"
        )


def _summary(clips: pd.DataFrame, codes: np.ndarray, resamples: int, seed: int) -> pd.DataFrame:
    names = list(dict.fromkeys(clips.quantity))
    parts = {name: clips[clips.quantity == name] for name in names}
    changes = np.stack([parts[name].difference.to_numpy(float) for name in names])  # (S, B)
    drawn = bootstrap(lambda w: changes @ (w / w.sum(1, keepdims=True)).T, codes, resamples=resamples, seed=seed)
    rows = []
    for name, change, resampled in zip(names, changes, drawn, strict=True):
        interval = percentile_interval(resampled)
        rows.append({
            "quantity": name, "first": parts[name]["first"].mean(), "second": parts[name].second.mean(),
            "difference": change.mean(), "low": interval.low, "high": interval.high,
        })  # fmt: skip
    return pd.DataFrame(rows)
