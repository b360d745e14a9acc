"""A folder of clips with known faults in it, to learn what a check-up finds and to test that it does."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.data.clips import write_clip

log = logging.getLogger(__name__)
_SIZE, _FRAMES, _FPS = 96, 24, 12.0
# 16.16 fixed point, the last row 2.30: a quarter turn clockwise (ISO/IEC 14496-12, section 8.3.2).
_QUARTER_TURN = b"".join(
    value.to_bytes(4, "big", signed=True) for value in (0, 1 << 16, 0, -(1 << 16), 0, 0, _SIZE << 16, 0, 1 << 30)
)


def plant_faults(folder: str | Path, *, clips_per_class: int = 20, seed: int = 0) -> pd.DataFrame:
    """Write ``folder/{train,val,test}/{left,right}/*.mp4``: squares that move left or right, and eight planted faults.

    Returns the faults, one row each: ``path`` (None for one that lies in the whole folder), ``fault`` and ``verdict``
    (``quarantined``, ``warning``, or ``table`` for what only shows when clips are compared). Seven lie in one file:
    ``cut short``, ``text``, ``empty``, ``garbled`` (its coded pictures overwritten), ``one frame``, ``rotated`` (a
    flag only), ``copy`` and ``re-encoded`` (of a training clip, in test); ``shortcut``: clips of "right" are brighter.
    Raises ValueError below 10 clips per class and FileExistsError where the folder holds something already.
    """
    folder = Path(folder)
    if clips_per_class < 10:
        raise ValueError(
            f"clips_per_class={clips_per_class} must be at least 10, to leave sound clips beside the faults"
        )
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{str(folder)!r} is not empty; name a new folder")
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for label in ("left", "right"):
        for i in range(clips_per_class):
            split = "train" if i < 0.6 * clips_per_class else "val" if i < 0.8 * clips_per_class else "test"
            path = f"{split}/{label}/{label}_{i:02d}.mp4"
            made[path] = moving_square(rng, left=label == "left")
            _write(folder / path, made[path])
    faults: list[tuple[str | None, str, str]] = [
        _break(folder, "train/left/left_00.mp4", "cut short"),
        _break(folder, "train/left/left_01.mp4", "text"),
        _break(folder, "train/right/right_00.mp4", "empty"),
        _break(folder, "train/right/right_01.mp4", "garbled"),
    ]
    _write(folder / "train/left/left_02.mp4", made["train/left/left_02.mp4"][:1])
    _rotate(folder / "train/right/right_02.mp4")
    (folder / "test/left/holiday.mp4").write_bytes((folder / "train/left/left_03.mp4").read_bytes())
    smaller = made["train/right/right_03.mp4"][:, ::3, ::3]
    _write(folder / "test/right/holiday.mp4", smaller, crf=30)
    faults += [
        ("train/left/left_02.mp4", "one frame", "warning"),
        ("train/right/right_02.mp4", "rotated", "warning"),
        ("test/left/holiday.mp4", "copy", "table"),
        ("test/right/holiday.mp4", "re-encoded", "table"),
        (None, "shortcut", "table"),
    ]
    log.info("%s: %d clips, %d faults", folder, 2 * clips_per_class + 2, len(faults))
    return pd.DataFrame(faults, columns=["path", "fault", "verdict"])


def moving_square(rng: np.random.Generator, *, left: bool) -> np.ndarray:
    """uint8 (24, 96, 96, 3): a square over a still, blotchy background; everything is brighter where it moves right."""
    blotches = rng.uniform(40, 110, (6, 6, 3)).repeat(_SIZE // 6, 0).repeat(_SIZE // 6, 1)
    colour, side = rng.uniform(150, 200, 3), int(rng.integers(16, 26))
    y, middle, speed = rng.uniform(5, _SIZE - side - 5), rng.uniform(30, 42), rng.uniform(1.0, 1.8)
    frames = np.empty((_FRAMES, _SIZE, _SIZE, 3))
    for t in range(_FRAMES):
        frames[t] = blotches
        x = round(middle + (-1 if left else 1) * speed * (t - _FRAMES / 2))
        frames[t, int(y) : int(y) + side, max(x, 0) : max(x + side, 0)] = colour
    brighter = 0 if left else 35
    return (frames + brighter + rng.normal(0, 3, frames.shape)).clip(0, 255).astype(np.uint8)


def _write(path: Path, frames: np.ndarray, crf: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, frames, _FPS, crf=crf)


def _break(folder: Path, name: str, fault: str) -> tuple[str, str, str]:
    path = folder / name
    whole = path.read_bytes()
    if fault == "garbled":
        start = whole.index(b"mdat") + 40  # the first bytes hold the encoder's settings, which nothing needs
        noise = np.random.default_rng(1).integers(0, 256, len(whole) - start, dtype=np.uint8).tobytes()
        path.write_bytes(whole[:start] + noise)
    else:
        path.write_bytes(
            {"cut short": whole[: len(whole) // 2], "text": b"see you at noon\n" * 40, "empty": b""}[fault]
        )
    return name, fault, "quarantined"


def _rotate(path: Path) -> None:
    """Say in the track header that players should turn the picture."""
    whole = bytearray(path.read_bytes())
    header = whole.index(b"tkhd")
    matrix = header + 4 + 40  # version 0: flags to volume take 40 bytes after the box's name
    whole[matrix : matrix + 36] = _QUARTER_TURN
    path.write_bytes(bytes(whole))
