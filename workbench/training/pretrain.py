"""Pretrain the embedded checkpoint ``nano`` on procedural video: ``workbench pretrain``. CPU or CUDA, resumable.

Supervision comes from the generator: per token the coverage of the main and of any object and the optical flow, per
clip the main object's motion, path and shape, the camera's motion and the number of objects. Dense targets are what
makes it learn: attributes alone, and pixel reconstruction of noisy textures, stayed at chance for thousands of steps.
Each part of the recipe can be switched off, and masked reconstruction put beside it, to see what it is worth.
"""

import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from workbench.data.synthetic.motions import CAMERA_MOTIONS, PRETRAIN_MOTIONS
from workbench.data.synthetic.procedural import ProceduralBatch, ProceduralClips
from workbench.data.synthetic.textures import SHAPES, SURFACES
from workbench.models.backbones import classifier_parts, new_classifier, to_pixel_values
from workbench.models.nano import nano_config, save_classifier
from workbench.training.masked import MaskedDecoder, masked_loss, patch_targets, tube_mask

log = logging.getLogger(__name__)

REUSE_LAG = 6  # every batch is seen twice, this many new batches apart, the second time with its colours rotated
FLOW_SCALE = 10.0  # a brisk stroke moves about 0.1 screen units per frame; this brings the target to order one
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP_TARGETS = ("motion", "camera", "shape", "count")
LOG_EVERY = 25


@dataclass(frozen=True, kw_only=True)
class PretrainSetup:
    """The pretraining recipe; the defaults made the shipped ``nano``."""

    steps: int = 2000
    batch_size: int = 32
    lr: float = 8e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    warmup_steps: int = 200
    decay_fraction: float = 0.25
    """Constant rate, then linear to zero over this last share of the steps (so ``steps`` may be changed on
    resuming)."""
    easy_steps: int = 1200
    """Length of the curriculum: from flat grounds and a still camera to everything at once; 0: everything at once."""
    dense: bool = True
    """Targets per token: coverage and optical flow."""
    clip_targets: bool = True
    """Targets per clip: motion, camera, shape, number of objects, and the main object's path."""
    masked: float = 0.0
    """Weight of masked reconstruction beside them (the encoder runs once more, on the shown tokens); 0: none."""
    mask_ratio: float = 0.75
    """Share of places hidden, each for the whole clip (of natural video VideoMAE hides 0.9 to 0.95)."""
    decoder_size: int = 96
    decoder_layers: int = 1
    textures: str = "mixed"
    """What objects and grounds are made of: ``flat``, ``white``, ``mixed`` or ``natural``, ever closer to nature."""
    distractors: bool = True
    camera_motion: bool = True
    num_frames: int = 16
    size_px: int = 64
    tubelet_size: int = 4
    patch_size: int = 8
    hidden_size: int = 192
    layers: int = 6
    heads: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.textures not in SURFACES:
            raise ValueError(f"textures={self.textures!r} is not one of {', '.join(SURFACES)}")
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps={self.steps} and batch_size={self.batch_size} must be at least 1")
        if not 0 < self.mask_ratio < 1 or self.masked < 0:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} must be between 0 and 1 and masked={self.masked} not negative; "
                "0.75 and 1.0 are usual"
            )
        if not (self.dense or self.clip_targets or self.masked):
            raise ValueError("nothing to learn: set dense, clip_targets or masked")

    def rate(self, step: int) -> float:
        decay = max(1, round(self.decay_fraction * self.steps))
        return self.lr * min(1.0, (step + 1) / self.warmup_steps, max(0.0, (self.steps - step) / decay))

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T', H', W')."""
        side = self.size_px // self.patch_size
        return self.num_frames // self.tubelet_size, side, side

    def data(self) -> ProceduralClips:
        """The clips that it is trained on."""
        return ProceduralClips(
            self.seed, batch_size=self.batch_size, num_frames=self.num_frames, size_px=self.size_px,
            tubelet_size=self.tubelet_size, patch_size=self.patch_size, easy_batches=self.easy_steps // 2,
            textures=self.textures, distractors=self.distractors, camera_motion=self.camera_motion,
        )  # fmt: skip


class PretrainModel(nn.Module):
    """A video classifier (its head names the main motion) with the dense and per-clip heads of pretraining beside
    it."""

    def __init__(self, setup: PretrainSetup) -> None:
        super().__init__()
        self.setup = setup
        self.classifier = new_classifier(
            nano_config(
                num_frames=setup.num_frames,
                size_px=setup.size_px,
                tubelet_size=setup.tubelet_size,
                patch_size=setup.patch_size,
                hidden_size=setup.hidden_size,
                layers=setup.layers,
                heads=setup.heads,
                labels=PRETRAIN_MOTIONS,
            )
        )
        D = setup.hidden_size
        self.dense = nn.Linear(D, 4)  # coverage of main, of any; flow x, y
        self.path = nn.Linear(D, setup.num_frames * 2)
        self.camera, self.shape, self.count = (
            nn.Linear(D, len(CAMERA_MOTIONS)),
            nn.Linear(D, len(SHAPES)),
            nn.Linear(D, 4),
        )

        if setup.masked:
            pixels = setup.tubelet_size * setup.patch_size**2 * 3
            sizes = {"width": setup.decoder_size, "layers": setup.decoder_layers}
            self.decoder = MaskedDecoder(D, math.prod(setup.grid), pixels, **sizes)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        encoder, norm, linear = classifier_parts(self.classifier)
        tokens = encoder(pixel_values).last_hidden_state  # (B, N, D)
        pooled = norm(tokens.mean(1))  # (B, D)
        heads = {name: getattr(self, name)(pooled) for name in ("path", "camera", "shape", "count")}
        return heads | {"motion": linear(pooled), "dense": self.dense(tokens)}

    def reconstruction(self, pixel_values: Tensor, mask: Tensor) -> Tensor:
        """How badly the tokens hidden by ``mask`` (B, N) are predicted from the others; one scalar."""
        encoder, _, _ = classifier_parts(self.classifier)
        shown = encoder(pixel_values, bool_masked_pos=mask).last_hidden_state  # (B, n, D)
        targets = patch_targets(pixel_values, self.setup.tubelet_size, self.setup.patch_size)
        return masked_loss(self.decoder(shown, mask), targets, mask)


def losses(outputs: dict[str, Tensor], batch: ProceduralBatch) -> dict[str, Tensor]:
    """One scalar per target, weighted to be of like size at the start."""
    return dense_losses(outputs, batch) | clip_losses(outputs, batch)


def dense_losses(outputs: dict[str, Tensor], batch: ProceduralBatch) -> dict[str, Tensor]:
    """Coverage and optical flow, per token."""
    dense = outputs["dense"].float()  # (B, N, 4), N = T' * H' * W' time-major
    coverage = batch.coverage.flatten(2).transpose(1, 2)  # (B, N, 2)
    flow = FLOW_SCALE * batch.flow.flatten(2).transpose(1, 2)
    # Flow matters where something is; the background's is the camera's and easy.
    weight = 0.2 + 2.0 * coverage[..., 1:]
    return {
        "coverage": 2.0 * F.binary_cross_entropy_with_logits(dense[..., :2], coverage),
        "flow": 2.0 * (weight * F.smooth_l1_loss(dense[..., 2:], flow, reduction="none", beta=0.2)).mean(),
    }


def clip_losses(outputs: dict[str, Tensor], batch: ProceduralBatch) -> dict[str, Tensor]:
    """The main object's path, and the classes."""
    terms = {"path": F.smooth_l1_loss(outputs["path"].float().view_as(batch.path), batch.path, beta=0.1)}
    for name, scale in zip(CLIP_TARGETS, (0.5, 0.15, 0.15, 0.1), strict=True):
        terms[name] = scale * F.cross_entropy(outputs[name].float(), getattr(batch, name))
    return terms


def _objective(model: PretrainModel, batch: ProceduralBatch, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of the loss that the setup asks for, and what else to log."""
    setup, device = model.setup, batch.clips.device
    pixels = to_pixel_values(batch.clips, MEAN, STD)
    terms, seen = dict[str, Tensor](), dict[str, Tensor]()
    if setup.dense or setup.clip_targets:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            outputs = model(pixels)
        if setup.dense:
            terms |= dense_losses(outputs, batch)
        if setup.clip_targets:
            terms |= clip_losses(outputs, batch)
            seen = {f"{n}_accuracy": (outputs[n].argmax(1) == getattr(batch, n)).float().mean() for n in CLIP_TARGETS}
    if setup.masked:
        number = int(np.random.default_rng([setup.seed, 2, step]).integers(2**62))
        generator = torch.Generator().manual_seed(number)
        mask = tube_mask(len(pixels), setup.grid, setup.mask_ratio, generator).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            terms["masked"] = setup.masked * model.reconstruction(pixels, mask)
    return terms, seen | {name: value.detach() for name, value in terms.items()}


def _scheduled(
    data: ProceduralClips, step: int, made: dict[int, ProceduralBatch], device: torch.device
) -> ProceduralBatch:
    """The batch of a step: a new one on even steps, an older one in other colours on odd ones (making costs as much
    as half a training step on a CPU). ``made`` keeps the recent ones; what a resumed run lacks is made again."""
    index = step // 2 if step % 2 == 0 else max(0, step // 2 - REUSE_LAG)
    if index not in made:
        made[index] = data.batch(index, device)
    for old in [i for i in made if i < step // 2 - REUSE_LAG]:
        del made[old]
    batch = made[index]
    return batch if step % 2 == 0 else replace(batch, clips=batch.clips.roll(1, dims=-1))


def _save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    temporary = folder / f"state.{os.getpid()}.tmp"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)
    os.replace(temporary, folder / "state.pt")


def _record_setup(folder: Path, setup: PretrainSetup) -> None:
    """Write ``setup.json``; raise ValueError where the folder was begun with another recipe (``steps`` may differ)."""
    path = folder / "setup.json"
    if path.exists():
        # What is not recorded did not exist yet: its default is what was done.
        begun = {f.name: f.default for f in fields(PretrainSetup)} | json.loads(path.read_text(encoding="utf-8"))
        mine = json.loads(json.dumps(asdict(setup)))
        begun = json.loads(json.dumps(begun))
        changed = [f"{n}={mine[n]} (begun with {begun[n]})" for n in mine if n != "steps" and mine[n] != begun[n]]
        if changed:
            raise ValueError(f"{folder} holds another pretraining: {', '.join(changed)}; use another folder")
    temporary = path.with_name(f"setup.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(setup), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


class _Log:
    """``log.jsonl``: means of what was seen since the last line, one line per ``LOG_EVERY`` steps."""

    def __init__(self, folder: Path) -> None:
        self.path, self.began, self.count = folder / "log.jsonl", time.time(), 0
        self.sums: dict[str, Tensor] = {}

    def add(self, step: int, seen: dict[str, Tensor]) -> None:
        # Kept on the device: reading each step's numbers would make a GPU wait.
        self.sums = {name: self.sums[name] + value if name in self.sums else value for name, value in seen.items()}
        self.count += 1
        if step % LOG_EVERY == 0:
            means = {name: round(value.item() / self.count, 4) for name, value in self.sums.items()}
            line = {"step": step, "seconds": round(time.time() - self.began, 1)} | means
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.sums, self.count = {}, 0


def _start(
    folder: Path, setup: PretrainSetup, device: torch.device
) -> tuple[PretrainModel, torch.optim.Optimizer, int]:
    """Model, optimiser and the first step: as saved, or fresh."""
    torch.manual_seed(setup.seed)
    model = PretrainModel(setup).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setup.lr, betas=setup.betas, weight_decay=setup.weight_decay)
    if not (folder / "state.pt").exists():
        return model, optimizer, 0
    state = torch.load(folder / "state.pt", map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("resuming at step %d", state["step"])
    return model, optimizer, state["step"]


def pretrain(
    folder: str | Path,
    setup: PretrainSetup | None = None,
    *,
    device: str = "auto",
    checkpoint_every: int = 100,
    stop_after: int | None = None,
) -> Path:
    """Run (or resume) pretraining in ``folder``; returns ``folder/checkpoint`` in Hugging Face format.

    ``folder/setup.json`` is the recipe; ``folder/state.pt`` is replaced whole every ``checkpoint_every`` steps;
    ``folder/log.jsonl`` gets one line per 25 steps. ``stop_after`` ends this call early (the next one goes on from
    there). Raises ValueError where the folder was begun with another recipe; ``steps`` may be raised.
    """
    setup, folder = setup or PretrainSetup(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _record_setup(folder, setup)
    chosen = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    )
    model, optimizer, first = _start(folder, setup, chosen)
    data, lines = setup.data(), _Log(folder)
    model.train()
    last = min(setup.steps, stop_after or setup.steps)
    made: dict[int, ProceduralBatch] = {}
    for step in tqdm(range(first, last), initial=first, total=setup.steps, desc="pretrain", mininterval=10):
        batch = _scheduled(data, step, made, chosen)
        for group in optimizer.param_groups:
            group["lr"] = setup.rate(step)
        terms, seen = _objective(model, batch, step)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values(), torch.zeros((), device=chosen)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        lines.add(step + 1, seen)
        if (step + 1) % checkpoint_every == 0 or step + 1 == last:
            _save_checkpoint(folder, model, optimizer, step + 1)
    return save_classifier(model.classifier, folder / "checkpoint", mean=MEAN, std=STD, size_px=setup.size_px)
