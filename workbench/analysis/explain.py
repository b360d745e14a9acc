"""Why did the model say that: attention, attention rollout, and Captum's integrated gradients, on the token grid."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerIntegratedGradients
from scipy.ndimage import gaussian_filter
from torch import nn
from tqdm.auto import tqdm

from workbench.analysis.maps import Maps
from workbench.data.tables import ClipTable, Task
from workbench.models.tml import TML
from workbench.models.tokens import dense_attentions
from workbench.training.predict import decode_for, pick_device

log = logging.getLogger(__name__)

Target = int | str | np.integer | Sequence[int | str] | None

METHODS = ("attention", "rollout", "integrated_gradients")
BASELINES = ("blur", "mean", "black")
ATTENTION_BYTES = 2**29  # all layers' (B, A, N, N) are held at once: about 110 clips of nano, one of a VideoMAE-B
GRADIENT_TOKENS = 8192  # tokens per pass with gradients: 32 steps of nano, 5 of a VideoMAE-B
BATCH = 16  # clips per plain pass
TOLERANCE = 0.01  # completeness error of 1 %


def explain(
    run: Any, clips: ClipTable | np.ndarray | torch.Tensor, *, method: str = "rollout", task: str | None = None,
    target: Target = None, baseline: str = "blur", steps: int = 64, device: str = "auto", progress: bool = True,
) -> Maps:  # fmt: skip
    """Explain one task's output of ``run`` for some clips.

    ``run``: a Run, or anything with ``model(device) -> TML`` and, for a table, ``protocol``.
    ``clips``: a :class:`ClipTable` (decoded by the run's protocol) or uint8 (B, T, H, W, 3) at the model's own size.
    ``method``: ``attention`` (each layer and head: how much attention a token receives), ``rollout`` (attention
    followed through the layers, https://arxiv.org/abs/2005.00928) or ``integrated_gradients`` of the token embeddings
    (https://arxiv.org/abs/1703.01365), measured from a ``baseline`` clip: ``blur``, ``mean`` or ``black``.
    The first two are read out as the task's head reads the tokens, by its query's cross-attention or evenly for a
    mean; they say where the model looked whatever the class. Integrated gradients say what moved the target's output.
    ``task``: None is the run's first. ``target``: class index or name, or one per clip; None is what was predicted. A
    binary or regression task has one output and takes no target.
    ``steps``: integration steps to begin with; they double, up to 512, until the completeness error is below 1 %.
    Raises ValueError naming what is accepted. A map that did not converge is returned with ``converged=False``.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    for name, value, allowed in (("method", method, METHODS), ("baseline", baseline, BASELINES)):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
    where = str(pick_device(device))
    model: TML = run.model(where)
    chosen = model.task(task) if task else model.tasks[0]
    frames, clip_ids = _frames(run, clips, progress)
    with evaluating(model):
        pixel_values = model.backbone.prepare(torch.from_numpy(frames)).to(where)  # (B, T, C, H, W)
        indices, names = resolve_target(chosen, target, _outputs(model, pixel_values, chosen.name))
        extra: dict[str, Any] = {}
        if method == "integrated_gradients":
            values, error, used = _integrated_gradients(model, chosen, pixel_values, indices, baseline, steps, progress)
            extra = {
                "baseline": baseline, "completeness_error": error, "steps": used,
                "converged": bool((error < TOLERANCE).all()),
            }  # fmt: skip
            if not extra["converged"]:
                bad = [clip_ids[i] for i in np.flatnonzero(error >= TOLERANCE)]
                log.warning("integrated gradients did not converge for %s: do not read these maps", bad)
        else:
            values = _attention(model, chosen, pixel_values, method)
    values = values.reshape(*values.shape[:-1], *model.backbone.grid).astype(np.float32)
    return Maps(method, chosen.name, names, values, method == "integrated_gradients", frames, clip_ids, **extra)


def rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Attention followed through the layers: (B, A, N, N) per layer, first layer first -> (B, N, N), rows sum to 1.

    Each layer counts as ``0.5 * mean over heads + 0.5 * I`` (the residual path), rows renormalised; entry (i, j) of the
    product is how much of output token i comes from input token j. Abnar and Zuidema, https://arxiv.org/abs/2005.00928
    """
    if not attentions:
        raise ValueError("no attention maps to roll out; take them from Backbone.forward_with_attention")
    eye = torch.eye(attentions[0].shape[-1], device=attentions[0].device)  # (N, N)
    product = eye.expand(len(attentions[0]), -1, -1)  # (B, N, N)
    for attention in attentions:
        mixed = 0.5 * attention.float().mean(1) + 0.5 * eye  # (B, N, N)
        product = mixed / mixed.sum(-1, keepdim=True) @ product  # later layers act from the left
    return product


def integrate_gradients(
    forward: nn.Module, layer: nn.Module, inputs: torch.Tensor, baselines: torch.Tensor, targets: Sequence[int], *,
    first_steps: int = 64, max_steps: int = 512, tolerance: float = TOLERANCE, internal_batch_size: int = 32,
    progress: bool = False,
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:  # fmt: skip
    """Captum's layer integrated gradients that checks itself, one input at a time.

    ``forward``: ``inputs`` (B, ...) -> outputs (B, K); ``layer``: whose output is attributed, between its values for
    ``inputs`` and for ``baselines``. Steps double from ``first_steps`` until the attributions sum to the difference of
    the outputs within ``tolerance`` of it, or ``max_steps`` are used. ``internal_batch_size``: steps per pass.
    Returns attributions (like the layer's output), completeness error (B,) and steps (B,).
    """
    method = LayerIntegratedGradients(forward, layer)
    found, errors, used = [], [], []
    rows = tqdm(list(zip(inputs, baselines, targets, strict=True)), "explain", disable=not progress, leave=False)
    for x, x0, target in rows:
        with torch.no_grad():
            difference = (forward(x[None]) - forward(x0[None]))[0, target].item()
        steps = first_steps
        while True:
            attributions = method.attribute(
                x[None], x0[None], target=target, n_steps=steps, internal_batch_size=internal_batch_size
            ).detach()
            # The floor keeps float32 noise from counting when the two outputs are equal.
            error = abs(attributions.double().sum().item() - difference) / max(abs(difference), 1e-4)
            if error < tolerance or steps >= max_steps:
                break
            steps = min(2 * steps, max_steps)
        found.append(attributions)
        errors.append(error)
        used.append(steps)
    return torch.cat(found), np.array(errors), np.array(used)


def baseline_pixels(pixel_values: torch.Tensor, black: torch.Tensor, kind: str) -> torch.Tensor:
    """What "nothing to see" looks like, (B, T, C, H, W) like ``pixel_values``.

    ``blur``: the clip itself through a Gaussian of an eighth of its width and a quarter of its length: colours and
    light stay, shape and motion go. ``mean``: its mean colour everywhere. ``black``: ``black`` (C,), a black pixel.
    """
    if kind == "black":
        return black.view(1, 1, -1, 1, 1).expand_as(pixel_values).contiguous()
    if kind == "mean":
        return pixel_values.mean((1, 3, 4), keepdim=True).expand_as(pixel_values).contiguous()
    _, frames, _, height, width = pixel_values.shape
    sigma = (0, frames / 4, 0, height / 8, width / 8)
    blurred = gaussian_filter(pixel_values.cpu().numpy(), sigma, mode="nearest")
    return torch.from_numpy(blurred).to(pixel_values)


def resolve_target(task: Task, target: Target, outputs: torch.Tensor) -> tuple[list[int], tuple[str, ...]]:
    """Column and name of the output to explain, per clip. ``outputs`` (B, K) decide where ``target`` is None."""
    n = len(outputs)
    if task.kind != "multiclass":
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
    """Eval mode and float32 inside (bf16 breaks completeness by up to 14 %); afterwards the mode it had."""
    odd = {p.dtype for p in model.parameters()} - {torch.float32}
    if odd:
        raise ValueError(f"explanations need float32 weights, but the model has {odd}; call model.float() first")
    training = model.training
    kind = next(model.parameters()).device.type
    try:
        model.eval()
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        model.train(training)


class TaskOutput(nn.Module):
    """One task's outputs as a (B, K) tensor: what Captum can differentiate."""

    def __init__(self, model: TML, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        y = self.model(pixel_values)[self.task]  # (B, K) or (B,)
        return y if y.ndim == 2 else y[:, None]  # (B, K)


def _frames(
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


@torch.no_grad()
def _outputs(model: TML, pixel_values: torch.Tensor, task: str) -> torch.Tensor:
    return torch.cat([model(chunk)[task] for chunk in pixel_values.split(BATCH)])


@torch.no_grad()
def _attention(model: TML, task: Task, pixel_values: torch.Tensor, method: str) -> np.ndarray:
    """(B, N) for rollout, (B, L, A, N) for attention; sums to 1 over N.

    Prefix tokens (CLS) belong to no place: what flows to them is left out, and the rest scaled to sum to 1. L counts
    softmaxes: a family that divides attention has two to a block, time and space.
    """
    backbone, found = model.backbone, []
    per_clip = 4 * len(backbone.blocks) * backbone.num_heads * math.prod(backbone.grid) ** 2  # bytes
    for chunk in pixel_values.split(max(1, ATTENTION_BYTES // per_clip)):
        tokens, seen = backbone.forward_with_attention(chunk)
        attentions = dense_attentions(seen)  # L times (B, A, P + N, P + N)
        b, n, _ = tokens.tokens.shape
        if model.head_kind == "query":
            reading = model.forward_tokens_with_attention(tokens)[1][task.name]  # (B, N)
        else:
            reading = torch.full((b, n), 1 / n, device=chunk.device)  # (B, N): a mean reads every token alike
        prefix = attentions[0].shape[-1] - n
        reading = F.pad(reading, (prefix, 0))
        if method == "rollout":
            read = torch.einsum("bi,bij->bj", reading, rollout(attentions))  # (B, P + N)
        else:
            read = torch.stack([torch.einsum("bi,baij->baj", reading, a) for a in attentions], 1)  # (B, L, A, P + N)
        found.append(read[..., prefix:] / read[..., prefix:].sum(-1, keepdim=True) if prefix else read)
    return torch.cat(found).cpu().numpy()


def _integrated_gradients(
    model: TML, task: Task, pixel_values: torch.Tensor, indices: list[int], baseline: str, steps: int, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attributions summed over the hidden size (B, N), completeness error (B,), steps (B,)."""
    backbone = model.backbone
    zero = torch.zeros(1, backbone.num_frames, backbone.size_px, backbone.size_px, 3, dtype=torch.uint8)
    black = backbone.prepare(zero)[0, 0, :, 0, 0].to(pixel_values.device)
    attributions, error, used = integrate_gradients(
        TaskOutput(model, task.name), backbone.embedding, pixel_values,
        baseline_pixels(pixel_values, black, baseline), indices, first_steps=steps,
        internal_batch_size=max(1, GRADIENT_TOKENS // math.prod(backbone.grid)), progress=progress,
    )  # fmt: skip
    places = backbone.tokens_of(attributions).tokens  # without what CLS tokens got
    return places.sum(-1).cpu().numpy(), error, used  # (B, N, D) -> (B, N)
