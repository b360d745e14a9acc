"""What lies in a folder: videos by class, videos without labels, groups beside them."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from workbench.data.sources.listings import SPLIT_NAMES, filled, need, read_table
from workbench.data.tables import REQUIRED

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = {
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv",
    ".3gp", ".3g2", ".ogv", ".gif", ".vob", ".mxf",
}  # fmt: skip
_TEXT_SUFFIXES = {
    "", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".rst", ".html", ".xml", ".toml", ".yaml", ".yml", ".log",
    ".py", ".sh", ".srt", ".vtt",
}  # fmt: skip
_SNIFFED_BYTES = 4096


def walk(folder: Path) -> Iterator[str]:
    """Every visible file below a folder, relative to it and ``/`` separated.

    Hidden files and folders (``.x``; folders ``__MACOSX`` and the like, but a file may be called ``__x``, as some of
    Kinetics are) and special files (pipes, sockets) are left out; a link to nothing is kept, so that it is found
    missing rather than overlooked. Links to folders are not followed. Raises PermissionError
    for a folder that cannot be read and ValueError for a file name that is not UTF-8.
    """
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(folder / prefix) as found:
                entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
        except PermissionError as error:
            raise PermissionError(f"{str(folder / prefix)!r} cannot be read; check its permissions") from error
        folders = [e for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("__")]
        pending += [f"{prefix}{e.name}/" for e in reversed(folders)]
        for entry in entries:
            if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                name = f"{prefix}{entry.name}"
                if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
                    raise ValueError(f"the file name {name!r} in {str(folder)!r} is not UTF-8; rename the file")
                yield name


def _by_parts(name: str) -> list[str]:
    return name.split("/")


def is_video(name: str) -> bool:
    """Whether a file name ends like a video's."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def class_frame(root: Path, task: str, exclude: set[str]) -> pd.DataFrame:
    """One row per video below ``root/<class>`` or ``root/{train,val,test}/<class>``."""
    top = _subfolders(root)
    split_of = {p: SPLIT_NAMES.get(p.name.lower()) for p in top}
    if top and all(split_of.values()) and "train" in split_of.values():
        folders = [(split_of[side], folder) for side in top for folder in _subfolders(side)]
    else:
        folders = [(None, folder) for folder in top]
    names = sorted({folder.name for _, folder in folders})
    if not folders:
        loose = sum(map(is_video, walk(root)))
        found = f"{loose} video file(s) lie in it without a label; " if loose else ""
        raise ValueError(
            f"{str(root)!r} has no class folders: {found}put the clips of each class into a sub-folder of its name, "
            "list them in a CSV with the columns path and label, or open them with unlabelled=True"
        )
    if beside := [p.name for p in root.iterdir() if is_video(p.name) and p.is_file()]:
        log.warning("%s: ignored %d video file(s) that lie in no class folder, e.g. %s", root, len(beside), min(beside))
    if unknown := exclude - set(names):
        raise ValueError(f"exclude={sorted(unknown)} is no class of {str(root)!r}; it has {names}")
    rows: list[tuple[str, str, str | None]] = []
    per_class = dict.fromkeys((n for n in names if n not in exclude), 0)
    other = 0
    for split, folder in folders:
        if folder.name in exclude:
            continue
        files = sorted(walk(folder), key=_by_parts)
        videos = [name for name in files if is_video(name)]
        other += len(files) - len(videos)
        per_class[folder.name] += len(videos)
        base = folder.relative_to(root).as_posix()
        rows += [(f"{base}/{name}", folder.name, split) for name in videos]
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
    return filled(frame.assign(group=frame.path))


def _subfolders(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith((".", "__"))]


def unlabelled_frame(root: Path) -> pd.DataFrame:
    """One row per file below ``root`` whatever its suffix, its own group, in no split.

    Only a file that is text by its name and by its content is no clip: a list, a licence, a read-me.
    """
    paths, texts = [], 0
    for name in sorted(walk(root), key=_by_parts):
        if _is_text(root / name):
            texts += 1
        else:
            paths.append(name)
    if texts:
        log.info("%s: left out %d text file(s)", root, texts)
    if not paths:
        raise ValueError(f"{str(root)!r} holds no file that could be a clip")
    return filled(
        pd.DataFrame({"path": paths, "group": paths, "split": pd.Series(None, range(len(paths)), dtype=object)})
    )


def _is_text(path: Path) -> bool:
    if path.suffix.lower() not in _TEXT_SUFFIXES:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_SNIFFED_BYTES)
    except OSError:  # cannot be read: a clip that will be found to be broken, not something to overlook
        return False
    try:
        return "\0" not in head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > _SNIFFED_BYTES - 4 and b"\0" not in head  # only the last letter is cut in two


def with_groups(
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
    table = read_table(file)
    wanted = column or "group"
    need(table, ["path", wanted], file)
    table = table.assign(path=table["path"].astype(str).str.replace("\\", "/"))
    twice = table.path[table.path.duplicated()]
    if len(twice):
        raise ValueError(f"{str(file)!r} lists {twice.iloc[0]!r} more than once ({len(twice)} repeated path(s))")
    lost = [path for path in table.path[~table.path.isin(frame.path)] if not os.path.lexists(root / path)]
    if lost:
        log.warning("%s: %d row(s) name a file that is not there, e.g. %s", file, len(lost), lost[0])
    listed = table.set_index("path").reindex(frame.path)
    missing = frame.path[listed[wanted].isna().to_numpy()]
    if len(missing):
        raise ValueError(
            f"{str(file)!r} gives no {wanted} for {len(missing)} clip(s), for instance {missing.iloc[0]!r}"
        )
    free = [c for c in listed.columns if c not in (*REQUIRED, task, "label", wanted)]
    log.info("groups from %s, column %r", file, wanted)
    return frame.assign(group=listed[wanted].astype(str).to_numpy(object), **{c: listed[c].to_numpy() for c in free})
