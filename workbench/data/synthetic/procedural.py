"""Endless labelled clips for pretraining: batch ``step`` of a seed is always the same, so a run can be resumed.

Every clip has one *main* object with a named motion, perhaps on an arm that reaches out of the frame, among still or
slowly drifting distractors, over a textured background, seen by a moving camera. Targets are dense (coverage and
optical flow per token) and per clip (motion, camera, shape, count, the main object's path on the screen).

The first batches are easier, as a curriculum: flatter grounds, fewer distractors, a steadier camera and less noise.
What the clips are made of can be switched off piece by piece, to see what each is worth: the rest is drawn the same.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.data.synthetic.motions import CAMERA_MOTIONS, PRETRAIN_MOTIONS, Track, camera, track
from workbench.data.synthetic.scenes import Scenes, layer_matrices, optical_flow, render
from workbench.data.synthetic.textures import SHAPES, SURFACES, Surface, limb, sprite

# Paint order: two distractors behind, the arm, the main object, one distractor in front.
BACK, ARM, MAIN, FRONT, SLOTS = (0, 1), 2, 3, 4, 5
_STEPS_PER_BANK = 50
_CLIPS_AT_ONCE = 4  # painted together on a CPU: their pixels stay in its cache
_BACKGROUND_HALF_WIDTH = 1.5  # the texture reaches beyond the frame so that a moving camera finds something there


@dataclass
class ProceduralBatch:
    """``clips`` uint8 (B, T, H, W, 3); ``coverage`` (B, 2, T', H', W') of the main and of any object; ``flow``
    (B, 2, T', H', W') screen units per frame; ``path`` (B, T, 2) of the main object on the screen; class indices (B,)
    ``motion`` (of PRETRAIN_MOTIONS), ``camera`` (of CAMERA_MOTIONS), ``shape`` (of SHAPES), ``count`` (objects - 1)."""

    clips: Tensor
    coverage: Tensor
    flow: Tensor
    path: Tensor
    motion: Tensor
    camera: Tensor
    shape: Tensor
    count: Tensor

    def to(self, device: str | torch.device) -> "ProceduralBatch":
        return ProceduralBatch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


_Layer = tuple[np.ndarray, Track, tuple[float, float]]
"""What one sprite slot holds: its image (4, S, S), its track, and how far it is stretched in x and y."""


@dataclass
class _Bank:
    """Surfaces shared by the clips of ``_STEPS_PER_BANK`` steps; each clip recolours what it takes."""

    backgrounds: np.ndarray
    sprites: np.ndarray  # (shapes, n, 4, S, S)
    limbs: np.ndarray


def _bank(
    rng: np.random.Generator, surface: Surface, *, backgrounds: int = 192, per_shape: int = 40, limbs: int = 48
) -> _Bank:
    grounds = [surface(rng, 96) for _ in range(backgrounds)]
    sprites = [[sprite(rng, shape, 32, surface) for _ in range(per_shape)] for shape in SHAPES]
    arms = [limb(rng, 32, surface) for _ in range(limbs)]
    return _Bank(np.stack(grounds), np.stack(sprites).astype(np.float32), np.stack(arms))


def _recolored(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """RGB mixed by a random matrix and shifted, coverage kept: cheap variety from a finite bank."""
    mix = np.eye(3) * rng.uniform(0.4, 1.1) + rng.uniform(-0.25, 0.25, (3, 3))
    colored = np.einsum("ij,jhw->ihw", mix, image[:3]) + rng.uniform(-0.15, 0.3, (3, 1, 1))
    return np.concatenate([np.clip(colored, 0, 1), image[3:]]).astype(np.float32)


def _flattened(image: np.ndarray, contrast: float) -> np.ndarray:
    mean = image.mean(axis=(1, 2), keepdims=True)
    return (mean + contrast * (image - mean)).astype(np.float32)


class ProceduralClips:
    """``batch(step)`` for step 0, 1, ...; all randomness from (seed, step).

    ``easy_batches``: length of the curriculum; 0 for full difficulty from the start. ``textures``: what everything is
    made of, one of :data:`~workbench.data.synthetic.textures.SURFACES` (with it the objects' proportions are drawn
    anew, nothing that moves). Without ``distractors`` the main object (and its arm) is alone; without ``camera_motion``
    the camera stands still; nothing else about the clips changes.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        batch_size: int = 64,
        num_frames: int = 16,
        size_px: int = 64,
        tubelet_size: int = 4,
        patch_size: int = 8,
        easy_batches: int = 0,
        textures: str = "mixed",
        distractors: bool = True,
        camera_motion: bool = True,
    ) -> None:
        if textures not in SURFACES:
            raise ValueError(f"textures={textures!r} is not one of {', '.join(SURFACES)}")
        self.seed, self.batch_size, self.num_frames, self.size_px = seed, batch_size, num_frames, size_px
        self.token_px, self.tubelet_size, self.easy_batches = patch_size, tubelet_size, easy_batches
        self.surface, self.distractors, self.camera_motion = SURFACES[textures], distractors, camera_motion
        self._bank_index, self._current = -1, None  # type: tuple[int, _Bank | None]

    def _bank_for(self, step: int) -> _Bank:
        index = step // _STEPS_PER_BANK
        if self._current is None or index != self._bank_index:
            self._bank_index, self._current = index, _bank(np.random.default_rng([self.seed, 1, index]), self.surface)
        return self._current

    def batch(self, step: int, device: str | torch.device = "cpu") -> ProceduralBatch:
        bank, rng = self._bank_for(step), np.random.default_rng([self.seed, 0, step])
        hard = min(1.0, step / self.easy_batches) if self.easy_batches else 1.0
        drawn = [self._clip(rng, bank, hard) for _ in range(self.batch_size)]

        def stacked(name: str) -> Tensor:
            return torch.from_numpy(np.stack([clip[name] for clip in drawn])).to(device)

        scenes = Scenes(*(stacked(n) for n in ("background", "sprites", "background_maps", "sprite_maps", "present")))
        look = stacked("look")
        generator = torch.Generator(device=device).manual_seed(int(rng.integers(2**62)))
        shape = (self.batch_size, self.num_frames, 3, self.size_px, self.size_px)
        noise = torch.randn(shape, device=device, generator=generator)
        step_size = _CLIPS_AT_ONCE if noise.device.type == "cpu" else self.batch_size
        parts = []
        for start in range(0, self.batch_size, step_size):
            some = slice(start, start + step_size)
            parts.append(self._painted(scenes[some], look[some], noise[some]))
        clips, coverage, flow = (torch.cat(kind) for kind in zip(*parts, strict=True))
        labels = (stacked(name) for name in ("path", "motion", "camera", "shape", "count"))
        return ProceduralBatch(clips, coverage, flow, *labels)

    def _painted(self, scenes: Scenes, look: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clips, coverage and flow (see :class:`ProceduralBatch`) of some scenes."""
        frames, cover = render(scenes, self.size_px)
        B, T = frames.shape[:2]
        # (B, K, T, H, W) -> per-token means; flow at token centres, averaged over the tubelet.
        small = F.avg_pool3d(cover, (1, self.token_px, self.token_px))
        flow = optical_flow(scenes, small).reshape(B, T // self.tubelet_size, self.tubelet_size, 2, *small.shape[-2:])
        token_cover = F.avg_pool3d(small, (self.tubelet_size, 1, 1))
        coverage = torch.stack([token_cover[:, ARM] + token_cover[:, MAIN], token_cover.sum(1)], dim=1).clamp(0, 1)
        return _photograph(frames, look, noise), coverage, flow.mean(2).transpose(1, 2)

    def _clip(self, rng: np.random.Generator, bank: _Bank, hard: float) -> dict[str, np.ndarray | np.int64]:
        """One clip's layers and labels; ``hard`` from 0 (start of the curriculum) to 1.

        What is switched off is drawn all the same and then left out, so that the random numbers after it stay.
        """
        T = self.num_frames
        motion, shape = int(rng.integers(len(PRETRAIN_MOTIONS))), int(rng.integers(len(SHAPES)))
        name = PRETRAIN_MOTIONS[motion]
        view_name = str(rng.choice(CAMERA_MOTIONS)) if rng.random() < 0.6 * hard else "static"
        view = camera(view_name, T, rng)
        if not self.camera_motion:
            view_name, view = "static", Track(np.zeros((T, 2)), np.ones(T), np.zeros(T))
        main, layers = _subject(rng, bank, name, shape, T)
        layers |= _distractors(rng, bank, hard, T)
        sprites = np.zeros((SLOTS, 4, 32, 32), np.float32)
        maps = np.tile(np.eye(3), (SLOTS, T, 1, 1))
        for slot, (image, own, stretch) in layers.items():
            sprites[slot] = _recolored(rng, image)
            maps[slot] = layer_matrices(own, view, stretch=stretch)
        wall = Track(
            rng.uniform(-0.3, 0.3, (1, 2)).repeat(T, 0),
            np.full(T, _BACKGROUND_HALF_WIDTH),
            np.full(T, rng.uniform(0, 6.3)),
        )
        shown = [slot for slot in layers if self.distractors or slot in (ARM, MAIN)]
        on_screen = np.linalg.inv(layer_matrices(main, view))[:, :2, 2]
        contrast = hard + (1 - hard) * rng.uniform(0, 0.5)
        return {
            "background": _flattened(_recolored(rng, bank.backgrounds[rng.integers(len(bank.backgrounds))]), contrast),
            "sprites": sprites,
            "background_maps": layer_matrices(wall, view),
            "sprite_maps": maps,
            "present": np.array([k in shown for k in range(SLOTS)]),
            "look": rng.uniform([0.5, 0.7, 0.0, 0.0], [1.2, 1.4, 0.04 * hard, 1.0]).astype(np.float32),
            "path": on_screen.astype(np.float32),
            "motion": np.int64(motion),
            "camera": np.int64(CAMERA_MOTIONS.index(view_name)),
            "shape": np.int64(shape),
            "count": np.int64(len(shown) - 1 - (ARM in shown)),
        }


def _take(rng: np.random.Generator, bank: _Bank, shape: int) -> np.ndarray:
    return bank.sprites[shape, rng.integers(bank.sprites.shape[1])]


def _subject(rng: np.random.Generator, bank: _Bank, name: str, shape: int, T: int) -> tuple[Track, dict[int, _Layer]]:
    """The main object's track, and its layers: with the arm that holds it, where there is one."""
    reach = rng.uniform(0.2, 0.55)
    room = 0.8 - reach if not name.startswith(("spin", "grow", "shrink", "still")) else 0.5
    main = track(
        name, T, rng, center=tuple(rng.uniform(-room, room, 2)), scale=rng.uniform(0.16, 0.4), reach=reach,
        rest=0.25 * (rng.random() < 0.7), tilt=0.25,
    )  # fmt: skip
    layers: dict[int, _Layer] = {}
    if rng.random() < 0.4 and not name.startswith(("spin", "grow", "shrink")):
        lean, length = rng.uniform(-0.9, 0.9), 1.6
        main = Track(main.center, main.scale, np.full(T, lean + rng.uniform(-0.3, 0.3)))
        along = np.array([-np.sin(lean), np.cos(lean)])
        arm = Track(main.center + 0.85 * length * along, np.ones(T), np.full(T, lean))
        image = bank.limbs[rng.integers(len(bank.limbs))]
        layers[ARM] = (image, arm, (main.scale[0] * rng.uniform(0.4, 0.9), length))
    layers[MAIN] = (_take(rng, bank, shape), main, (1.0, 1.0))
    return main, layers


def _distractors(rng: np.random.Generator, bank: _Bank, hard: float, T: int) -> dict[int, _Layer]:
    """Up to three objects that lie still or drift, two behind the main one and one before it."""
    layers: dict[int, _Layer] = {}
    for slot, chance in ((BACK[0], 0.5), (BACK[1], 0.3), (FRONT, 0.2)):
        if rng.random() < chance * hard:
            still = "still" if rng.random() < 0.6 else "wander"
            other = track(
                still, T, rng, center=tuple(rng.uniform(-0.9, 0.9, 2)), scale=rng.uniform(0.08, 0.25), reach=0.12,
            )  # fmt: skip
            layers[slot] = (_take(rng, bank, int(rng.integers(len(SHAPES)))), other, (1.0, 1.0))
    return layers


def _photograph(frames: Tensor, look: Tensor, noise: Tensor) -> Tensor:
    """Exposure, contrast curve, sensor noise and slight blur per clip: float (B, T, 3, H, W) -> uint8 (B, T, H, W, 3).

    ``look`` (B, 4): gain, gamma, noise standard deviation, and blur when above 0.7; ``noise``: standard normal, as
    large as ``frames``; both are overwritten.
    """
    gain, gamma, sigma = (value[:, None, None, None, None] for value in look[:, :3].unbind(1))
    soft = (look[:, 3] > 0.7).nonzero()[:, 0]
    if len(soft):
        seen = frames[soft]
        flat = F.avg_pool2d(seen.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False)
        frames[soft] = flat.view_as(seen)
    # In place: half the cost of making a batch is moving its pixels about.
    frames.clamp_(1e-6, 1).pow_(gamma).mul_(gain).add_(noise.mul_(sigma)).clamp_(0, 1).mul_(255).round_()
    return frames.to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()
