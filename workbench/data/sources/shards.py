"""A corpus in tar shards: written once, then opened, trained on and resumed like any other table.

A shard is an uncompressed tar in the manner of WebDataset: ``00000017.mp4`` and, right behind it, ``00000017.json``
with what the table says of it. The folder also holds the table itself (``clips.parquet``), so that a million clips open
without reading a single tar header, and every path leads through a tar (:mod:`workbench.data.sources.archives`).

Why tars with an own index rather than streams of Hugging Face ``datasets``: an iterable stream gives clips in its
order only, so exact resume, a group split, a k-fold, one clip for an error browser and a cache by content would each
need a second way to read and to train. Here a shard is storage and nothing else: any clip can be reached by one seek,
the epoch order below is a permutation (its position is all that resuming needs), and reading stays sequential where it
matters::

    order = shard_order(table, seed=0, epoch=3, buffer=2000)
    for row, clip in load_clips(table, order=order[position:], num_frames=16, size_px=112):
        ...

Nothing is extracted, and of the members only JSON and plain numbers are ever parsed, never a pickle.
"""

import glob
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from workbench.data.sources.archives import locate, members, read_span
from workbench.data.sources.folders import is_video
from workbench.data.tables import ClipTable

log = logging.getLogger(__name__)

_Sample = tuple[str, Path, bytes]
"""Member name, file and record of one video."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def write_shards(
    table: ClipTable,
    folder: str | os.PathLike[str],
    *,
    clips_per_shard: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> ClipTable:
    """Copy the clips of ``table`` into tars below ``folder`` and return the table that reads them there.

    Shards belong to one split each (``train-000000.tar``); within a split the files lie in a random order fixed by
    ``seed``, so that reading a shard from front to back meets every class. A file that several clips share is stored
    once. A file that is not there is quarantined, as everywhere. The same table gives the same bytes; a call that was
    interrupted goes on where it was. Raises FileExistsError when ``folder`` holds shards of another table.
    """
    if clips_per_shard < 1:
        raise ValueError(f"clips_per_shard={clips_per_shard} must be at least 1")
    folder = Path(folder)
    if folder.resolve() == table.root.resolve():
        raise FileExistsError(f"{str(folder)!r} holds the clips themselves; give an empty folder for their shards")
    folder.mkdir(parents=True, exist_ok=True)
    codes, paths = pd.factorize(table.frame.path)
    plan = _plan(table, codes, clips_per_shard, seed)
    foreign = sorted({p.name for p in folder.glob("*.tar")} - set(plan))
    if foreign:
        raise FileExistsError(f"{str(folder)!r} holds shards of another table ({foreign[0]}); give an empty folder")
    by_file = np.argsort(codes, kind="stable")  # the rows of each file, one file after the other
    first = np.searchsorted(codes[by_file], np.arange(len(paths) + 1))
    placed = np.full(len(paths), "", dtype=object)
    key = 0
    for name in tqdm(plan, desc="shards", disable=not progress):
        samples: list[_Sample] = []
        rows = [by_file[first[file] : first[file + 1]] for file in plan[name]]
        clips = iter(_with_source(table.frame.iloc[np.concatenate(rows)]).to_dict("records"))
        for file, own in zip(plan[name], rows, strict=True):
            source = table.root / paths[file]
            stored = f"{key:08d}{Path(paths[file]).suffix.lower() or '.bin'}"
            key += 1
            record = _json([next(clips) for _ in own])
            if locate(source) is not None or source.is_file():
                placed[file] = f"{name}/{stored}"
                samples.append((stored, source, record))
        _write_shard(folder / name, samples)
    lost = table.frame[(placed == "")[codes]]
    if len(lost):
        log.warning("%d clip(s) have no file and are quarantined", len(lost))
        table = table.with_quarantine(lost[["clip_id", "path"]].assign(reason="the file does not exist"))
    kept = pd.Series(placed[codes], dtype=object)[(placed != "")[codes]]
    frame = _with_source(table.frame).assign(path=kept.to_numpy())
    table._with(frame, root=folder, allow_outside_root=False).save(folder)
    return ClipTable.load(folder)


def _with_source(frame: pd.DataFrame) -> pd.DataFrame:
    """Where each clip was before it was first put into a shard."""
    return frame if "source_path" in frame else frame.assign(source_path=frame.path)


def _plan(table: ClipTable, codes: np.ndarray, clips_per_shard: int, seed: int) -> dict[str, np.ndarray]:
    """File numbers of each shard, by its name."""
    first = np.unique(codes, return_index=True)[1]  # the row where each file is met first
    sizes = np.bincount(codes)
    split = table.frame.split.astype(object).where(table.frame.split.notna(), "clips").to_numpy(object)[first]
    order = np.random.default_rng(seed).permutation(len(first))
    plan: dict[str, np.ndarray] = {}
    for name in sorted(set(split)):
        files = order[split[order] == name]
        ends = np.cumsum(sizes[files])
        shard = (ends - 1) // clips_per_shard
        for i, part in enumerate(np.split(files, np.flatnonzero(np.diff(shard)) + 1)):
            plan[f"{name}-{i:06d}.tar"] = part
    return plan


def _write_shard(target: Path, samples: list[_Sample]) -> None:
    if target.is_file() and _is_complete(target, samples):
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with tarfile.open(temporary, "w") as archive:
            for stored, source, record in samples:
                _add_file(archive, stored, source)
                archive.addfile(_header(_beside_name(stored), len(record)), BytesIO(record))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _is_complete(target: Path, samples: list[_Sample]) -> bool:
    """Whether an earlier call wrote this very shard; shards appear whole, so the clips' sizes and records settle it."""
    found = members(target)
    sizes = {stored: _size(source) for stored, source, _ in samples}
    texts = {_beside_name(stored): record for stored, _, record in samples}
    if {name: found[name].size for name in sizes if name in found} != sizes or len(found) != 2 * len(samples):
        raise FileExistsError(f"{str(target)!r} holds other clips; give an empty folder")
    if any(name not in found or read_span(found[name]) != text for name, text in texts.items()):
        raise FileExistsError(f"{str(target)!r} holds other labels; give an empty folder")
    return True


def _beside_name(stored: str) -> str:
    return f"{stored.split('.')[0]}.json"


def _size(source: Path) -> int:
    span = locate(source)
    return source.stat().st_size if span is None else span.size


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)  # owner and time stay zero: the same clips give the same bytes
    header.size = size
    return header


def _add_file(archive: tarfile.TarFile, stored: str, source: Path) -> None:
    span = locate(source)
    if span is not None:
        archive.addfile(_header(stored, span.size), BytesIO(read_span(span)))
        return
    with source.open("rb") as file:
        archive.addfile(_header(stored, os.fstat(file.fileno()).st_size), file)


def _json(rows: list[dict[str, Any]]) -> bytes:
    """What a table says of one file: flat for one clip, else under ``clips``."""
    clips = [{c: _plain(v) for c, v in row.items() if c != "path"} for row in rows]
    record = clips[0] if len(clips) == 1 else {"clips": clips}
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def are_shards(source: Any) -> bool:
    """Whether ``source`` names tars: a pattern, a tar, or a folder of tars without class folders."""
    text = os.fspath(source)
    if text.lower().endswith(".tar") and not os.path.isdir(text):
        return True
    if not os.path.isdir(text):
        return False
    with os.scandir(text) as found:
        visible = [e for e in found if not e.name.startswith((".", "__"))]
    return any(e.name.lower().endswith(".tar") and e.is_file() for e in visible) and not any(
        e.is_dir() for e in visible
    )


def shard_files(source: str | os.PathLike[str]) -> list[Path]:
    """The tars that ``folder``, ``x.tar``, ``x-{000..099}.tar`` or a glob names, sorted. Raises FileNotFoundError."""
    text = os.fspath(source)
    if os.path.isdir(text):
        files = sorted(p for p in Path(text).iterdir() if p.suffix.lower() == ".tar" and not p.name.startswith("."))
    else:
        files = [Path(p) for p in _expanded(text)]
        if not _BRACES.search(text) and not Path(text).is_file():
            files = sorted(Path(p) for p in glob.glob(text))
    missing = [str(f) for f in files if not f.is_file()]
    if missing or not files:
        said = f"{len(missing)} of {len(files)} shards are not there, e.g. {missing[0]!r}" if missing else "no such tar"
        raise FileNotFoundError(f"{text!r}: {said}")
    return files


def _expanded(pattern: str) -> Iterator[str]:
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        middle = f"{number:0{len(found[1])}d}"
        yield from _expanded(pattern[: found.start()] + middle + pattern[found.end() :])


def records(source: str | os.PathLike[str]) -> tuple[Path, pd.DataFrame]:
    """The folder of the shards and one row per clip: ``path`` through its tar, and what lies beside the video.

    A sample is the members of one name up to its first dot. ``.json`` is the row (or ``{"clips": [row, ...]}``),
    ``.cls`` a class number that becomes ``label``. Where no sample has either, the member's folder is its ``label``.
    """
    files = shard_files(source)
    base = Path(os.path.commonpath([f.parent for f in files]))
    rows: list[dict[str, Any]] = []
    told = False
    for file in tqdm(files, desc="shards", disable=len(files) < 100):
        inside = members(file)
        beside = {_key(name): name for name in inside if name.endswith((".json", ".cls"))}
        prefix = file.relative_to(base).as_posix()
        for name in inside:
            if is_video(name):
                found = [_beside(inside, f"{_key(name)}{end}") for end in (".json", ".cls") if _key(name) in beside]
                record = next((r for r in found if r), {})
                told = told or bool(record)
                for clip in record.get("clips", [record]):
                    rows.append({**clip, "path": f"{prefix}/{name}"})
    if not rows:
        raise ValueError(f"{os.fspath(source)!r} holds no video")
    frame = pd.DataFrame(rows)
    if not told and frame.path.str.count("/").min() >= 2:
        frame = frame.assign(label=frame.path.str.split("/").str[-2])
    return base, frame


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.')[0]}" if folder else base.split(".")[0]


def _beside(inside: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in inside:
        return {}
    text = read_span(inside[name])
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{inside[name].file!r}: {name!r} is not JSON: {error}") from error
    record = {"label": record} if name.endswith(".cls") else record
    if not isinstance(record, dict):
        raise ValueError(f"{inside[name].file!r}: {name!r} holds a {type(record).__name__}, not an object")
    return record


def shard_order(table: ClipTable, *, seed: int = 0, epoch: int = 0, buffer: int = 2000) -> np.ndarray:
    """A shuffled order of the rows, int64 ``(n,)``, that reads shard after shard.

    Shards are shuffled, then cut into windows of whole shards that begin within ``buffer`` clips; inside a window all
    clips are shuffled. So each shard is read in one stretch of the epoch, while a batch mixes about ``buffer`` clips.
    A file outside a tar counts as its own shard: a folder is shuffled in full. The order depends on nothing but the
    table, ``seed`` and ``epoch``; to resume after ``k`` clips, go on with ``shard_order(...)[k:]``.
    """
    if buffer < 1:
        raise ValueError(f"buffer={buffer} must be at least 1")
    rng = np.random.default_rng([seed, epoch])
    path = table.frame.path.astype(str)
    tar = path.str.extract(r"(?i)^(.*?\.tar)/", expand=False)
    codes = pd.factorize(tar.where(tar.notna(), path))[0]
    counts = np.bincount(codes, minlength=1)
    shuffled = rng.permutation(len(counts))
    before = np.cumsum(counts[shuffled]) - counts[shuffled]
    window = np.empty(len(counts), np.int64)
    window[shuffled] = before // buffer
    return np.lexsort((rng.random(len(codes)), window[codes]))
