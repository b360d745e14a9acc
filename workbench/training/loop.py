"""The training loop, on Accelerate's plumbing: what a teacher puts on a slide is :func:`train`."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from workbench.data.augment import Augment
from workbench.data.cache import DecodedClips
from workbench.data.mix import Mix
from workbench.data.tables import Task
from workbench.models.strategies import learning_rates
from workbench.models.tml import TML
from workbench.training.feed import Feed, loader, targets_of
from workbench.training.losses import Standard, decide, total_loss
from workbench.training.metrics import main_metric, weighted_metrics
from workbench.training.predict import outputs_of
from workbench.training.runs import trained_state, write_atomically
from workbench.training.setup import Setup

log = logging.getLogger(__name__)
_CHECKPOINT_SECONDS = 300.0  # besides the end of every epoch

Watcher = Callable[[pd.DataFrame], None]


@dataclass
class Progress:
    """Where training stands: all that a checkpoint holds besides weights and optimiser."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    clips_seen: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    kept_epoch: int = 0
    best_score: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)


def rate(step: int, steps: int, warmup: float) -> float:
    """Factor on the peak learning rate: linear warm-up over that share of ``steps``, then a cosine to zero."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def parameter_groups(model: TML, setup: Setup) -> list[dict[str, Any]]:
    """Trainable parameters by (peak rate) x (decayed matrices or not); the rates are the strategy's."""
    parameters = dict(model.named_parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, lr in learning_rates(model, setup.strategy, *setup.rates).items():
        decay = setup.weight_decay if parameters[name].ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameters[name])
    return [{"params": p, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def train(
    model: TML,
    data: Feed,
    setup: Setup,
    accelerator: Accelerator,
    folder: Path,
    standard: Standard,
    *,
    flip: bool,
    reverse: bool = False,
    progress: bool,
    watch: Watcher | None,
) -> tuple[Progress, dict[str, Tensor]]:
    """The loop: augment, mix, forward, sum of task losses, backward, step; after each epoch the score on val.

    Everything random depends on (seed, epoch, step), so a run resumed from ``folder/checkpoint`` ends with the
    weights an unbroken one would have. Returns the progress and the weights that are kept: of the
    last epoch or, with ``setup.patience``, of the one with the best val score.
    """
    backbone, tasks = model.backbone, model.tasks
    augment = Augment(
        num_frames=backbone.num_frames, size_px=backbone.size_px, crop_scale=(setup.crop_scale, 1.0),
        flip=flip, reverse=reverse,
        rand_augment=setup.rand_augment, magnitude=setup.magnitude, erasing=setup.erasing,
    )  # fmt: skip
    mix = mix_of(setup, tasks)
    optimizer = torch.optim.AdamW(parameter_groups(model, setup), betas=(0.9, 0.999))
    batches, order = loader(data.train, setup.seed, setup.batch_size)
    network, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    steps = setup.epochs * math.ceil(len(batches) / setup.accumulation)
    state, kept = load_checkpoint(folder, model, optimizer, accelerator.device)
    saved = time.monotonic()

    bar = tqdm(total=steps, initial=state.step, desc=folder.name[:30], disable=not progress, mininterval=0.5)
    while state.epoch < setup.epochs and not _stale(state, setup):
        order.epoch, began = state.epoch, time.monotonic()
        network.train()
        for clips, targets in _rest(batches, state.batch, accelerator):
            torch.manual_seed(_mixed(setup.seed, state.epoch, state.batch))  # dropout, where a backbone has any
            # On the CPU, so that a seed means the same crops, operations and partners on every device.
            chance = torch.Generator().manual_seed(_mixed(setup.seed, state.epoch, state.batch))
            with accelerator.accumulate(network):
                shown = augment(clips, chance) if setup.augment else clips
                shown, pairing = mix(shown, chance) if mix else (shown, None)
                outputs = network(backbone.prepare(shown))
                loss = total_loss(
                    tasks, outputs, targets, standard, label_smoothing=setup.label_smoothing, pairing=pairing
                )
                accelerator.backward(loss)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * rate(state.step, steps, setup.warmup)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(network.parameters(), setup.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                state.step += 1
                bar.update()
            state.batch += 1
            state.loss_sum += _finite(loss, state) * len(clips)
            state.clips_seen += len(clips)
            # Only between optimiser steps: gradients half accumulated are not part of a checkpoint.
            if accelerator.sync_gradients and time.monotonic() - saved > _CHECKPOINT_SECONDS:
                state.seconds, began = state.seconds + time.monotonic() - began, time.monotonic()
                save_checkpoint(folder, state, model, optimizer, kept)
                saved = time.monotonic()

        scores = val_scores(model, data.val, standard, setup)
        if scores["val_score"] >= state.best_score:
            state.best_epoch, state.best_score = state.epoch + 1, scores["val_score"]
        # A val score of few clips is noisy: it decides only where early stopping was asked for. Else the last epoch,
        # where the rate has come down to zero, is kept, and nothing was selected.
        if not setup.patience or state.best_epoch == state.epoch + 1:
            state.kept_epoch, kept = state.epoch + 1, trained_state(model)
        state.seconds += time.monotonic() - began
        line = {"epoch": state.epoch + 1, "step": state.step, "lr": max(g["lr"] for g in optimizer.param_groups)}
        state.history.append(
            line | {"train_loss": state.loss_sum / state.clips_seen} | scores | {"seconds": state.seconds}
        )
        state.epoch, state.batch, state.loss_sum, state.clips_seen = state.epoch + 1, 0, 0.0, 0
        save_checkpoint(folder, state, model, optimizer, kept)
        saved = time.monotonic()
        bar.set_postfix(loss=f"{state.history[-1]['train_loss']:.3f}", val=f"{scores['val_score']:.3f}")
        if progress:
            tqdm.write(epoch_row(state.history))
        if watch:
            watch(pd.DataFrame(state.history))
    bar.close()
    return state, kept


def mix_of(setup: Setup, tasks: Sequence[Task]) -> Mix | None:
    """How a setup mixes the clips of these tasks, or None. A value is no class: averaging two clips need not average
    their values, so a regression task keeps a table from being mixed unless ``mix_regression`` says that it may."""
    if not setup.mixup and not setup.cutmix:
        return None
    values = [task.name for task in tasks if task.kind == "regression"]
    if values and not setup.mix_regression:
        log.warning(
            "mixup=%g and cutmix=%g are off: %s is regression; set mix_regression=True to interpolate its targets",
            setup.mixup, setup.cutmix, " and ".join(values),
        )  # fmt: skip
        return None
    return Mix(mixup=setup.mixup, cutmix=setup.cutmix)


def epoch_row(history: list[dict[str, float]]) -> str:
    """The last epoch as a line of a text table, under a head before the first."""
    shown = [name for name in history[-1] if name not in ("step", "lr")]
    row = "  ".join(f"{history[-1][name]:>{max(7, len(name))}.4g}" for name in shown)
    head = "  ".join(f"{name:>7}" for name in shown)
    return f"{head}\n{row}" if len(history) == 1 else row


def _stale(state: Progress, setup: Setup) -> bool:
    return setup.patience > 0 and state.epoch - state.best_epoch >= setup.patience


def _rest(batches: DataLoader[Any], done: int, accelerator: Accelerator) -> Iterable[tuple[Tensor, Tensor]]:
    """An epoch's batches from number ``done`` on."""
    return accelerator.skip_first_batches(batches, done) if done else batches


def _mixed(seed: int, epoch: int, batch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, batch]).generate_state(1)[0])


def _finite(loss: Tensor, state: Progress) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss became {value} in epoch {state.epoch + 1}, batch {state.batch}; lower lr or head_lr, "
            "or use precision='fp32'"
        )
    return value


def val_scores(model: TML, val: DecodedClips, standard: Standard, setup: Setup) -> dict[str, float]:
    """Loss and each task's main metric on val; ``val_score`` is their mean over the tasks (undefined counts as 0)."""
    outputs = outputs_of(model, val.clips)
    targets = targets_of(val.table)
    scores = {"val_loss": float(total_loss(model.tasks, outputs, targets, standard))}
    mains = []
    for i, task in enumerate(model.tasks):
        known = ~torch.isnan(targets[:, i])
        predicted, probabilities = decide(task, outputs[task.name][known], standard)
        weights = np.ones((1, int(known.sum())))
        value = weighted_metrics(
            task.kind, [main_metric(task.kind)], target=targets[known, i].numpy(), prediction=predicted,
            probabilities=None if task.kind == "regression" else np.array(probabilities), weights=weights,
        )[0, 0] if known.any() else math.nan  # fmt: skip
        scores[f"val_{task.name}"] = float(value)
        mains.append(0.0 if math.isnan(value) else float(value))
    return scores | {"val_score": float(np.mean(mains))}


def save_checkpoint(
    folder: Path, state: Progress, model: TML, optimizer: torch.optim.Optimizer, kept: dict[str, Tensor]
) -> None:
    """One file, replaced whole: a kill leaves the last one or this one."""
    content = {
        "progress": vars(state),
        "model": trained_state(model),
        "optimizer": optimizer.state_dict(),
        "kept": kept,
    }
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "checkpoint" / "state.pt", lambda path: torch.save(content, path))


def load_checkpoint(
    folder: Path, model: TML, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[Progress, dict[str, Tensor]]:
    """Put model and optimiser where the last checkpoint left them; the beginning where there is none."""
    path = folder / "checkpoint" / "state.pt"
    if not path.exists():
        return Progress(), {}
    content = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(content["model"], strict=False)
    optimizer.load_state_dict(content["optimizer"])
    state = Progress(**content["progress"])
    log.info("resuming %s at epoch %d, batch %d", folder.name, state.epoch + 1, state.batch)
    return state, {name: value.cpu() for name, value in content["kept"].items()}
