"""A run as plain Hugging Face files: to push to a hub, to use without the workbench, or to transfer from again."""

import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForVideoClassification, PreTrainedModel

from workbench.models.adapters import inserted, merge_lora
from workbench.models.backbones import Backbone, classifier_parts, load_backbone, new_classifier
from workbench.models.hub import quiet
from workbench.models.tml import TML
from workbench.training.runs import Run

TOLERANCE = 1e-4
"""Largest difference of a written model's outputs from the run's, on a noise clip; relative to values above one."""


def export(run: Run, folder: str | Path, *, encoder: bool = False) -> Path:
    """Write ``run`` as ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``; returns the folder.

    The whole model, with its head and class names, for ``AutoModelForVideoClassification.from_pretrained(folder)``,
    which has the same logits; that is checked before the folder appears. It can be had of a run with one
    multiclass task whose head is a linear layer on the mean token, from a backbone whose own classifier reads the mean
    too (VideoMAE with ``use_mean_pooling``, so ``nano``).

    ``encoder=True``: the backbone alone, as trained, for ``load_backbone(folder)``; of any run but one with adapters,
    which are layers that no plain checkpoint has. LoRA is added to the weights it stands beside in either case.

    Raises ValueError where a plain checkpoint cannot hold the run, saying why, FileExistsError where ``folder`` holds
    something already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{str(folder)!r} exists and is not empty; name a new folder")
    model = run.model()
    if inserted(model) == "adapter":
        raise ValueError(
            f"run {run.name!r} has adapters, new layers that no plain checkpoint can hold; keep the run folder, or "
            "train with lora, which can be added to the weights"
        )
    merge_lora(model)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _write_encoder(model.backbone, temporary) if encoder else _write_classifier(run, model, temporary)
        if folder.exists():
            folder.rmdir()  # an empty one; os.replace would refuse it on some systems
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_encoder(backbone: Backbone, folder: Path) -> None:
    backbone.save_pretrained(folder)
    again, noise = load_backbone(folder), _noise(backbone)
    for name, of in (("tokens", lambda b: b(noise).tokens), ("pooled tokens", lambda b: b.pool(b(noise).tokens))):
        if not _close(of(backbone), of(again)):
            raise ValueError(f"{backbone.source}: the {name} of its {backbone.family} checkpoint differ when read back")


def _write_classifier(run: Run, model: TML, folder: Path) -> None:
    backbone = model.backbone
    why = _no_classifier(model)
    if why is None:
        task = model.tasks[0]
        try:
            classifier = _classifier(model)
        except ValueError as error:
            why = str(error)
        else:
            backbone.save_pretrained(folder)  # for its preprocessor_config.json
            classifier.save_pretrained(folder)
            with quiet():
                plain = AutoModelForVideoClassification.from_pretrained(folder).eval()
            noise = _noise(backbone)
            if _close(model(noise)[task.name], plain(noise).logits):
                return
            why = f"the plain {backbone.family} classifier does not pool the tokens by their mean"
    raise ValueError(f"run {run.name!r} has no plain classifier: {why}; export its encoder (encoder=True, --encoder)")


def _no_classifier(model: TML) -> str | None:
    """Why the head does not fit a plain classifier, or None."""
    if len(model.tasks) != 1:
        return f"it has {len(model.tasks)} tasks, and a plain one has one"
    if model.tasks[0].kind != "multiclass":
        return f"task {model.tasks[0].name!r} is {model.tasks[0].kind}, not multiclass"
    if model.head_kind != "mean":
        return f"its head is {model.head_kind!r}, not a linear layer on the mean token"
    return None


def _classifier(model: TML) -> PreTrainedModel:
    """The family's own classifier with the weights of ``model``. Raises ValueError where it has none that fits."""
    classes = model.tasks[0].classes
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    classifier = new_classifier(model.backbone.config.to_dict() | names)
    encoder, norm, linear = classifier_parts(classifier)
    encoder.load_state_dict(model.backbone.model.state_dict())
    norm.load_state_dict(model.backbone.norm.state_dict())
    linear.load_state_dict(model.head.linears[0].state_dict())
    return classifier.eval()


def _noise(backbone: Backbone) -> torch.Tensor:
    """One clip of ``pixel_values`` (1, T, C, size_px, size_px)."""
    shape = (1, backbone.num_frames, len(backbone.preprocessing.mean), backbone.size_px, backbone.size_px)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool(((ours - theirs).abs() <= TOLERANCE * ours.abs().clamp(min=1)).all())
