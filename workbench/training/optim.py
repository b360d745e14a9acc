"""What moves the weights: optimisers, the course of the learning rate, and the average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from workbench.models.strategies import learning_rates
from workbench.models.tml import TML
from workbench.training.setup import Setup

# One-cycle begins at a 25th of its peak and ends at a 10,000th of that: the defaults of torch's OneCycleLR, after
# https://arxiv.org/abs/1708.07120.
_ONE_CYCLE_START, _ONE_CYCLE_END = 25.0, 1e4
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.1, 3
"""``plateau`` takes a tenth of the rate (torch's default) when more than three epochs in a row brought nothing (torch
waits for more than ten, which few runs here would live to see)."""


def parameter_groups(model: TML, setup: Setup) -> list[dict[str, Any]]:
    """Trainable parameters by (peak rate) x (decayed matrices or not); the rates are the strategy's."""
    parameters = dict(model.named_parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, lr in learning_rates(model, setup.strategy, *setup.rates).items():
        decay = setup.weight_decay if parameters[name].ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameters[name])
    return [{"params": p, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def make_optimizer(groups: list[dict[str, Any]], setup: Setup) -> torch.optim.Optimizer:
    """The setup's optimiser over :func:`parameter_groups`.

    ``adamw`` takes the decay off the weights directly (https://arxiv.org/abs/1711.05101); ``adam`` and ``sgd`` add it
    to the gradient. One fused kernel per group where the device has it: the same formula, several times faster for
    many small tensors.
    """
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    if setup.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=setup.momentum, fused=fused)
    kind = torch.optim.AdamW if setup.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, betas=setup.betas, fused=fused)


def rate(step: int, steps: int, warmup: float, schedule: str = "cosine") -> float:
    """Factor on the peak rate at ``step`` (from 0) of ``steps``.

    ``cosine``: linear warm-up over the share ``warmup`` of the steps, then a cosine to zero. ``constant`` and
    ``plateau``: the warm-up, then 1. ``one_cycle``: half a cosine from 1/25 up to 1 over that share, another down to
    1/250,000 at the last step (torch's ``OneCycleLR`` with ``pct_start=warmup, cycle_momentum=False``).
    """
    if schedule == "one_cycle":
        low, top, last = 1 / _ONE_CYCLE_START, warmup * steps - 1, max(1, steps - 1)
        if step <= top:
            return _half_cosine(low, 1.0, step / top if top else 1.0)
        return _half_cosine(1.0, low / _ONE_CYCLE_END, (step - top) / max(last - top, 1e-9))
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return _half_cosine(1.0, 0.0, (step - rise) / max(1, steps - rise)) if schedule == "cosine" else 1.0


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


class Schedule:
    """The rates of an optimiser over a run of ``steps`` optimiser steps: each group's ``peak`` times one factor.

    A function of the step alone, but for ``plateau``, which looks back: its memory is in :meth:`state_dict`.
    """

    def __init__(self, setup: Setup, steps: int) -> None:
        self.kind, self.warmup, self.steps = setup.schedule, setup.warmup, steps
        stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)  # its rate is the plateau's factor
        self._factors = stand_in.param_groups[0]
        self._plateau = ReduceLROnPlateau(stand_in, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE)

    def factor(self, step: int) -> float:
        return rate(step, self.steps, self.warmup, self.kind) * float(self._factors["lr"])

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the rates for ``step``, from 0."""
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def after_epoch(self, val_loss: float, train_loss: float) -> None:
        """``plateau``: see whether this epoch brought the val loss down (where val has no labels, the train loss)."""
        if self.kind == "plateau":
            self._plateau.step(train_loss if math.isnan(val_loss) else val_loss)

    def state_dict(self) -> dict[str, Any]:
        if self.kind != "plateau":
            return {}
        return {"factor": float(self._factors["lr"]), "plateau": self._plateau.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._factors["lr"] = state["factor"]
            self._plateau.load_state_dict(state["plateau"])


class Ema:
    """Exponential moving average of what trains, in float32 on the weights' own device.

    After step t (from 1) the average keeps ``min(decay, (1 + t) / (10 + t))`` of itself, so that a short run is not
    stuck at its beginning (TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``). ``decay=0``: nothing is
    averaged, and :meth:`applied` leaves the model as it is.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad} if decay else {}
        self._averages = {n: p.detach().float().clone() for n, p in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """To be called after every optimiser step."""
        if not self._weights:
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [p.detach().float() for p in self._weights.values()]
        torch._foreach_lerp_(list(self._averages.values()), now, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again, to the bit."""
        own = {name: p.detach().clone() for name, p in self._weights.items()}
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._weights.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "averages": self._averages} if self._weights else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.updates = state["updates"]
            for name, average in self._averages.items():
                average.copy_(state["averages"][name])
