"""Clips inside uncompressed tars, read where they lie: a path may lead through a tar as if that were a folder."""

import logging
import os
import re
import tarfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_TAR = re.compile(r"\.tar(?=[/\\])", re.IGNORECASE)
_KEPT_MEMBERS = 300_000
"""Members whose places are remembered per process, about 100 MB; the tars used longest ago are forgotten first."""

_indices: "OrderedDict[str, tuple[tuple[int, int], dict[str, Span]]]" = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class Span:
    """Where the bytes of one tar member lie: ``size`` bytes of ``file`` from ``offset``."""

    file: str
    offset: int
    size: int


def locate(path: str | os.PathLike[str]) -> Span | None:
    """The span of a path that leads through a tar (``corpus-000.tar/clips/0001.mp4``); None for an ordinary path.

    A folder whose name ends in ``.tar`` is a folder. Raises FileNotFoundError for a missing tar or a member that is not
    in it, and OSError for a file that is no uncompressed tar.
    """
    text = os.fspath(path)
    if ".tar" not in text.lower():  # nearly every path ends here
        return None
    for found in _TAR.finditer(text):
        tar, member = text[: found.end()], text[found.end() + 1 :].replace("\\", "/").strip("/")
        if os.path.isfile(tar):
            span = members(tar).get(member)
            if span is None:
                raise FileNotFoundError(f"{tar!r} has no file {member!r}")
            return span
        if not os.path.lexists(tar) and member:
            raise FileNotFoundError(f"{text!r} does not exist: there is no {tar!r}")
    return None


def read_span(span: Span) -> bytes:
    """The bytes of one member. Raises OSError when the tar has become shorter since it was indexed."""
    with open(span.file, "rb") as file:
        file.seek(span.offset)
        data = file.read(span.size)
    if len(data) != span.size:
        raise OSError(f"{span.file!r} ends within a member: {len(data)} of {span.size} bytes at {span.offset}")
    return data


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an ordinary file or of one that lies in a tar."""
    span = locate(path)
    return Path(path).read_bytes() if span is None else read_span(span)


def members(tar: str | os.PathLike[str]) -> dict[str, Span]:
    """Every regular file of an uncompressed tar by its name; one pass over the headers, remembered per process.

    The last of two members of one name counts, as in ``tar``; hard links lead to their target; folders, symbolic links
    and sparse members are left out. Names are as stored, without a leading ``./``. Raises ValueError for an absolute
    name or one with ``..`` (it would lead out of the folder were it ever extracted), OSError for what is no tar.
    """
    name = os.fspath(tar)
    state = os.stat(name)
    stamp = (state.st_size, state.st_mtime_ns)
    with _lock:
        known = _indices.get(name)
        if known is not None and known[0] == stamp:
            _indices.move_to_end(name)
            return known[1]
    found = _index(name, state.st_size)
    with _lock:
        _indices[name] = (stamp, found)
        _indices.move_to_end(name)
        while len(_indices) > 1 and sum(len(index) for _, index in _indices.values()) > _KEPT_MEMBERS:
            _indices.popitem(last=False)
    return found


def _index(name: str, size: int) -> dict[str, Span]:
    found: dict[str, Span] = {}
    try:
        with tarfile.open(name, "r:") as archive:
            for member in archive:
                key = _checked(member.name, name)
                if member.islnk() and (target := member.linkname.removeprefix("./")) in found:
                    found[key] = found[target]
                elif member.isreg() and not member.issparse() and member.offset_data + member.size <= size:
                    found[key] = Span(name, member.offset_data, member.size)
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
    except tarfile.TarError as error:
        if not found:
            raise OSError(f"{name!r} is not an uncompressed tar that can be read: {error}") from error
        log.warning("%s is damaged (%s); the %d member(s) before that are used", name, error, len(found))
    return found


def _checked(member: str, tar: str) -> str:
    if member.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member) or re.match(r"[A-Za-z]:", member):
        raise ValueError(f"{tar!r} holds the member {member!r}, which leads out of its folder; such tars are refused")
    return member.removeprefix("./")
