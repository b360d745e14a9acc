"""What is to be explained: the clips as the model sees them, and one output for each."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.data.tables import ClipTable, Task
from workbench.training.predict import decode_for

log = logging.getLogger(__name__)

Target = int | str | np.integer | Sequence[int | str] | None


def resolve_target(task: Task, target: Target, outputs: torch.Tensor) -> tuple[list[int], tuple[str, ...]]:
    """Column and name of the output to explain, per clip. ``outputs`` (B, K) decide where ``target`` is None."""
    n = len(outputs)
    if task.kind not in ("multiclass", "multilabel"):
        if target is not None:
            raise ValueError(f"task {task.name!r} is {task.kind} and has one output; target={target!r} must be None")
        return [0] * n, (task.classes[1] if task.classes else task.name,) * n
    if target is None:
        indices = outputs.argmax(-1).tolist()
    else:
        wanted = [target] * n if isinstance(target, int | str | np.integer) else list(target)
        if len(wanted) != n:
            raise ValueError(f"{len(wanted)} targets for {n} clips; give one, or one per clip")
        indices = [_class_index(task, one) for one in wanted]
    return indices, tuple(task.classes[i] for i in indices)


def _class_index(task: Task, target: int | str | np.integer) -> int:
    if isinstance(target, str):
        if target in task.classes:
            return task.classes.index(target)
    elif 0 <= target < len(task.classes):
        return int(target)
    raise ValueError(f"target={target!r} is no class of task {task.name!r}; it has {list(task.classes)}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and float32 inside (bf16 breaks completeness by up to 14 %), weights without gradients; afterwards as
    before. Raises ValueError where the weights themselves are not float32."""
    odd = {p.dtype for p in model.parameters()} - {torch.float32}
    if odd:
        raise ValueError(f"explanations need float32 weights, but the model has {odd}; call model.float() first")
    training = model.training
    kind = next(model.parameters()).device.type
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        model.eval()
        for parameter in trained:  # their gradients are not wanted, and what they need would be kept
            parameter.requires_grad_(False)
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(training)


def frames_of(
    run: Any, clips: ClipTable | np.ndarray | torch.Tensor, progress: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """uint8 frames (B, T, H, W, 3) as the model sees them, and a name for each clip."""
    if isinstance(clips, ClipTable):
        decoded, table = decode_for(run, clips, one_view=True, progress=progress)
        frames, ids = np.array(decoded), tuple(table.frame.clip_id.astype(str))
        if len(ids) < len(clips):
            log.warning("%d of %d clips could not be decoded and are not explained", len(clips) - len(ids), len(clips))
    else:
        frames = np.asarray(clips.cpu() if isinstance(clips, torch.Tensor) else clips)
        ids = tuple(f"clip {i}" for i in range(len(frames)))
    if not len(ids):
        raise ValueError("there is no clip to explain; give at least one that can be decoded")
    return frames, ids
