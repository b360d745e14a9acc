"""Maps as files: a video, an animation, a strip of frames, or a page that needs nothing."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from workbench.data.clips import write_clip
from workbench.data.synthetic.flash import flash_report
from workbench.views.map_strip import MapStrip
from workbench.views.page import page, paragraph, versions, write_page, write_whole
from workbench.views.players import DEFAULT_FPS, resize
from workbench.views.side_view import SideBySideView

KINDS = (".mp4", ".gif", ".png", ".html")
MAX_FRAMES_IN_STRIP = 8


def export_maps(
    maps: Any, path: str | Path, *, clip: int = 0, unit: str | None = None, report: Any = None, opacity: float = 0.7,
    fps: float = DEFAULT_FPS, panel_px: int = 224, allow_flashing: bool = False,
) -> Path:  # fmt: skip
    """Write one clip under up to four maps to ``path``; its ending says how.

    ``.mp4``: clip and maps side by side, playing. ``.gif``: the same, for where no video can go; it plays by itself,
    so a clip that flashes more than WCAG 2.3.1 allows is refused unless ``allow_flashing``. ``.png``: up to eight
    frames, a row per map. ``.html``: up to four clips from ``clip`` on with curves, slices, legend and evidence, in one
    file without a script from elsewhere.
    ``maps``, ``unit``, ``report``: as for :class:`~workbench.views.side_view.SideBySideView`. ``panel_px``: width of a
    panel. Returns ``path``. Raises ValueError on another ending, a clip that is not there, or numbers out of range.
    """
    path = Path(path)
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"path={str(path)!r} ends in {path.suffix!r}; use one of {', '.join(KINDS)}")
    view = SideBySideView(maps, unit=unit, report=report)
    strip = view.strip
    if not 0 <= clip < len(strip.clip_ids):
        raise ValueError(f"clip={clip} is not one of the {len(strip.clip_ids)} there are, from 0")
    if not (0 <= opacity <= 1 and 0 < fps < math.inf and panel_px >= 16):
        raise ValueError(
            f"opacity={opacity} must lie in 0..1, fps={fps} above 0 and panel_px={panel_px} be at least 16"
        )
    if path.suffix.lower() == ".html":
        view.clip, view.opacity = clip, opacity
        return _page(view, path)
    frames = strip.clip_frames(clip, opacity)
    if path.suffix.lower() == ".png":
        return write_whole(path, _png(strip_picture(strip, clip, opacity)))
    big = resize(frames, panel_px * (len(strip.names) + 1))
    if path.suffix.lower() == ".mp4":
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_clip(path, big, fps)
    if not allow_flashing and flash_report(np.concatenate([frames, frames]), fps).unsafe:
        raise ValueError(
            f"clip {strip.clip_ids[clip]!r} flashes more than WCAG 2.3.1 allows, and a GIF plays by itself; write an "
            ".mp4, or pass allow_flashing=True"
        )
    return write_whole(path, _gif(big, fps))


def strip_picture(strip: MapStrip, clip: int, opacity: float = 0.7) -> np.ndarray:
    """uint8 picture: up to eight frames spread over the clip, across; the clip and each map, down."""
    total = strip.frames.shape[1]
    count = min(MAX_FRAMES_IN_STRIP, total)
    picks = ((np.arange(count) + 0.5) * total / count).astype(int)
    columns = [strip.frame(clip, int(t), opacity) for t in picks]  # (H, W * panels + gaps, 3)
    width, gap = strip.frames.shape[3], 2
    rows = []
    for panel in range(len(strip.names) + 1):
        start = panel * (width + gap)
        tiles = [column[:, start : start + width] for column in columns]
        rows.append(np.concatenate([np.pad(t, ((0, gap), (0, gap), (0, 0)), constant_values=128) for t in tiles], 1))
    return np.concatenate(rows)


def _page(view: SideBySideView, path: Path) -> Path:
    names = ", ".join(view.strip.names)
    lead = "A clip as the model saw it, and the same clip under maps on one colour scale."
    caution = "A map shows what its method computes; whether it can be trusted is measured, not seen."
    body = view.freeze() + paragraph(caution)
    made = "Made by " + ", ".join(versions(("video-transfer-workbench", "torch", "captum")))
    return write_page(path, page(f"Maps: {names}", lead, [("Maps", body)], made, interactive=False))


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _gif(frames: np.ndarray, fps: float) -> bytes:
    """One palette for all frames, so that a colour means the same throughout."""
    images = [Image.fromarray(frame) for frame in frames]
    palette = Image.fromarray(np.concatenate(list(frames[:: max(1, len(frames) // 8)]))).quantize(255)
    shown = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    shown[0].save(buffer, "GIF", save_all=True, append_images=shown[1:], duration=round(1000 / fps), loop=0)
    return buffer.getvalue()
