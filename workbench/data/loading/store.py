"""Decoded clips on disk: one file per clip, bounded in all, shared by any number of processes.

An entry is a header (below) and the clip's bytes, so that reading it is one copy out of the page cache; what a process
reads again it keeps mapped into memory, which makes the copy a plain one. It is written
under a temporary name and renamed: whatever is killed at any moment, an entry is there whole or not at all. What the
disk does to it afterwards is caught by its size at every read and by its checksum at a process's first read; such an
entry is removed and reported as missing, never returned.

Header, 64 bytes, little-endian: magic (8), the first 16 bytes of the key, CRC-32 of everything else in the file (4),
number of dimensions (4), up to 8 sizes (4 each, the others 0).
"""

import logging
import math
import mmap
import os
import struct
import time
import uuid
import zlib
from collections.abc import Iterator
from io import FileIO

import numpy as np

log = logging.getLogger(__name__)

DEFAULT_GB = 20.0
_MAGIC = b"VTWCLIP1"
_HEADER = struct.Struct("<8s16sII8I")
HEADER_BYTES = _HEADER.size
_TOUCH_SECONDS = 600.0
_IN_USE_SECONDS = 3600.0 + _TOUCH_SECONDS  # what was used in the last hour, whenever in its ten minutes it was noted
_STALE_SECONDS = 24 * 3600.0

_CHECKED_ENTRIES = 200_000
_checked: dict[str, int] = {}
"""Entries whose checksum this process has seen to be right, by path: their inode (a new file gets another)."""

_MAPPED_BYTES, _MAPPED_ENTRIES = 4 << 30, 16_384  # Linux lets a process have some 65,000 maps in all
_maps: dict[str, tuple[int, int, np.ndarray]] = {}
"""Entries that this process keeps mapped, by path: inode, size of the file, and the clip. Their pages are the page
cache's own; what was mapped first stays, so that a table too large for all does not push out what it needs next."""
_mapped_bytes = 0


def limit_bytes() -> int:
    """``$WORKBENCH_CACHE_GB`` (default 20) in bytes; 0 stores nothing. Raises ValueError where it is no number."""
    text = os.environ.get("WORKBENCH_CACHE_GB", "").strip()
    try:
        size = float(text) if text else DEFAULT_GB
    except ValueError:
        size = math.nan
    if not size >= 0 or math.isinf(size):
        raise ValueError(f"WORKBENCH_CACHE_GB={text!r} must be a number of gigabytes, 0 or more")
    return int(size * 1e9)


def entry_bytes(shape: tuple[int, ...]) -> int:
    """Size on disk of a clip of this shape."""
    return HEADER_BYTES + math.prod(shape)


class Store:
    """uint8 arrays by key (64 hex digits) in ``folder``, at most ``limit`` bytes of them.

    The time of change of an entry is the time of its last use, to ten minutes.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int | None = None) -> None:
        self.folder = os.fspath(folder)
        self.limit = limit_bytes() if limit is None else limit

    def path(self, key: str) -> str:
        return os.path.join(self.folder, key[:2], key + ".clip")

    def has(self, key: str, shape: tuple[int, ...] | None = None) -> bool:
        """Whether there is an entry of the right size; counts as a use."""
        path = self.path(key)
        try:
            stat = os.stat(path)
        except OSError:
            return False
        if shape is not None and stat.st_size != entry_bytes(shape):
            return False
        _touch(path, stat)
        return True

    def read(self, key: str, out: np.ndarray | None = None) -> np.ndarray | None:
        """The clip, in ``out`` (C-contiguous, of its shape) if given; None where there is no good entry."""
        path = self.path(key)
        if (kept := _mapped(path)) is not None:
            clip = np.empty(kept.shape, np.uint8) if out is None else out
            _check_out(clip, kept.shape)
            np.copyto(clip, kept)
            return clip
        try:
            with open(path, "rb", buffering=0) as file:
                stat = os.fstat(file.fileno())
                header = file.read(HEADER_BYTES)
                shape = _shape(header, key)
                if shape is None or stat.st_size != entry_bytes(shape):
                    self._discard(path, f"{stat.st_size} bytes and a header that does not fit them")
                    return None
                clip = np.empty(shape, np.uint8) if out is None else out
                _check_out(clip, shape)
                if not _fill(file, clip):
                    self._discard(path, "it ends early")
                    return None
                if _checked.get(path) == stat.st_ino:
                    _map(path, file, stat, shape)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the stored clip %s cannot be read: %s", path, error)
            return None
        if _checked.get(path) != stat.st_ino:
            if _crc(header, clip) != _HEADER.unpack(header)[2]:
                self._discard(path, "its checksum is wrong")
                return None
            if len(_checked) >= _CHECKED_ENTRIES:
                _checked.clear()  # a table may be longer than memory: they are checked once more
            _checked[path] = stat.st_ino
        _touch(path, stat)
        return clip

    def write(self, key: str, clip: np.ndarray) -> int:
        """Store a uint8 array of 1 to 8 dimensions; returns its size on disk. Raises OSError where it cannot."""
        if clip.dtype != np.uint8 or not 1 <= clip.ndim <= 8:
            raise ValueError(f"a stored clip is uint8 of 1 to 8 dimensions, not {clip.dtype} {clip.shape}")
        clip = np.ascontiguousarray(clip)
        sizes = [*clip.shape, *[0] * (8 - clip.ndim)]
        tag = bytes.fromhex(key[:32])
        blank = _HEADER.pack(_MAGIC, tag, 0, clip.ndim, *sizes)
        header = _HEADER.pack(_MAGIC, tag, _crc(blank, clip), clip.ndim, *sizes)
        path = self.path(key)
        part = os.path.join(os.path.dirname(path), f".{key}.{uuid.uuid4().hex}.part")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(header)
                file.write(clip.reshape(-1).data)
            os.replace(part, path)
        except BaseException:
            _remove(part)
            raise
        return entry_bytes(clip.shape)

    def make_room(self, wanted: int) -> int:
        """Evict what was used longest ago until ``wanted`` more bytes fit; returns how many of them may be written.

        What was used in the last hour stays, so the answer may be less than was wanted, or 0. Processes ask by
        themselves: each may fill what it was granted, which they keep to a small part of the limit.
        """
        now = time.time()
        entries, total = [], 0
        for path, stat in self._files(now):
            total += stat.st_size
            entries.append((stat.st_mtime, path, stat.st_size))
        for used, path, size in sorted(entries):
            if total + wanted <= self.limit or now - used < _IN_USE_SECONDS:
                break
            if not path.endswith(".part") and _unused(path, now) and _remove(path):
                _forget(path)
                total -= size
        return max(0, min(wanted, self.limit - total))

    def _files(self, now: float) -> Iterator[tuple[str, os.stat_result]]:
        """Entries and temporaries, but for those of processes that were killed a day ago: they are removed."""
        for shelf in _listed(self.folder):
            if not shelf.is_dir():
                continue
            for entry in _listed(shelf.path):
                try:
                    stat = entry.stat()
                except OSError:
                    continue  # evicted by another process
                if entry.name.endswith(".part") and now - stat.st_mtime > _STALE_SECONDS:
                    _remove(entry.path)
                else:
                    yield entry.path, stat

    def _discard(self, path: str, what: str) -> None:
        log.warning("the stored clip %s is damaged (%s); removed, to be decoded again", path, what)
        _forget(path)
        _remove(path)


def _mapped(path: str) -> np.ndarray | None:
    """The clip, where this process has it mapped and the file is still the one it was; counts as a use."""
    if path not in _maps:
        return None
    inode, size, clip = _maps[path]
    try:
        stat = os.stat(path)
    except OSError:
        stat = None
    if stat is None or (stat.st_ino, stat.st_size) != (inode, size):  # a page beyond a file's end would be fatal
        _forget(path)
        return None
    _touch(path, stat)
    return clip


def _map(path: str, file: FileIO, stat: os.stat_result, shape: tuple[int, ...]) -> None:
    """Keep a checked entry mapped, as far as there is room. Not on Windows, which could not remove it then."""
    global _mapped_bytes
    full = len(_maps) >= _MAPPED_ENTRIES or _mapped_bytes + stat.st_size > _MAPPED_BYTES
    if full or path in _maps or os.name == "nt":
        return
    try:
        pages = mmap.mmap(file.fileno(), stat.st_size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        log.debug("%s is read, not mapped: %s", path, error)  # a limit of the system, or of a file system
        return
    _maps[path] = stat.st_ino, stat.st_size, np.frombuffer(pages, np.uint8, offset=HEADER_BYTES).reshape(shape)
    _mapped_bytes += stat.st_size


def _forget(path: str) -> None:
    global _mapped_bytes
    _checked.pop(path, None)
    _, size, _ = _maps.pop(path, (0, 0, None))
    _mapped_bytes -= size


def _check_out(out: np.ndarray, shape: tuple[int, ...]) -> None:
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}; this clip is C-contiguous uint8 {shape}")


def _shape(header: bytes, key: str) -> tuple[int, ...] | None:
    if len(header) != HEADER_BYTES:
        return None
    magic, tag, _, dimensions, *sizes = _HEADER.unpack(header)
    if magic != _MAGIC or tag.hex() != key[:32] or not 1 <= dimensions <= 8 or any(sizes[dimensions:]):
        return None
    return tuple(sizes[:dimensions])


def _crc(header: bytes, clip: np.ndarray) -> int:
    magic, tag, _, *rest = _HEADER.unpack(header)
    return zlib.crc32(clip.reshape(-1).data, zlib.crc32(_HEADER.pack(magic, tag, 0, *rest)))


def _fill(file: FileIO, clip: np.ndarray) -> bool:
    data, done = clip.reshape(-1).data, 0
    while done < len(data):
        count = file.readinto(data[done:])
        if not count:
            return False
        done += count
    return True


def _listed(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        log.debug("%s cannot be listed: %s", folder, error)  # not there yet, as a rule
        return []


def _unused(path: str, now: float) -> bool:
    """Whether an entry is still unused: another process may have begun to read it since the folder was listed."""
    try:
        return now - os.stat(path).st_mtime >= _IN_USE_SECONDS
    except OSError:
        return True


def _remove(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True  # another process was first
    except OSError as error:
        log.debug("%s stays for now: %s", path, error)  # Windows keeps what another process has open
        return False
    return True


def _touch(path: str, stat: os.stat_result) -> None:
    if time.time() - stat.st_mtime > _TOUCH_SECONDS:
        try:
            os.utime(path)
        except OSError as error:
            log.debug("the use of %s is not noted: %s", path, error)
