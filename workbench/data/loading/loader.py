"""Stream the clips of a table: from the store where they are in it, else decoded in guarded processes and stored.

Children are spawned, one decoder thread each, and write what they decode into the store themselves; what is not stored
comes through a pipe as bytes. An entry is found by what the file contains (not by its path), the clip's times and how
it is read, so tables, parts of tables and copies of files share entries, and a table in which one file changed decodes
that file.
"""

import logging
import math
import os
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.data.clips import read_views
from workbench.data.loading.contents import MISSING, Memory, Verdict, default_cache_dir, stamp_of
from workbench.data.loading.pool import GuardedPool, outcome_of
from workbench.data.loading.reading import Reading, Rows
from workbench.data.loading.store import Store, entry_bytes

if TYPE_CHECKING:  # children import this module: it must not pull in pandas
    from workbench.data.tables import ClipTable

log = logging.getLogger(__name__)

_CHUNK = 256  # rows whose keys are looked up at once
_AHEAD_BYTES, _AHEAD_ROWS = 128 << 20, 64
_SHARE = 64  # of the store's limit: what a process is granted at a time, and may go beyond when several write at once


def load_clips(
    table: "ClipTable",
    *,
    num_frames: int,
    size_px: int | None,
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
    cache: bool = True,
    order: Sequence[int] | np.ndarray | None = None,
    progress: str | None = None,
) -> Generator[tuple[int, np.ndarray | Exception], None, None]:
    """Yield ``(row, clip)`` for each row of ``table`` named in ``order`` (all of them), in that order.

    ``clip`` is uint8 (V, T, S, S, 3), V views of T frames, or the exception that the row cost: a
    :class:`~workbench.data.clips.ClipDecodeError`, a :class:`~workbench.data.frames.ShortClipError` under
    ``short="error"``, an ``ItemTimeoutError`` after ``time_limit_seconds``, an ``ItemCrashError``. Memory stays
    bounded, whatever the table's length. To resume, pass the rest of the order.

    Clips are kept in ``cache_dir`` (:func:`~workbench.data.loading.contents.default_cache_dir`), at most
    ``$WORKBENCH_CACHE_GB`` of them; ``cache=False`` neither reads nor writes there. A row with a value in a column
    ``decoder`` is read by that decoder. Raises ValueError on arguments that do not go together and IndexError on a
    row that is not there.
    """
    reading = Reading(
        num_frames=num_frames, size_px=size_px, fit=fit, sampling=sampling, sampling_rate=sampling_rate, fps=fps,
        num_clips=num_clips, num_crops=num_crops, short=short, resize_px=resize_px, decoder=decoder,
    )  # fmt: skip
    loader = Loader(
        table, reading, workers=workers, time_limit_seconds=time_limit_seconds, cache_dir=cache_dir, cache=cache
    )
    rows = range(len(table)) if order is None else [int(row) for row in order]
    if any(not 0 <= row < len(table) for row in rows):
        raise IndexError(f"order names rows outside 0..{len(table) - 1}, the rows of {table.info.name!r}")
    return _closing(loader, rows, progress)


def _closing(
    loader: "Loader", rows: Sequence[int], progress: str | None
) -> Generator[tuple[int, np.ndarray | Exception], None, None]:
    try:
        for row, _, clip in loader.stream(rows, progress=progress):
            assert clip is not None  # delivered
            yield row, clip
    finally:
        loader.close()


def decode_item(
    reading: Mapping[str, Any], folder: str | None, key: str | None, stamp: str, deliver: bool
) -> np.ndarray | int | None:
    """In a child: read one clip. Its size in the store once it is stored there under ``key``, else the clip (None
    where it need not be delivered). A file that is not the one that was hashed any more is not stored."""
    clip = read_views(**reading)
    if folder is not None and key is not None and stamp_of(reading["path"]) == stamp:
        try:
            return Store(folder, 0).write(key, clip)
        except OSError as error:
            log.warning("%s: not stored: %s", reading["path"], error)
    return clip if deliver else None


@dataclass
class _Flight:
    """A clip that is being decoded, for ``rows`` rows of equal bytes that have not got it yet."""

    future: "Future[Any]"
    storing: bool
    rows: int = 1

    def outcome(self) -> Any:
        """For one of the rows: each gets an array of its own."""
        self.rows -= 1
        found = outcome_of(self.future)
        return found.copy() if self.rows and isinstance(found, np.ndarray) else found


@dataclass
class _Slot:
    """One row on its way: ``flight`` brings it, ``known`` says what became of it, or it is the entry of ``key``."""

    row: int
    key: str | None
    stamp: str
    flight: _Flight | None = None
    known: Verdict | None = None


class Loader:
    """What :func:`load_clips` streams from, kept open: processes start with the first clip that has to be decoded.

    ``reading`` says how; :meth:`stream` may be used again, one at a time; :meth:`close` ends the processes.
    """

    def __init__(
        self,
        table: "ClipTable",
        reading: Reading,
        *,
        workers: int = 2,
        time_limit_seconds: float = 60.0,
        cache_dir: str | Path | None = None,
        cache: bool = True,
    ) -> None:
        if workers < 1 or time_limit_seconds <= 0:
            raise ValueError(
                f"workers={workers} must be at least 1 and time_limit_seconds={time_limit_seconds} above 0"
            )
        self.reading, self.workers, self.time_limit_seconds = reading, workers, time_limit_seconds
        self.rows, self._name = Rows(table, reading), table.info.name
        self.store, self._memory = None, None
        if cache:  # absolute: it is found again from another working folder
            base = Path(cache_dir if cache_dir is not None else default_cache_dir()).absolute()
            self.store, self._memory = Store(base / "clips"), Memory(base)
        self._pool: GuardedPool | None = None
        self._pool_owner = 0
        self._last_will: weakref.finalize[..., Loader] | None = None
        self._flying: dict[str, _Flight] = {}
        self._learnt: dict[str, Verdict] = {}
        self._wanted, self._granted, self._full = 0, 0, False

    def stream(
        self, rows: Sequence[int], *, deliver: bool = True, progress: str | None = None
    ) -> Generator[tuple[int, str | None, np.ndarray | Exception | None], None, None]:
        """(row, key of its entry, clip or exception) for each row, in order. Without ``deliver`` clips are decoded and
        stored but not read: None stands for a good one."""
        from tqdm.auto import tqdm  # not needed by children, which import this module

        self._check_room(rows)
        window: deque[_Slot] = deque()
        bar = tqdm(total=len(rows), desc=progress, unit="clip", disable=progress is None, leave=False)
        try:
            for slot in self._slots(rows, deliver):
                window.append(slot)
                if len(window) > self._ahead():
                    slot = window.popleft()
                    yield slot.row, slot.key, self._finish(slot, deliver)
                    bar.update()
            while window:
                slot = window.popleft()
                yield slot.row, slot.key, self._finish(slot, deliver)
                bar.update()
        finally:
            bar.close()
            self._flying.clear()
            self._note()

    def close(self) -> None:
        """End the processes. The loader may be used again."""
        pool, self._pool = self._pool, None
        if pool is not None and self._pool_owner == os.getpid():
            pool.close()
            if self._last_will is not None:
                self._last_will.detach()

    @property
    def reads_through(self) -> bool:
        """Whether the store cannot keep these clips, so that they are decoded at each use."""
        return self._full

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None, "_last_will": None, "_flying": {}, "_learnt": {}}

    def _ahead(self) -> int:
        """Rows looked at before the oldest is taken: enough to keep the processes busy while clips are used."""
        if self.reading.shape is None:
            return 4 * self.workers
        return max(2 * self.workers, min(_AHEAD_ROWS, _AHEAD_BYTES // math.prod(self.reading.shape)))

    def keys(self, rows: Sequence[int]) -> list[tuple[str | None, str]]:
        """(key of the entry, stamp of the file) per row; no key without a store or a file."""
        if self._memory is None:
            return [(None, MISSING)] * len(rows)
        found = self._memory.contents([self.rows.path(row) for row in rows])
        return [
            (None if content == MISSING else self.rows.key(row, content), stamp)
            for row, (content, stamp) in zip(rows, found, strict=True)
        ]

    def _slots(self, rows: Sequence[int], deliver: bool) -> Iterator[_Slot]:
        start = 0
        while start < len(rows):
            some = rows[start : start + min(_CHUNK, max(8, start))]  # few at first: new files are hashed before
            start += len(some)
            slots = [_Slot(row, key, stamp) for row, (key, stamp) in zip(some, self.keys(some), strict=True)]
            absent = {slot.key for slot in slots if not self._stored(slot.key)}
            known = self._memory.verdicts([key for key in absent if key]) if self._memory else {}
            for slot in slots:
                verdict = known.get(slot.key or "")
                if verdict and verdict.stands(self.time_limit_seconds) and not (deliver and verdict.kind == "ok"):
                    slot.known = verdict
                elif slot.key in absent and not self._stored(slot.key):  # by now another process may have stored it
                    self._submit(slot, deliver)
                yield slot

    def _stored(self, key: str | None) -> bool:
        return key is not None and self.store is not None and self.store.has(key, self.reading.shape)

    def _submit(self, slot: _Slot, deliver: bool, storing: bool = True) -> None:
        """Have it decoded, unless equal bytes are being decoded right now."""
        if slot.key in self._flying:
            slot.flight = self._flying[slot.key]
            slot.flight.rows += 1
            return
        if self._pool is None or self._pool_owner != os.getpid():  # a fork has the pool's memory, not its thread
            self._pool, self._pool_owner = GuardedPool(self.workers, self.time_limit_seconds), os.getpid()
            self._last_will = weakref.finalize(self, self._pool.close)
        storing = storing and slot.key is not None and self._grant()
        task = {
            "reading": self.rows.item(slot.row), "deliver": deliver, "stamp": slot.stamp, "key": slot.key,
            "folder": self.store.folder if storing and self.store else None,
        }  # fmt: skip
        slot.flight = _Flight(self._pool.submit(decode_item, task), storing)
        if slot.key is not None:
            self._flying[slot.key] = slot.flight

    def _finish(self, slot: _Slot, deliver: bool) -> np.ndarray | Exception | None:
        """Wait for a row. What is damaged or was evicted since is decoded again: stored once more, then without."""
        tries = 0
        while True:
            if slot.known is not None:
                return slot.known.error(self.rows.path(slot.row))
            if slot.flight is not None:
                if slot.key is not None and self._flying.get(slot.key) is slot.flight:
                    del self._flying[slot.key]
                outcome = slot.flight.outcome()
                if not isinstance(outcome, int):
                    self._learn(slot, slot.flight.storing, outcome)
                    return outcome
                self._granted -= outcome if self.reading.shape is None else 0
            if not deliver:
                return None
            clip = self.store.read(slot.key) if self.store and slot.key else None
            if clip is not None:
                return clip
            tries += 1
            self._submit(slot, deliver, storing=tries < 2)

    def _learn(self, slot: _Slot, storing: bool, outcome: np.ndarray | Exception | None) -> None:
        """Remember what became of a clip that has no entry. It is no news of ``key`` if the file is another by now."""
        failed, path = isinstance(outcome, Exception), self.rows.path(slot.row)
        if slot.key is None or stamp_of(path) != slot.stamp:
            return
        if storing and not failed and not self._full:
            self._full = True
            log.warning("%s could not be stored in %s", path, self.store and self.store.folder)
        verdict = Verdict.of(outcome, self.time_limit_seconds) if isinstance(outcome, Exception) else Verdict(kind="ok")
        if verdict is not None:
            self._learnt[slot.key] = verdict
            if len(self._learnt) >= _CHUNK:
                self._note()

    def _note(self) -> None:
        if self._memory is not None and self._learnt:
            self._memory.remember(self._learnt)
            self._learnt.clear()

    def _check_room(self, rows: Sequence[int]) -> None:
        """Say up front that a table cannot be kept."""
        if self.store is None or self.reading.shape is None or self._full:
            return
        self._wanted = entry_bytes(self.reading.shape) * (len(rows) if isinstance(rows, range) else len(set(rows)))
        if self._wanted > self.store.limit:
            self._full = True
            log.warning(
                "%d clips of %r take %.1f GB decoded and the store may hold %.1f: they are decoded anew at each use; "
                "raise WORKBENCH_CACHE_GB, or use fewer frames or a smaller size",
                len(rows), self._name, self._wanted / 1e9, self.store.limit / 1e9,
            )  # fmt: skip

    def _room(self, wanted: int, cost: int) -> int:
        """Bytes that may be stored beside what children are still writing."""
        assert self.store is not None
        writing = cost * sum(flight.storing and not flight.future.done() for flight in self._flying.values())
        return self.store.make_room(wanted + writing) - writing

    def _grant(self) -> bool:
        """Whether one more clip may be stored."""
        if self._full or self.store is None:
            return False
        cost = 1 if self.reading.shape is None else entry_bytes(self.reading.shape)
        if self._granted < cost:
            wanted = max(cost, min(self._wanted or self.store.limit, self.store.limit // _SHARE))
            self._granted = self._room(wanted, cost)
            if self._granted < cost and self._flying:
                # Clips that are being written count twice while they are: near the limit, wait and ask again.
                wait_for_all([flight.future for flight in self._flying.values()])
                self._granted = self._room(wanted, cost)
        if self._granted < cost:
            self._full = True
            log.warning(
                "%s is full of clips used in the last hour; others are decoded anew at each use (WORKBENCH_CACHE_GB "
                "raises its limit of %.1f GB)", self.store.folder, self.store.limit / 1e9,
            )  # fmt: skip
            return False
        self._granted -= 0 if self.reading.shape is None else cost
        return True
