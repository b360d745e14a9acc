"""Can the map be trusted? Every method on several metrics, side by side with maps that know nothing of the model."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from workbench.analysis.explain import Target, evaluating, explain
from workbench.analysis.maps import Maps
from workbench.analysis.trust.evidence import ExplanationReport as ExplanationReport
from workbench.analysis.trust.evidence import summarise
from workbench.analysis.trust.masks import MASK_METRICS
from workbench.analysis.trust.perturb import ExplainedOutput, area, deletion_curve, fill_pixels
from workbench.analysis.trust.priors import PRIORS, motion_map, prior_maps
from workbench.analysis.trust.randomisation import randomisation_cascade
from workbench.analysis.trust.road import road
from workbench.analysis.trust.sensitivity import TubeInfidelity, largest_sensitivity
from workbench.data.synthetic.planted import token_cover
from workbench.data.tables import ClipTable, Task
from workbench.models.tml import TML
from workbench.training.predict import pick_device

PERTURBATION_METRICS = ("deletion_blur", "deletion_freeze", "insertion_blur", "insertion_freeze", "road", "infidelity")
"""What can be measured without knowing where the evidence is."""
METRICS = (*PERTURBATION_METRICS, *MASK_METRICS)
DEFAULT_METHODS = ("attnlrp", "integrated_gradients", "rollout")
"""The fast map, the audited one, and attention, which is no explanation."""
Method = str | dict[str, Any] | Maps


def explanation_report(
    run: Any, clips: ClipTable | np.ndarray | torch.Tensor,
    methods: Sequence[str] | Mapping[str, Method] = DEFAULT_METHODS, *, task: str | None = None, target: Target = None,
    masks: np.ndarray | None = None, groups: Sequence[Any] | None = None,
    metrics: Sequence[str] | None = None, steps: int = 10, perturbations: int = 20, sensitivity_samples: int = 0,
    randomise: bool = False, resamples: int = 2000, seed: int = 0, device: str = "auto", progress: bool = True,
) -> ExplanationReport:  # fmt: skip
    """Rank explanation methods for this model on these clips, beside a random, a motion-energy and a centre map.

    ``run``, ``clips``, ``task``, ``target``: as for :func:`~workbench.analysis.explain.explain`; targets are settled
    once and shared by all methods. ``methods``: names, or {label: name, or options of ``explain`` such as
    ``{"method": "integrated_gradients", "baseline": "blur"}``, or Maps of the same clips}.
    ``masks``: where the evidence is known to lie, bool, on pixels (B, T, H, W) or tokens (B, T', H', W'); adds the
    metrics ``pointing, mass, temporal_mass, auroc``. ``groups``: what is resampled as one; None takes a table's groups,
    else each clip is its own. ``metrics``: some of :data:`METRICS`; None takes all that can be measured.
    ``steps`` of deletion and insertion; ``perturbations`` per clip of infidelity; ``sensitivity_samples``: jittered
    versions per clip for ``sensitivity_max``, each of which is explained anew (0: none). ``randomise``: also explain
    while the weights are shuffled from the head down.

    Per clip and map about ``4 * (steps + 1) + 10`` forward passes, and ``perturbations`` once.
    Raises ValueError naming what is accepted.
    """
    where = str(pick_device(device))
    wanted = _named(methods)
    found = _explained(run, clips, wanted, task, target, where, progress)
    first = next(iter(found.values()))
    frames, model = first.frames, run.model(where)
    chosen = model.task(first.task)
    known = None if masks is None else token_masks(masks, first.grid)
    codes, labels = group_codes(clips, first.clip_ids, groups)
    chosen_metrics = _chosen(metrics, known, first)
    maps = {name: clip_maps(one) for name, one in found.items()} | prior_maps(frames, first.grid, seed=seed)
    with evaluating(model):
        output = explained_output(model, chosen, frames, first.target, where)
        scores, curves = measure(
            output,
            maps,
            chosen_metrics,
            masks=known,
            steps=steps,
            perturbations=perturbations,
            seed=seed,
            progress=progress,
        )
    again = {name: _reexplain(options, first, chosen, where) for name, options in wanted.items()
             if not isinstance(options, Maps)}  # fmt: skip
    if sensitivity_samples:
        scores["sensitivity_max"] = _sensitivity(again, run, maps, frames, sensitivity_samples, seed)
    table = None
    if randomise:
        table = _randomised(again, run, frames, where, seed, progress)
    summary, ranking = summarise(scores, codes, priors=PRIORS, resamples=resamples, seed=seed)
    return ExplanationReport(
        first.task, first.target, _long(scores, first.clip_ids, labels), summary, ranking, maps, curves,
        int(codes.max()) + 1, resamples, table, tuple(_notes(found, output)),
    )  # fmt: skip


def measure(
    output: ExplainedOutput, maps: Mapping[str, np.ndarray], metrics: Iterable[str], *, masks: np.ndarray | None = None,
    steps: int = 10, perturbations: int = 20, seed: int = 0, progress: bool = True,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[tuple[str, str], np.ndarray]]:  # fmt: skip
    """Each metric of each map: {metric: {map: (B,)}}, and the curves behind deletion and insertion.

    ``maps`` {name: (B, T', H', W')}, on one grid; ``masks`` bool, like them. Call it inside
    :func:`~workbench.analysis.explain.evaluating`.
    """
    metrics = tuple(metrics)
    grid = next(iter(maps.values())).shape[1:]
    fills = {kind: fill_pixels(output.pixel_values, kind) for kind in ("blur", "freeze")}
    foretells = TubeInfidelity(output, fills["blur"], grid, perturbations=perturbations, seed=seed)
    scores: dict[str, dict[str, np.ndarray]] = {metric: {} for metric in metrics}
    curves: dict[tuple[str, str], np.ndarray] = {}
    todo = [(name, metric) for name in maps for metric in metrics]
    for name, metric in tqdm(todo, "trust", disable=not progress, leave=False):
        values = maps[name]
        kind, _, fill = metric.partition("_")
        if metric in MASK_METRICS:
            if masks is None:
                raise ValueError(f"metric {metric!r} needs masks of where the evidence lies")
            scores[metric][name] = MASK_METRICS[metric](values, masks)
        elif metric == "road":
            scores[metric][name] = road(output, values, seed=seed)
        elif metric == "infidelity":
            scores[metric][name] = foretells(values)
        elif metric in PERTURBATION_METRICS:
            curve = deletion_curve(output, fills[fill], values, steps=steps, insertion=kind == "insertion", seed=seed)
            curves[name, metric], scores[metric][name] = curve, area(curve)
        else:
            raise ValueError(f"metric {metric!r} is not one of {', '.join(METRICS)}")
    return scores, curves


def explained_output(model: TML, task: Task, frames: np.ndarray, target: Sequence[str], device: str) -> ExplainedOutput:
    """The output that maps with these targets explain, for these uint8 frames."""
    pixel_values = model.backbone.prepare(torch.from_numpy(frames)).to(device)
    columns = [task.classes.index(name) if task.kind == "multiclass" else 0 for name in target]
    return ExplainedOutput(model, task.name, pixel_values, columns)


def clip_maps(maps: Maps) -> np.ndarray:
    """One map per clip, float32 (B, T', H', W'): over layers and heads the mean."""
    return np.stack([maps.map(i) for i in range(len(maps))])


def token_masks(masks: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Masks on pixels (B, T, H, W) or tokens -> bool (B, T', H', W'): tokens of which more than half is covered."""
    if masks.ndim != 4 or masks.dtype != bool:
        raise ValueError(f"masks are {masks.dtype} {masks.shape}; expected bool (B, T, H, W) or (B, {grid})")
    covered: np.ndarray = token_cover(masks, grid) > 0.5
    return covered


def group_codes(clips: Any, clip_ids: Sequence[str], groups: Sequence[Any] | None) -> tuple[np.ndarray, list[str]]:
    """Codes 0 .. G - 1 and names of what is resampled as one, per explained clip."""
    if groups is not None:
        labels = [str(g) for g in groups]
    elif isinstance(clips, ClipTable):
        by_id = dict(zip(clips.frame.clip_id.astype(str), clips.frame.group.astype(str), strict=True))
        labels = [by_id[name] for name in clip_ids]
    else:
        labels = list(clip_ids)
    if len(labels) != len(clip_ids):
        raise ValueError(f"{len(labels)} groups for {len(clip_ids)} explained clips; give one per clip")
    return np.unique(labels, return_inverse=True)[1], labels


def _named(methods: Sequence[str] | Mapping[str, Method]) -> dict[str, dict[str, Any] | Maps]:
    named: dict[str, Method] = dict(methods) if isinstance(methods, Mapping) else {name: name for name in methods}
    if not named:
        raise ValueError("methods is empty; give at least one name, for example 'rollout'")
    if taken := sorted(set(named) & set(PRIORS)):
        raise ValueError(f"{taken} name priors, which every report has; call the method something else")
    return {label: {"method": m} if isinstance(m, str) else m for label, m in named.items()}


def _explained(
    run: Any,
    clips: Any,
    wanted: Mapping[str, dict[str, Any] | Maps],
    task: str | None,
    target: Target,
    device: str,
    progress: bool,
) -> dict[str, Maps]:
    """Maps of every method, all of the same clips, task and targets as the first's."""
    found: dict[str, Maps] = {}
    for label, options in wanted.items():
        if isinstance(options, Maps):
            one = options
        else:
            given: dict[str, Any] = {"task": task, "target": target, "device": device, "progress": progress}
            if found:
                first = next(iter(found.values()))
                multiclass = run.model(device).task(first.task).kind == "multiclass"
                clips, given["task"] = first.frames, first.task
                given["target"] = list(first.target) if multiclass else None
            one = explain(run, clips, **(given | options))
        first = next(iter(found.values()), one)
        if not np.array_equal(one.frames, first.frames) or one.target != first.target or one.task != first.task:
            raise ValueError(f"the maps {label!r} are of other clips, targets or another task than the first's")
        if one.grid != first.grid:
            raise ValueError(f"the maps {label!r} have the grid {one.grid}, the first's {first.grid}")
        found[label] = one
    return found


def _reexplain(options: dict[str, Any], first: Maps, task: Task, device: str) -> Any:
    """A function (run, frames) -> maps by one method, with task and targets fixed."""
    target = list(first.target) if task.kind == "multiclass" else None
    fixed: dict[str, Any] = {"task": task.name, "target": target, "device": device, "progress": False}
    return lambda run, frames: clip_maps(explain(run, frames, **(fixed | options)))


def _sensitivity(
    again: Mapping[str, Any], run: Any, maps: Mapping[str, np.ndarray], frames: np.ndarray, samples: int, seed: int
) -> dict[str, np.ndarray]:
    """Of every map that can be made anew, :func:`largest_sensitivity`; NaN of one that was handed in."""
    grid = next(iter(maps.values())).shape[1:]
    makers = {name: partial(one, run) for name, one in again.items()} | {"motion": partial(motion_map, grid=grid)}
    found = {name: np.full(len(frames), 0.0 if name in PRIORS else np.nan) for name in maps}  # others never look
    for name, maker in makers.items():
        found[name] = largest_sensitivity(maker, frames, samples=samples, seed=seed)
    return found


def _randomised(
    again: Mapping[str, Any], run: Any, frames: np.ndarray, device: str, seed: int, progress: bool
) -> pd.DataFrame | None:
    parts = []
    for name, one in again.items():

        def explain_run(other: Any, one: Any = one) -> np.ndarray:
            found: np.ndarray = one(other, frames)
            return found

        table = randomisation_cascade(explain_run, run, device=device, seed=seed, progress=progress)
        parts.append(table.assign(method=name))
    return pd.concat(parts, ignore_index=True) if parts else None


def _chosen(metrics: Sequence[str] | None, masks: np.ndarray | None, first: Maps) -> tuple[str, ...]:
    if masks is not None and len(masks) != len(first):
        raise ValueError(f"{len(masks)} masks for {len(first)} explained clips; give one per clip")
    possible = METRICS if masks is not None else PERTURBATION_METRICS
    if metrics is None:
        return possible
    if not metrics or set(metrics) - set(possible):
        without = "" if masks is not None else " (without masks)"
        raise ValueError(f"metrics={list(metrics)}: choose among {', '.join(possible)}{without}")
    return tuple(metrics)


def _long(
    scores: Mapping[str, Mapping[str, np.ndarray]], clip_ids: Sequence[str], groups: Sequence[str]
) -> pd.DataFrame:
    return pd.concat(
        [
            pd.DataFrame({"method": name, "metric": metric, "clip_id": clip_ids, "group": groups, "value": values})
            for metric, by_method in scores.items() for name, values in by_method.items()
        ],
        ignore_index=True,
    )  # fmt: skip


def _notes(found: Mapping[str, Maps], output: ExplainedOutput) -> list[str]:
    notes = [f"{name} did not converge: do not read its maps." for name, one in found.items() if not one.converged]
    if output.task.kind == "regression":
        notes.append(
            "The task is a regression: deletion and insertion follow its value, so 'lower' means a lower value."
        )
    return notes
