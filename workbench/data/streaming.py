"""One long video, in order, each frame decoded once: what is wanted of it comes in pieces of bounded size.

A child process holds the decoder (PyAV: the only one of ours that hands frames over one by one without looking ahead)
and answers range after range of frame positions, so a hang or a crash costs what was still to come and never the
session. The packets are listed first and not decoded, so every frame's time is known before the first one is.

A piece holds three sizes of the same frames: squares for a model, made as :func:`workbench.data.clips.read_views` makes
them; small whole frames, for rules about the picture as a whole; and JPEG posters for a reader.
"""

import io
import itertools
import logging
import uuid
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from workbench.data.decoders import ClipDecodeError, explained, opened
from workbench.data.frames import views_of
from workbench.data.loading.pool import GuardedPool, ItemCrashError, ItemTimeoutError
from workbench.data.seeking import DoubtError, rank_of

log = logging.getLogger(__name__)

SMALL_PX = 96  # long side of the small frames: twice the cells that the flash rule looks at
POSTER_PX = 192
PIECE_FRAMES = 48  # two seconds: at most this many frames of each kind are on their way at once
_LOST_SECONDS = 0.5  # a stream that ends this much before its packets promised is cut short


@dataclass(frozen=True)
class Squares:
    """How frames become a model's squares: the arguments of :func:`workbench.data.frames.views_of`."""

    size_px: int
    fit: str = "crop"
    num_crops: int = 1
    resize_px: int | None = None


@dataclass(frozen=True)
class Piece:
    """Frames ``first`` to ``last`` (exclusive) of a video, or fewer where it broke off."""

    first: int
    last: int
    squares: np.ndarray
    """uint8 (w, crops, S, S, 3) of the wanted positions within."""
    small: np.ndarray
    """uint8 (last - first, h, w, 3); of no frames where the small ones were not asked for."""
    posters: tuple[bytes, ...]
    """JPEG, of the wanted posters within."""
    decoded: int
    """Frames that the decoder put out for it."""
    damaged: int
    """Of those, how many it had to conceal errors in."""
    error: str = ""
    """Why it broke off."""


@dataclass
class _Reader:
    """The child's side of one video: the decoder in the middle of its work."""

    path: str
    frames: Generator[tuple[int, Any], None, None]
    size: tuple[int, int]
    counting: bool = False
    """Frames are told apart by their number: their timestamps are not in the order in which they come out."""
    decoded: int = 0
    damaged: int = 0
    position: int = 0
    shapers: dict[str, Any] = field(default_factory=dict)


_readers: dict[str, _Reader] = {}  # in the child: what a ticket stands for


def open_video(ticket: str, path: str) -> tuple[np.ndarray, float, int]:
    """In the child: the seconds of each shown frame, float64 (n,), the mean rate, and how many frames the header
    promises beyond those. Nothing is decoded yet."""
    with opened(path, "pyav") as video:
        scan = video.scan
    for left in list(_readers):  # one video at a time: what a broken caller left goes
        close_video(left)
    _readers[ticket] = _Reader(path, _nothing(), scan.size)
    _begin(_readers[ticket])
    return scan.times, scan.fps, scan.lost


def close_video(ticket: str) -> None:
    """In the child: let go of the file and its decoder."""
    if ticket in _readers:
        _readers.pop(ticket).frames.close()


def _nothing() -> Generator[tuple[int, Any], None, None]:
    yield from ()


def _begin(reader: _Reader) -> None:
    """Before the first frame, also once more."""
    reader.frames.close()
    reader.frames, reader.position = _shown(reader), 0


def read_piece(
    ticket: str, first: int, last: int, wanted: Sequence[int], posters: Sequence[int], squares: Squares, small: bool
) -> Piece:
    """In the child: the next positions ``first`` to ``last``; they must follow on those of the call before."""
    reader = _readers.get(ticket)
    if reader is None or reader.position != first:
        raise RuntimeError(f"frames {first} to {last} do not follow on what this process has read")
    before = reader.decoded, reader.damaged
    try:
        kept, whole, pictures, error = _read_on(reader, last, set(wanted), set(posters), squares, small)
    except DoubtError as doubt:  # nothing has been handed over: from the first frame again, by counting
        log.debug("%s: %s; counting frames", reader.path, doubt)
        reader.counting = True
        _begin(reader)
        kept, whole, pictures, error = _read_on(reader, last, set(wanted), set(posters), squares, small)
    shape = (squares.num_crops, squares.size_px, squares.size_px, 3)
    return Piece(
        first, reader.position, np.array(kept, np.uint8).reshape(-1, *shape),
        np.stack(whole) if whole else np.zeros((0, 1, 1, 3), np.uint8), tuple(pictures),
        reader.decoded - before[0], reader.damaged - before[1], error,
    )  # fmt: skip


def _read_on(
    reader: _Reader, last: int, chosen: set[int], shown: set[int], squares: Squares, small: bool
) -> tuple[list[Any], list[np.ndarray], list[bytes], str]:
    """Squares, small frames, posters, and why reading ended before ``last``. Raises DoubtError in the first piece."""
    kept, whole, pictures, first = [], [], [], reader.position
    try:
        while reader.position < last:
            position, frame = next(reader.frames)
            # All that may fail of a frame comes before the first thing that is kept of it.
            little = _small(reader, frame) if small else None
            pixels = _pixels(reader, frame) if position in chosen or position in shown else None
            if little is not None:
                whole.append(little)
            if pixels is not None and position in chosen:
                kept.append(views_of(pixels, squares.size_px, squares.fit, squares.num_crops, squares.resize_px))
            if pixels is not None and position in shown:
                pictures.append(_poster(pixels))
            reader.position += 1
    except ClipDecodeError as problem:
        return kept, whole, pictures, problem.reason
    except DoubtError as doubt:
        if first == 0:
            raise
        return kept, whole, pictures, str(doubt)
    return kept, whole, pictures, ""


def _shown(reader: _Reader) -> Generator[tuple[int, Any], None, None]:
    """``(position, frame)`` for every position that the packets announce; a frame is decoded once.

    Where two packets make one frame, or frames before the first key frame are dropped, the neighbour is on the screen.
    Raises DoubtError where timestamps are not the order in which frames come out.
    """
    with opened(reader.path, "pyav") as video:  # scanned before, so its container is at the first packet
        ticks, times = None if reader.counting else video.scan.ticks, video.scan.times
        position, count, held = 0, 0, None
        with explained(reader.path):
            stream = video.container.streams.best("video")
            stream.codec_context.thread_count = 1
            for frame in video.container.decode(stream):
                reader.decoded, count = reader.decoded + 1, count + 1
                if held is None:  # a stream may change its size: all frames get the first's
                    reader.size = (frame.width, frame.height)
                reader.damaged += bool(frame.is_corrupt)
                rank = count - 1 if ticks is None else rank_of(ticks, frame.pts)
                if rank < position:
                    raise DoubtError(f"after {times[position - 1]:.2f} s a frame is out of order")
                for missing in range(position, min(rank, len(times))):
                    yield missing, frame if held is None else held
                if rank < len(times):
                    yield rank, frame
                position, held = rank + 1, frame
        if held is None:
            raise ClipDecodeError(video.path, "no frame decodes", "the file is damaged or encrypted")
        if position < len(times) and times[-1] - times[position] > _LOST_SECONDS:
            raise ClipDecodeError(video.path, f"it breaks off at {times[position]:.2f} of {times[-1]:.2f} s")
        for missing in range(position, len(times)):
            yield missing, held


def _pixels(reader: _Reader, frame: Any) -> np.ndarray:
    """uint8 (H, W, 3) as the other readers make it: rotation applied, at the first frame's size."""
    return _shaped(reader, frame, reader.size, {})


def _small(reader: _Reader, frame: Any) -> np.ndarray:
    """The whole frame, its long side at most :data:`SMALL_PX`, each pixel the mean of those it stands for."""
    width, height = reader.size
    scale = min(1.0, SMALL_PX / max(width, height))
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    return _shaped(reader, frame, size, {"interpolation": "AREA"})


def _shaped(reader: _Reader, frame: Any, size: tuple[int, int], how: dict[str, str]) -> np.ndarray:
    # A reformatter for each size: its tables cost more than a small frame.
    key = repr((size, how))
    if key not in reader.shapers:
        from av.video.reformatter import VideoReformatter

        reader.shapers[key] = VideoReformatter()
    with explained(reader.path):
        shaped = reader.shapers[key].reformat(frame, width=size[0], height=size[1], format="rgb24", threads=1, **how)
        return np.ascontiguousarray(np.rot90(shaped.to_ndarray(), frame.rotation // 90))


def _poster(pixels: np.ndarray) -> bytes:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((POSTER_PX, POSTER_PX))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=70)
    return target.getvalue()


def _piece_of(future: "Future[Piece]", first: int, squares: Squares) -> Piece:
    """The piece, or one of no frames that says why the child has none."""
    try:
        return future.result()
    except (ItemTimeoutError, ItemCrashError) as error:
        nothing = np.zeros((0, squares.num_crops, squares.size_px, squares.size_px, 3), np.uint8)
        return Piece(first, first, nothing, np.zeros((0, 1, 1, 3), np.uint8), (), 0, 0, str(error))


class VideoStream:
    """A video that is read once, from its first frame to its last, in a child process.

    Args:
        path: the file. ``time_limit_seconds``: for listing its packets, and for each piece.

    A context manager; raises :class:`~workbench.data.clips.ClipDecodeError` for what is no video, also where the child
    hangs or dies at its opening.
    """

    def __init__(self, path: str | Path, *, time_limit_seconds: float = 60.0) -> None:
        self.path, self._ticket, self._read = str(path), uuid.uuid4().hex, False
        self._pool = GuardedPool(1, time_limit_seconds)
        try:
            item = {"ticket": self._ticket, "path": self.path}
            self.times, self.fps, self.lost = self._pool.submit(open_video, item).result()
        except (ItemTimeoutError, ItemCrashError) as error:
            self._pool.close()
            raise ClipDecodeError(path, str(error), "the decoder hangs or crashes on this file") from error
        except BaseException:
            self._pool.close()
            raise

    @property
    def duration_seconds(self) -> float:
        """The last frame is on the screen for one more step."""
        return float(self.times[-1]) + 1 / self.fps

    def pieces(
        self, wanted: np.ndarray, squares: Squares, *, posters: Sequence[int] = (), small: bool = True,
        piece_frames: int = PIECE_FRAMES,
    ) -> Iterator[Piece]:  # fmt: skip
        """Every position once, ``piece_frames`` at a time; ``wanted`` and ``posters`` are ascending positions.

        The last piece carries ``error`` where the video breaks off, hangs or kills its process. At most two pieces are
        made ahead of the caller. Raises RuntimeError when called twice: the decoder has gone on.
        """
        if self._read:
            raise RuntimeError(f"{self.path} has been read; open another VideoStream")
        self._read = True
        places = np.asarray(wanted, np.int64), np.asarray(posters, np.int64)
        starts = iter(range(0, len(self.times), piece_frames))

        def ask(count: int) -> Iterator[tuple[int, "Future[Piece]"]]:
            for first in itertools.islice(starts, count):
                item = self._item(first, min(first + piece_frames, len(self.times)), *places, squares, small)
                yield first, self._pool.submit(read_piece, item)

        pending = deque(ask(2))
        while pending:
            first, future = pending.popleft()
            piece = _piece_of(future, first, squares)
            pending.extend(ask(1))
            yield piece
            if piece.error:
                return

    def _item(
        self, first: int, last: int, wanted: np.ndarray, shown: np.ndarray, squares: Squares, small: bool
    ) -> dict[str, Any]:
        inside = [a[np.searchsorted(a, first) : np.searchsorted(a, last)].tolist() for a in (wanted, shown)]
        return {
            "ticket": self._ticket, "first": first, "last": last, "wanted": inside[0], "posters": inside[1],
            "squares": squares, "small": small,
        }  # fmt: skip

    def close(self) -> None:
        """End the child process."""
        self._pool.close()

    def __enter__(self) -> "VideoStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
