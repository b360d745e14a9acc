"""What the doctor asks of one file or clip; runs in child processes, so it imports little."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.checks.survey import Survey, limit_memory, survey_file
from workbench.data.clips import ClipDecodeError, read_clip

_COMPARE_PX = 64


def inspect_file(path: str, budget_seconds: float, memory_gib: float | None) -> tuple[Survey, str]:
    """The facts of a whole file (see :func:`survey_file`) and the id of its bytes."""
    from workbench.data.loading.contents import content_id

    return survey_file(path, budget_seconds, memory_gib), content_id(Path(path))


def read_both(
    path: str,
    start_seconds: float,
    end_seconds: float,
    num_frames: int,
    decoder: str,
    cross_check: bool,
    memory_gib: float | None,
) -> dict[str, Any]:
    """Read one clip as training will, and by PyAV when that is another decoder.

    Returns ``problem`` (why ``decoder`` cannot read it where PyAV can, else "") and ``difference`` (mean absolute, in
    grey levels at 64 px; NaN where nothing was compared). Raises :class:`ClipDecodeError` where PyAV cannot read it.
    """
    if memory_gib is not None:
        limit_memory(memory_gib)
    options: dict[str, Any] = {"num_frames": num_frames, "size_px": _COMPARE_PX, "fit": "stretch"}
    options |= {"start_seconds": start_seconds, "end_seconds": end_seconds}
    problem = ""
    frames: np.ndarray | None = None
    try:
        frames = read_clip(path, decoder=decoder, **options)
    except ClipDecodeError as error:
        if decoder == "pyav":
            raise
        problem = error.reason
    if frames is not None and frames.shape[-1] != 3:  # decord 0.6 on some widths under 64, such as 48
        problem = f"{decoder} returns {frames.shape[-1]} colour channels"
        frames = None
    difference = math.nan
    if decoder != "pyav" and (cross_check or problem):
        other = read_clip(path, decoder="pyav", **options)
        if frames is not None:
            difference = float(np.abs(frames.astype(np.int16) - other).mean())
    return {"problem": problem, "difference": difference}
