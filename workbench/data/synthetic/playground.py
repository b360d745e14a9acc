"""``playground``: the embedded data set. Real H.264 files, generated, with three true labels per clip.

- *action* (12 classes): what the main object does. Position, size and heading in the middle frame are drawn alike for
  every class, so a single frame does not tell.
- *safety* (binary): whether the clip flashes more than the WCAG 2.3.1 / ITU-R BT.1702 limit, by the rule itself.
- *quality* (0..1): mean SSIM of the stored clip against the frames before degradation and encoding.

Clips of one *scene* (background, objects, colours) form a group and never cross a split.
"""

import logging
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from workbench.data.cache import default_cache_dir
from workbench.data.clips import read_clip, write_clip
from workbench.data.loading.pool import WithoutMain
from workbench.data.synthetic.degrade import DEGRADATIONS, PRISTINE_CRF, degrade
from workbench.data.synthetic.flash import flash_report
from workbench.data.synthetic.motions import PLAYGROUND_ACTIONS, Track, camera, track
from workbench.data.synthetic.textures import SHAPES, sprite, texture
from workbench.data.tables import ClipTable, DatasetInfo, Task

if TYPE_CHECKING:
    import torch

    from workbench.data.synthetic.scenes import Scenes

log = logging.getLogger(__name__)

SIZE_PX, NUM_FRAMES, FPS = 96, 32, 24
CLIPS_PER_SCENE = 4
VERSION = 1
TASKS = (
    Task("action", "multiclass", PLAYGROUND_ACTIONS),
    Task("safety", "binary", ("safe", "flashing")),
    Task("quality", "regression"),
)
_DISTRACTORS = 2


@dataclass(frozen=True)
class ClipTruth:
    """What only the generator knows of one clip, at SIZE_PX over NUM_FRAMES frames.

    ``pristine`` uint8 (T, H, W, 3), before degradation; ``mask`` float32 (T, H, W), visible coverage of the main
    object; ``track_px`` (T, 2), its centre as x, y in pixels; ``scale_px`` (T,), its half-width; ``angle`` (T,)
    radians; ``flow_px`` float32 (T, 2, H, W), displacement to the next frame in pixels.
    """

    pristine: np.ndarray
    mask: np.ndarray
    track_px: np.ndarray
    scale_px: np.ndarray
    angle: np.ndarray
    flow_px: np.ndarray


@dataclass(frozen=True)
class _Flash:
    """A square wave laid over part of the frame; ``period`` in frames, ``strength`` the mixing weight of ``color``."""

    kind: str
    period: int = 0
    strength: float = 0.0
    area: float = 0.0
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def over(self, frames: np.ndarray) -> np.ndarray:
        """Frames float (T, H, W, 3) in [0, 1] with the flashing band at the top."""
        if self.kind == "none":
            return frames
        lit = (np.arange(len(frames)) // (self.period / 2)).astype(int) % 2 == 1
        rows = round(self.area * frames.shape[1])
        out = frames.copy()
        out[lit, :rows] = (1 - self.strength) * out[lit, :rows] + self.strength * np.array(self.color, np.float32)
        return out


def _draw_flash(rng: np.random.Generator) -> _Flash:
    """About 15 % over the limit, 25 % hard negatives just under one of its three parts, the rest steady."""
    kind = str(rng.choice(["none", "over", "slow", "faint", "small"], p=[0.59, 0.16, 0.09, 0.08, 0.08]))
    if kind == "none":
        return _Flash(kind)
    red = rng.random() < 0.25
    color = (1.0, 0.05, 0.05) if red else tuple(rng.uniform(0.85, 1.0, 3).tolist())
    period = int(rng.integers(3, 7)) if kind != "slow" else int(rng.integers(8, 15))
    strength = rng.uniform(0.6, 0.95) if kind != "faint" else rng.uniform(0.03, 0.06)
    area = rng.uniform(0.4, 1.0) if kind != "small" else rng.uniform(0.08, 0.2)
    return _Flash(kind, period, strength, area, color)


@dataclass(frozen=True)
class _Scene:
    """What the clips of one group share."""

    background: np.ndarray
    sprites: np.ndarray  # (1 + distractors, 4, S, S): main first
    shape: str
    turn: float


@lru_cache(maxsize=2)  # its clips are made one after the other
def _scene(seed: int, scene: int) -> _Scene:
    rng = np.random.default_rng([seed, 0, scene])
    shapes = [str(s) for s in rng.choice(SHAPES, 1 + _DISTRACTORS)]
    # Contrast between object and ground is not left to chance: dim one, brighten the other.
    ground, object_gain = (0.55, 1.0) if rng.random() < 0.5 else (0.9, 0.5)
    sprites = np.stack([sprite(rng, shape, 64) for shape in shapes])
    sprites[:, :3] *= object_gain
    return _Scene(texture(rng, 160) * np.float32(ground), sprites, shapes[0], float(rng.uniform(0, 6.3)))


def _actions(seed: int, scene: int) -> list[str]:
    """Each run of three scenes covers the twelve actions once, in random order."""
    per = len(PLAYGROUND_ACTIONS) // CLIPS_PER_SCENE
    order = np.random.default_rng([seed, 1, scene // per]).permutation(len(PLAYGROUND_ACTIONS))
    mine = order[(scene % per) * CLIPS_PER_SCENE :][:CLIPS_PER_SCENE]
    return [PLAYGROUND_ACTIONS[i] for i in mine]


def _main_track(action: str, rng: np.random.Generator) -> Track:
    """The action's track, shifted so that the middle frame's position is uniform whatever the action."""
    drawn = track(
        action, NUM_FRAMES, rng, scale=rng.uniform(0.2, 0.32), reach=rng.uniform(0.3, 0.45), rest=0.1, tilt=0.15
    )
    middle = (drawn.center[NUM_FRAMES // 2 - 1] + drawn.center[NUM_FRAMES // 2]) / 2
    return Track(drawn.center - middle + rng.uniform(-0.35, 0.35, 2), drawn.scale, drawn.angle)


@dataclass(frozen=True)
class _Rendered:
    """One clip before damage: its frames, where everything is, its metadata, and the generator to go on with."""

    pristine: np.ndarray
    scenes: "Scenes"
    cover: "torch.Tensor"  # (1, K, T, H, W)
    facts: dict[str, object]
    rng: np.random.Generator


def _produce(seed: int, scene_index: int, clip: int) -> _Rendered:
    import torch

    from workbench.data.synthetic.scenes import render

    scene, action = _scene(seed, scene_index), _actions(seed, scene_index)[clip]
    rng = np.random.default_rng([seed, 2, scene_index, clip])
    scenes, shown = _layers(scene, action, rng)
    flash = _draw_flash(rng)
    frames, cover = render(scenes, 2 * SIZE_PX)
    frames, cover = (torch.nn.functional.avg_pool2d(x[0], 2) for x in (frames, cover))  # two-by-two supersampling
    lit = flash.over(frames.permute(0, 2, 3, 1).numpy())
    facts = {"action": action, "shape": scene.shape, "distractors": shown, "flash": flash.kind}
    return _Rendered((lit * 255).round().astype(np.uint8), scenes, cover[None], facts, rng)


def _layers(scene: _Scene, action: str, rng: np.random.Generator) -> "tuple[Scenes, int]":
    """The scene's sprites in motion (a batch of one), and how many distractors are shown."""
    import torch

    from workbench.data.synthetic.scenes import Scenes, layer_matrices

    view = camera("handheld" if rng.random() < 0.5 else "static", NUM_FRAMES, rng)
    main = _main_track(action, rng)
    others = [
        track("still" if rng.random() < 0.6 else "wander", NUM_FRAMES, rng, center=tuple(rng.uniform(-0.9, 0.9, 2)),
              scale=rng.uniform(0.08, 0.2), reach=0.1)
        for _ in range(_DISTRACTORS)
    ]  # fmt: skip
    shown = int(rng.integers(_DISTRACTORS + 1))
    wall = Track(np.zeros((NUM_FRAMES, 2)), np.full(NUM_FRAMES, 1.5), np.full(NUM_FRAMES, scene.turn))
    # Distractors are painted first, so the main object is never hidden.
    maps = np.stack([*(layer_matrices(o, view) for o in others), layer_matrices(main, view)])
    scenes = Scenes(
        torch.from_numpy(scene.background)[None],
        torch.from_numpy(np.concatenate([scene.sprites[1:], scene.sprites[:1]]))[None],
        torch.from_numpy(layer_matrices(wall, view))[None],
        torch.from_numpy(maps)[None],
        torch.tensor([[k < shown for k in range(_DISTRACTORS)] + [True]]),
    )
    return scenes, shown


def playground_truth(clip_id: str, *, seed: int = 0) -> ClipTruth:
    """Masks, track, flow and pristine frames of a playground clip, rendered again from its id (``s012-c3``)."""
    try:
        scene, clip = (int(part[1:]) for part in clip_id.split("-"))
    except ValueError:
        raise ValueError(f"{clip_id!r} is no playground clip id; they look like 's012-c3'") from None
    if not 0 <= clip < CLIPS_PER_SCENE or scene < 0:
        raise ValueError(f"{clip_id!r} is no playground clip id: a scene has clips c0 to c{CLIPS_PER_SCENE - 1}")
    from workbench.data.synthetic.scenes import optical_flow

    made = _produce(seed, scene, clip)
    placed = np.linalg.inv(made.scenes.sprite_maps[0, -1].numpy())
    return ClipTruth(
        pristine=made.pristine,
        mask=made.cover[0, -1].numpy(),
        track_px=(placed[:, :2, 2] + 1) / 2 * SIZE_PX,
        scale_px=np.sqrt(np.abs(np.linalg.det(placed[:, :2, :2]))) * SIZE_PX / 2,
        angle=np.unwrap(np.arctan2(placed[:, 1, 0], placed[:, 0, 0])),
        flow_px=optical_flow(made.scenes, made.cover)[0].numpy() * (SIZE_PX / 2),
    )


def mean_ssim(reference: np.ndarray, frames: np.ndarray) -> float:
    """scikit-image's SSIM (Wang 2004 settings) on luma, mean over every second frame; both uint8 (T, H, W, 3)."""
    from skimage.metrics import structural_similarity

    weights = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma
    pairs = zip(reference[::2] @ weights, frames[::2] @ weights, strict=True)
    scores = [
        structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        for a, b in pairs
    ]
    return float(np.mean(scores))


def _write_scene(folder: Path, seed: int, scene_index: int, split: str) -> list[dict[str, object]]:
    import torch

    torch.set_num_threads(1)  # one worker process per core already
    rows = []
    for clip in range(CLIPS_PER_SCENE):
        made = _produce(seed, scene_index, clip)
        rng = made.rng
        kind = str(rng.choice(DEGRADATIONS))
        severity = int(rng.integers(0, 6))
        damaged, crf = degrade(made.pristine, kind, severity, rng)
        clip_id = f"s{scene_index:03d}-c{clip}"
        path = Path(split) / f"{clip_id}.mp4"
        write_clip(folder / path, damaged, fps=FPS, crf=crf)
        stored = read_clip(folder / path, num_frames=NUM_FRAMES)
        report = flash_report(made.pristine, FPS)
        rows.append({
            "clip_id": clip_id, "path": path.as_posix(), "start_seconds": np.nan, "end_seconds": np.nan,
            "split": split, "group": f"scene-{scene_index:03d}", "safety": float(report.unsafe),
            "quality": round(mean_ssim(made.pristine, stored), 6), "degradation": kind, "severity": severity,
            **made.facts,
        })  # fmt: skip
    return rows


def _splits(scenes: int) -> list[str]:
    """Scenes are independent draws, so cutting them in order is a random split: 2/3 train, 2/15 val, 1/5 test."""
    train, val = round(scenes * 2 / 3), round(scenes * 2 / 15)
    return ["train"] * train + ["val"] * val + ["test"] * (scenes - train - val)


def _build(folder: Path, clips: int, seed: int, workers: int, progress: bool) -> None:
    splits = _splits(clips // CLIPS_PER_SCENE)
    for split in sorted(set(splits)):
        (folder / split).mkdir(parents=True)
    rows: list[dict[str, object]] = []
    with ProcessPoolExecutor(workers, mp_context=WithoutMain()) as pool:
        jobs = pool.map(
            _write_scene, [folder] * len(splits), [seed] * len(splits), range(len(splits)), splits, chunksize=2
        )
        with tqdm(total=clips, desc="playground", unit="clip", disable=not progress) as bar:
            for made in jobs:
                rows += made
                bar.update(len(made))
    info = DatasetInfo(name="playground", licence="Apache-2.0", source=f"generated by workbench, seed {seed}")
    ClipTable(pd.DataFrame(rows), TASKS, root=folder, info=info).save(folder)


@cache
def _load(folder: Path) -> ClipTable:
    return ClipTable.load(folder)


def playground(
    folder: str | Path | None = None,
    *,
    clips: int = 600,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> ClipTable:
    """Open the playground, generating it first where it is not there yet (about a minute on two cores).

    ``clips`` must be a multiple of 4 (clips per scene) and at least 60. Same ``seed``, same bytes. It is built beside
    ``folder`` (default: the workbench's cache) and moved there when whole; a killed build leaves no playground.
    """
    if clips % CLIPS_PER_SCENE or clips < 60:
        raise ValueError(f"clips={clips} must be a multiple of {CLIPS_PER_SCENE} and at least 60")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} must be at least 1, or None: one per core, at most 8")
    home = Path(folder) if folder else default_cache_dir() / f"playground-v{VERSION}-{clips}-seed{seed}"
    if not (home / "clips.parquet").exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        temporary = home.parent / f".{home.name}.{os.getpid()}.building"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _build(temporary, clips, seed, workers or min(8, os.cpu_count() or 1), progress)
            _move_into_place(temporary, home)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _load(home)


def _move_into_place(built: Path, home: Path) -> None:
    try:
        os.replace(built, home)
    except OSError:
        # Another process was faster (a non-empty folder cannot be replaced); the same seed made the same files.
        if not (home / "clips.parquet").exists():
            raise


def playground_example(path: str | Path, *, seed: int = 1, scene: int = 0, clip: int = 0) -> Path:
    """Write one clip of another seed to ``path``: a file that no run on the playground has seen."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, _produce(seed, scene, clip).pristine, fps=FPS, crf=PRISTINE_CRF)
