"""Why did the model say that, where and when: one verb, every method, one number per token of a clip."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.analysis.explaining.attention import attention_maps, gradient_attention, task_attention
from workbench.analysis.explaining.attention import rollout as rollout
from workbench.analysis.explaining.attnlrp import relevance
from workbench.analysis.explaining.baselines import BASELINES
from workbench.analysis.explaining.baselines import baseline_pixels as baseline_pixels
from workbench.analysis.explaining.gradients import (
    TOLERANCE,
    Found,
    completeness_error,
    grad_cam,
    gradient_x_activation,
    integrated_gradients,
    noise_tunnel,
)
from workbench.analysis.explaining.gradients import integrate_gradients as integrate_gradients
from workbench.analysis.explaining.taps import Layer, TaskOutput, check_layer, picked, places
from workbench.analysis.explaining.targets import Target, frames_of
from workbench.analysis.explaining.targets import evaluating as evaluating
from workbench.analysis.explaining.targets import resolve_target as resolve_target
from workbench.analysis.explaining.tubes import Tube, check_tube, tube_attributions
from workbench.analysis.maps import Maps
from workbench.data.tables import ClipTable, Task
from workbench.models.tml import TML
from workbench.training.predict import pick_device

log = logging.getLogger(__name__)

# What each method is by default taken at ("layer"), and whether it says against, too ("signed").
_LAYERS: dict[str, Layer] = {
    "attnlrp": "embedding", "integrated_gradients": "embedding", "gradient_x_activation": "embedding", "grad_cam": -1
}  # fmt: skip
_BY_HEAD = ("attention", "task_attention")
_FROM_BASELINE = ("integrated_gradients", "occlusion", "ablation", "shapley")
_TUBES = ("occlusion", "ablation", "shapley")
_SIGNED = ("attnlrp", "integrated_gradients", "gradient_x_activation", *_TUBES)
_OWN_PASS = ("attention", "rollout", "task_attention", "gradient_attention", "attnlrp")  # and need no target
_ONE_PASS = ("gradient_x_activation", "grad_cam")
METHODS = (
    "attention", "rollout", "task_attention", "gradient_attention", "attnlrp", "integrated_gradients",
    "gradient_x_activation", "grad_cam", "occlusion", "ablation", "shapley",
)  # fmt: skip
BATCH = 16  # clips per plain pass
CPU_BYTES = 2**30  # memory for one pass, where none is named; on a GPU half of what is free
_KEPT = 40  # numbers per token, feature and block that a backward pass keeps: 16 (nano) to 41 (ViViT), by tracing.py


@dataclass(frozen=True)
class _Asked:
    """What a call of :func:`explain` asks for, checked."""

    model: TML
    task: Task
    method: str
    layer: Layer | None
    baseline: str
    steps: int
    tube: Tube
    permutations: int
    passes: int
    seed: int
    progress: bool


def explain(
    run: Any, clips: ClipTable | np.ndarray | Tensor, *, method: str = "attnlrp", task: str | None = None,
    target: Target = None, layer: Layer | None = None, head: int | None = None, baseline: str = "blur",
    steps: int = 64, tube: Tube | None = None, permutations: int = 10, noise_samples: int = 0, noise_std: float = 0.05,
    memory_bytes: int | None = None, seed: int = 0, device: str = "auto", progress: bool = True,
) -> Maps:  # fmt: skip
    """Explain one task's output of ``run`` for some clips.

    ``run``: a Run, or anything with ``model(device) -> TML`` and, for a table, ``protocol``.
    ``clips``: a :class:`ClipTable` (decoded by the run's protocol) or uint8 (B, T, H, W, 3) at the model's own size.
    ``task``: None is the run's first. ``target``: class index or name, or one per clip; None is what was predicted. A
    binary or regression task has one output and takes no target.

    ``method``. Start with the first; check with the second; the third is the slow referee:

    - ``attnlrp``: relevance of each token to the target (https://arxiv.org/abs/2402.05602); one forward, one backward.
    - ``integrated_gradients`` of the token embeddings (https://arxiv.org/abs/1703.01365), from a ``baseline`` clip.
      Steps double from ``steps`` up to 512 until the completeness error is below 1 %.
    - ``shapley``: mean effect of a space-time tube over random orders (``permutations``) in which tubes come in.
    - ``occlusion``, ``ablation``: the output minus what it is with one tube replaced by the baseline;
      ``tube=(1, 1, 1)`` leaves out each token, ``(1, H', W')`` each time step.
    - ``gradient_x_activation``; ``grad_cam`` (https://arxiv.org/abs/1610.02391).
    - ``gradient_attention``: attention where raising it raises the target (https://arxiv.org/abs/2103.15679).
    - ``attention`` (each layer and head), ``rollout`` (https://arxiv.org/abs/2005.00928) and ``task_attention`` (each
      layer and head of the task's query): where the model looked, whatever the class. Attention, not an explanation.
      The first two are read out as the task's head reads the tokens.

    Not offered: Captum's ``DeepLift``, which on tiny models of the four video families missed completeness by 12 % to
    138 % of the output's change, and its ``LRP``, which has no rule for their first layers and stops there. Concept
    vectors (TCAV, https://arxiv.org/abs/1711.11279) are not built: a concept's score means nothing without a
    significance test against random concepts.

    ``layer``: where gradients and relevance are taken: ``"pixels"``, ``"embedding"`` or a block's number; for
    ``attention`` and ``task_attention`` the one to keep. ``head``: of those two, the one to keep.
    ``baseline``: ``blur``, ``mean``, ``black`` or ``frozen`` (the central frame, held). ``tube``: tokens (t', h', w').
    ``noise_samples``: average the map over that many noisy copies (``noise_std``, a share of the range of values).
    ``memory_bytes``: for one pass; it sets how many clips, steps or tubes go together, never a result.
    Raises ValueError naming what is accepted. A map that did not converge is returned with ``converged=False``.
    """
    _check(method, baseline, steps, permutations, noise_samples, noise_std, layer, head)
    where = str(pick_device(device))
    model: TML = run.model(where)
    chosen = model.task(task) if task else model.tasks[0]
    asked = _Asked(
        model, chosen, method, check_layer(model.backbone, _LAYERS[method] if layer is None else layer)
        if method in _LAYERS else None, baseline, steps, check_tube(model.backbone.grid, tube), permutations,
        _passes(model, method, memory_bytes, where), seed, progress,
    )  # fmt: skip
    frames, clip_ids = frames_of(run, clips, progress)
    with evaluating(model):
        pixel_values = model.backbone.prepare(torch.from_numpy(frames)).to(where)  # (B, T, C, H, W)
        indices, outputs = None, None
        if target is not None or chosen.num_outputs == 1:
            indices = resolve_target(chosen, target, torch.zeros(len(frames), chosen.num_outputs))[0]
        if noise_samples or method not in (_OWN_PASS if indices is None else (*_OWN_PASS, *_ONE_PASS)):
            outputs = _outputs(asked, pixel_values)  # (B, K); else the method's own pass has them
            indices = resolve_target(chosen, target, outputs)[0]
        if noise_samples:
            assert indices is not None
            extra: dict[str, Any] = {}
            found = _noisy(asked, pixel_values, indices, noise_samples, noise_std)
        else:
            found, extra, own = _values(asked, pixel_values, indices, outputs)
            outputs = own if outputs is None else outputs
        assert outputs is not None
        indices, names = resolve_target(chosen, target, outputs)
    if extra and not extra["converged"]:
        bad = [clip_ids[i] for i in np.flatnonzero(extra["completeness_error"] >= TOLERANCE)]
        log.warning("%s did not converge for %s: do not read these maps", method.replace("_", " "), bad)
    if method in _BY_HEAD:
        found, layer = _kept(found, layer, head)
    values = found.detach().cpu().numpy()
    return Maps(
        method, chosen.name, names, values.reshape(*values.shape[:-1], *model.backbone.grid).astype(np.float32),
        method in _SIGNED, frames, clip_ids, layer=layer if asked.layer is None else asked.layer, head=head,
        output=picked(outputs, indices).cpu().numpy(), noise_samples=noise_samples,
        baseline=baseline if method in _FROM_BASELINE else None, **extra,
    )  # fmt: skip


def _check(
    method: str, baseline: str, steps: int, permutations: int, noise_samples: int, noise_std: float,
    layer: Layer | None, head: int | None,
) -> None:  # fmt: skip
    for name, value, least in (
        ("steps", steps, 1),
        ("permutations", permutations, 1),
        ("noise_samples", noise_samples, 0),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if noise_std <= 0:
        raise ValueError(f"noise_std={noise_std} must be above 0; noise_samples=0 turns the noise off")
    for name, text, allowed in (("method", method, METHODS), ("baseline", baseline, BASELINES)):
        if text not in allowed:
            raise ValueError(f"{name}={text!r} is not one of {', '.join(allowed)}")
    if layer is not None and method not in (*_LAYERS, *_BY_HEAD):
        raise ValueError(f"method={method!r} takes no layer; those that do are {', '.join((*_LAYERS, *_BY_HEAD))}")
    if head is not None and method not in _BY_HEAD:
        raise ValueError(f"method={method!r} takes no head; those that do are {', '.join(_BY_HEAD)}")


def _passes(model: TML, method: str, memory_bytes: int | None, device: str) -> int:
    """Clips that go through the model at once; on a CPU not more than fit its caches, unless memory is named."""
    backbone, most = model.backbone, None
    if memory_bytes is None:
        on_gpu = device.startswith("cuda")
        small = 4 if method in _TUBES else BATCH  # more is slower there, measured with Captum's Shapley sampling
        memory_bytes, most = (torch.cuda.mem_get_info(device)[0] // 2, None) if on_gpu else (CPU_BYTES, small)
    numbers = math.prod(backbone.grid) * backbone.hidden_size
    blocks = len(backbone.blocks)
    if method in _TUBES:
        numbers *= _KEPT  # of one block at a time
    elif method in ("attention", "rollout", "task_attention"):
        numbers *= _KEPT + 2 * blocks  # and all queries and keys
    else:
        numbers *= _KEPT * blocks
    fits = max(1, memory_bytes // (4 * numbers))
    return fits if most is None else min(fits, most)


def _values(
    asked: _Asked, pixel_values: Tensor, targets: list[int] | None, outputs: Tensor | None = None
) -> tuple[Tensor, dict[str, Any], Tensor | None]:
    """(B, N), or (B, L, A, N); what is known of its completeness; and the outputs, if they were come by."""
    if asked.method == "integrated_gradients":
        assert asked.layer is not None and targets is not None
        values, error, used = integrated_gradients(
            asked.model, asked.task.name, pixel_values, targets, _baseline(asked, pixel_values), asked.layer,
            steps=asked.steps, passes=asked.passes, progress=asked.progress,
        )  # fmt: skip
        return values, _audit(error) | {"steps": used}, None
    size = min(asked.passes, BATCH)
    one, parts = _METHODS[asked.method], []
    for start in tqdm(range(0, len(pixel_values), size), "explain", disable=not asked.progress, leave=False):
        some = None if targets is None else targets[start : start + size]
        parts.append(one(asked, pixel_values[start : start + size], some))
    values = torch.cat([value.detach() for value, _ in parts])
    if asked.method == "shapley":
        outputs = _outputs(asked, pixel_values) if outputs is None else outputs
        difference = picked(outputs, targets) - picked(_outputs(asked, _baseline(asked, pixel_values)), targets)
        pairs = zip(values.double().sum(-1).tolist(), difference.tolist(), strict=True)
        return values, _audit(np.array([completeness_error(*pair) for pair in pairs])), None
    own = [given for _, given in parts if given is not None]
    return values, {}, torch.cat(own) if own else None


def _audit(error: np.ndarray) -> dict[str, Any]:
    return {"completeness_error": error, "converged": bool((error < TOLERANCE).all())}


def _noisy(asked: _Asked, pixel_values: Tensor, targets: list[int], samples: int, std: float) -> Tensor:
    def maps(x: Tensor, some: list[int]) -> Tensor:
        return _values(asked, x, some)[0]

    output = TaskOutput(asked.model, asked.task.name)
    return noise_tunnel(output, maps, pixel_values, targets, samples=samples, std=std, seed=asked.seed)


def _baseline(asked: _Asked, pixel_values: Tensor) -> Tensor:
    backbone = asked.model.backbone
    zero = torch.zeros(1, backbone.num_frames, backbone.size_px, backbone.size_px, 3, dtype=torch.uint8)
    black = backbone.prepare(zero)[0, 0, :, 0, 0].to(pixel_values.device)
    return baseline_pixels(pixel_values, black, asked.baseline)


def _attention(asked: _Asked, x: Tensor, _targets: list[int] | None) -> Found:
    with torch.no_grad():
        return attention_maps(asked.model, asked.task.name, x, asked.method)


def _task_attention(asked: _Asked, x: Tensor, _targets: list[int] | None) -> Found:
    with torch.no_grad():
        return task_attention(asked.model, asked.model.backbone(x), asked.task.name)


def _gradient_attention(asked: _Asked, x: Tensor, targets: list[int] | None) -> Found:
    return gradient_attention(asked.model, asked.task.name, x, targets)


def _attnlrp(asked: _Asked, x: Tensor, targets: list[int] | None) -> Found:
    assert asked.layer is not None
    found, outputs = relevance(asked.model, asked.task.name, x, targets, asked.layer)
    return places(found, asked.model.backbone), outputs


def _at_layer(method: Callable[..., Found], asked: _Asked, x: Tensor, targets: list[int] | None) -> Found:
    return method(asked.model, asked.task.name, x, targets, asked.layer)


def _tubes(asked: _Asked, x: Tensor, targets: list[int] | None) -> Found:
    assert targets is not None
    return tube_attributions(
        asked.method, TaskOutput(asked.model, asked.task.name), asked.model.backbone, x, _baseline(asked, x), targets,
        asked.tube, passes=asked.passes, permutations=asked.permutations, seed=asked.seed,
    ), None  # fmt: skip


_METHODS: dict[str, Callable[[_Asked, Tensor, list[int] | None], Found]] = {
    "attention": _attention, "rollout": _attention, "task_attention": _task_attention,
    "gradient_attention": _gradient_attention, "attnlrp": _attnlrp,
    "gradient_x_activation": partial(_at_layer, gradient_x_activation), "grad_cam": partial(_at_layer, grad_cam),
    "occlusion": _tubes, "ablation": _tubes, "shapley": _tubes,
}  # fmt: skip


def _kept(found: Tensor, layer: Layer | None, head: int | None) -> tuple[Tensor, Layer | None]:
    """One layer, one head, or both of (B, L, A, N); the mean over the other, so that a map per clip is left."""
    for name, index, axis in (("layer", layer, 1), ("head", head, 2)):
        if index is not None and not (isinstance(index, int) and -found.shape[axis] <= index < found.shape[axis]):
            raise ValueError(f"{name}={index!r} is not one of the {found.shape[axis]} that this model has, from 0")
    if layer is None and head is None:
        return found, None
    found = found.mean(1) if layer is None else found[:, int(layer)]  # (B, A, N)
    kept = None if layer is None else int(layer)
    return (found.mean(1) if head is None else found[:, head]), kept  # (B, N)


@torch.no_grad()
def _outputs(asked: _Asked, pixel_values: Tensor) -> Tensor:
    output = TaskOutput(asked.model, asked.task.name)
    return torch.cat([output(chunk) for chunk in pixel_values.split(BATCH)])
