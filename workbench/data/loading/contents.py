"""What is remembered of files between sessions: what they contain, and which clips gave no frames and why."""

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from workbench.data.clips import ClipDecodeError
from workbench.data.frames import ShortClipError
from workbench.data.loading.pool import ItemCrashError, ItemTimeoutError
from workbench.data.sources.archives import Span, locate

log = logging.getLogger(__name__)
T = TypeVar("T")

MISSING = "missing"
# Exit codes of a process that never started, failed outside of the item, or was ended by SIGHUP, SIGINT, SIGKILL or
# SIGTERM: nothing of this is the clip's doing.
_ENDED = (None, 1, -1, -2, -9, -15)
_YOUNG_NS = 2 * 10**9  # FAT keeps times in steps of 2 s: a file this young may change again without showing it
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS contents (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, id TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, kind TEXT NOT NULL, reason TEXT NOT NULL, "
    "hint TEXT NOT NULL, time_limit_seconds REAL NOT NULL) WITHOUT ROWID",
)


def default_cache_dir() -> Path:
    """``$WORKBENCH_CACHE``, else ``~/.cache/video-transfer-workbench``. Raises RuntimeError where there is no home."""
    named = os.environ.get("WORKBENCH_CACHE")
    try:
        return Path(named) if named else Path.home() / ".cache" / "video-transfer-workbench"
    except RuntimeError as error:
        raise RuntimeError(f"no folder for decoded clips ({error}); set WORKBENCH_CACHE or give a cache_dir") from error


def content_id(path: str | os.PathLike[str]) -> str:
    """Size and sha256 of a file's bytes, or ``missing``. A path through a tar counts by its member's bytes, so that
    a clip has the same id inside a tar and beside it."""
    place = _place(path)
    return MISSING if place is None else _hash(place.span)


@dataclass(frozen=True)
class _Place:
    """Where a path's bytes lie, under a name as text, and what changes when they do."""

    name: str
    span: Span
    stamp: str
    changed_ns: int


def _place(path: str | os.PathLike[str]) -> _Place | None:
    name = os.path.abspath(path)
    try:
        span = locate(name)
        stat = os.stat(span.file if span else name)
    except (OSError, ValueError):  # not there, a tar that is refused, no path at all: reading it says which
        return None
    # The time of modification is copied with a file (cp -p, rsync -t, tar); that of its last change is not.
    stamp = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}" + (f"-{span.offset}+{span.size}" if span else "")
    return _Place(_text(name), span or Span(name, 0, stat.st_size), stamp, stat.st_mtime_ns)


def _text(name: str) -> str:
    """Itself, but for a file name that is no Unicode, which sqlite3 would not take."""
    return name.encode("utf-8", "backslashreplace").decode()


def stamp_of(path: str | os.PathLike[str]) -> str:
    """Size and times of change of a file (and the place in its tar): another one means other bytes."""
    place = _place(path)
    return MISSING if place is None else place.stamp


def _hash(span: Span) -> str:
    digest, left = hashlib.sha256(), span.size
    try:
        with open(span.file, "rb") as file:
            file.seek(span.offset)
            while left and (chunk := file.read(min(left, 1 << 20))):
                digest.update(chunk)
                left -= len(chunk)
    except OSError:
        return MISSING
    return f"{span.size - left}-{digest.hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a clip without an entry in the store."""

    kind: str
    """``ok`` (it decodes, but was not stored), ``decode``, ``short``, ``timeout`` or ``crash``."""
    reason: str = ""
    hint: str = ""
    time_limit_seconds: float = 0.0

    def stands(self, time_limit_seconds: float) -> bool:
        """Whether to believe it: a clip that timed out or crashed is tried again when it is given more time."""
        return self.kind not in ("timeout", "crash") or time_limit_seconds <= self.time_limit_seconds

    def error(self, path: str | os.PathLike[str]) -> Exception | None:
        """The exception that the clip cost then; None for ``ok``."""
        kinds: Mapping[str, Callable[[str], Exception]] = {
            "timeout": ItemTimeoutError, "crash": ItemCrashError,
        }  # fmt: skip
        if self.kind == "decode":
            return ClipDecodeError(os.fspath(path), self.reason, self.hint)
        if self.kind == "short":
            return ShortClipError(self.reason, os.fspath(path))
        return kinds[self.kind](self.reason) if self.kind in kinds else None

    @staticmethod
    def of(error: Exception, time_limit_seconds: float) -> "Verdict | None":
        """None for what says nothing of the clip: a wrong argument, or a process that was ended from outside."""
        if isinstance(error, ClipDecodeError):
            return Verdict(kind="decode", reason=error.reason, hint=error.hint)
        if isinstance(error, ShortClipError):
            return Verdict(kind="short", reason=error.reason)
        if isinstance(error, ItemTimeoutError):
            return Verdict(kind="timeout", reason=str(error), time_limit_seconds=time_limit_seconds)
        if isinstance(error, ItemCrashError) and error.exit_code not in _ENDED:
            return Verdict(kind="crash", reason=str(error), time_limit_seconds=time_limit_seconds)
        return None


class Memory:
    """``memory.sqlite3`` in a cache folder. Many processes may write it, and any may be killed; where it cannot be
    read or written (a file system without locks, a full disk) nothing is remembered and everything still works."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / "memory.sqlite3"

    def contents(self, paths: Sequence[str | os.PathLike[str]]) -> list[tuple[str, str]]:
        """(:func:`content_id`, :func:`stamp_of`) of each path; files are read only when their stamp is new."""
        places = [_place(path) for path in paths]
        names = [place.name for place in places if place]
        known = {row[0]: row[1:] for row in self._select("contents", "path", "path, stamp, id", names)}
        found, fresh, now = [], {}, time.time_ns()
        for place in places:
            if place is None:
                found.append((MISSING, MISSING))
                continue
            stamp, identity = known.get(place.name, ("", ""))
            if stamp != place.stamp:
                stamp, identity = place.stamp, _hash(place.span)
                known[place.name] = (stamp, identity)
                if identity != MISSING and now - place.changed_ns > _YOUNG_NS:
                    fresh[place.name] = (place.name, stamp, identity)
            found.append((identity, stamp))
        self._insert("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", list(fresh.values()))
        return found

    def verdicts(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """What is remembered of these store keys."""
        columns = "key, kind, reason, hint, time_limit_seconds"
        return {
            key: Verdict(kind=kind, reason=reason, hint=hint, time_limit_seconds=limit)
            for key, kind, reason, hint, limit in self._select("verdicts", "key", columns, keys)
        }

    def remember(self, verdicts: Mapping[str, Verdict]) -> None:
        rows = [(key, v.kind, _text(v.reason), _text(v.hint), v.time_limit_seconds) for key, v in verdicts.items()]
        self._insert("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)", rows)

    def _select(self, table: str, column: str, wanted: str, values: Sequence[str]) -> list[tuple]:
        def work(base: sqlite3.Connection) -> list[tuple]:
            rows: list[tuple] = []
            for some in _chunks(values, 500):
                marks = ", ".join("?" * len(some))
                rows += base.execute(f"SELECT {wanted} FROM {table} WHERE {column} IN ({marks})", some)
            return rows

        return self._with(work, []) if values and self.path.exists() else []

    def _insert(self, statement: str, rows: list[tuple]) -> None:
        def work(base: sqlite3.Connection) -> None:
            base.executemany(statement, rows)
            base.commit()

        if rows:
            self._with(work, None)

    def _with(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        for attempt in range(2):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                base = sqlite3.connect(self.path, timeout=30)
                try:
                    base.execute("PRAGMA synchronous = NORMAL")
                    for statement in _SCHEMA:
                        base.execute(statement)
                    return work(base)
                finally:
                    base.close()
            except sqlite3.OperationalError as error:  # locked, read-only, a full disk
                log.warning("%s is not available (%s); nothing is remembered in it for now", self.path, error)
                return otherwise
            except sqlite3.DatabaseError as error:
                log.warning("%s is damaged (%s) and begun anew", self.path, error)
                if attempt or not self._removed():
                    return otherwise
            except OSError as error:
                log.warning("%s is not available (%s); nothing is remembered in it for now", self.path, error)
                return otherwise
        return otherwise

    def _removed(self) -> bool:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:  # a folder that cannot be written; on Windows also a file in use
            log.warning("%s stays (%s); nothing is remembered in it for now", self.path, error)
            return False
        return True


def _chunks(values: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(values)
    while some := list(islice(rest, size)):
        yield some
