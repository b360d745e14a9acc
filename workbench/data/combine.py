"""Several tables as one, each with its own tasks: what a set does not label stays missing and is masked."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.data.splits import groups_across_splits
from workbench.data.tables import ClipTable, DatasetInfo, Task
from workbench.data.tasks import sets_of

log = logging.getLogger(__name__)


def concat(tables: Sequence[ClipTable], *, name: str | None = None, allow_leak: bool = False) -> ClipTable:
    """The rows of all tables, one below the other; also ``table + other``.

    - Tasks of one name must be of one kind; their classes are united, in the order met. A table without a task has no
      label for it, even where it has a free column of that name.
    - Paths become relative to the folder that all roots share.
    - Tables of one name and root are parts of one set, where a name means one thing. Between different sets, clip ids
      and groups of one name are told apart by the set's name in front; groups that hold the same file are one group.
    - Splits are kept. Where a group comes to lie in two of them, ValueError unless ``allow_leak``.
    - Flips and reversals are label-safe only where they are for every table. Quarantines are joined.
    """
    tables = list(tables)
    if not tables:
        raise ValueError("concat needs at least one table")
    if odd := [type(t).__name__ for t in tables if not isinstance(t, ClipTable)]:
        raise TypeError(f"concat takes clip tables, not {odd[0]}; open_clips makes one")
    names = _set_names(tables)
    tasks = _tasks(tables)
    root, paths = _paths(tables)
    ids = _told_apart([pd.concat([t.frame.clip_id, t.quarantine.clip_id]).astype(str) for t in tables], names)
    given = pd.concat([i[: len(t)] for i, t in zip(ids, tables, strict=True)])
    if given.duplicated().any():
        raise ValueError(
            f"{int(given.duplicated().sum())} clip(s) lie in more than one part of a set, e.g. "
            f"{given[given.duplicated()].iloc[0]!r}: clip_id must be unique; join parts that share no clip"
        )
    groups = _groups([t.frame.group for t in tables], paths, names)
    parts, gone = [], []
    for i, table in enumerate(tables):
        own = {t.name for t in table.tasks}
        free = [c for c in table.frame.columns if c not in own and c in {t.name for t in tasks}]
        labels = {t.name: _labels(table, t) for t in tasks if t.name in own}
        parts.append(
            table.frame.drop(columns=free).assign(
                path=paths[i], clip_id=ids[i][: len(table)], group=groups[i], **labels
            )
        )
        gone.append(
            table.quarantine.assign(clip_id=ids[i][len(table) :], path=_moved(table.quarantine.path, table, root))
        )
    info = DatasetInfo(
        name=name or " + ".join(dict.fromkeys(t.info.name for t in tables)),
        licence=" + ".join(dict.fromkeys(t.info.licence for t in tables)),
        source=" ".join(dict.fromkeys(t.info.source for t in tables if t.info.source)),
        horizontal_flip=all(t.info.horizontal_flip for t in tables),
        time_reversal=all(t.info.time_reversal for t in tables),
    )
    quarantine = pd.concat([q for q in gone if len(q)] or gone[:1], ignore_index=True).drop_duplicates("clip_id")
    outside = any(t.allow_outside_root for t in tables)
    frame = pd.concat(parts, ignore_index=True)
    made = ClipTable(frame, tasks, root=root, info=info, quarantine=quarantine, allow_outside_root=outside)
    _check_splits(made, allow_leak)
    return made


def _check_splits(table: ClipTable, allow_leak: bool) -> None:
    leaks = groups_across_splits(table)
    if leaks and not allow_leak:
        raise ValueError(
            f"{len(leaks)} group(s) come to lie in more than one split, e.g. {leaks[0]!r}: the tables share files but "
            "not splits. Split the joined table anew (concat(..., allow_leak=True), then split_by_group)"
        )
    without = int(table.frame.split.isna().sum())
    if leaks or 0 < without < len(table):
        log.warning("%s: %d group(s) in several splits, %d clip(s) in none", table.info.name, len(leaks), without)


def _set_names(tables: Sequence[ClipTable]) -> list[str]:
    """A name per table; parts of one set share it, different sets of one name are numbered."""
    sets: dict[tuple[str, Path], str] = {}
    for table in tables:
        key = (table.info.name, table.root.resolve())
        same = sum(known == table.info.name for known, _ in sets)
        sets.setdefault(key, table.info.name if same == 0 else f"{table.info.name}-{same + 1}")
    return [sets[table.info.name, table.root.resolve()] for table in tables]


def _tasks(tables: Sequence[ClipTable]) -> list[Task]:
    united: dict[str, Task] = {}
    for task in (task for table in tables for task in table.tasks):
        known = united.setdefault(task.name, task)
        if known.kind != task.kind:
            raise ValueError(f"task {task.name!r} is {known.kind} in one table and {task.kind} in another; rename one")
        if task.kind in ("multiclass", "multilabel"):
            united[task.name] = Task(task.name, task.kind, tuple(dict.fromkeys((*known.classes, *task.classes))))
        elif task.classes and known.classes and task.classes != known.classes:
            raise ValueError(f"binary task {task.name!r} names its sides {known.classes} and {task.classes}")
        elif task.classes:
            united[task.name] = task
    return list(united.values())


def _labels(table: ClipTable, task: Task) -> np.ndarray | pd.Series:
    """Labels in one form for all tables: class names as text, the others as numbers. A class of a multilabel task that
    only another table knows is unknown here, not absent."""
    if task.kind == "multilabel":
        own = table.task(task.name)
        values = np.full((len(table), len(task.classes)), np.nan)
        values[:, [task.classes.index(c) for c in own.classes]] = table.targets(task.name)
        return pd.Series(sets_of(values, task.classes), index=table.frame.index, dtype=object)
    if task.kind != "multiclass":
        return table.targets(task.name)
    labels = table.frame[task.name].astype(object)
    return labels.where(labels.isna(), labels.astype(str))


def _paths(tables: Sequence[ClipTable]) -> tuple[Path, list[pd.Series]]:
    roots = [table.root.resolve() for table in tables]
    if len(set(roots)) == 1:
        return tables[0].root, [table.frame.path for table in tables]
    try:
        root = Path(os.path.commonpath(roots))
    except ValueError as error:
        raise ValueError(f"the tables lie on different drives ({roots[0]}, {roots[-1]}); copy one over") from error
    return root, [_moved(table.frame.path, table, root) for table in tables]


def _moved(paths: pd.Series, table: ClipTable, root: Path) -> pd.Series:
    below = table.root.resolve()
    if not below.is_relative_to(root) or below == root:  # the roots are one, or there is nothing to move
        return paths
    text = paths.astype(str)
    prefix = below.relative_to(root).as_posix()
    return text.where(text.str.startswith("/"), f"{prefix}/" + text)


def _told_apart(values: Sequence[pd.Series], names: Sequence[str]) -> list[pd.Series]:
    """The values with the name of their set in front, in every set that shares a value with another set."""
    twice = np.split(_in_several(pd.concat(values), names, values), np.cumsum([len(v) for v in values])[:-1])
    clash = {n for n, rows in zip(names, twice, strict=True) if rows.any()}
    return [f"{n}/" + v if n in clash else v for n, v in zip(names, values, strict=True)]


def _in_several(values: pd.Series, names: Sequence[str], parts: Sequence[pd.Series]) -> np.ndarray:
    """Whether each value occurs in more than one set, bool (n,)."""
    codes, distinct = pd.factorize(values)
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    sets = np.repeat([number[n] for n in names], [len(p) for p in parts])
    pairs = pd.unique(codes.astype(np.int64) * len(number) + sets)
    return np.bincount(pairs // len(number), minlength=len(distinct))[codes] > 1


def _groups(groups: Sequence[pd.Series], paths: Sequence[pd.Series], names: Sequence[str]) -> list[np.ndarray]:
    """One name per group: those of different sets apart, those that share a file together."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    lengths = [len(g) for g in groups]
    given = pd.concat(groups).reset_index(drop=True)
    rows = pd.DataFrame({"set": np.repeat(names, lengths), "group": given.astype(str), "path": pd.concat(paths).array})
    node = rows.groupby(["set", "group"], sort=False).ngroup().to_numpy()
    shared = _in_several(rows.path, names, groups)  # files within one set leave its own groups as they are
    file = pd.factorize(rows.path[shared])[0] + len(rows)
    size = 2 * len(rows) + 1
    edges = coo_matrix((np.ones(len(file), np.int8), (node[shared], file)), shape=(size, size))
    part = connected_components(edges, directed=False)[1][node]
    head = rows.assign(part=part).drop_duplicates("part")  # the first row of each part names it
    long = head.set + "/" + head.group
    called = head.group.where(~head.group.duplicated(keep=False), long)
    called = long if called.duplicated().any() else called
    named = pd.Series(called.to_numpy(object), head.part.to_numpy())
    final = named.loc[part].to_numpy(object)
    final[given.isna().to_numpy()] = None
    return np.split(final, np.cumsum(lengths)[:-1])
