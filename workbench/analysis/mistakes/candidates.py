"""Groups of clips to ask about: the values of a column, the ends of a number's range, and pairs of both."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

QUANTILES = (0.1, 0.2, 1 / 3, 0.5)
"""A number's lower and upper ends: how much of the clips each takes."""
MOST_VALUES = 50
"""A column of text with more values than this names clips, not kinds of clips, and is left out."""


@dataclass(frozen=True)
class Candidate:
    """One group of clips: a rule in words, the columns it speaks of, and who follows it."""

    rule: str
    columns: tuple[str, ...]
    mask: np.ndarray
    """bool (n,)."""
    halves: tuple[int, ...] = ()
    """Of a pair: where in the list the two groups are that it is the overlap of."""


def candidates(
    properties: pd.DataFrame, groups: np.ndarray, *, min_clips: int, min_groups: int, depth: int
) -> list[Candidate]:
    """All groups with enough clips and enough source groups, inside and outside, each set of clips once.

    ``properties``: one row per clip; numbers with more than five values are cut at :data:`QUANTILES` from either end,
    everything else is taken by value. ``depth=2`` adds every pair of groups by two different columns.
    """
    found: list[Candidate] = []
    seen: set[bytes] = set()

    def add(candidate: Candidate) -> None:
        mask = candidate.mask
        key = np.packbits(mask).tobytes()
        if key in seen or mask.sum() < min_clips or (~mask).sum() < min_clips:
            return
        if len(np.unique(groups[mask])) < min_groups:
            return
        seen.add(key)
        found.append(candidate)

    for column in properties.columns:
        for candidate in _of_column(properties[column]):
            add(candidate)
    single = list(found)
    for i, one in enumerate(single if depth > 1 else ()):
        for j, two in enumerate(single[i + 1 :], i + 1):
            if one.columns != two.columns:
                both = f"{one.rule} and {two.rule}"
                add(Candidate(both, one.columns + two.columns, one.mask & two.mask, (i, j)))
    return found


def _of_column(values: pd.Series) -> Iterator[Candidate]:
    name, known = str(values.name), values.notna().to_numpy()
    if pd.api.types.is_numeric_dtype(values) and values.dtype != bool and values.nunique() > 5:
        numbers = values.to_numpy(float, na_value=np.nan)
        for share in QUANTILES:
            low, high = np.nanquantile(numbers, [share, 1 - share])
            with np.errstate(invalid="ignore"):
                yield Candidate(f"{name} <= {low:.4g}", (name,), known & (numbers <= low))
                yield Candidate(f"{name} >= {high:.4g}", (name,), known & (numbers >= high))
    elif values.nunique() <= MOST_VALUES:
        texts = values.astype(object)
        for value in sorted(texts[known].unique(), key=str):
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            yield Candidate(f"{name} = {shown}", (name,), known & (texts == value).to_numpy(bool))
    if not known.all():
        yield Candidate(f"{name} is missing", (name,), ~known)
