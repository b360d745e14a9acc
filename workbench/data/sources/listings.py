"""Clips listed in a CSV, Parquet file or the records of shards: which column is what, and which kind a label is."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.data.tables import REQUIRED, SPLITS, Task
from workbench.data.tasks import names_in

log = logging.getLogger(__name__)

_MANY_VALUES = 20
"""A column of more distinct whole numbers than this is a quantity, not a class."""
_MISSING_WORDS = ["NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null", "None"]
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip


def read_table(file: Path) -> pd.DataFrame:
    """A ``.csv``, ``.tsv``, ``.txt`` or ``.parquet`` file as it is. Raises ValueError for what is none.

    An empty cell is missing. ``NA``, ``None`` and the like are missing among numbers only: a class may be called
    "None", and pandas would drop its labels without a word.
    """
    suffix = file.suffix.lower()
    if suffix not in (".csv", ".tsv", ".txt", ".parquet"):
        raise ValueError(f"{str(file)!r} is none of: a folder, a .csv, .tsv or .parquet file, an uncompressed .tar")
    try:
        if suffix == ".parquet":
            return _missing_booleans(pd.read_parquet(file))
        sep = "\t" if suffix == ".tsv" else ","
        frame = pd.read_csv(file, sep=sep, keep_default_na=False, na_values=["", "nan", "NaN"])
        return _missing_booleans(_missing_numbers(frame))
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} cannot be read as a table: it is not UTF-8 ({error})") from error
    except (ValueError, OSError) as error:  # pandas' and Arrow's own are ValueErrors
        raise ValueError(f"{str(file)!r} cannot be read as a table: {str(error).strip()}") from error


def _missing_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    for column in frame.columns:
        if not isinstance(frame[column].dtype, pd.StringDtype) and frame[column].dtype != object:
            continue
        words = frame[column].isin(_MISSING_WORDS)
        rest = frame[column][~words].dropna()
        if words.any() and len(rest) and pd.to_numeric(rest, errors="coerce").notna().all():
            frame[column] = pd.to_numeric(frame[column].where(~words))
    return frame


def _missing_booleans(frame: pd.DataFrame) -> pd.DataFrame:
    """True and False with some missing as 1, 0 and NaN; pandas reads them as objects."""
    for column in frame.columns[frame.dtypes.map(pd.api.types.is_object_dtype).to_numpy()]:
        if pd.api.types.infer_dtype(frame[column]) == "boolean" and frame[column].notna().any():
            frame[column] = frame[column].astype(float)
    return frame


def need(frame: pd.DataFrame, columns: Sequence[str], source: object) -> None:
    """Raise ValueError, with the columns that are there, unless all of ``columns`` are."""
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        other = next((s for s in (";", "\t", "|") if len(frame.columns) == 1 and s in str(frame.columns[0])), None)
        hint = f": its columns seem to be separated by {other!r}; save it with commas" if other else ""
        raise ValueError(f"{str(source)!r} lacks the column(s) {missing}; it has {list(frame.columns)}{hint}")


def listed_clips(
    frame: pd.DataFrame, source: object, *, task: str | None, tasks: Sequence[Task] | None,
    label_column: str | Sequence[str] | None, path_column: str, group_column: str | None, split_column: str | None,
    times: tuple[str, str], unlabelled: bool = False,
) -> tuple[pd.DataFrame, list[Task]]:  # fmt: skip
    """The frame with the columns of a clip table, and its tasks; ``source`` is named in errors."""
    if tasks is not None:
        if label_column is not None or task is not None:
            raise ValueError("give tasks, or task and label_column, not both")
        if isinstance(tasks, Task) or not all(isinstance(t, Task) for t in tasks):
            raise TypeError(f"tasks={tasks!r} must be a list of Task; label_column takes the names of columns")
        labels = [t.name for t in tasks]
    elif unlabelled:
        labels = []
    else:
        labels = [label_column] if isinstance(label_column, str) else list(label_column or ())
        labels = labels or [task if task is not None and task in frame.columns else "label"]
    need(frame, [path_column, *labels, *filter(None, (group_column, split_column))], source)
    if not len(frame):
        raise ValueError(f"{str(source)!r} lists no clips")
    if frame[path_column].isna().any():
        raise ValueError(f"{str(source)!r}: {int(frame[path_column].isna().sum())} row(s) have no {path_column}")
    roles = {path_column: "path", times[0]: "start_seconds", times[1]: "end_seconds"}
    roles |= {split_column: "split"} if split_column else {}
    roles |= {labels[0]: task} if task is not None and len(labels) == 1 else {}
    clash = [new for old, new in roles.items() if old != new and old in frame and new in frame]
    renamed = frame.drop(columns=clash).rename(columns=roles)
    renamed = renamed.assign(path=renamed["path"].astype(str).str.replace("\\", "/", regex=False))
    group = frame[group_column] if group_column else (frame["group"] if "group" in frame else renamed["path"])
    if group.isna().any():
        raise ValueError(f"{str(source)!r}: {int(group.isna().sum())} row(s) have no {group_column or 'group'}")
    renamed = renamed.assign(group=group.astype(str), split=_splits(renamed, source))
    made = list(tasks) if tasks is not None else [infer_task(renamed, roles.get(c, c)) for c in labels]
    for each in made:
        if each.kind == "multiclass":
            _say_alike(each, renamed[each.name])
            renamed = renamed.assign(**{each.name: _class_names(renamed[each.name])})
    return filled(renamed), made


def _say_alike(task: Task, labels: pd.Series) -> None:
    """Warn of classes that look like slips of the pen: one name in two spellings, words among numbers."""
    spellings: dict[str, list[str]] = {}
    for name in task.classes:
        spellings.setdefault(" ".join(name.split()).casefold(), []).append(name)
    if alike := [names for names in spellings.values() if len(names) > 1]:
        log.warning("task %r has classes that differ only by spaces or capitals: %s", task.name, alike[0])
    numeric = pd.to_numeric(pd.Series(task.classes), errors="coerce").notna()
    if numeric.any() and not numeric.all() and not pd.api.types.is_numeric_dtype(labels):
        word = next(c for c, is_number in zip(task.classes, numeric, strict=True) if not is_number)
        log.warning(
            "task %r mixes %d numbers with words such as %r: all %d are read as names of classes",
            task.name, int(numeric.sum()), word, len(task.classes),
        )  # fmt: skip


def _splits(frame: pd.DataFrame, source: object) -> pd.Series:
    if "split" not in frame or frame["split"].isna().all():
        return pd.Series(None, index=frame.index, dtype=object)
    given = frame["split"].unique()  # a million rows have a handful of names
    names = {s: SPLIT_NAMES.get(str(s).strip().lower()) for s in given}
    odd = sorted(str(s) for s, known in names.items() if known is None)
    if odd:
        raise ValueError(f"{str(source)!r}: split must be one of {SPLITS} in every row; found {odd[:5]}")
    return frame["split"].map(names)


def filled(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the required columns a source did not bring; ``clip_id`` is the path, with the times where it has some."""
    for column in ("start_seconds", "end_seconds"):
        values = frame[column] if column in frame else pd.Series(np.nan, index=frame.index)
        frame = frame.assign(**{column: _numbers(values, column)})
    if (frame.start_seconds < 0).any():
        raise ValueError(f"start_seconds counts from a file's first frame; found {frame.start_seconds.min():g}")
    if "clip_id" not in frame:
        ids = frame.path.astype(str)
        timed = (frame.start_seconds.notna() | frame.end_seconds.notna()).to_numpy()
        if timed.any():
            spans = frame.loc[timed, ["path", "start_seconds", "end_seconds"]]
            ids = ids.copy()
            ids[timed] = [f"{p}#{s:.9g}-{e:.9g}" for p, s, e in spans.itertuples(index=False)]
        frame = frame.assign(clip_id=ids)
    return frame[[*REQUIRED, *(c for c in frame.columns if c not in REQUIRED)]]


def _numbers(values: pd.Series, column: str) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    odd = values[numbers.isna() & values.notna()]
    if len(odd):
        raise ValueError(f"column {column!r} must hold seconds; found {list(odd[:3])}")
    return numbers


def infer_task(frame: pd.DataFrame, column: str) -> Task:
    """0/1 is binary; fractions, or more than 20 distinct numbers, a regression; text with ``|`` between names is
    multilabel; anything else multiclass."""
    values = frame[column].dropna()
    if not len(values):
        raise ValueError(f"column {column!r} has no label at all")
    if pd.api.types.is_numeric_dtype(values):
        distinct = np.unique(values.to_numpy(float))
        if np.isinf(distinct).any():
            raise ValueError(f"column {column!r} has an infinite label; leave it empty where it is unknown")
        if set(distinct) == {0.0, 1.0}:
            return Task(column, "binary")
        if (distinct % 1 != 0).any() or len(distinct) > _MANY_VALUES:
            return Task(column, "regression")
        return Task(column, "multiclass", tuple(str(int(v)) for v in distinct))
    names = _class_names(values).unique()
    if any("|" in name for name in names):
        classes = sorted({part.removeprefix("?") for name in names for part in names_in(name)})
        log.info("column %r holds sets of names (a|b): a multilabel task of %d classes", column, len(classes))
        return Task(column, "multilabel", tuple(classes))
    return Task(column, "multiclass", tuple(sorted(names)))


def _class_names(labels: pd.Series) -> pd.Series:
    """Labels as text; whole numbers without the ``.0`` that a missing neighbour gives them."""
    if pd.api.types.is_numeric_dtype(labels):
        return labels.map(lambda v: None if pd.isna(v) else f"{v:g}").astype(object)
    if isinstance(labels.dtype, pd.StringDtype):
        return labels
    return labels.map(lambda v: None if pd.isna(v) else str(v)).astype(object)


def without_classes(frame: pd.DataFrame, tasks: list[Task], exclude: Sequence[str]) -> tuple[pd.DataFrame, list[Task]]:
    """Leave out the rows whose label of the first task is in ``exclude``."""
    if not exclude:
        return frame, tasks
    if not tasks:
        raise ValueError(f"exclude={tuple(exclude)} names classes, but the clips have no labels")
    first = tasks[0]
    unknown = sorted(set(exclude) - set(first.classes))
    if unknown:
        raise ValueError(f"exclude={unknown} is no class of {first.name!r}; it has {first.classes}")
    kept = tuple(c for c in first.classes if c not in set(exclude))
    return frame[~frame[first.name].isin(exclude)], [Task(first.name, first.kind, kept), *tasks[1:]]
