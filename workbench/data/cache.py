"""Decode a table once: a memory-mapped array of uint8 clips, found again by what the files contain."""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.data.clips import READER_VERSION, SAMPLINGS, ClipDecodeError, decoder_name, read_clip
from workbench.data.frames import FITS
from workbench.data.guard import ItemCrashError, ItemTimeoutError, run_guarded
from workbench.data.tables import SPLITS, ClipTable

log = logging.getLogger(__name__)
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class DecodedClips:
    """``clips[i]`` are the frames of row ``i`` of ``table``; what could not be decoded is in ``table.quarantine``."""

    clips: np.ndarray
    """Read-only memory map, uint8 (n, T, size, size, 3)."""
    table: ClipTable
    decoder: str
    folder: Path

    def __len__(self) -> int:
        return len(self.table)


def default_cache_dir() -> Path:
    """``$WORKBENCH_CACHE``, else ``~/.cache/video-transfer-workbench``."""
    return Path(os.environ.get("WORKBENCH_CACHE") or Path.home() / ".cache" / "video-transfer-workbench")


def decode_table(
    table: ClipTable,
    *,
    num_frames: int,
    size_px: int,
    fit: str = "crop",
    sampling: str = "uniform",
    decoder: str = "auto",
    workers: int = 2,
    time_limit_seconds: float = 60.0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> DecodedClips:
    """All clips of a table as one memory map; decoded in guarded child processes on the first call only.

    An entry is found by the files' contents (not their paths), the clips' times, sampling, size, fit and decoder.
    It appears whole or not at all. A clip that cannot be decoded, hangs for ``time_limit_seconds`` or crashes its
    process is quarantined with its reason and never replaced. Raises ValueError when no clip is left, or none in a
    split that had some.
    """
    if not len(table):
        raise ValueError(f"the table {table.info.name!r} has no clips to decode")
    if fit not in FITS or sampling not in SAMPLINGS or num_frames < 1 or size_px < 1:
        raise ValueError(
            f"num_frames={num_frames} and size_px={size_px} must be at least 1, fit={fit!r} one of {FITS}, "
            f"sampling={sampling!r} one of {SAMPLINGS}"
        )
    options = {"num_frames": num_frames, "size_px": size_px, "fit": fit, "sampling": sampling}
    options["decoder"] = decoder_name(decoder)
    base = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    key = _key(table, options, _content_ids(table.files(), base))
    folder = base / "clips" / key
    if not _usable(folder, time_limit_seconds):
        shutil.rmtree(folder, ignore_errors=True)
        _decode_into(folder, table, options, workers, time_limit_seconds, "decoding" if progress else None)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    kept = _without(table, {int(i): reason for i, reason in meta["bad"].items()})
    clips = np.load(folder / "clips.npy", mmap_mode="r")
    return DecodedClips(clips, kept, str(options["decoder"]), folder)


def _key(table: ClipTable, options: dict[str, Any], contents: list[str]) -> str:
    rows = zip(contents, table.frame.start_seconds, table.frame.end_seconds, strict=True)
    text = json.dumps(
        [READER_VERSION, options, [[c, str(float(s)), str(float(e))] for c, s, e in rows]], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def content_id(path: Path) -> str:
    """Size and sha256 of a file's bytes, or ``missing``."""
    try:
        with open(path, "rb") as file:
            return f"{os.fstat(file.fileno()).st_size}-{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError:
        return "missing"


def _content_ids(paths: Iterable[Path], base: Path) -> list[str]:
    """:func:`content_id` of each, remembered in ``base`` by path, size and time of change."""
    store, memo = base / "contents.json", {}
    try:
        memo = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        log.debug("no memory of file contents in %s yet", base)
    ids, changed = [], False
    for path in paths:
        name = os.path.abspath(path)
        try:
            stat = os.stat(name)
            stamp = f"{stat.st_size}-{stat.st_mtime_ns}"
        except OSError:
            ids.append("missing")
            continue
        known = memo.get(name)
        if known is None or known[0] != stamp:
            memo[name], changed = [stamp, content_id(Path(name))], True
        ids.append(memo[name][1])
    if changed:
        base.mkdir(parents=True, exist_ok=True)
        part = store.with_name(f".{store.name}.{uuid.uuid4().hex}.part")
        part.write_text(json.dumps(memo), encoding="utf-8")
        os.replace(part, store)
    return ids


def _usable(folder: Path, limit: float) -> bool:
    """Whether the entry is there; one in which a clip timed out or crashed is retried when given more time."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not meta["retry"] or limit <= meta["time_limit_seconds"]


def _decode_into(
    folder: Path, table: ClipTable, options: dict[str, Any], workers: int, limit: float, progress: str | None
) -> None:
    """Fill a temporary folder and rename it: a kill leaves nothing that is ever read."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    part.mkdir()
    try:
        bad, retry = _write_clips(part / "clips.npy", table, options, workers, limit, progress)
        meta = {"options": options, "bad": bad, "retry": retry, "time_limit_seconds": limit}
        (part / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        try:
            os.replace(part, folder)
        except OSError:
            if not _usable(folder, limit):  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_clips(
    target: Path, table: ClipTable, options: dict[str, Any], workers: int, limit: float, progress: str | None
) -> tuple[dict[int, str], bool]:
    """The array of what decodes, in order; returns {row: reason} of the rest, and whether any was a hang or crash."""
    frame = table.frame
    items = [
        {"path": str(path), "start_seconds": float(start), "end_seconds": float(end), **options}
        for path, start, end in zip(table.files(), frame.start_seconds, frame.end_seconds, strict=True)
    ]
    clip_shape = (options["num_frames"], options["size_px"], options["size_px"], 3)
    everything = target.with_name("all.npy")
    array = np.lib.format.open_memmap(everything, mode="w+", dtype=np.uint8, shape=(len(items), *clip_shape))
    bad: dict[int, str] = {}
    good, retry = 0, False
    outcomes = run_guarded(read_clip, items, workers=workers, time_limit_seconds=limit, progress=progress)
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, Exception):
            bad[row] = reason_of(outcome)
            retry |= isinstance(outcome, ItemTimeoutError | ItemCrashError)
        else:
            array[good] = outcome
            good += 1
    array.flush()
    if bad:
        _copy_head(array, good, target)
        del array
        everything.unlink()
    else:
        del array
        os.replace(everything, target)
    return bad, retry


def _copy_head(array: np.ndarray, rows: int, target: Path) -> None:
    shape = (rows, *array.shape[1:])
    if not rows:
        np.save(target, np.empty(shape, np.uint8))
        return
    head = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, rows, 256):
        head[start : start + 256] = array[start : min(start + 256, rows)]
    head.flush()


def reason_of(error: Exception) -> str:
    """One line for the quarantine. What is not about the file (a wrong argument, a broken library) is raised."""
    if isinstance(error, ClipDecodeError):
        return error.reason + (f" ({error.hint})" if error.hint else "")
    if isinstance(error, ItemTimeoutError | ItemCrashError):
        return f"{error}; the decoder hangs or crashes on this file"
    raise error


def _without(table: ClipTable, bad: dict[int, str]) -> ClipTable:
    if not bad:
        return table
    rows = table.frame.iloc[list(bad)]
    gone = pd.DataFrame({"clip_id": rows.clip_id, "path": rows.path, "reason": list(bad.values())})
    for path, reason in zip(gone.path, gone.reason, strict=True):
        log.warning("quarantined %s: %s", path, reason)
    if len(gone) == len(table):
        first = f"{gone.path.iloc[0]}: {gone.reason.iloc[0]}"
        raise ValueError(f"none of the {len(table)} clips of {table.info.name!r} can be decoded; the first: {first}")
    kept = table.with_quarantine(gone)
    emptied = [s for s in SPLITS if (table.frame.split == s).any() and not (kept.frame.split == s).any()]
    if emptied:
        raise ValueError(
            f"no clip of the split(s) {emptied} can be decoded ({len(gone)} quarantined); "
            "clips.doctor() lists why; mend the files or split again"
        )
    return kept


def _sweep(folder: Path) -> None:
    """Remove what killed processes left, a day later."""
    for part in folder.glob(".*.part"):
        try:
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(part, ignore_errors=True)
        except OSError:
            log.debug("%s went away by itself", part)
