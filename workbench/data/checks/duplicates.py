"""The same picture twice: exact copies by their bytes, near-duplicates by what they show and how it moves.

A signature is 8 grey frames of 16 x 16, evenly spaced in time (``Survey.signature``), so it hardly notices another
codec, quality, size or frame rate. Stills are not enough to call two clips one: all clips of a fixed camera look alike.
So where something moves, the movement (frames minus their mean over time) has to agree as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.data.tables import ClipTable

# Measured on 237 gesture and 300 surveillance clips: none of their 72,816 pairs reaches both (four gestures agree in
# movement above 0.8, none of them in looks), and of 315 copies (CRF 40, half and a third of the size, half the frame
# rate, brighter, MPEG-4, all at once) all are found.
LOOKS, MOVES = 0.95, 0.70
"""Least correlation of two clips' frames, and of their movement, that makes them near-duplicates."""
_STILL = 1.0
"""Movement below this many grey levels (root mean square) is a still picture's coding noise."""
_STILL_APART = 2.0
"""Two still clips are one where their frames differ by less than this many grey levels (root mean square)."""
_BLOCK = 1024


@dataclass(frozen=True)
class Signatures:
    """Unit vectors of what clips show and how they move; built by :func:`signatures_of`."""

    looks: np.ndarray
    """float32 ``(n, 2048)``: frames without each frame's mean."""
    moves: np.ndarray
    """float32 ``(n, 2048)``: frames without their mean over time; zeros where nothing moves."""
    energy: np.ndarray
    """(n,) root mean square of the movement in grey levels."""
    frames: np.ndarray
    """float32 ``(n, 2048)``: frames without each frame's mean, in grey levels."""


def signatures_of(frames: np.ndarray) -> Signatures:
    """From uint8 ``(n, 8, 16, 16)``, as in :class:`workbench.data.checks.survey.Survey`."""
    if frames.ndim != 4:
        raise ValueError(f"signatures must be (n, T, H, W), not {frames.shape}")
    levels = frames.astype(np.float32)
    looks = levels - levels.mean((2, 3), keepdims=True)
    moves = levels - levels.mean(1, keepdims=True)
    moves -= moves.mean((2, 3), keepdims=True)  # a lamp or an exposure control is no movement
    energy = np.sqrt((moves**2).mean((1, 2, 3)))
    n = len(frames)
    return Signatures(_unit(looks.reshape(n, -1)), _unit(moves.reshape(n, -1)), energy, looks.reshape(n, -1))


def _unit(vectors: np.ndarray) -> np.ndarray:
    sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, sizes, out=np.zeros_like(vectors), where=sizes > 0)


def near_pairs(signatures: Signatures, looks: float = LOOKS, moves: float = MOVES) -> pd.DataFrame:
    """Near-duplicates as pairs ``first < second``, with their agreement (``looks, moves`` in -1..1).

    Each clip is paired with the first one before it that is like it, so ``n`` copies make ``n - 1`` pairs and copies
    that lie in two splits make at least one pair across them. ``moves`` is NaN for two still pictures. Time grows with
    n squared (a second for 5,000 clips), memory with n.
    """
    found = list(_candidates(signatures, looks, moves))
    columns = ["first", "second", "looks", "moves"]
    if not found:
        return pd.DataFrame(columns=columns)
    pairs = pd.DataFrame(np.concatenate(found), columns=columns)
    return pairs.astype({"first": int, "second": int}).sort_values(["first", "second"], ignore_index=True)


def _candidates(s: Signatures, looks: float, moves: float) -> Iterator[np.ndarray]:
    """Rows of (first, second, looks, moves), block by block of the table of all pairs."""
    count = len(s.energy)
    still, free = s.energy < _STILL, np.ones(count, bool)
    for top in range(0, count, _BLOCK):
        for left in range(top, count, _BLOCK):
            rows, columns = slice(top, top + _BLOCK), slice(left, left + _BLOCK)
            alike, moving = s.looks[rows] @ s.looks[columns].T, s.moves[rows] @ s.moves[columns].T
            both_move = ~still[rows, None] & ~still[None, columns] & (moving >= moves)
            both_still = still[rows, None] & still[None, columns]
            if both_still.any():
                both_still &= _apart(s.frames[rows], s.frames[columns]) < _STILL_APART
            match = (alike >= looks) & (both_move | both_still) & free[None, columns]
            if left == top:
                match = np.triu(match, 1)
            b = np.flatnonzero(match.any(0))
            if not len(b):
                continue
            a = match[:, b].argmax(0)
            free[left + b] = False
            agreement = np.where(still[top + a], np.nan, moving[a, b])
            yield np.column_stack([top + a, left + b, alike[a, b], agreement])


def _apart(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Root mean square difference of all pairs: two views of one room correlate without being one clip."""
    squares = (one**2).sum(1)[:, None] + (two**2).sum(1)[None] - 2 * one @ two.T
    return np.sqrt(np.maximum(squares, 0) / one.shape[1])


def find_duplicates(table: ClipTable, files: pd.DataFrame, signatures: dict[str, np.ndarray]) -> pd.DataFrame:
    """Pairs of files that are exact or near copies: ``first, second, kind, agreement, splits, labels_differ``.

    ``files`` has one row per clip of ``table`` with ``content`` (an id of the bytes, NaN where unknown);
    ``signatures`` are by path. ``kind`` is ``exact`` or ``near``; ``splits`` reads ``train/test``; ``labels_differ``
    names the tasks in which the two carry different labels. Exact copies are paired with the first of them only.
    """
    facts = _per_path(table, files)
    exact = _exact(facts)
    copies = set(exact["second"])
    paths = [p for p in facts.index if p in signatures and p not in copies]
    near = pd.DataFrame(columns=["first", "second", "kind", "agreement"])
    if len(paths) > 1:
        pairs = near_pairs(signatures_of(np.stack([signatures[p] for p in paths])))
        near = pd.DataFrame(
            {
                "first": [paths[i] for i in pairs["first"]],
                "second": [paths[i] for i in pairs["second"]],
                "kind": "near",
                "agreement": pairs.moves.fillna(pairs.looks).astype(float).round(3),
            }
        )
    both = [part for part in (exact, near) if len(part)]
    pairs = pd.concat(both, ignore_index=True) if both else near
    names = [task.name for task in table.tasks]
    ends = list(zip(pairs["first"], pairs["second"], strict=True))
    splits = [_joined(facts.split[a], facts.split[b]) for a, b in ends]
    differ = [", ".join(n for n in names if _clash(facts[n][a], facts[n][b])) for a, b in ends]
    return pairs.assign(splits=pd.Series(splits, dtype=object), labels_differ=pd.Series(differ, dtype=object))


def _clash(one: frozenset[object], two: frozenset[object]) -> bool:
    """Whether both sides have labels and none in common."""
    return bool(one) and bool(two) and not one & two


def _per_path(table: ClipTable, files: pd.DataFrame) -> pd.DataFrame:
    """One row per path: its bytes' id, and the sets of splits and labels that its clips have."""
    columns = table.frame[["path", "split", *(t.name for t in table.tasks)]].assign(content=files.content.to_numpy())
    groups = columns.groupby("path", sort=False)
    sets = groups.agg({c: lambda v: frozenset(v.dropna()) for c in columns if c not in ("path", "content")})
    return sets.assign(content=groups.content.first())


def _exact(facts: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for _, same in facts.dropna(subset=["content"]).groupby("content", sort=False):
        rows += [(same.index[0], other, "exact", 1.0) for other in same.index[1:]]
    return pd.DataFrame(rows, columns=["first", "second", "kind", "agreement"])


def _joined(one: frozenset[str], two: frozenset[str]) -> str:
    return "/".join(sorted(one | two, key=lambda s: ("train", "val", "test").index(s)))


def overlapping(table: ClipTable) -> list[str]:
    """Files of which one moment lies in clips of two splits."""
    spans = table.frame[["path", "start_seconds", "end_seconds", "split"]].dropna(subset=["split"])
    spans = spans.fillna({"start_seconds": 0.0, "end_seconds": np.inf})
    shared = spans.groupby("path").split.transform("nunique") > 1
    found = []
    for path, part in spans[shared].sort_values("start_seconds").groupby("path"):
        ends: dict[str, float] = {}
        for start, end, split in zip(part.start_seconds, part.end_seconds, part.split, strict=True):
            if any(start < other for name, other in ends.items() if name != split):
                found.append(str(path))
                break
            ends[split] = max(end, ends.get(split, -np.inf))
    return found
