"""Clips whose evidence is planted: what decides each label, where and when, is known to the pixel.

Every clip is grey noise with, for each task, one block of evidence: a patch of a few frames whose pattern (stripes in
one of four directions) or colour tells the class. Beside it lie distractors: blocks of the same size that flicker, so
they carry the most motion of the clip and tell nothing. A map of a model that is always right must point into the mask.

On request a corner of the background is tinted for the whole clip, in a colour that goes with the label (a shortcut) or
with nothing. NumPy only; everything from one seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.data.tables import Task

CUES = {
    "stripes": ("vertical", "horizontal", "rising", "falling"),
    "spots": ("upper left", "upper right", "lower left", "lower right"),
    "colour": ("red", "green", "blue", "yellow"),
}
"""Kinds of evidence and the classes that each can tell apart: the direction of stripes, where in each 8 px cell a spot
lies, the colour. Blurring takes the first two away and leaves much of the third."""
SHORTCUTS = ("none", "label", "chance")
SHORTCUT_PX = 8
_COLOURS = np.array([[0.85, 0.2, 0.2], [0.2, 0.75, 0.2], [0.2, 0.3, 0.9], [0.8, 0.75, 0.1]], np.float32)
_TINTS = np.array([[0.7, 0.3, 0.6], [0.3, 0.7, 0.6], [0.7, 0.6, 0.2], [0.2, 0.4, 0.7]], np.float32)


@dataclass(frozen=True, repr=False)
class PlantedClips:
    """Clips, labels and the masks of what decides them; made by :func:`planted_clips`.

    ``frames`` uint8 (B, T, H, W, 3). ``tasks``: one per cue, named after it. ``labels`` {task: int64 (B,)}. ``masks``
    {task: bool (B, T, H, W)}, where and when that task's evidence lies. ``shortcut`` bool (T, H, W), the tinted corner
    (nowhere without one).
    """

    frames: np.ndarray
    tasks: tuple[Task, ...]
    labels: Mapping[str, np.ndarray]
    masks: Mapping[str, np.ndarray]
    shortcut: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        share = {name: f"{mask.mean():.3f}" for name, mask in self.masks.items()}
        return f"PlantedClips: {len(self)} clips {self.frames.shape[1:]}, evidence's share of a clip {share}"

    def __getitem__(self, rows: slice | np.ndarray) -> "PlantedClips":
        """Some of the clips, by slice, positions or mask."""
        return PlantedClips(
            self.frames[rows], self.tasks, {k: v[rows] for k, v in self.labels.items()},
            {k: v[rows] for k, v in self.masks.items()}, self.shortcut,
        )  # fmt: skip

    def token_mask(self, task: str, grid: tuple[int, int, int]) -> np.ndarray:
        """bool (B, T', H', W'): tokens of which the task's evidence covers more than half.

        Raises ValueError where ``grid`` does not divide the clip.
        """
        return token_cover(self.masks[task], grid) > 0.5


def token_cover(mask: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """A mask on pixels (B, T, H, W) -> the share of each token that it covers, float64 (B, T', H', W')."""
    size = mask.shape[1:]
    if any(big % small for big, small in zip(size, grid, strict=True)):
        raise ValueError(f"the grid {grid} does not divide the mask (T, H, W) = {size}")
    t, h, w = (big // small for big, small in zip(size, grid, strict=True))
    parts = mask.reshape(len(mask), grid[0], t, grid[1], h, grid[2], w)
    return parts.mean((2, 4, 6))


def planted_clips(
    n: int, *, seed: int, cues: Sequence[str] = ("stripes",), num_frames: int = 8, size_px: int = 32,
    block_px: int = 16, block_frames: int = 4, distractors: int = 1, shortcut: str = "none", noise: float = 0.08,
    contrast: float = 1.0,
) -> PlantedClips:  # fmt: skip
    """``n`` clips, the same for the same arguments.

    ``cues``: one task each, of :data:`CUES`. With one, its evidence may lie anywhere; with two, the first task's lies
    in the left half of the frame and the second's in the right. Blocks are ``block_px`` squares over ``block_frames``
    frames; they start on multiples of half of that, and never overlap.
    ``shortcut``: a tinted corner, 8 px wide, throughout the clip: ``none``, by the first task's ``label``, or by
    ``chance``. Evidence and distractors keep out of the corner.
    ``noise``: standard deviation of the pixel noise; white is 1. ``contrast`` of the evidence: low makes a shortcut
    tempting. Raises ValueError on what cannot be planted.
    """
    _check(cues, shortcut, num_frames, size_px, block_px, block_frames)
    rng = np.random.default_rng([seed, n])
    tasks = tuple(Task(cue, "multiclass", CUES[cue]) for cue in cues)
    labels = {cue: rng.integers(len(CUES[cue]), size=n) for cue in cues}
    tint = labels[cues[0]] if shortcut == "label" else rng.integers(len(_TINTS), size=n)
    clips = _grounds(rng, n, num_frames, size_px, noise)
    corner = np.zeros((num_frames, size_px, size_px), bool)
    if shortcut != "none":
        corner[:, :SHORTCUT_PX, :SHORTCUT_PX] = True
        clips[:, :, :SHORTCUT_PX, :SHORTCUT_PX] += 1.2 * (_TINTS[tint] - 0.5)[:, None, None, None]
    masks = {cue: np.zeros((n, num_frames, size_px, size_px), bool) for cue in cues}
    places = _places(num_frames, size_px, block_px, block_frames)
    for i in range(n):
        taken = corner.copy()
        for which, cue in enumerate(cues):
            half = None if len(cues) == 1 else (slice(0, size_px // 2), slice(size_px // 2, size_px))[which]
            block = _free(rng, places, taken, half)
            if block is None:
                raise ValueError(
                    f"no room is left for the {cue} among blocks of {block_px} px and {block_frames} frames in clips "
                    f"of {size_px} px and {num_frames} frames; make the blocks smaller"
                )
            clips[i][block] += contrast * _pattern(cue, int(labels[cue][i]), rng, block_frames, block_px)
            masks[cue][i][block] = taken[block] = True
        for _ in range(distractors):
            block = _free(rng, places, taken, None)
            if block is None:  # a crowded clip has fewer
                break
            flicker = rng.choice([-0.35, 0.35], size=(block_frames, block_px // 4, block_px // 4, 1))
            clips[i][block] += flicker.repeat(4, 1).repeat(4, 2)
            taken[block] = True
    frames = (np.clip(clips, 0, 1) * 255).round().astype(np.uint8)
    return PlantedClips(frames, tasks, labels, masks, corner)


Block = tuple[slice, slice, slice]


def _check(cues: Sequence[str], shortcut: str, num_frames: int, size_px: int, block_px: int, block_frames: int) -> None:
    if not 1 <= len(cues) <= 2 or len(set(cues)) < len(cues) or set(cues) - set(CUES):
        raise ValueError(f"cues={list(cues)}; give one or two different ones of {', '.join(CUES)}")
    if shortcut not in SHORTCUTS:
        raise ValueError(f"shortcut={shortcut!r} is not one of {', '.join(SHORTCUTS)}")
    if block_px % 4 or not 4 <= block_px <= size_px or block_frames % 2 or not 2 <= block_frames <= num_frames:
        raise ValueError(
            f"blocks of {block_px} px and {block_frames} frames in clips of {size_px} px and {num_frames} frames; "
            "block_px must be a multiple of 4, block_frames even, and both fit the clip"
        )


def _grounds(rng: np.random.Generator, n: int, frames: int, size_px: int, noise: float) -> np.ndarray:
    """Grey of one brightness per clip, a slope, and noise per pixel: float32 (n, T, H, W, 3)."""
    level = rng.uniform(0.4, 0.6, (n, 1, 1, 1, 1))
    slope = rng.uniform(-0.1, 0.1, (2, n, 1, 1, 1, 1))
    axis = np.linspace(-1, 1, size_px)
    ground = level + slope[0] * axis[:, None, None] + slope[1] * axis[:, None]
    grain = noise * rng.standard_normal((n, frames, size_px, size_px, 3), dtype=np.float32)
    return (ground.astype(np.float32) + grain).astype(np.float32)


def _places(num_frames: int, size_px: int, block_px: int, block_frames: int) -> list[Block]:
    """Where a block may lie: on multiples of half its size."""
    first = range(0, num_frames - block_frames + 1, block_frames // 2)
    edge = range(0, size_px - block_px + 1, block_px // 2)
    return [
        (slice(t, t + block_frames), slice(y, y + block_px), slice(x, x + block_px))
        for t in first for y in edge for x in edge
    ]  # fmt: skip


def _free(rng: np.random.Generator, places: Sequence[Block], taken: np.ndarray, columns: slice | None) -> Block | None:
    """A place of which nothing is taken, within ``columns``; None where there is none left."""
    for index in rng.permutation(len(places)):
        block = places[index]
        if columns is not None and not (columns.start <= block[2].start and block[2].stop <= columns.stop):
            continue
        if not taken[block].any():
            return block
    return None


def _pattern(cue: str, label: int, rng: np.random.Generator, frames: int, size_px: int) -> np.ndarray:
    """What is added to the ground, (T, H, W, 3) or broadcast to it; of stripes and spots the mean tells nothing."""
    strength = rng.uniform(0.8, 1.2)
    if cue == "colour":
        # A colour's own brightness goes, so that a grey clip tells nothing.
        return 0.7 * strength * (_COLOURS[label] - _COLOURS[label].mean())
    y, x = np.mgrid[:size_px, :size_px]
    if cue == "spots":
        lit = (y // 4 % 2 == label // 2) & (x // 4 % 2 == label % 2)
        return 0.3 * strength * np.where(lit, 1.5, -0.5)[None, :, :, None] * np.ones((frames, 1, 1, 1))
    along = (x, y, x + y, x - y)[label]
    return 0.3 * strength * np.where(along % 4 < 2, 1.0, -1.0)[None, :, :, None] * np.ones((frames, 1, 1, 1))
