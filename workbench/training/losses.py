"""One loss per kind of task, missing labels masked, and the way back from logits to predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.data.mix import Pairing
from workbench.data.tables import ClipTable, Task
from workbench.data.tasks import target_slices

Standard = dict[str, tuple[float, float]]
LOSSES = ("ce", "focal", "logit_adjusted")
# What a bare name means: gamma = 2 is the default of https://arxiv.org/abs/1708.02002; with tau = 1 the logit-adjusted
# loss is consistent for the balanced error (https://arxiv.org/abs/2007.07314).
_USUAL = {"focal": 2.0, "logit_adjusted": 1.0}


@dataclass(frozen=True)
class Criterion:
    """How multiclass and binary labels are scored while training; the default is plain cross entropy."""

    kind: str = "ce"
    """``ce``; ``focal``: times (1 - p) ** value, p the probability of the label (https://arxiv.org/abs/1708.02002);
    ``logit_adjusted``: cross entropy of logits + value * log prior (https://arxiv.org/abs/2007.07314). The model's own
    logits are then those of classes that are all alike in number, and are what predicts."""
    value: float = 0.0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """(K,) per task: what a label of each class counts, in a weighted mean. A task without one: all alike."""
    log_priors: Mapping[str, Tensor] = field(default_factory=dict)
    """(K,) per task, for ``logit_adjusted``: log of each class's share of the training labels."""


PLAIN = Criterion()


def parse_loss(loss: str) -> tuple[str, float]:
    """``ce``, ``focal:2``, ``logit_adjusted:1`` -> kind and value; a bare name takes its usual value."""
    kind, colon, value = loss.partition(":") if isinstance(loss, str) else (str(loss), "", "")
    usual = f"use ce, {', '.join(f'{name}:{number:g}' for name, number in _USUAL.items())}"
    if kind not in LOSSES or (colon and kind == "ce"):
        raise ValueError(f"loss={loss!r} is not known; {usual}")
    try:
        number = float(value) if colon else _USUAL.get(kind, 0.0)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise ValueError(f"loss={loss!r}: {value!r} is no number from 0 to 100; {usual}")
    return kind, number


def criterion_of(
    loss: str,
    class_weights: Mapping[str, str | Mapping[str, float]],
    tasks: Sequence[Task],
    targets: Tensor,
    device: torch.device | str = "cpu",
) -> Criterion:
    """The criterion that a setup spells, for the training labels ``targets`` (n, columns), NaN where missing.

    ``class_weights`` by task, or under ``"*"`` for all: ``"balanced"`` (a class's weight is inverse to its number,
    with mean 1 over the labels), or a weight per class name (``"0"`` and ``"1"`` for a binary task without names; 1
    where none is given). Raises ValueError on a task or class that is not there.
    """
    kind, value = parse_loss(loss)
    columns = target_slices(tasks)
    labelled = {task.name: columns[task.name] for task in tasks if task.kind in ("multiclass", "binary")}
    if odd := sorted(set(class_weights) - set(labelled) - {"*"}):
        raise ValueError(f"class_weights for {odd}: the tasks with classes are {sorted(labelled)}")
    weights, log_priors = {}, {}
    for task in tasks:
        if task.name not in labelled:
            continue
        known = column(targets, labelled[task.name], task)
        counts = torch.bincount(known[~torch.isnan(known)].long(), minlength=len(_classes(task))).double()
        if wanted := class_weights.get(task.name, class_weights.get("*")):
            weights[task.name] = _weights(task, wanted, counts).float().to(device)
        if kind == "logit_adjusted":  # a class without a label counts as if it had one: its log would be infinite
            some = counts.clamp(min=1)
            log_priors[task.name] = (some / some.sum()).log().float().to(device)
    return Criterion(kind, value, weights, log_priors)


def _classes(task: Task) -> tuple[str, ...]:
    return task.classes or ("0", "1")


def _weights(task: Task, wanted: str | Mapping[str, float], counts: Tensor) -> Tensor:
    """(K,) float64."""
    if isinstance(wanted, str):  # "balanced"; a class that has no labels is never looked up
        return counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))
    classes = _classes(task)
    if odd := sorted(set(wanted) - set(classes)):
        raise ValueError(f"class_weights of task {task.name!r} name {odd}; its classes are {list(classes)}")
    return torch.tensor([wanted.get(name, 1.0) for name in classes], dtype=torch.float64)


def standardisation(table: ClipTable, tasks: Sequence[Task]) -> Standard:
    """Mean and standard deviation of each regression target on the given (training) clips."""
    stats = {}
    for task in tasks:
        if task.kind == "regression":
            known = table.targets(task.name)
            known = known[~np.isnan(known)]
            stats[task.name] = (float(known.mean()), max(float(known.std()), 1e-6))
    return stats


def task_loss(
    task: Task,
    output: Tensor,
    target: Tensor,
    standard: Standard,
    *,
    label_smoothing: float = 0.0,
    criterion: Criterion = PLAIN,
) -> Tensor:
    """Mean loss over the clips that have this label; exactly zero (with a graph) where none has.

    ``output`` (B, K) or (B,); ``target`` (B,), of a multilabel task (B, K), with NaN where missing. Cross entropy,
    binary cross entropy (each as the ``criterion`` says; multilabel: the plain one, over the classes that are known),
    or squared error of the standardised value.
    """
    known = ~torch.isnan(target)
    if not known.any():
        return output.float().sum() * 0
    output, target = output[known].float(), target[known]
    if task.kind == "multilabel":
        return F.binary_cross_entropy_with_logits(output, target.float())
    if task.kind in ("multiclass", "binary"):
        return _class_loss(task, output, target, label_smoothing, criterion)
    mean, std = standard[task.name]
    return F.mse_loss(output, ((target - mean) / std).float())


def _class_loss(task: Task, output: Tensor, target: Tensor, smoothing: float, criterion: Criterion) -> Tensor:
    """Of known labels; the mean is over labels, each as often as its class's weight says."""
    if (prior := criterion.log_priors.get(task.name)) is not None:
        output = output + criterion.value * (prior if task.kind == "multiclass" else prior[1] - prior[0])
    weight, labels = criterion.weights.get(task.name), target.long()
    if criterion.kind != "focal":
        if task.kind == "multiclass":
            return F.cross_entropy(output, labels, weight=weight, label_smoothing=smoothing)
        if weight is None:
            return F.binary_cross_entropy_with_logits(output, target.float())
    if task.kind == "multiclass":
        each = F.cross_entropy(output, labels, reduction="none", label_smoothing=smoothing)
        own = output.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    else:
        each = F.binary_cross_entropy_with_logits(output, target.float(), reduction="none")
        own = -each
    if criterion.kind == "focal":
        each = each * (-torch.expm1(own)).clamp(min=1e-6) ** criterion.value  # 1 - p, exact near p = 1
    counts = torch.ones_like(each) if weight is None else weight[labels]
    return (counts * each).sum() / counts.sum()


def column(targets: Tensor, where: slice, task: Task) -> Tensor:
    """A task's part of targets (B, columns): (B,), or (B, K) of a multilabel task."""
    return targets[:, where] if task.kind == "multilabel" else targets[:, where.start]


def task_losses(
    tasks: Sequence[Task],
    outputs: Mapping[str, Tensor],
    targets: Tensor,
    standard: Standard,
    *,
    label_smoothing: float = 0.0,
    pairing: Pairing | None = None,
    criterion: Criterion = PLAIN,
) -> dict[str, Tensor]:
    """A scalar per task; ``targets`` (B, columns), one column per task, K of a multilabel one.

    With a ``pairing`` the clips are mixed ones: their targets stay as they were, and :func:`mixed_loss` takes each from
    both sides.
    """
    losses = {}
    how: dict[str, Any] = {"label_smoothing": label_smoothing, "criterion": criterion}
    columns = target_slices(tasks)
    for task in tasks:
        output, target = outputs[task.name], column(targets, columns[task.name], task)
        if pairing is None:
            losses[task.name] = task_loss(task, output, target, standard, **how)
        else:
            losses[task.name] = mixed_loss(task, output, target, standard, pairing, **how)
    return losses


def summed(losses: Mapping[str, Tensor]) -> Tensor:
    """Plain sum over the tasks: the number that is comparable between ways of balancing them."""
    return torch.stack(list(losses.values())).sum()


def total_loss(
    tasks: Sequence[Task], outputs: Mapping[str, Tensor], targets: Tensor, standard: Standard, **how: Any
) -> Tensor:
    """Plain sum of :func:`task_losses`, which see."""
    return summed(task_losses(tasks, outputs, targets, standard, **how))


def labelled_clips(tasks: Sequence[Task], targets: Tensor, pairing: Pairing | None = None) -> dict[str, int]:
    """How many clips of a batch take part in each task's loss. ``targets`` (B, columns) as for :func:`task_losses`; a
    mixed clip takes part where it or its partner has a label, but in a regression, which needs both."""
    known, counts = ~torch.isnan(targets), []
    for task, where in zip(tasks, target_slices(tasks).values(), strict=True):
        own = known[:, where].any(1)
        if pairing is not None:
            partners = own[pairing.partner]
            own = own & partners if task.kind == "regression" else own | partners
        counts.append(own.sum())
    return dict(zip((task.name for task in tasks), torch.stack(counts).tolist(), strict=True))


def mixed_loss(
    task: Task,
    output: Tensor,
    target: Tensor,
    standard: Standard,
    pairing: Pairing,
    *,
    label_smoothing: float = 0.0,
    criterion: Criterion = PLAIN,
) -> Tensor:
    """Loss of mixed clips: ``weight`` times that of their own labels plus the rest times that of their partners'.

    For classes this is the cross entropy with soft labels, since that is linear in them, but a label that is missing on
    one side is left out on that side only. A regression target is interpolated, and needs both.
    """
    if task.kind == "regression":
        return task_loss(task, output, pairing.blended(target), standard)
    own, partners = (
        task_loss(task, output, labels, standard, label_smoothing=label_smoothing, criterion=criterion)
        for labels in (target, target[pairing.partner])
    )
    return pairing.weight * own + (1 - pairing.weight) * partners


def decide(task: Task, output: Tensor, standard: Standard) -> tuple[np.ndarray, list[list[float]]]:
    """Logits -> predictions float64 (n,) (class index, 0/1 at probability 0.5, value, number of a multilabel task's
    classes above 0.5) and probabilities per clip."""
    output = output.detach().double().cpu()
    if task.kind == "multiclass":
        probabilities = output.softmax(-1)
        return probabilities.argmax(-1).double().numpy(), probabilities.tolist()
    if task.kind == "binary":
        positive = output.sigmoid()
        return (positive > 0.5).double().numpy(), torch.stack([1 - positive, positive], dim=1).tolist()
    if task.kind == "multilabel":
        each = output.sigmoid()
        return (each > 0.5).sum(1).double().numpy(), each.tolist()
    mean, std = standard[task.name]
    return (output * std + mean).numpy(), [[] for _ in output]
