"""Pretrain the embedded checkpoint ``nano`` on procedural video: ``workbench pretrain``. CPU or CUDA, resumable.

Supervision comes from the generator: per token the coverage of the main and of any object and the optical flow, per
clip the main object's motion, path and shape, the camera's motion and the number of objects. Dense targets are what
makes it learn: attributes alone, and pixel reconstruction of noisy textures, stayed at chance for thousands of steps.
"""

import json
import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from workbench.data.synthetic.motions import CAMERA_MOTIONS, PRETRAIN_MOTIONS
from workbench.data.synthetic.procedural import ProceduralBatch, ProceduralClips
from workbench.data.synthetic.textures import SHAPES
from workbench.models.backbones import classifier_parts, new_classifier, to_pixel_values
from workbench.models.nano import nano_config, save_classifier

log = logging.getLogger(__name__)

REUSE_LAG = 6  # every batch is seen twice, this many new batches apart, the second time with its colours rotated
FLOW_SCALE = 10.0  # a brisk stroke moves about 0.1 screen units per frame; this brings the target to order one
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


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
    """Length of the curriculum: from flat grounds and a still camera to everything at once."""
    num_frames: int = 16
    size_px: int = 64
    tubelet_size: int = 4
    patch_size: int = 8
    hidden_size: int = 192
    layers: int = 6
    heads: int = 3
    seed: int = 0

    def rate(self, step: int) -> float:
        decay = max(1, round(self.decay_fraction * self.steps))
        return self.lr * min(1.0, (step + 1) / self.warmup_steps, max(0.0, (self.steps - step) / decay))


class PretrainModel(nn.Module):
    """A video classifier (its head names the main motion) with the dense and per-clip heads of pretraining beside
    it."""

    def __init__(self, setup: PretrainSetup) -> None:
        super().__init__()
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

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        encoder, norm, linear = classifier_parts(self.classifier)
        tokens = encoder(pixel_values).last_hidden_state  # (B, N, D)
        pooled = norm(tokens.mean(1))  # (B, D)
        heads = {name: getattr(self, name)(pooled) for name in ("path", "camera", "shape", "count")}
        return heads | {"motion": linear(pooled), "dense": self.dense(tokens)}


def losses(outputs: dict[str, Tensor], batch: ProceduralBatch) -> dict[str, Tensor]:
    """One scalar per target, weighted to be of like size at the start."""
    dense = outputs["dense"].float()  # (B, N, 4), N = T' * H' * W' time-major
    coverage = batch.coverage.flatten(2).transpose(1, 2)  # (B, N, 2)
    flow = FLOW_SCALE * batch.flow.flatten(2).transpose(1, 2)
    # Flow matters where something is; the background's is the camera's and easy.
    weight = 0.2 + 2.0 * coverage[..., 1:]
    terms = {
        "coverage": 2.0 * F.binary_cross_entropy_with_logits(dense[..., :2], coverage),
        "flow": 2.0 * (weight * F.smooth_l1_loss(dense[..., 2:], flow, reduction="none", beta=0.2)).mean(),
        "path": F.smooth_l1_loss(outputs["path"].float().view_as(batch.path), batch.path, beta=0.1),
    }
    for name, scale in (("motion", 0.5), ("camera", 0.15), ("shape", 0.15), ("count", 0.1)):
        terms[name] = scale * F.cross_entropy(outputs[name].float(), getattr(batch, name))
    return terms


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


def pretrain(
    folder: str | Path,
    setup: PretrainSetup | None = None,
    *,
    device: str = "auto",
    checkpoint_every: int = 100,
    stop_after: int | None = None,
) -> Path:
    """Run (or resume) pretraining in ``folder``; returns ``folder/checkpoint`` in Hugging Face format.

    ``folder/state.pt`` is replaced whole every ``checkpoint_every`` steps; ``folder/log.jsonl`` gets one line per 25
    steps. ``stop_after`` ends this call early (the next one goes on from there).
    """
    setup, folder = setup or PretrainSetup(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    )
    torch.manual_seed(setup.seed)
    model = PretrainModel(setup).to(chosen)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setup.lr, betas=setup.betas, weight_decay=setup.weight_decay)
    first = 0
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", map_location=chosen, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        log.info("resuming at step %d", first)
    data = ProceduralClips(
        setup.seed,
        batch_size=setup.batch_size,
        num_frames=setup.num_frames,
        size_px=setup.size_px,
        tubelet_size=setup.tubelet_size,
        patch_size=setup.patch_size,
        easy_batches=setup.easy_steps // 2,
    )
    model.train()
    last = min(setup.steps, stop_after or setup.steps)
    began, sums = time.time(), dict[str, float]()
    made: dict[int, ProceduralBatch] = {}
    for step in tqdm(range(first, last), initial=first, total=setup.steps, desc="pretrain", mininterval=10):
        batch = _scheduled(data, step, made, chosen)
        for group in optimizer.param_groups:
            group["lr"] = setup.rate(step)
        with torch.autocast(chosen.type, dtype=torch.bfloat16):
            outputs = model(to_pixel_values(batch.clips, MEAN, STD))
        terms = losses(outputs, batch)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values(), torch.zeros((), device=chosen)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen = {name: value.item() for name, value in terms.items()}
        seen |= {
            f"{n}_accuracy": (outputs[n].argmax(1) == getattr(batch, n)).float().mean().item()
            for n in ("motion", "camera", "shape", "count")
        }
        sums = {name: sums.get(name, 0.0) + value / 25 for name, value in seen.items()}
        if (step + 1) % 25 == 0:
            record = {"step": step + 1, "seconds": round(time.time() - began, 1)} | {
                k: round(v, 4) for k, v in sums.items()
            }
            with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            sums = {}
        if (step + 1) % checkpoint_every == 0 or step + 1 == last:
            _save_checkpoint(folder, model, optimizer, step + 1)
    (folder / "setup.json").write_text(json.dumps(asdict(setup), indent=1), encoding="utf-8")
    return save_classifier(model.classifier, folder / "checkpoint", mean=MEAN, std=STD, size_px=setup.size_px)
