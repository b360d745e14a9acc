"""Whether outputs say anything about targets, from one epoch's batches as training saw them.

Nothing is computed while training runs: a batch's logits are put aside (they are there anyway), and looked at once an
epoch. The measure does not care how a loss calibrates its logits (focal loss, class weights and logit adjustment all
shift and scale them): it asks how much closer to the targets they come than the best constant answer does, were they
scaled and shifted as well as possible.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.data.mix import Pairing
from workbench.data.tables import Task
from workbench.data.tasks import target_slices

KEPT_ROWS = 4096
"""Clips kept, the latest of the epoch: enough to see an association of a hundredth of the entropy, and small."""


@dataclass(frozen=True)
class Evidence:
    """What one epoch's outputs of a task say about its targets. Losses in nats; for a value, in variances."""

    clips: int
    """Clips with a label."""
    loss: float
    """Cross entropy of the outputs as they are (a value: squared error of the standardised value)."""
    guess: float
    """The same of the best answer that is the same for every clip: the entropy of the class shares, ln(K) where K
    classes are equally frequent; for a value its variance."""
    share: float
    """Part of ``guess`` that the outputs explain, 0 to 1; below 0 it counts as 0."""
    sigmas: float
    """How many standard deviations that lies above what outputs without any relation to the targets would show."""
    spread: float
    """Standard deviation over the clips of the probability of a class, the largest of all (a value: of the output)."""

    @property
    def uninformed(self) -> bool:
        """The outputs say nothing that guessing would not: less than 2 % explained, and that within chance (three
        standard deviations), or less than 0.2 % however sure."""
        return self.share < 0.02 and (self.sigmas < 3 or self.share < 0.002)


class Seen:
    """The latest batches of an epoch: logits, targets, and how the clips were mixed."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self._batches: deque[dict[str, Any]] = deque()
        self._rows = 0

    def add(self, outputs: Mapping[str, Tensor], targets: Tensor, pairing: Pairing | None) -> None:
        """Keep a batch; no arithmetic and no wait for a device. ``outputs`` per task (B, K) or (B,), ``targets``
        (B, tasks) as they were before mixing."""
        self._batches.append({
            "outputs": {task.name: outputs[task.name].detach() for task in self.tasks},
            "targets": targets.detach(),
            "partner": None if pairing is None else pairing.partner,
            "weight": 1.0 if pairing is None else pairing.weight,
        })  # fmt: skip
        self._rows += len(targets)
        while self._rows - len(self._batches[0]["targets"]) >= KEPT_ROWS:
            self._rows -= len(self._batches.popleft()["targets"])

    def clear(self) -> None:
        self._batches.clear()
        self._rows = 0

    def evidence(self, number: int) -> Evidence | None:
        """Of this task; None for a kind it does not know, and where fewer than two clips have a label or all have the
        same."""
        task = self.tasks[number]
        column = target_slices(self.tasks)[task.name].start
        if not self._batches or task.kind not in ("multiclass", "binary", "regression"):
            return None
        output = torch.cat([b["outputs"][task.name].float() for b in self._batches]).cpu()
        if task.kind == "regression":
            return _of_values(output.double(), torch.cat([_blended(b, column) for b in self._batches]).cpu())
        logits = output if task.kind == "multiclass" else torch.stack([torch.zeros_like(output), output], dim=1)
        soft = torch.cat([_soft(b, column, logits.shape[1]) for b in self._batches]).cpu()
        return _of_classes(logits.double(), soft)

    def state_dict(self) -> list[dict[str, Any]]:
        """Tensors and plain values, on the CPU."""

        def here(value: Any) -> Any:
            return value.cpu().clone() if isinstance(value, Tensor) else value

        return [
            {k: {n: here(t) for n, t in v.items()} if k == "outputs" else here(v) for k, v in batch.items()}
            for batch in self._batches
        ]

    def load_state_dict(self, batches: Sequence[dict[str, Any]]) -> None:
        self._batches = deque(batches)
        self._rows = sum(len(batch["targets"]) for batch in batches)


def _blended(batch: dict[str, Any], column: int) -> Tensor:
    """Targets of the mixed clips, float64 (B,), NaN where one of the two has none."""
    target = batch["targets"][:, column].double()
    if batch["partner"] is None:
        return target
    return batch["weight"] * target + (1 - batch["weight"]) * target[batch["partner"]]


def _soft(batch: dict[str, Any], column: int, classes: int) -> Tensor:
    """Soft targets float64 (B, K): each row sums to what of the mixed clip has a label."""
    target = batch["targets"][:, column]
    known = ~torch.isnan(target)
    hot = F.one_hot(torch.where(known, target, 0).long(), classes).double() * known[:, None]
    if batch["partner"] is None:
        return hot
    return batch["weight"] * hot + (1 - batch["weight"]) * hot[batch["partner"]]


def _of_classes(logits: Tensor, soft: Tensor) -> Evidence | None:
    """``share`` is the gain of one Newton step, from the constant answer along the logits, on the log likelihood:
    U^2 / 2V with the score U and its information V, each class's mean logit taken out. 2U^2/2V is the score statistic,
    chi-squared with one degree of freedom where there is no relation, so its root counts standard deviations."""
    mass = soft.sum(1)  # (n,)
    total = float(mass.sum())
    prior = soft.sum(0) / max(total, 1e-12)  # (K,)
    guess = float(-torch.special.xlogy(prior, prior).sum())
    clips = int((mass > 0).sum())
    if clips < 2 or guess < 1e-9:
        return None
    loss = float(-(soft * logits.log_softmax(1)).sum() / total)
    centred = logits - (mass[:, None] * logits).sum(0) / total
    expected = centred @ prior  # (n,)
    score = float(((soft * centred).sum(1) - mass * expected).sum())
    information = float((mass * ((centred**2) @ prior - expected**2)).sum())
    gain = score**2 / (2 * information) if score > 0 and information > 1e-12 else 0.0
    spread = float(logits.softmax(1)[mass > 0].std(0).max())
    return Evidence(clips, loss, guess, min(1.0, gain / (total * guess)), math.sqrt(2 * gain), spread)


def _of_values(output: Tensor, target: Tensor) -> Evidence | None:
    """``share`` is the squared correlation, where that is positive. Targets in their own units: the loss is squared
    error after both were standardised by the targets' mean and deviation, which is how the outputs are meant."""
    known = ~torch.isnan(target)
    output, target = output[known], target[known]
    if len(target) < 3 or float(target.std()) < 1e-12:
        return None
    standard = (target - target.mean()) / target.std(correction=0)
    moved = output - output.mean()
    size = float(moved.norm() * standard.norm())
    r = max(0.0, float(moved @ standard) / size) if size > 1e-12 else 0.0
    loss = float(((output - standard) ** 2).mean())
    return Evidence(len(target), loss, 1.0, r * r, r * math.sqrt(len(target)), float(output.std()))
