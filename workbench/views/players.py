"""Clips that play: small looped inline H.264 videos, galleries of them, and heat maps laid over frames."""

import base64
import functools
import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import ipywidgets
import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from workbench.data.clips import ClipDecodeError, probe, read_clip, write_clip
from workbench.data.synthetic.flash import flash_report
from workbench.data.tables import ClipTable
from workbench.views.style import Html, escape

log = logging.getLogger(__name__)

DEFAULT_FPS = 8.0
MAX_FRAMES = 48
MAX_BYTES = 60_000
PIXELS_PER_CSS_PX = 1.25  # a little sharper than the screen needs, before the size limit bites
LARGE_FRAME_PX = 640 * 480  # above this a file is shrunk while decoding: 48 frames of 4K would take 1.2 GB


class ClipPlayer:
    """A clip as a looped, muted, inline video with a scrubber; the value of a notebook cell, or part of a page.

    Args:
        source: frames uint8 ``(T, H, W, 3)``; the path of a video; or a :class:`ClipTable` of one row.
        fps: frames per second to play at; None plays a file in real time and an array at 8.
        title, caption: plain text above and below (escaped).
        width_px: width on the page; the height follows the frames.
        panels: names of the equally wide parts of the picture (:func:`side_by_side`), written above them.
        autoplay: None plays at once unless the frames flash more than WCAG 2.3.1 allows; those wait for a click.

    The video is encoded once, when first shown, at most about 60 KB (quality falls until it fits).
    A file that cannot be decoded is shown as a note with the reason (also in ``error``).
    """

    def __init__(
        self,
        source: np.ndarray | str | Path | ClipTable,
        *,
        fps: float | None = None,
        title: str = "",
        caption: str = "",
        width_px: int = 224,
        autoplay: bool | None = None,
        panels: Sequence[str] = (),
    ) -> None:
        if width_px < 16:
            raise ValueError(f"width_px={width_px} is too small to show; use at least 16")
        if fps is not None and not fps > 0:
            raise ValueError(f"fps={fps} must be above 0")
        self.title, self.caption, self.width_px, self.error = title, caption, width_px, ""
        try:
            self.frames, own_fps = _frames_of(source, width_px)
        except ClipDecodeError as problem:
            log.warning("not shown: %s", problem)
            self.frames, own_fps, self.error = np.zeros((1, 16, 16, 3), np.uint8), DEFAULT_FPS, str(problem)
        self.fps = float(fps or own_fps)
        self._autoplay, self.panels = autoplay, tuple(panels)

    @functools.cached_property
    def flashes(self) -> bool:
        """Whether the clip flashes more than the photosensitivity limit at this speed."""
        # Twice, because the loop shows the change from the last frame to the first as well.
        return bool(flash_report(np.concatenate([self.frames, self.frames]), self.fps).unsafe)

    @functools.cached_property
    def mp4(self) -> bytes:
        """The encoded video."""
        return _encode(self.frames, self.fps, self.width_px)

    @functools.cached_property
    def _html(self) -> str:
        _, height, width, _ = self.frames.shape
        head = f'<div style="font-weight:600;font-size:13px;line-height:1.35;{_WRAP}">{escape(self.title)}</div>'
        foot = f'<figcaption style="font-size:12px;line-height:1.45;opacity:.85;{_WRAP}">'
        label = escape(self.title or self.caption or "clip")
        if self.error:
            body = (
                f'<div style="border:1px dashed #888;border-radius:6px;padding:8px;font-size:12px;{_WRAP}">'
                f"cannot be shown: {escape(self.error)}</div>"
            )
        else:
            waits = self.flashes if self._autoplay is None else not self._autoplay
            warning = "Flashing clip: plays when you press play." if waits and self.flashes else ""
            source = base64.b64encode(self.mp4).decode()
            names = "".join(f"<span>{escape(name)}</span>" for name in self.panels)
            columns = f"display:grid;grid-template-columns:repeat({len(self.panels)},minmax(0,1fr));gap:4px"
            body = f'<div style="font-size:12px;line-height:1.35;{columns};{_WRAP}">{names}</div>' if names else ""
            body += (
                f"<video {'' if waits else 'autoplay '}loop muted playsinline controls disablepictureinpicture "
                f'controlslist="nodownload noremoteplayback noplaybackrate" preload="auto" tabindex="0" '
                f'aria-label="{label}" width="{self.width_px}" '
                f'style="width:100%;height:auto;aspect-ratio:{width}/{height};border-radius:6px;background:#000;'
                f'display:block" src="data:video/mp4;base64,{source}"></video>'
                + (f'<div style="font-size:12px">{warning}</div>' if warning else "")
            )
        return (
            f'<figure class="wb-clip" style="margin:0;width:{self.width_px}px;max-width:100%;display:flex;'
            f'flex-direction:column;gap:4px">{head if self.title else ""}{body}'
            f"{foot + escape(self.caption) + '</figcaption>' if self.caption else ''}</figure>"
        )

    def html(self) -> Html:
        """A ``<figure>`` with everything inside it."""
        return Html(self._html)

    def _repr_html_(self) -> str:
        return self._html

    def widget(self) -> ipywidgets.HTML:
        """The same inside a widget layout."""
        return ipywidgets.HTML(self._html)


_WRAP = "overflow-wrap:anywhere;white-space:pre-line"


def _frames_of(source: np.ndarray | str | Path | ClipTable, width_px: int) -> tuple[np.ndarray, float]:
    if isinstance(source, ClipTable):
        if len(source) != 1:
            raise ValueError(f"a player shows one clip, this table has {len(source)}; use table_players(table)")
        row = source.frame.iloc[0]
        start, end = (None if pd.isna(row[c]) else float(row[c]) for c in ("start_seconds", "end_seconds"))
        return _read(source.files()[0], width_px, start, end)
    if isinstance(source, str | Path):
        return _read(Path(source), width_px, None, None)
    frames = np.asarray(source)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; a clip is uint8 (T, H, W, 3) with T, H, W >= 1")
    return frames, DEFAULT_FPS


def _read(path: Path, width_px: int, start: float | None, end: float | None) -> tuple[np.ndarray, float]:
    info = probe(path)
    seconds = (info.duration_seconds if end is None else end) - (start or 0.0)
    total = info.num_frames if start is None and end is None else round(seconds * info.fps)
    num_frames = max(1, min(total, MAX_FRAMES))
    size_px = round(width_px * PIXELS_PER_CSS_PX) if info.width * info.height > LARGE_FRAME_PX else None
    frames = read_clip(path, num_frames=num_frames, start_seconds=start, end_seconds=end, size_px=size_px, fit="pad")
    return frames, info.fps * num_frames / max(total, 1)


def resize(frames: np.ndarray, width_px: int) -> np.ndarray:
    """Frames uint8 ``(T, H, W, 3)`` at this width (Lanczos), height in proportion, both made even for yuv420p."""
    _, height, width, _ = frames.shape
    size = (max(2, width_px // 2 * 2), max(2, round(height * width_px / width / 2) * 2))
    if size == (width, height):
        return frames
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in frames])


def _encode(frames: np.ndarray, fps: float, width_px: int) -> bytes:
    big = resize(frames, round(width_px * PIXELS_PER_CSS_PX))
    data = b""
    with tempfile.TemporaryDirectory(prefix="workbench-player-") as folder:
        path = Path(folder) / "clip.mp4"
        for crf in (20, 25, 30, 35):
            write_clip(path, big, fps, crf=crf)
            data = path.read_bytes()
            if len(data) <= MAX_BYTES * max(1.0, width_px / 224):
                break
    return data


def table_players(table: ClipTable, *, fps: float | None = None, width_px: int = 224) -> list[ClipPlayer]:
    """One player per row of ``table``, titled by its clip and captioned by its labels."""
    players = []
    for i in range(len(table)):
        one = table[[i]]
        row = one.frame.iloc[0]
        labels = [f"{t.name}: {_label(t.classes, row[t.name])}" for t in table.tasks if not pd.isna(row[t.name])]
        players.append(
            ClipPlayer(one, fps=fps, width_px=width_px, title=str(row.clip_id), caption="\n".join(labels) or "no label")
        )
    return players


def _label(classes: Sequence[str], value: object) -> str:
    if isinstance(value, str):
        return value
    number = float(value)  # type: ignore[arg-type]
    if classes:
        return classes[int(number)]
    return f"{number:.3g}"


def gallery(players: Iterable[ClipPlayer], *, columns: int = 4, empty: str = "No clips to show.") -> Html:
    """Players in a grid of at most ``columns``, fewer where the page is narrow."""
    if columns < 1:
        raise ValueError(f"columns={columns} must be at least 1")
    items = list(players)
    if not items:
        return Html(f'<p class="wb-note">{escape(empty)}</p>')
    width = max(p.width_px for p in items)
    narrow = "calc(50% - 8px)" if columns > 1 and width < 300 else "100%"  # two thumbnails side by side on a phone
    total = columns * width + (columns - 1) * 16
    return Html(
        f'<div class="wb-gallery" style="display:grid;gap:16px;max-width:min({total}px,100%);'
        f'grid-template-columns:repeat(auto-fill,minmax(min({width}px,{narrow}),1fr))">'
        f"{''.join(p.html() for p in items)}</div>"
    )


def heat_scale(heats: Iterable[np.ndarray], *, signed: bool) -> tuple[float, float]:
    """``(low, high)`` that the ends of the colour map stand for, over all ``heats`` given.

    Signed maps are centred on 0 (``-m, m``); unsigned ones span their values. Give every map that will be compared:
    a scale of its own per clip destroys the comparison.
    """
    values = [np.asarray(h, np.float32) for h in heats]
    if not values:
        raise ValueError("heat_scale needs at least one map")
    if signed:
        top = max(float(np.abs(v).max()) for v in values)
        return -top, top
    return min(float(v.min()) for v in values), max(float(v.max()) for v in values)


SHOWN = 99.0  # percentile of the absolute values at full colour of a robust scale
BEYOND = "one token in a hundred is beyond"


def robust_scale(heats: Sequence[np.ndarray], *, signed: bool) -> tuple[float, float]:
    """Like :func:`heat_scale`, from 0 to the 99th percentile: else one token in a thousand leaves the rest untinted."""
    top = float(np.percentile(np.abs(np.concatenate([np.ravel(h) for h in heats])), SHOWN))
    if top <= 0:  # nearly all tokens got nothing
        return heat_scale(heats, signed=signed)
    return (-top if signed else 0.0), top


def overlay(
    frames: np.ndarray,
    heat: np.ndarray,
    *,
    signed: bool,
    opacity: float = 0.7,
    scale: tuple[float, float] | None = None,
) -> np.ndarray:
    """Tint ``frames`` uint8 ``(T, H, W, 3)`` by ``heat`` float ``(T, H, W)``; returns uint8 frames.

    Unsigned heat uses inferno, signed heat RdBu_r centred on 0 (red for, blue against). The tint is as opaque as the
    heat is strong, so what got none stays as it was. ``scale`` defaults to :func:`heat_scale` of this clip alone.
    """
    heat = np.asarray(heat, np.float32)
    if heat.shape != frames.shape[:3]:
        raise ValueError(f"heat is {heat.shape} but the frames are {frames.shape[:3]}; both are (T, H, W)")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity} must be between 0 and 1")
    low, high = scale or heat_scale([heat], signed=signed)
    share = np.clip((heat - low) / (high - low), 0, 1) if high > low else np.full_like(heat, 0.5 if signed else 0.0)
    colours = matplotlib.colormaps["RdBu_r" if signed else "inferno"](share)[..., :3] * 255
    strength = (np.abs(share - 0.5) * 2 if signed else share)[..., None] * opacity
    return np.round(frames * (1 - strength) + colours * strength).astype(np.uint8)


def scale_note(
    scale: tuple[float, float], *, signed: bool, shared: bool = False, unit: str = "", among: str | None = None
) -> str:
    """What the colours stand for, in words; ``unit`` follows each number.

    ``among``: what the scale is shared by, where that is neither all clips (``shared``) nor this one alone.
    """
    low, high = scale
    own = among or ("the same scale for every clip" if shared else "scale of this clip alone")
    if signed:
        return f"red: for the target, blue: against; full colour at ±{high:.2g}{unit} ({own})"
    return f"no tint: {low:.2g}{unit}, brightest: {high:.2g}{unit} ({own})"


def side_by_side(*panels: np.ndarray, gap_px: int = 2) -> np.ndarray:
    """Clips uint8 ``(T, H, W, 3)`` of one shape next to each other in one clip: one scrubber moves them together."""
    if len({p.shape for p in panels}) != 1:
        raise ValueError(f"panels must have one shape, got {[p.shape for p in panels]}")
    frames, height, _, _ = panels[0].shape
    gap = np.full((frames, height, gap_px, 3), 128, np.uint8)
    parts = [part for panel in panels for part in (panel, gap)][:-1]
    return np.concatenate(parts, axis=2)
