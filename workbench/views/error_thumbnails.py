"""Small playing clips made once: encoded, kept on disk beside the decoded clips, and shown again without decoding."""

import base64
import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from workbench.data.cache import default_cache_dir
from workbench.data.loading.contents import stamp_of
from workbench.data.tables import ClipTable
from workbench.views.players import ClipPlayer
from workbench.views.style import escape

log = logging.getLogger(__name__)

WIDTH_PX = 224
LIMIT_BYTES = 500_000_000
"""All thumbnails of a machine; those used longest ago go first."""


class Span(NamedTuple):
    """A part of a file; ``table`` makes the table of this one clip where it has to be decoded."""

    path: Path
    start_seconds: float
    end_seconds: float
    table: Callable[[], ClipTable]


Source = Path | ClipTable | Span


class StoredPlayer(ClipPlayer):
    """A :class:`ClipPlayer` of a video that is encoded already."""

    def __init__(
        self, mp4: bytes, facts: dict[str, object], *, title: str, caption: str, width_px: int = WIDTH_PX
    ) -> None:
        blank = np.zeros((1, int(str(facts["height"])), int(str(facts["width"])), 3), np.uint8)
        super().__init__(blank, title=title, caption=caption, width_px=width_px)
        self._mp4, self._flashes, self.poster = mp4, bool(facts["flashes"]), str(facts["poster"])
        self.error = str(facts["error"])

    @functools.cached_property
    def mp4(self) -> bytes:
        return self._mp4

    @functools.cached_property
    def flashes(self) -> bool:
        return self._flashes

    @functools.cached_property
    def _html(self) -> str:
        made = super()._html
        return made.replace("<video ", f'<video poster="{self.poster}" ', 1) if self.poster else made


class Thumbnails:
    """Encoded clips in a folder, found by the file, its time of change and the span shown.

    ``folder``: None is ``thumbnails`` in the workbench's cache. A file that cannot be decoded is remembered with its
    reason. Written whole or not at all, so that several kernels may share the folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_cache_dir() / "thumbnails"

    def get(self, source: Source, *, title: str, caption: str, width_px: int = WIDTH_PX) -> ClipPlayer | None:
        """The player of a clip whose thumbnail is there already, else None."""
        video, facts = self._places(source)
        try:
            found = json.loads(facts.read_text(encoding="utf-8"))
            data = b"" if found["error"] else video.read_bytes()
            os.utime(facts)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError) as error:  # a damaged entry is made anew
            log.warning("thumbnail %s is damaged and made again: %s", facts, error)
            return None
        return StoredPlayer(data, found, title=title, caption=caption, width_px=width_px)

    def make(self, source: Source, *, title: str, caption: str) -> ClipPlayer:
        """The player of a clip, encoded and stored where it was not."""
        if (known := self.get(source, title=title, caption=caption)) is not None:
            return known
        player = ClipPlayer(
            source.table() if isinstance(source, Span) else source, title=title, caption=caption, width_px=WIDTH_PX
        )
        video, facts = self._places(source)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not player.error:
                _write(video, player.mp4)
            _write(facts, json.dumps(_facts(player)).encode())
        except OSError as error:
            log.warning("thumbnails are not stored in %s: %s", self.folder, error)
        return player

    def _places(self, source: Source) -> tuple[Path, Path]:
        if isinstance(source, ClipTable):
            line = source.frame.iloc[0]
            path, ends = source.files()[0], (line.start_seconds, line.end_seconds)
        elif isinstance(source, Span):
            path, ends = source.path, (source.start_seconds, source.end_seconds)
        else:
            path, ends = Path(source), (float("nan"), float("nan"))
        span = ",".join("" if pd.isna(v) else f"{v:.6f}" for v in ends)
        text = f"{os.path.abspath(path)}|{stamp_of(path)}|{span}|{WIDTH_PX}"
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self.folder / f"{name}.mp4", self.folder / f"{name}.json"

    def prune(self, limit: int = LIMIT_BYTES) -> int:
        """Remove what was used longest ago until all take at most ``limit`` bytes; the number of clips removed."""
        entries = []
        for facts in self.folder.glob("*.json"):
            video = facts.with_suffix(".mp4")
            size = facts.stat().st_size + (video.stat().st_size if video.exists() else 0)
            entries.append((facts.stat().st_mtime, size, facts, video))
        total, removed = sum(size for _, size, *_ in entries), 0
        for _, size, facts, video in sorted(entries, key=lambda e: e[0]):
            if total <= limit:
                break
            facts.unlink(missing_ok=True)
            video.unlink(missing_ok=True)
            total, removed = total - size, removed + 1
        return removed


def _facts(player: ClipPlayer) -> dict[str, object]:
    _, height, width, _ = player.frames.shape
    return {
        "width": width, "height": height, "error": player.error, "flashes": bool(player.error) or player.flashes,
        "poster": "" if player.error else _poster(player.frames[len(player.frames) // 2]),
    }  # fmt: skip


def _poster(frame: np.ndarray) -> str:
    """A JPEG of one frame as a data URI, a few KB."""
    picture = Image.fromarray(frame)
    picture.thumbnail((WIDTH_PX, WIDTH_PX))
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=60)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def waiting(title: str, caption: str, width_px: int = WIDTH_PX) -> str:
    """What stands in a clip's place while it is encoded."""
    return (
        f'<figure class="wb-clip" style="margin:0;width:{width_px}px;max-width:100%">'
        f'<div style="font-weight:600;font-size:13px;overflow-wrap:anywhere">{escape(title)}</div>'
        f'<div role="status" style="aspect-ratio:1;border:1px dashed #888;border-radius:6px;display:grid;'
        f'place-items:center;font-size:12px">encoding …</div>'
        f'<figcaption style="font-size:12px;white-space:pre-line">{escape(caption)}</figcaption></figure>'
    )
