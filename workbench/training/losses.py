"""One loss per kind of task, missing labels masked, and the way back from logits to predictions."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.data.mix import Pairing
from workbench.data.tables import ClipTable, Task

Standard = dict[str, tuple[float, float]]


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
    task: Task, output: Tensor, target: Tensor, standard: Standard, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean loss over the clips that have this label; exactly zero (with a graph) where none has.

    ``output`` (B, K) or (B,); ``target`` (B,) with NaN where missing. Cross entropy, binary cross entropy, or squared
    error of the standardised value.
    """
    known = ~torch.isnan(target)
    if not known.any():
        return output.float().sum() * 0
    output, target = output[known].float(), target[known]
    if task.kind == "multiclass":
        return F.cross_entropy(output, target.long(), label_smoothing=label_smoothing)
    if task.kind == "binary":
        return F.binary_cross_entropy_with_logits(output, target.float())
    mean, std = standard[task.name]
    return F.mse_loss(output, ((target - mean) / std).float())


def total_loss(
    tasks: Sequence[Task],
    outputs: Mapping[str, Tensor],
    targets: Tensor,
    standard: Standard,
    *,
    label_smoothing: float = 0.0,
    pairing: Pairing | None = None,
) -> Tensor:
    """Plain sum over the tasks; ``targets`` (B, tasks). With a ``pairing`` the clips are mixed ones: their targets stay
    as they were, and :func:`mixed_loss` takes each from both sides."""
    terms = []
    for i, task in enumerate(tasks):
        output, target = outputs[task.name], targets[:, i]
        if pairing is None:
            terms.append(task_loss(task, output, target, standard, label_smoothing=label_smoothing))
        else:
            terms.append(mixed_loss(task, output, target, standard, pairing, label_smoothing=label_smoothing))
    return torch.stack(terms).sum()


def mixed_loss(
    task: Task, output: Tensor, target: Tensor, standard: Standard, pairing: Pairing, *, label_smoothing: float = 0.0
) -> Tensor:
    """Loss of mixed clips: ``weight`` times that of their own labels plus the rest times that of their partners'.

    For classes this is the cross entropy with soft labels, since that is linear in them, but a label that is missing on
    one side is left out on that side only. A regression target is interpolated, and needs both.
    """
    if task.kind == "regression":
        return task_loss(task, output, pairing.blended(target), standard)
    own, partners = (
        task_loss(task, output, labels, standard, label_smoothing=label_smoothing)
        for labels in (target, target[pairing.partner])
    )
    return pairing.weight * own + (1 - pairing.weight) * partners


def decide(task: Task, output: Tensor, standard: Standard) -> tuple[np.ndarray, list[list[float]]]:
    """Logits -> predictions float64 (n,) (class index, 0/1 at probability 0.5, value) and probabilities per clip."""
    output = output.detach().double().cpu()
    if task.kind == "multiclass":
        probabilities = output.softmax(-1)
        return probabilities.argmax(-1).double().numpy(), probabilities.tolist()
    if task.kind == "binary":
        positive = output.sigmoid()
        return (positive > 0.5).double().numpy(), torch.stack([1 - positive, positive], dim=1).tolist()
    mean, std = standard[task.name]
    return (output * std + mean).numpy(), [[] for _ in output]
