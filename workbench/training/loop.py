"""The training loop, on Accelerate's plumbing: what a teacher puts on a slide is :func:`train`."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from workbench.data.cache import DecodedClips
from workbench.data.mix import Mix, Pairing
from workbench.data.tables import Task
from workbench.data.tasks import target_slices
from workbench.models.droppath import drop_path
from workbench.models.strategies import parse_strategy
from workbench.models.tml import TML
from workbench.training.checking.checkup import Checkup
from workbench.training.checking.nonfinite import first_nonfinite
from workbench.training.feed import Feed, augment_of, loader, targets_of
from workbench.training.joint import NOTED, Joint
from workbench.training.losses import Standard, column, criterion_of, decide, labelled_clips, summed, task_losses
from workbench.training.metrics import main_metric, weighted_metrics
from workbench.training.optim import Ema, Schedule, make_optimizer
from workbench.training.optim import parameter_groups as parameter_groups
from workbench.training.optim import rate as rate
from workbench.training.predict import outputs_on
from workbench.training.probing.features import Features, HeadOnly
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
    best_score: float = math.nan
    history: list[dict[str, float]] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)


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
    should_stop: Callable[[], bool] | None = None,
) -> tuple[Progress, dict[str, Tensor]]:
    """The loop: augment, mix, forward, a loss per task, balance and backward, step; after each epoch the score on val.

    Everything random depends on (seed, epoch, step), so a run resumed from ``folder/checkpoint`` ends with the
    weights an unbroken one would have. Returns the progress and the weights that are kept (with ``setup.ema`` the
    averaged ones): of the last epoch or, with ``setup.patience``, of the one with the best val score. Raises
    KeyboardInterrupt, after a checkpoint, when ``should_stop()`` says so between two steps.
    """
    backbone, tasks = model.backbone, model.tasks
    augment, mix = augment_of(setup, backbone, flip=flip, reverse=reverse), mix_of(setup, tasks)
    # Where the backbone is frozen, a batch is stored features of its clips, and only the head runs.
    stored = data.train if isinstance(data.train, Features) else None
    whole = HeadOnly(model, stored.kind, stored.grid) if stored else model
    criterion = criterion_of(setup.loss, setup.weights_by_task, tasks, targets_of(data.train.table), accelerator.device)
    model.to(accelerator.device)  # before the optimiser is made: it asks where its parameters are
    joint = Joint(setup, model, accelerator.device)
    optimizer = make_optimizer(parameter_groups(model, setup) + joint.groups(), setup)
    batches, order = loader(data.train, setup.seed, setup.batch_size, task_sampling=setup.task_sampling)
    network, optimizer, batches = accelerator.prepare(whole, optimizer, batches)
    steps = setup.epochs * math.ceil(len(batches) / setup.accumulation)
    schedule, ema = Schedule(setup, steps), Ema(model, setup.ema)
    checkup = Checkup(model, tasks, setup, targets_of(data.train.table), val_targets=targets_of(data.val.table))
    parts = {"optimizer": optimizer, "schedule": schedule, "ema": ema, "checkup": checkup, "joint": joint}
    state, kept = load_checkpoint(folder, model, parts, accelerator.device)
    skipping = drop_path(backbone, _depth_rate(setup))
    saved = time.monotonic()

    def forward(network: nn.Module, shown: Tensor, targets: Tensor, pairing: Pairing | None) -> tuple[Any, Any]:
        outputs = network(shown if stored else backbone.prepare(shown))
        return outputs, task_losses(
            tasks, outputs, targets, standard,
            label_smoothing=setup.label_smoothing, pairing=pairing, criterion=criterion,
        )  # fmt: skip

    def again(network: nn.Module, *batch: Any) -> tuple[Any, Tensor]:
        outputs, losses = forward(network, *batch)
        return outputs, summed(losses)

    title = folder.name  # said once, above the first epoch of this run or of what is left of it
    bar = tqdm(total=steps, initial=state.step, desc=folder.name[:30], disable=not progress, mininterval=0.5)
    with skipping:
        while state.epoch < setup.epochs and not _stale(state, setup):
            order.epoch, began = state.epoch, time.monotonic()
            network.train()
            for clips, targets in _rest(batches, state.batch, accelerator):
                torch.manual_seed(_mixed(setup.seed, state.epoch, state.batch))  # dropout, skipped blocks
                # On the CPU, so that a seed means the same crops, operations and partners on every device.
                chance = torch.Generator().manual_seed(_mixed(setup.seed, state.epoch, state.batch))
                with accelerator.accumulate(network):
                    shown = augment(clips, chance) if setup.augment and not stored else clips
                    shown, pairing = mix(shown, chance) if mix else (shown, None)
                    if not (stored or state.step or state.batch):
                        checkup.at_start(shown)
                    with joint.watch(state.step) as seen:
                        outputs, losses = forward(network, shown, targets, pairing)
                    if not math.isfinite(value := summed(losses).item()):  # before a step that it would spoil
                        torch.manual_seed(_mixed(setup.seed, state.epoch, state.batch))
                        raise _not_finite(value, state, first_nonfinite(whole, again, shown, targets, pairing))
                    # Not the accelerator's backward: that knows one loss, and there is no loss scaling in bf16.
                    share = _batches_of_step(state.batch, len(batches), setup.accumulation)
                    joint.backward(losses, labelled_clips(tasks, targets, pairing), seen, state.step, share)
                    state.loss_sum += value * len(clips)
                    checkup.after_backward(state.step, outputs, targets, pairing)
                    schedule.apply(optimizer, state.step)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(network.parameters(), setup.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    ema.update()
                    state.step += 1
                    bar.update()
                state.batch += 1
                state.clips_seen += len(clips)
                # Only between optimiser steps: gradients half accumulated are not part of a checkpoint.
                stop = accelerator.sync_gradients and should_stop is not None and should_stop()
                if stop or (accelerator.sync_gradients and time.monotonic() - saved > _CHECKPOINT_SECONDS):
                    state.seconds, began = state.seconds + time.monotonic() - began, time.monotonic()
                    save_checkpoint(folder, state, model, parts, kept)
                    saved = time.monotonic()
                if stop:
                    bar.close()
                    raise KeyboardInterrupt(f"stopped in epoch {state.epoch + 1}, after step {state.step} of {steps}")

            with ema.applied():
                scores = val_scores(model, data.val, standard, setup)
                if _is_kept(state, scores["val_score"], setup):
                    state.kept_epoch, kept = state.epoch + 1, trained_state(model)
            state.seconds += time.monotonic() - began
            line = {"epoch": state.epoch + 1, "step": state.step, "lr": max(g["lr"] for g in optimizer.param_groups)}
            line |= {"train_loss": state.loss_sum / state.clips_seen} | scores
            line |= joint.end_epoch() | {"seconds": state.seconds}
            state.history.append(line)
            checkup.after_epoch(line, state.history)
            state.findings = [finding.to_json() for finding in checkup.findings]
            schedule.after_epoch(line["val_loss"], line["train_loss"])
            state.epoch, state.batch, state.loss_sum, state.clips_seen = state.epoch + 1, 0, 0.0, 0
            save_checkpoint(folder, state, model, parts, kept)
            saved = time.monotonic()
            bar.set_postfix(loss=f"{line['train_loss']:.3f}", val=f"{line['val_score']:.3f}")
            if progress:
                tqdm.write(epoch_row(state.history, title))
                title = ""
            if watch:
                watch(pd.DataFrame(state.history))
    bar.close()
    return state, kept


def _is_kept(state: Progress, score: float, setup: Setup) -> bool:
    """Whether this epoch's weights are to be kept, noting the best epoch so far (none where the score is unknown).

    A val score of few clips is noisy: it decides only where early stopping was asked for. Else the last epoch, where
    the rate has come down, is kept, and nothing was selected.
    """
    if score > state.best_score or (math.isnan(state.best_score) and not math.isnan(score)):
        state.best_epoch, state.best_score = state.epoch + 1, score
    return not setup.patience or not state.best_epoch or state.best_epoch == state.epoch + 1


def _stale(state: Progress, setup: Setup) -> bool:
    """Whether early stopping was asked for and its patience is at an end; never while no val score is known."""
    return 0 < setup.patience <= state.epoch - state.best_epoch and state.best_epoch > 0


def _depth_rate(setup: Setup) -> float:
    """``drop_path``, where there is a block that trains."""
    if setup.drop_path and parse_strategy(setup.strategy).frozen:
        log.warning("drop_path=%g does nothing: strategy %s freezes the backbone", setup.drop_path, setup.strategy)
        return 0.0
    return setup.drop_path


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


def epoch_row(history: list[dict[str, float]], title: str = "") -> str:
    """The last epoch as a line of a text table; under a head before the first, and where there is a title for it."""
    shown = [name for name in history[-1] if name not in ("step", "lr") and not name.startswith(NOTED)]
    row = "  ".join(f"{history[-1][name]:>{max(7, len(name))}.4g}" for name in shown)
    head = "  ".join(f"{name:>7}" for name in shown)
    above = f"{title}\n{head}\n" if title else f"{head}\n"
    return above + row if title or len(history) == 1 else row


def _rest(batches: DataLoader[Any], done: int, accelerator: Accelerator) -> Iterable[tuple[Tensor, Tensor]]:
    """An epoch's batches from number ``done`` on."""
    return accelerator.skip_first_batches(batches, done) if done else batches


def _batches_of_step(batch: int, batches: int, accumulation: int) -> int:
    """How many batches of an epoch go into the optimiser step that ``batch`` belongs to."""
    return min(accumulation, batches - batch // accumulation * accumulation)


def _mixed(seed: int, epoch: int, batch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, batch]).generate_state(1)[0])


def _not_finite(value: float, state: Progress, place: str | None) -> FloatingPointError:
    where = f"First not finite: {place}" if place else "Done once more, the step was finite"
    return FloatingPointError(
        f"the loss became {value} in epoch {state.epoch + 1}, batch {state.batch}; lower lr or head_lr, or use "
        f"precision='fp32'. {where}"
    )


def val_scores(model: TML, val: DecodedClips | Features, standard: Standard, setup: Setup) -> dict[str, float]:
    """Plain loss and each task's main metric on val; ``val_score`` is the mean of these metrics.

    NaN where val has no label, and left out of the mean where val cannot tell (no labels, or one value only); a metric
    undefined because of what was predicted (a correlation with a constant) counts as 0.
    """
    outputs = outputs_on(model, val)
    targets = targets_of(val.table)
    loss = math.nan
    if not torch.isnan(targets).all():
        loss = float(summed(task_losses(model.tasks, outputs, targets, standard)))
    scores, mains = {"val_loss": loss}, []
    columns = target_slices(model.tasks)
    for task in model.tasks:
        target = column(targets, columns[task.name], task)
        here = ~torch.isnan(target) if target.ndim == 1 else ~torch.isnan(target).all(1)
        value = _main_score(task, outputs[task.name][here], target[here], standard)
        scores[f"val_{task.name}"] = value
        if len(target[here].unique()) > 1 or not math.isnan(value):
            mains.append(0.0 if math.isnan(value) else value)
    return scores | {"val_score": float(np.mean(mains)) if mains else math.nan}


def _main_score(task: Task, output: Tensor, target: Tensor, standard: Standard) -> float:
    """A task's main metric on clips that have its label; NaN without any."""
    if not len(target):
        return math.nan
    predicted, probabilities = decide(task, output, standard)
    return float(weighted_metrics(
        task.kind, [main_metric(task.kind)], target=target.numpy(), prediction=predicted,
        probabilities=None if task.kind == "regression" else np.array(probabilities),
        weights=np.ones((1, len(target))),
    )[0, 0])  # fmt: skip


class Remembered(Protocol):
    """What a checkpoint holds besides the progress and the weights."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


def save_checkpoint(
    folder: Path, state: Progress, model: TML, parts: Mapping[str, Remembered], kept: dict[str, Tensor]
) -> None:
    """One file, replaced whole: a kill leaves the last one or this one. Beside it the history, for who looks on."""
    content = {"progress": vars(state), "model": trained_state(model), "kept": kept}
    content |= {name: part.state_dict() for name, part in parts.items()}
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "checkpoint" / "state.pt", lambda path: torch.save(content, path))
    if not state.batch and state.history:
        history = pd.DataFrame(state.history)
        write_atomically(folder / "checkpoint" / "history.parquet", lambda path: history.to_parquet(path, index=False))


def load_checkpoint(
    folder: Path, model: TML, parts: Mapping[str, Remembered], device: torch.device
) -> tuple[Progress, dict[str, Tensor]]:
    """Put model and ``parts`` where the last checkpoint left them; the beginning where there is none."""
    path = folder / "checkpoint" / "state.pt"
    if not path.exists():
        return Progress(), {}
    content = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(content["model"], strict=False)
    for name, part in parts.items():
        part.load_state_dict(content.get(name, {}))  # a checkpoint older than the part: its beginning
    state = Progress(**content["progress"])
    log.info("resuming %s at epoch %d, batch %d", folder.name, state.epoch + 1, state.batch)
    return state, {name: value.cpu() for name, value in content["kept"].items()}
