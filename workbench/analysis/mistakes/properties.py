"""What a clip looks like, in numbers: brightness, motion, cuts and so on, to ask whether a run fails on some of it."""

import logging
import os
from typing import Any

import numpy as np
import pandas as pd

from workbench.data.cache import reason_of
from workbench.data.clips import ClipDecodeError, probe, read_clip
from workbench.data.loading.guard import run_guarded
from workbench.data.tables import ClipTable

log = logging.getLogger(__name__)

PROPERTIES = (
    "seconds", "fps", "short_side_px", "brightness", "contrast", "colourfulness", "motion", "sharpness", "cuts",
    "kbit_per_second",
)  # fmt: skip
SAMPLE_PX = 64
_FRAMES = 32
_CUT_LEVELS, _CUT_TIMES = 20.0, 4.0
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def clip_properties(clips: ClipTable, *, workers: int = 2, progress: bool = True) -> pd.DataFrame:
    """One row per clip of ``clips``: ``clip_id`` and :data:`PROPERTIES`; NaN throughout where a clip does not decode.

    Measured on up to 32 frames spread over the clip, at 64 px, in child processes with a time limit. ``seconds`` is the
    clip's length; ``fps``, ``short_side_px`` and ``kbit_per_second`` (size over length, audio included) are the file's.
    ``brightness`` is the mean luma and ``contrast`` its standard deviation within a frame (0..255); ``colourfulness``
    the mean spread between the colour channels; ``motion`` the mean absolute difference of neighbouring sampled frames;
    ``sharpness`` the mean absolute Laplacian over the contrast (low: blurred; high: fine texture or noise); ``cuts``
    how many sampled frames differ from the one before by over 20 grey levels and four times the clip's median
    difference. The columns of a doctor's report (``clips.doctor().files``) do as properties as well.
    """
    frame = clips.frame
    items = [
        {"path": str(path), "start_seconds": _known(start), "end_seconds": _known(end)}
        for path, start, end in zip(clips.files(), frame.start_seconds, frame.end_seconds, strict=True)
    ]
    title = "measuring clips" if progress else None
    rows: list[dict[str, Any]] = []
    for clip_id, found in zip(
        frame.clip_id, run_guarded(measure_clip, items, workers=workers, progress=title), strict=True
    ):
        if isinstance(found, Exception):
            log.warning("not measured, clip %s: %s", clip_id, reason_of(found))
            found = dict.fromkeys(PROPERTIES, np.nan)
        rows.append({"clip_id": clip_id, **found})
    return pd.DataFrame(rows, columns=["clip_id", *PROPERTIES])


def measure_clip(path: str, start_seconds: float | None, end_seconds: float | None) -> dict[str, float]:
    """:data:`PROPERTIES` of one clip. Raises :class:`ClipDecodeError`."""
    info = probe(path)
    start, end = start_seconds or 0.0, info.duration_seconds if end_seconds is None else end_seconds
    seconds = max(end - start, 0.0)
    frames = read_clip(
        path, num_frames=max(2, min(_FRAMES, round(seconds * info.fps))), size_px=SAMPLE_PX, fit="stretch",
        start_seconds=start_seconds, end_seconds=end_seconds,
    )  # fmt: skip
    if frames.shape[-1] != 3:
        raise ClipDecodeError(path, f"decoded to {frames.shape[-1]} colour channels", 'read it with decoder="pyav"')
    size = os.path.getsize(path) if os.path.exists(path) else float("nan")  # a tar's member has no size of its own
    return {
        "seconds": seconds, "fps": info.fps, "short_side_px": float(min(info.width, info.height)),
        **looks(frames), "kbit_per_second": size * 8 / 1000 / max(info.duration_seconds, 1e-9),
    }  # fmt: skip


def looks(frames: np.ndarray) -> dict[str, float]:
    """What can be told from the frames alone, uint8 (T, H, W, 3)."""
    levels = frames.astype(np.float32)
    luma = levels @ _LUMA  # (T, H, W)
    steps = np.abs(np.diff(luma, axis=0)).mean((1, 2))  # (T - 1,)
    contrast = float(luma.std((1, 2)).mean())
    laplacian = np.abs(
        4 * luma[:, 1:-1, 1:-1] - luma[:, :-2, 1:-1] - luma[:, 2:, 1:-1] - luma[:, 1:-1, :-2] - luma[:, 1:-1, 2:]
    )
    usual = float(np.median(steps)) if len(steps) else 0.0
    return {
        "brightness": float(luma.mean()),
        "contrast": contrast,
        "colourfulness": float(np.ptp(levels, axis=-1).mean()),
        "motion": float(steps.mean()) if len(steps) else 0.0,
        "sharpness": float(laplacian.mean()) / contrast if contrast > 0 else 0.0,
        "cuts": float((steps > np.maximum(_CUT_LEVELS, _CUT_TIMES * usual)).sum()),
    }


def _known(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
