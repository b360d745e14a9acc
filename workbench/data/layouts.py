"""Open clips as people keep them: a folder per class, a CSV or Parquet file, a saved table, the playground."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.data.splits import groups_across_splits, split_by_group
from workbench.data.tables import REQUIRED, SPLITS, ClipTable, DatasetInfo, Task

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = {
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv",
    ".3gp", ".3g2", ".ogv", ".gif", ".vob", ".mxf",
}  # fmt: skip
_SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_MANY_VALUES = 20
"""A column of more distinct whole numbers than this is a quantity, not a class."""


def open_clips(
    source: "str | os.PathLike[str] | ClipTable",
    *,
    task: str | None = None,
    tasks: Sequence[Task] | None = None,
    label_column: str | Sequence[str] | None = None,
    path_column: str = "path",
    group_column: str | None = None,
    groups: str | os.PathLike[str] | None = None,
    split_column: str | None = None,
    start_column: str = "start_seconds",
    end_column: str = "end_seconds",
    exclude: Sequence[str] = (),
    root: str | os.PathLike[str] | None = None,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    name: str | None = None,
    licence: str = "unknown",
    horizontal_flip: bool = False,
    allow_outside_root: bool = False,
) -> ClipTable:
    """Clips with labels, splits and groups as a :class:`ClipTable`; nothing is decoded yet.

    ``source`` is one of

    - ``"playground"``, the embedded data; a ClipTable or the folder of a saved one: only ``task`` selects there,
    - a **folder with one sub-folder per class** (``task`` names the task, "label" by default), or ``train``, ``val``
      and ``test`` folders of such,
    - a **CSV or Parquet file** with ``path_column`` (relative to ``root``, by default the file's folder) and
      ``label_column`` (one or several, "label" by default; or ``tasks``, whose names are columns). A task's kind is
      inferred: 0/1 is binary, other numbers of many values are a regression, the rest are classes.

    ``exclude`` leaves out classes. ``group_column`` names what must stay on one side of a split (video, camera,
    person); for a folder it is a column of ``groups`` (a CSV with ``path``; ``groups.csv`` in the folder is found by
    itself), whose other columns become metadata. Without it, each file is its own group. Splits that the source does
    not bring are made by group and stratified, from ``fractions`` and ``seed``; a missing ``val`` is taken from
    train. Raises FileNotFoundError or ValueError, saying what is wrong and what to do.
    """
    options: dict[str, Any] = {
        "tasks": tasks, "label_column": label_column, "group_column": group_column, "groups": groups, "root": root,
        "split_column": split_column, "exclude": tuple(exclude) or None, "name": name,
    }  # fmt: skip
    if isinstance(source, ClipTable) or source == "playground" or (Path(source) / "clips.parquet").is_file():
        return _ready_made(source, task, options)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"{str(path)!r} does not exist; give a folder with one sub-folder per class, a CSV or Parquet file, "
            "the folder of a saved table, or 'playground'"
        )
    if path.is_dir():
        _refuse(options, ("tasks", "label_column", "split_column", "root"), "a folder of class folders")
        frame = _folder_frame(path, task or "label", set(exclude))
        frame = _with_groups(frame, path, task or "label", group_column, groups)
        base, made = path, [Task(task or "label", "multiclass", tuple(sorted(frame[task or "label"].unique())))]
    else:
        _refuse(options, ("groups",), "a CSV or Parquet file")
        base = Path(root) if root is not None else path.parent
        frame, made = _file_frame(
            path, task, tasks, label_column, path_column, group_column, split_column, (start_column, end_column)
        )
        frame, made = _without_classes(frame, made, exclude)
    info = DatasetInfo(name=name or path.resolve().stem, licence=licence, horizontal_flip=horizontal_flip)
    table = ClipTable(frame, made, root=base, info=info, allow_outside_root=allow_outside_root)
    for each in made:
        table.targets(each.name)  # an unknown label is an error now, not in the first epoch
    return _with_splits(table, fractions, seed)


def _refuse(options: dict[str, Any], names: Sequence[str], what: str) -> None:
    given = [n for n in names if options[n] is not None]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be used with {what}")


def _ready_made(source: Any, task: str | None, options: dict[str, Any]) -> ClipTable:
    _refuse(options, tuple(options), "a table that already has its labels, groups and splits; only task selects")
    if isinstance(source, ClipTable):
        table = source
    elif source == "playground":
        from workbench.data.playground import playground

        table = playground()
    else:
        table = ClipTable.load(source)
    return table if task is None else table.with_tasks([task])


def _videos(folder: Path) -> tuple[list[Path], int]:
    """Video files below a folder, sorted, and how many other files lie there; hidden ones count as neither."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(f"{str(folder)!r} cannot be read; check its permissions")
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    files = [p for p in files if not any(part.startswith((".", "__")) for part in p.relative_to(folder).parts)]
    videos = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES]
    return videos, len(files) - len(videos)


def _subfolders(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith((".", "__"))]


def _folder_frame(root: Path, task: str, exclude: set[str]) -> pd.DataFrame:
    top = _subfolders(root)
    split_of = {p: _SPLIT_NAMES.get(p.name.lower()) for p in top}
    if top and all(split_of.values()) and "train" in split_of.values():
        folders = [(split_of[side], folder) for side in top for folder in _subfolders(side)]
    else:
        folders = [(None, folder) for folder in top]
    if not folders:
        loose = len(_videos(root)[0])
        found = f"{loose} video file(s) lie in it without a label; " if loose else ""
        raise ValueError(
            f"{str(root)!r} has no class folders: {found}put the clips of each class into a sub-folder of its name, "
            "or list them in a CSV with the columns path and label"
        )
    unknown = exclude - {folder.name for _, folder in folders}
    if unknown:
        raise ValueError(f"exclude={sorted(unknown)} is no class of {str(root)!r}; it has {_names(folders)}")
    rows: list[tuple[str, str, str | None]] = []
    per_class: dict[str, int] = {}
    other = 0
    for split, folder in folders:
        if folder.name in exclude:
            continue
        videos, ignored = _videos(folder)
        other += ignored
        per_class[folder.name] = per_class.get(folder.name, 0) + len(videos)
        rows += [(p.relative_to(root).as_posix(), folder.name, split) for p in videos]
    empty = [c for c, n in per_class.items() if n == 0]
    if empty:
        raise ValueError(
            f"class folder(s) {empty} in {str(root)!r} hold no video file; add clips, remove the folder, "
            f"or leave it out with exclude={tuple(empty)!r} (videos end in {', '.join(sorted(VIDEO_SUFFIXES))})"
        )
    if other:
        log.warning("%s: ignored %d file(s) in class folders that are not videos", root, other)
    if len(per_class) < 2:
        raise ValueError(f"{str(root)!r} leaves {len(per_class)} class(es) {list(per_class)}; at least 2 are needed")
    frame = pd.DataFrame(rows, columns=["path", task, "split"])
    return _filled(frame.assign(group=frame.path))


def _names(folders: list[tuple[str | None, Path]]) -> list[str]:
    return sorted({folder.name for _, folder in folders})


def _filled(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the required columns a source did not bring; ``clip_id`` is the path, with the times where it has some."""
    for column in ("start_seconds", "end_seconds"):
        values = frame[column] if column in frame else pd.Series(np.nan, index=frame.index)
        frame = frame.assign(**{column: _numbers(values, column)})
    if "clip_id" not in frame:
        times = [
            "" if np.isnan(s) and np.isnan(e) else f"#{s:g}-{e:g}"
            for s, e in zip(frame.start_seconds, frame.end_seconds, strict=True)
        ]
        frame = frame.assign(clip_id=frame.path.astype(str) + pd.Series(times, index=frame.index, dtype=object))
    return frame[[*REQUIRED, *(c for c in frame.columns if c not in REQUIRED)]]


def _numbers(values: pd.Series, column: str) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    odd = values[numbers.isna() & values.notna()]
    if len(odd):
        raise ValueError(f"column {column!r} must hold seconds; found {list(odd[:3])}")
    return numbers


def _with_groups(
    frame: pd.DataFrame, root: Path, task: str, column: str | None, groups: str | os.PathLike[str] | None
) -> pd.DataFrame:
    """Groups and metadata from a CSV with the column ``path``; by default ``groups.csv`` in the folder."""
    file = Path(groups) if groups is not None else root / "groups.csv"
    if not file.is_file() and groups is not None and (root / groups).is_file():
        file = root / groups
    if not file.is_file():
        if groups is not None or column is not None:
            raise FileNotFoundError(
                f"{str(file)!r} does not exist; a CSV with the columns path and {column or 'group'}"
            )
        return frame
    table = _read(file)
    wanted = column or "group"
    _need(table, ["path", wanted], file)
    table = table.assign(path=table["path"].astype(str).str.replace("\\", "/"))
    twice = table.path[table.path.duplicated()]
    if len(twice):
        raise ValueError(f"{str(file)!r} lists {twice.iloc[0]!r} more than once ({len(twice)} repeated path(s))")
    listed = table.set_index("path").reindex(frame.path)
    missing = frame.path[listed[wanted].isna().to_numpy()]
    if len(missing):
        raise ValueError(
            f"{str(file)!r} gives no {wanted} for {len(missing)} clip(s), for instance {missing.iloc[0]!r}"
        )
    free = [c for c in listed.columns if c not in (*REQUIRED, task, "label", wanted)]
    log.info("groups from %s, column %r", file, wanted)
    return frame.assign(group=listed[wanted].astype(str).to_numpy(object), **{c: listed[c].to_numpy() for c in free})


def _read(file: Path) -> pd.DataFrame:
    suffix = file.suffix.lower()
    if suffix not in (".csv", ".tsv", ".txt", ".parquet"):
        raise ValueError(f"{str(file)!r} is neither a folder nor a .csv, .tsv or .parquet file")
    try:
        if suffix == ".parquet":
            return pd.read_parquet(file)
        return pd.read_csv(file, sep="\t" if suffix == ".tsv" else ",")
    except (ValueError, OSError) as error:  # pandas' and Arrow's own are ValueErrors
        raise ValueError(f"{str(file)!r} cannot be read as a table: {error}") from error


def _need(frame: pd.DataFrame, columns: Sequence[str], file: Path) -> None:
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise ValueError(f"{str(file)!r} lacks the column(s) {missing}; it has {list(frame.columns)}")


def _file_frame(
    file: Path, task: str | None, tasks: Sequence[Task] | None, label_column: str | Sequence[str] | None,
    path_column: str, group_column: str | None, split_column: str | None, times: tuple[str, str],
) -> tuple[pd.DataFrame, list[Task]]:  # fmt: skip
    frame = _read(file)
    if tasks is not None:
        if label_column is not None or task is not None:
            raise ValueError("give tasks, or task and label_column, not both")
        labels = [t.name for t in tasks]
    else:
        labels = [label_column] if isinstance(label_column, str) else list(label_column or ())
        labels = labels or [task if task is not None and task in frame.columns else "label"]
    asked = [path_column, *labels, *filter(None, (group_column, split_column))]
    _need(frame, asked, file)
    if not len(frame):
        raise ValueError(f"{str(file)!r} lists no clips")
    if frame[path_column].isna().any():
        raise ValueError(f"{str(file)!r}: {int(frame[path_column].isna().sum())} row(s) have no {path_column}")
    roles = {path_column: "path", times[0]: "start_seconds", times[1]: "end_seconds"}
    roles |= {split_column: "split"} if split_column else {}
    roles |= {labels[0]: task} if task is not None and len(labels) == 1 else {}
    clash = [new for old, new in roles.items() if old != new and old in frame and new in frame]
    renamed = frame.drop(columns=clash).rename(columns=roles)
    renamed = renamed.assign(path=renamed["path"].astype(str).str.replace("\\", "/"))
    group = frame[group_column] if group_column else (frame["group"] if "group" in frame else renamed["path"])
    if group.isna().any():
        raise ValueError(f"{str(file)!r}: {int(group.isna().sum())} row(s) have no {group_column or 'group'}")
    renamed = renamed.assign(group=group.astype(str).to_numpy(object), split=_splits(renamed, file))
    made = list(tasks) if tasks is not None else [infer_task(renamed, roles.get(c, c)) for c in labels]
    for each in made:
        if each.classes and each.kind == "multiclass":
            renamed = renamed.assign(**{each.name: _class_names(renamed[each.name])})
    return _filled(renamed), made


def _splits(frame: pd.DataFrame, file: Path) -> pd.Series | None:
    if "split" not in frame or frame["split"].isna().all():
        return pd.Series(None, index=frame.index, dtype=object)
    known = frame["split"].map(lambda s: _SPLIT_NAMES.get(str(s).strip().lower()))
    odd = sorted({str(s) for s in frame["split"][known.isna()]})
    if odd:
        raise ValueError(f"{str(file)!r}: split must be one of {SPLITS} in every row; found {odd[:5]}")
    return known


def infer_task(frame: pd.DataFrame, column: str) -> Task:
    """0/1 is binary; fractions, or more than 20 distinct numbers, a regression; anything else multiclass."""
    values = frame[column].dropna()
    if not len(values):
        raise ValueError(f"column {column!r} has no label at all")
    if pd.api.types.is_numeric_dtype(values):
        distinct = np.unique(values.to_numpy(float))
        if set(distinct) == {0.0, 1.0}:
            return Task(column, "binary")
        if (distinct % 1 != 0).any() or len(distinct) > _MANY_VALUES:
            return Task(column, "regression")
        return Task(column, "multiclass", tuple(str(int(v)) for v in distinct))
    return Task(column, "multiclass", tuple(sorted(_class_names(values).unique())))


def _class_names(labels: pd.Series) -> pd.Series:
    """Labels as text; whole numbers without the ``.0`` that a missing neighbour gives them."""
    if pd.api.types.is_numeric_dtype(labels):
        return labels.map(lambda v: None if pd.isna(v) else f"{v:g}").astype(object)
    return labels.map(lambda v: None if pd.isna(v) else str(v)).astype(object)


def _without_classes(frame: pd.DataFrame, tasks: list[Task], exclude: Sequence[str]) -> tuple[pd.DataFrame, list[Task]]:
    """Leave out the rows whose label of the first task is in ``exclude``."""
    if not exclude:
        return frame, tasks
    first = tasks[0]
    unknown = sorted(set(exclude) - set(first.classes))
    if unknown:
        raise ValueError(f"exclude={unknown} is no class of {first.name!r}; it has {first.classes}")
    kept = tuple(c for c in first.classes if c not in set(exclude))
    return frame[~frame[first.name].isin(exclude)], [Task(first.name, first.kind, kept), *tasks[1:]]


def _with_splits(table: ClipTable, fractions: Sequence[float], seed: int) -> ClipTable:
    """Keep the splits a source brought, take a missing val from train, or make all of them."""
    named = [t.name for t in table.tasks if t.kind != "regression"] or [t.name for t in table.tasks]
    split = table.frame.split
    if split.isna().all():
        return split_by_group(table, fractions=fractions, seed=seed, stratify=named[0])
    leaks = groups_across_splits(table)
    if leaks:
        log.warning("%s: %d group(s) lie in more than one split, e.g. %s", table.info.name, len(leaks), leaks[0])
    if (split == "val").any():
        return table
    share = fractions[1] / (fractions[0] + fractions[1])
    inner = split_by_group(table.train, fractions=(1 - share, share, 0), seed=seed, stratify=named[0])
    log.warning("%s brings no val split: %d train clips became val, by group", table.info.name, len(inner.val))
    column = split.astype(object).copy()
    column[(split == "train").to_numpy()] = inner.frame.split.to_numpy(object)
    return table._with(table.frame.assign(split=column))
