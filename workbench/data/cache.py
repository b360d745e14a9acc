"""Decode a table once: an array of uint8 clips that lies in the store, found again by what the files contain."""

import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.data.clips import ClipDecodeError
from workbench.data.frames import ShortClipError
from workbench.data.loading.contents import content_id as content_id
from workbench.data.loading.contents import default_cache_dir as default_cache_dir
from workbench.data.loading.guard import ItemCrashError, ItemTimeoutError
from workbench.data.loading.loader import Loader
from workbench.data.loading.reading import Reading
from workbench.data.tables import SPLITS, ClipTable

log = logging.getLogger(__name__)
_again = threading.Lock()  # a loader streams for one thread at a time


class ClipArray:
    """Decoded clips as a read-only array, uint8 (n, T, S, S, 3), or (n, V, T, S, S, 3) where clips have several views.

    Indexing reads from the store and gives a NumPy array of its own; :meth:`read_into` fills one that is there. An
    entry that was evicted or damaged since is decoded again, in child processes; RuntimeError where that fails or
    the file has changed.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, loader: Loader, rows: np.ndarray, keys: list[str | None]) -> None:
        shape = loader.reading.shape
        if shape is None or loader.store is None:
            raise ValueError("an array of clips needs a size_px and a store")
        self._loader, self._store, self._rows, self._keys, self._entry = loader, loader.store, rows, keys, shape
        self.shape = (len(rows), *(shape if shape[0] > 1 else shape[1:]))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """What all clips take in memory."""
        return self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"ClipArray {self.shape} uint8, {self.nbytes / 1e9:.2f} GB in {self._store.folder}"

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("clips lie on disk: they cannot become an array without a copy")
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> np.ndarray:
        """As NumPy indexes; only the clips that the first index names are read."""
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        if isinstance(first, int | np.integer):
            i = int(first) + (len(self) if first < 0 else 0)
            if not 0 <= i < len(self):
                raise IndexError(f"clip {int(first)} of an array of {len(self)}")
            return self._read([i])[0][rest] if rest else self._read([i])[0]
        if isinstance(first, slice):
            whole = self._read(range(*first.indices(len(self))))
            return whole[(slice(None), *rest)] if rest else whole
        if not isinstance(first, list | np.ndarray):  # Ellipsis, None, ()
            return self[:][index]
        places = np.arange(len(self))[first]  # NumPy's own rules for negative numbers, masks and errors
        picked = self._read(places.reshape(-1).tolist()).reshape(*places.shape, *self.shape[1:])
        if rest:  # clip by clip beside the other indices: what NumPy does where several are arrays
            return picked.reshape(-1, *self.shape[1:])[(np.arange(places.size).reshape(places.shape), *rest)]
        return picked

    def read_into(self, out: np.ndarray, rows: Any) -> np.ndarray:
        """Fill ``out``, C-contiguous uint8 (len(rows), ...), with the clips at the positions ``rows``; returns it."""
        places = [int(i) for i in rows]
        if out.shape != (len(places), *self.shape[1:]) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(
                f"out is {out.dtype} {out.shape}; it must be C-contiguous uint8 {(len(places), *self.shape[1:])}"
            )
        views = out.reshape(len(places), *self._entry)
        absent = [
            j for j, i in enumerate(places)
            if (key := self._keys[i]) is None or self._store.read(key, views[j]) is None
        ]  # fmt: skip
        if absent:
            rows_again = [int(self._rows[places[j]]) for j in absent]
            with _again, closing(self._loader.stream(rows_again)) as stream:
                try:
                    for j, (_, key, clip) in zip(absent, stream, strict=True):
                        views[j] = self._good(places[j], key, clip)
                finally:
                    if not self._loader.reads_through:
                        self._loader.close()
        return out

    def _good(self, i: int, key: str | None, clip: np.ndarray | Exception | None) -> np.ndarray:
        path = self._loader.rows.path(int(self._rows[i]))
        if not isinstance(clip, np.ndarray):
            raise RuntimeError(f"{path} could be decoded before and cannot now: {clip}") from clip
        if key != self._keys[i]:
            raise RuntimeError(f"{path} has changed since the table was decoded; decode the table again")
        return clip

    def _read(self, places: Any) -> np.ndarray:
        return self.read_into(np.empty((len(places), *self.shape[1:]), np.uint8), places)


@dataclass(frozen=True)
class DecodedClips:
    """``clips[i]`` are the frames of row ``i`` of ``table``; what could not be decoded is in ``table.quarantine``."""

    clips: ClipArray
    table: ClipTable
    decoder: str

    def __len__(self) -> int:
        return len(self.table)


def decode_table(
    table: ClipTable,
    *,
    num_frames: int,
    size_px: int,
    fit: str = "crop",
    sampling: str = "uniform",
    sampling_rate: int = 1,
    fps: float | None = None,
    num_clips: int = 1,
    num_crops: int = 1,
    short: str = "repeat_last",
    resize_px: int | None = None,
    decoder: str = "auto",
    workers: int = 2,
    time_limit_seconds: float = 60.0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> DecodedClips:
    """All clips of a table as one array; decoded in guarded child processes when they are asked for first.

    Clips are kept one by one and found by the file's content (not its path), the clip's times and how it is read
    (:class:`~workbench.data.loading.reading.Reading`). One that cannot be decoded, hangs for ``time_limit_seconds`` or
    crashes its process is quarantined with its reason and never replaced. A table that does not fit into
    ``$WORKBENCH_CACHE_GB`` says so and is decoded anew at each use. Raises ValueError when no clip is left, or none in
    a split that had some.
    """
    if not len(table):
        raise ValueError(f"the table {table.info.name!r} has no clips to decode")
    reading = Reading(
        num_frames=num_frames, size_px=size_px, fit=fit, sampling=sampling, sampling_rate=sampling_rate, fps=fps,
        num_clips=num_clips, num_crops=num_crops, short=short, resize_px=resize_px, decoder=decoder,
    )  # fmt: skip
    if reading.shape is None:
        raise ValueError("size_px=None gives clips of many sizes, which make no array; give a size, or use load_clips")
    loader = Loader(table, reading, workers=workers, time_limit_seconds=time_limit_seconds, cache_dir=cache_dir)
    bad: dict[int, str] = {}
    good: list[int] = []
    keys: list[str | None] = []
    try:
        title = "decoding" if progress else None
        for row, key, outcome in loader.stream(range(len(table)), deliver=False, progress=title):
            if isinstance(outcome, Exception):
                bad[row] = reason_of(outcome)
            else:
                good.append(row)
                keys.append(key)
    finally:
        loader.close()
    kept = without(table, bad)
    return DecodedClips(ClipArray(loader, np.array(good, np.int64), keys), kept, reading.decoder)


def reason_of(error: Exception) -> str:
    """One line for the quarantine. What is not about the file (a wrong argument, a broken library) is raised."""
    if isinstance(error, ClipDecodeError):
        return error.reason + (f" ({error.hint})" if error.hint else "")
    if isinstance(error, ShortClipError):
        return error.reason  # without the path, which a quarantine names by itself
    if isinstance(error, ItemTimeoutError | ItemCrashError):
        return f"{error}; the decoder hangs or crashes on this file"
    raise error


def without(table: ClipTable, bad: dict[int, str]) -> ClipTable:
    """The table without the rows ``bad``, which go to its quarantine with their reasons. Raises ValueError when no clip
    is left, or none in a split that had some."""
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
