"""What there is to predict of a clip, and how its labels become numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

KINDS = ("multiclass", "binary", "multilabel", "regression")
REQUIRED = ("clip_id", "path", "start_seconds", "end_seconds", "split", "group")
_UNKNOWN = "?"


@dataclass(frozen=True)
class Task:
    """One thing to predict per clip.

    ``multiclass`` needs ``classes`` (their order is the order of the logits); ``binary`` is 0 or 1 with an optional
    pair of names (negative, positive); ``regression`` is a number. A missing label is NaN and is masked everywhere.

    ``multilabel`` is any number of its ``classes`` at once. Its column holds them as text, ``run|jump``; ``|`` alone
    (or empty text, which a CSV cannot tell from a missing cell) says that none applies. A class not named does not
    apply; one written ``?jump`` is not known of this clip and is masked. A missing cell is a clip of which no class is
    known. Lists of names do as well as text. :func:`label_sets` makes such a column of one 0/1 column per class.
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(str(c) for c in self.classes))
        if self.kind not in KINDS:
            raise ValueError(f"task {self.name!r}: kind={self.kind!r} is not one of {', '.join(KINDS)}")
        if self.name in (*REQUIRED, "decoder"):
            raise ValueError(f"task name {self.name!r} is taken by a column of the clip table; rename the label column")
        if self.kind == "multiclass" and len(self.classes) < 2:
            raise ValueError(f"task {self.name!r} has {len(self.classes)} class(es); multiclass needs at least 2")
        if self.kind == "binary" and len(self.classes) not in (0, 2):
            raise ValueError(f"task {self.name!r}: binary takes no classes or (negative, positive), not {self.classes}")
        if self.kind == "multilabel":
            if not self.classes:
                raise ValueError(f"task {self.name!r} has no classes; multilabel needs at least 1")
            if odd := [c for c in self.classes if not c.strip() or "|" in c or c.strip().startswith(_UNKNOWN)]:
                raise ValueError(f"task {self.name!r}: no class of a multilabel task is empty, holds | or starts with ?"
                                 f"; got {odd[:3]}")  # fmt: skip
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"task {self.name!r} names a class twice: {self.classes}")

    @property
    def num_outputs(self) -> int:
        """Width of this task's head: K for multiclass and multilabel, else 1."""
        return len(self.classes) if self.kind in ("multiclass", "multilabel") else 1

    @property
    def num_targets(self) -> int:
        """Numbers that a clip's label takes: K for multilabel, else 1."""
        return len(self.classes) if self.kind == "multilabel" else 1

    def encode(self, labels: pd.Series) -> np.ndarray:
        """Labels as float64 (n,): class index, 0/1 or value; for multilabel (n, K) of 0 and 1. NaN where missing.

        Raises ValueError on a label it does not know.
        """
        if self.kind == "multilabel":
            return self._encode_sets(labels)
        if self.kind == "regression":
            numbers = pd.to_numeric(labels, errors="coerce").to_numpy(float, na_value=np.nan)
            odd_rows = labels[(np.isnan(numbers) & labels.notna().to_numpy()) | np.isinf(numbers)]
            if len(odd_rows):
                raise ValueError(f"task {self.name!r} is a regression but has the label(s) {list(odd_rows[:3])}")
            return numbers
        if self.kind == "binary" and pd.api.types.is_numeric_dtype(labels):
            values = labels.to_numpy(float)
            odd = sorted(set(values[~np.isnan(values)].tolist()) - {0.0, 1.0})
            if odd:
                raise ValueError(f"task {self.name!r} is binary but has the label(s) {odd[:5]}; use 0, 1 or missing")
            return values
        values = np.full(len(labels), np.nan)
        given = labels.notna().to_numpy()
        known = labels[given].astype(str)
        codes = pd.Index(self.classes, dtype=object).get_indexer(pd.Index(known, dtype=object))
        if (codes < 0).any():
            self._unknown(known[codes < 0])
        values[given] = codes
        return values

    def _encode_sets(self, labels: pd.Series) -> np.ndarray:
        values = np.full((len(labels), len(self.classes)), np.nan)
        texts = labels.map(set_text).to_numpy(object)
        # A million clips have few different sets: each is read once.
        codes, distinct = pd.factorize(texts)
        place = {name: k for k, name in enumerate(self.classes)}
        rows = np.zeros((len(distinct) + 1, len(self.classes)))
        rows[-1] = np.nan  # factorize calls what is missing -1
        for row, text in zip(rows, distinct, strict=False):
            for name in names_in(text):
                known = place.get(name.removeprefix(_UNKNOWN))
                if known is None:
                    self._unknown([name])
                else:
                    row[known] = np.nan if name.startswith(_UNKNOWN) else 1.0
        values[:] = rows[codes]
        return values

    def _unknown(self, names: Iterable[str]) -> None:
        raise ValueError(
            f"task {self.name!r} has the unknown label(s) {sorted(set(names))[:5]}; it knows {self.classes}"
        )

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "classes": list(self.classes)}

    @staticmethod
    def from_json(record: dict[str, Any]) -> "Task":
        return Task(record["name"], record["kind"], tuple(record.get("classes", ())))


def names_in(text: str) -> list[str]:
    """The names in a cell of a multilabel column, ``?`` and all.

    >>> names_in("run | ?jump")
    ['run', '?jump']
    """
    return [name.strip() for name in text.split("|") if name.strip()]


def set_text(label: Any) -> str | None:
    """A cell of a multilabel column as text; None where it is missing."""
    if isinstance(label, list | tuple | set | frozenset | np.ndarray):
        return "|".join(sorted(str(name) for name in label)) or "|"
    return None if pd.isna(label) else str(label)


def label_sets(frame: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """One 0/1 column per class -> the column of a multilabel task whose classes are these ``columns``.

    A missing cell masks that class of that clip; a row without any known cell is missing altogether. Raises ValueError
    on a column that is not there or holds something else.

    >>> label_sets(pd.DataFrame({"run": [1, 0, np.nan], "jump": [1, np.nan, np.nan]}), ["run", "jump"]).tolist()
    ['run|jump', '?jump', None]
    """
    if absent := [c for c in columns if c not in frame.columns]:
        raise ValueError(f"the frame lacks the column(s) {absent}; it has {list(frame.columns)}")
    values = np.stack([Task(f"column {c}", "binary").encode(frame[c]) for c in columns], axis=1)  # (n, K)
    return pd.Series(sets_of(values, columns), index=frame.index, dtype=object)


def sets_of(values: np.ndarray, classes: Sequence[str]) -> list[str | None]:
    """The way back from :meth:`Task.encode`: 0, 1 and NaN (n, K) -> cells of a multilabel column."""
    patterns, inverse = np.unique(np.nan_to_num(values, nan=2.0), axis=0, return_inverse=True)
    texts: list[str | None] = []
    for pattern in patterns:
        named = [("" if v == 1 else _UNKNOWN) + c for v, c in zip(pattern, classes, strict=True) if v]
        texts.append(None if len(pattern) and (pattern == 2).all() else "|".join(named) or "|")
    return [texts[i] for i in inverse.reshape(-1)]


def target_slices(tasks: Sequence[Task]) -> dict[str, slice]:
    """Where each task's targets lie in the columns of one target array (n, sum of ``num_targets``)."""
    ends = np.cumsum([task.num_targets for task in tasks]).tolist()
    return {task.name: slice(end - task.num_targets, end) for task, end in zip(tasks, ends, strict=True)}
