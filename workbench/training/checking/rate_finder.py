"""Which learning rate? One short run in which it rises from far too low to far too high, and the loss on the way."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.data.layouts import open_clips
from workbench.data.tables import ClipTable
from workbench.models.droppath import drop_path
from workbench.models.strategies import parse_strategy
from workbench.training.feed import Feed, augment_of, feed, loader, targets_of
from workbench.training.finetune import make_accelerator, precision_of
from workbench.training.joint import Joint
from workbench.training.loop import mix_of
from workbench.training.losses import criterion_of, labelled_clips, standardisation, summed, task_losses
from workbench.training.optim import make_optimizer, parameter_groups
from workbench.training.predict import pick_device
from workbench.training.probing.features import Features, HeadOnly
from workbench.training.runs import build_model
from workbench.training.setup import Setup

log = logging.getLogger(__name__)

DIVERGED = 4.0
"""The sweep ends when the loss is this many times its lowest, as in fastai's finder."""
BELOW = 10.0
_KERNEL_DECADES = 1 / 6


@dataclass(frozen=True)
class RateCurve:
    """Loss against learning rate, and what to make of it.

    The rule: a tenth of the rate at which the smoothed loss is lowest. At the minimum itself the rate is already as
    high as the model can bear for a few steps (S. Gugger, "How do you find a good learning rate", 2018, after
    L. Smith's range test, https://arxiv.org/abs/1506.01186). It is a place to begin, not an optimum.
    """

    frame: pd.DataFrame
    """One row per step: ``factor`` on the setup's own peak rates, ``lr`` and ``head_lr`` (what that makes of them),
    ``loss`` of the batch before the step, ``smoothed``."""
    base: Setup
    """The setup as given, its rates spelled out."""
    factor: float | None
    """Suggested factor on both rates; None where no rate lowered the loss, or the lowest rates did."""
    note: str
    """What was seen, in a sentence."""

    @property
    def suggestion(self) -> dict[str, float] | None:
        """Suggested ``lr`` and ``head_lr``; None where there is no ``factor``."""
        if self.factor is None:
            return None
        lr, head_lr = self.base.rates
        return {"lr": lr * self.factor, "head_lr": head_lr * self.factor}

    @property
    def setup(self) -> Setup:
        """The setup with the suggested rates, to two figures. Raises ValueError where there is no suggestion."""
        if (rates := self.suggestion) is None:
            raise ValueError(f"no rate to suggest: {self.note}")
        return self.base.replace(**{name: float(f"{value:.1e}") for name, value in rates.items()})

    def __repr__(self) -> str:
        return f"RateCurve of {self.base.strategy!r}, {len(self.frame)} steps: {self.note}"


def find_lr(
    setup: Setup | str,
    clips: ClipTable | str | Path,
    *,
    steps: int = 100,
    low: float = 1e-3,
    high: float = 1e3,
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
) -> RateCurve:
    """Sweep the peak rates of ``setup`` over ``steps`` training steps, from ``low`` to ``high`` times what they are.

    Backbone and heads rise together, in the proportion that the setup gives them, evenly on a logarithmic scale. Each
    step is one of :func:`~workbench.training.finetune.fine_tune` (same batches, augmentation, mixing, loss, balance,
    optimiser, clipping; no warm-up). The model is one of its own: nothing that the caller holds changes, its random
    state included. Raises ValueError on fewer than 10 steps, on ``low`` not below ``high``, and where ``fine_tune``
    would.
    """
    setup = Setup(strategy=setup) if isinstance(setup, str) else setup
    if steps < 10 or not 0 < low < high:
        raise ValueError(f"steps={steps}, low={low}, high={high}: needs at least 10 steps and 0 < low < high")
    table = clips if isinstance(clips, ClipTable) else open_clips(clips)
    table = table.with_tasks(setup.tasks or [task.name for task in table.tasks])
    backbone_lr, head_lr = setup.rates
    if not backbone_lr and not head_lr:
        raise ValueError("lr and head_lr are both 0: there is nothing to sweep from; leave them at None")
    setup = setup.replace(tasks=tuple(task.name for task in table.tasks), lr=backbone_lr, head_lr=head_lr)
    chosen = pick_device(device)
    with torch.random.fork_rng(devices=[0] if chosen.type == "cuda" else []):
        losses = _sweep(setup, table, np.geomspace(low, high, steps), chosen, workers, progress)
    return curve_of(setup, np.geomspace(low, high, steps)[: len(losses)], np.array(losses))


def curve_of(base: Setup, factors: np.ndarray, losses: np.ndarray) -> RateCurve:
    """The curve and its suggestion, from factors (n,) and the loss at each (n,); one that is not finite ends it."""
    finite = np.isfinite(losses)
    end = len(losses) if finite.all() else int(np.argmin(finite))
    smoothed = np.full(len(losses), np.nan)
    smoothed[:end] = smooth(factors[:end], losses[:end])
    lr, head_lr = base.rates
    frame = pd.DataFrame({
        "factor": factors, "lr": lr * factors, "head_lr": head_lr * factors, "loss": losses, "smoothed": smoothed,
    })  # fmt: skip
    if end < 3:
        return RateCurve(frame, base, None, "the loss was not finite from the start; use precision='fp32'")
    lowest = int(np.nanargmin(smoothed))
    if smoothed[lowest] > 0.98 * smoothed[0]:
        return RateCurve(frame, base, None, "no rate lowered the loss by 2 %; take more steps, or look at the labels")
    factor = float(factors[lowest] / BELOW)
    name, rate = ("head_lr", head_lr) if parse_strategy(base.strategy).frozen else ("lr", lr)
    note = f"lowest at {name}={rate * factors[lowest]:.1e}; a tenth of that is {name}={rate * factor:.1e}"
    if factor < factors[0]:  # where hardly anything moves yet, batches differ by more than the rate does
        why = "less than was tried: the loss is noise, or every rate too high; take more steps, or sweep lower"
        return RateCurve(frame, base, None, f"{note}, {why}")
    if lowest == len(losses) - 1:
        note += ", and the loss still fell there: sweep higher"
    return RateCurve(frame, base, factor, note)


def smooth(factors: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Mean of the losses around each point, Gaussian with a sixth of a decade as its deviation. Centred: a running mean
    would move the minimum to higher rates."""
    place = np.log10(factors)
    weights = np.exp(-0.5 * ((place[:, None] - place) / _KERNEL_DECADES) ** 2)
    return np.asarray(weights @ losses / weights.sum(1))


def _sweep(
    setup: Setup, table: ClipTable, factors: np.ndarray, device: torch.device, workers: int, progress: bool
) -> list[float]:
    """The loss at each factor, to the last or to where it has diverged."""
    model = build_model(setup, table.tasks)
    accelerator = make_accelerator(setup, device)
    model.to(accelerator.device)  # before features are computed
    precision = precision_of(accelerator)
    data = feed(table, setup, model.backbone, workers=workers, progress=progress, precision=precision)
    joint = Joint(setup.replace(measure_conflict=0), model, accelerator.device)
    optimizer = make_optimizer(parameter_groups(model, setup) + joint.groups(), setup)
    # As in the loop: where the backbone is frozen, a batch may be stored features of its clips.
    stored = data.train if isinstance(data.train, Features) else None
    network, optimizer = accelerator.prepare(HeadOnly(model, stored.kind, stored.grid) if stored else model, optimizer)
    standard = standardisation(data.train.table, table.tasks)
    criterion = criterion_of(
        setup.loss, setup.weights_by_task, table.tasks, targets_of(data.train.table), accelerator.device
    )
    batches = _prepared(setup, table, data, model, accelerator.device)
    losses: list[float] = []
    frozen = parse_strategy(setup.strategy).frozen
    network.train()
    with drop_path(model.backbone, 0.0 if frozen else setup.drop_path):
        for step, factor in enumerate(tqdm(factors, desc="learning rates", disable=not progress, mininterval=0.5)):
            value = 0.0
            for _ in range(setup.accumulation):
                pixel_values, targets, pairing = next(batches)
                with joint.watch(step) as seen:
                    each = task_losses(
                        table.tasks, network(pixel_values), targets, standard,
                        label_smoothing=setup.label_smoothing, pairing=pairing, criterion=criterion,
                    )  # fmt: skip
                value += summed(each).item() / setup.accumulation
                if not math.isfinite(value):  # its gradients could not be weighed
                    break
                joint.backward(each, labelled_clips(table.tasks, targets, pairing), seen, step, setup.accumulation)
            losses.append(value)
            if not math.isfinite(value) or _diverged(losses):
                break
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * float(factor)
            accelerator.clip_grad_norm_(network.parameters(), setup.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def _diverged(losses: list[float], window: int = 5) -> bool:
    """Whether the mean of the last losses is far above the lowest such mean."""
    if len(losses) < 2 * window:
        return False
    means = np.convolve(losses, np.ones(window) / window, "valid")
    return bool(means[-1] > DIVERGED * means.min())


def _prepared(
    setup: Setup, table: ClipTable, data: Feed, model: Any, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """Training batches without end, as the loop would show them: pixel values or features, targets, how they were
    mixed."""
    stored = isinstance(data.train, Features)
    augment = augment_of(setup, model.backbone, flip=table.info.horizontal_flip, reverse=table.info.time_reversal)
    mix = mix_of(setup, table.tasks)
    batches, order = loader(data.train, setup.seed, setup.batch_size, task_sampling=setup.task_sampling)
    torch.manual_seed(setup.seed)
    chance = torch.Generator().manual_seed(setup.seed)
    while True:
        for clips, targets in batches:
            shown, pairing = clips.to(device), None
            if setup.augment and not stored:
                shown = augment(shown, chance)
            if mix:
                shown, pairing = mix(shown, chance)
            yield shown if stored else model.backbone.prepare(shown), targets.to(device), pairing
        order.epoch += 1
