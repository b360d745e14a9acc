"""Open clips as people keep them: class folders, CSV or Parquet files, tar shards, public data sets, saved tables."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.data.sources import public, shards
from workbench.data.sources.folders import class_frame, is_video, unlabelled_frame, with_groups
from workbench.data.sources.listings import filled, infer_task, listed_clips, need, read_table, without_classes
from workbench.data.splits import groups_across_splits, split_by_group
from workbench.data.tables import ClipTable, DatasetInfo, Task

__all__ = ["LAYOUTS", "infer_task", "open_clips"]

log = logging.getLogger(__name__)

LAYOUTS = ("folder", "table", "shards", *public.PUBLIC)
_COLUMNS = {"path_column": "path", "start_column": "start_seconds", "end_column": "end_seconds"}
_LOOKED_FOR = 1000
"""Files of a list that are looked for when it is opened; reading tells of each that is missing."""


def open_clips(
    source: "str | os.PathLike[str] | ClipTable",
    *,
    layout: str | None = None,
    fold: int | None = None,
    task: str | None = None,
    tasks: Sequence[Task] | None = None,
    label_column: str | Sequence[str] | None = None,
    unlabelled: bool = False,
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
    licence: str | None = None,
    horizontal_flip: bool | None = None,
    time_reversal: bool | None = None,
    allow_outside_root: bool = False,
    allow_leak: bool = False,
) -> ClipTable:
    """Clips with labels, splits and groups as a :class:`ClipTable`; nothing is decoded yet.

    ``source`` is one of

    - ``"playground"``, the embedded data; a ClipTable or the folder of a saved one: only ``task`` selects there, and
      what else is asked for is refused,
    - a **folder with one sub-folder per class** (``task`` names the task, "label" by default), or ``train``, ``val``
      and ``test`` folders of such,
    - a **CSV or Parquet file** with ``path_column`` (relative to ``root``, by default the file's folder) and
      ``label_column`` (one or several, "label" by default; or ``tasks``, whose names are columns). A task's kind is
      inferred: 0/1 is binary, other numbers of many values are a regression, the rest are classes,
    - **tar shards**: a folder of uncompressed tars, one tar, ``"x-{000..099}.tar"`` or a glob; the records beside
      the clips are read like the rows of a CSV (see :mod:`workbench.data.sources.shards`),
    - a **public data set** as its makers lay it out (``ucf101``, ``hmdb51``, ``kinetics``, ``ssv2``, ``konvid1k``),
      recognised by its files or named by ``layout``; ``fold`` chooses among its official splits (see
      :mod:`workbench.data.sources.public`),
    - with ``unlabelled=True`` any folder, list or single file: a table without tasks, every file a clip whatever its
      suffix (but text that is called so), in no split.

    ``layout`` is detected; naming it (one of ``LAYOUTS``) forces it. ``exclude`` leaves out classes. ``group_column``
    names what must stay on one side of a split (video, camera, person); for a folder it is a column of ``groups`` (a
    CSV with ``path``; ``groups.csv`` in the folder is found by itself), whose other columns become metadata. Without
    it, each file is its own group. Splits that the source does not bring are made by group and stratified, from
    ``fractions`` and ``seed``; a missing ``val`` is taken from train. Splits that the source brings, official ones
    too, may not cut a group in two: ``allow_leak=True`` opens them all the same, with a warning that counts the groups.
    Raises FileNotFoundError or ValueError, saying what is wrong and what to do.
    """
    options: dict[str, Any] = {
        "layout": layout, "fold": fold, "tasks": tasks, "label_column": label_column, "group_column": group_column,
        "groups": groups, "root": root, "split_column": split_column, "name": name, "unlabelled": unlabelled or None,
        "exclude": ((exclude,) if isinstance(exclude, str) else tuple(exclude)) or None,
    }  # fmt: skip
    named = {"path_column": path_column, "start_column": start_column, "end_column": end_column}
    columns = {n: column if column != _COLUMNS[n] else None for n, column in named.items()}
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not one of {', '.join(LAYOUTS)}")
    if unlabelled:
        labels = {"task": task, "tasks": tasks, "label_column": label_column}
        _refuse(labels, tuple(labels), "unlabelled=True")
    if isinstance(source, ClipTable) or source == "playground" or (Path(source) / "clips.parquet").is_file():
        changed = {
            "fractions": None if tuple(fractions) == (0.7, 0.15, 0.15) else fractions, "seed": seed or None,
            "licence": licence, "horizontal_flip": horizontal_flip, "time_reversal": time_reversal,
        }  # fmt: skip
        return _ready_made(source, task, options | columns | changed, allow_leak, allow_outside_root)
    kind = layout or _detect(source, unlabelled)
    if fold is not None and kind not in public.FOLDS:
        raise ValueError(f"fold={fold} is for {', '.join(public.FOLDS)}, not for the layout {kind!r}")
    if kind not in ("table", "shards"):
        _refuse(columns, tuple(columns), "a source that is no list of clips")
    frame, made, base, quarantine = _contents(kind, source, task, options, columns)
    if kind == "table":
        _say_lost(frame, base)
    known = public.facts(kind) if kind in public.PUBLIC else {"name": Path(source).resolve().stem}
    given = {"name": name, "licence": licence, "horizontal_flip": horizontal_flip, "time_reversal": time_reversal}
    info = DatasetInfo(**(known | {k: v for k, v in given.items() if v is not None}))
    table = ClipTable(
        frame, made, root=base, info=info, quarantine=quarantine, allow_outside_root=allow_outside_root
    )  # fmt: skip
    for each in made:
        table.targets(each.name)  # an unknown label is an error now, not in the first epoch
    return _with_splits(table, fractions, seed, allow_leak)


def _contents(
    kind: str, source: Any, task: str | None, options: dict[str, Any], columns: dict[str, Any]
) -> tuple[pd.DataFrame, list[Task], Path, pd.DataFrame | None]:
    """Frame, tasks, root and quarantine of one layout."""
    path, exclude, root = Path(source), options["exclude"] or (), options["root"]
    if root is not None and not Path(root).is_dir():
        raise FileNotFoundError(f"root={os.fspath(root)!r} is not a folder; give the one that paths are relative to")
    if (kind == "folder") != path.is_dir() and kind in ("folder", "table"):
        raise ValueError(f"layout={kind!r} needs a {'folder' if kind == 'folder' else 'file'}; {str(path)!r} is none")
    ours = [n for n in options if n not in ("layout", "fold", "exclude", "name")]
    if kind in public.PUBLIC:
        _refuse(options, [n for n in ours if n != "root"], f"{kind}, which brings its labels, groups and splits")
        frame, made, base, gone = public.read(kind, path, root=root, fold=options["fold"], task=task)
        return *without_classes(frame, made, exclude), base, gone
    if kind == "file":
        _refuse(options, [n for n in ours if n != "unlabelled"], "a single file")
        return filled(pd.DataFrame({"path": [path.name], "group": [path.name], "split": [None]})), [], path.parent, None
    beside = {"group_column": options["group_column"], "groups": options["groups"]}
    if kind == "folder":
        _refuse(options, ("tasks", "label_column", "split_column", "root"), "a folder of class folders")
        if options["unlabelled"]:
            _refuse(options, ("exclude",), "clips without labels")
            return with_groups(unlabelled_frame(path), path, "label", *beside.values()), [], path, None
        task = task or "label"
        Task(task, "regression")  # refuses a name that another column has, before a frame is made with it
        frame = with_groups(class_frame(path, task, set(exclude)), path, task, *beside.values())
        return frame, [Task(task, "multiclass", tuple(sorted(frame[task].unique())))], path, None
    _refuse(options, ("groups",), "a list of clips")
    if kind == "shards":
        _refuse(options, ("root",), "tar shards")
        base, rows = shards.records(source)
    else:
        base, rows = Path(root) if root is not None else path.parent, read_table(path)
    chosen = {n: options[n] for n in ("tasks", "label_column", "group_column", "split_column")}
    need(rows, [c for c in columns.values() if c is not None], source)  # a default name may be absent, a given one not
    path_column, *times = (columns[n] or default for n, default in _COLUMNS.items())
    frame, made = listed_clips(
        rows, source, task=task, unlabelled=bool(options["unlabelled"]), path_column=path_column,
        times=(times[0], times[1]), **chosen,
    )  # fmt: skip
    return *without_classes(frame, made, exclude), base, None


def _say_lost(frame: pd.DataFrame, base: Path) -> None:
    paths = frame.path.head(_LOOKED_FOR)
    if not any(os.path.lexists(base / p) or ".tar/" in p for p in paths):
        log.warning(
            "none of the first %d files that the list names is there, e.g. %s; give the folder that its paths are "
            "relative to as root", len(paths), base / paths.iloc[0],
        )  # fmt: skip


def _detect(source: Any, unlabelled: bool) -> str:
    path = Path(source)
    if not os.fspath(source):
        raise FileNotFoundError("the source is empty; give a folder ('.': this one), a list of clips or 'playground'")
    if shards.are_shards(source):
        return "shards"
    if not path.exists():
        raise FileNotFoundError(
            f"{str(path)!r} does not exist; give a folder with one sub-folder per class, a CSV or Parquet file, "
            "tar shards, the folder of a saved table, or 'playground'"
        )
    if not unlabelled and (found := public.detect(path)):
        log.info("%s looks like %s", path, found)
        return found
    if path.is_dir():
        return "folder"
    if path.suffix.lower() in (".csv", ".tsv", ".txt", ".parquet"):
        return "table"
    if not unlabelled and is_video(path.name):
        raise ValueError(f"{str(path)!r} is a single file, which has no label; open it with unlabelled=True")
    return "file" if unlabelled else "table"


def _refuse(options: dict[str, Any], names: Sequence[str], what: str) -> None:
    given = [n for n in names if options[n] is not None]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be used with {what}")


def _ready_made(
    source: Any, task: str | None, options: dict[str, Any], allow_leak: bool, allow_outside_root: bool
) -> ClipTable:
    _refuse(options, tuple(options), "a table that already has its labels, groups and splits; only task selects")
    if isinstance(source, ClipTable):
        table = source
    elif source == "playground":
        from workbench.data.synthetic.playground import playground

        table = playground()
    else:
        table = ClipTable.load(source, allow_outside_root=allow_outside_root)
        _check_leaks(table, allow_leak)
    return table if task is None else table.with_tasks([task])


def _check_leaks(table: ClipTable, allow_leak: bool) -> None:
    leaks = groups_across_splits(table)
    if leaks and not allow_leak:
        raise ValueError(
            f"{table.info.name}: the splits it brings put parts of {len(leaks)} group(s) on both sides, e.g. "
            f"{leaks[0]!r}, which inflates every score. allow_leak=True opens it all the same; a split by group comes "
            "from workbench.data.splits.split_by_group, or from the same clips without a split column"
        )
    if leaks:
        log.warning("%s: %d group(s) lie in more than one split, e.g. %s", table.info.name, len(leaks), leaks[0])


def _with_splits(table: ClipTable, fractions: Sequence[float], seed: int, allow_leak: bool) -> ClipTable:
    """Keep the splits a source brought, take a missing val from train, or make all of them."""
    split = table.frame.split
    if not table.tasks and split.isna().all():
        return table  # nothing to learn, so nothing to hold out
    names = [t.name for t in table.tasks if t.kind != "regression"] + [t.name for t in table.tasks]
    stratify = names[0] if names else None
    if split.isna().all():
        return split_by_group(table, fractions=fractions, seed=seed, stratify=stratify)
    _check_leaks(table, allow_leak)
    if (split == "val").any() or not (split == "train").any():
        return table
    share = fractions[1] / (fractions[0] + fractions[1])
    inner = split_by_group(table.train, fractions=(1 - share, share, 0), seed=seed, stratify=stratify)
    log.warning("%s brings no val split: %d train clips became val, by group", table.info.name, len(inner.val))
    column = split.astype(object).copy()
    column[(split == "train").to_numpy()] = inner.frame.split.to_numpy(object)
    return table._with(table.frame.assign(split=column))
