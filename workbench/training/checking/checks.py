"""The rules of the training doctor: from what was seen of a run to findings, with no state of their own."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from workbench.data.tables import Task
from workbench.data.tasks import target_slices
from workbench.models.strategies import parse_strategy
from workbench.training.checking.evidence import Evidence
from workbench.training.checking.findings import Finding
from workbench.training.setup import Setup

Line = Mapping[str, float]

# Defaults for one strategy differ by about ten between papers and data sets; a slip of the keyboard by a hundred.
TOO_HIGH, TOO_LOW = 30.0, 0.01


def check_rates(setup: Setup) -> Iterator[Finding]:
    """Peak rates far from the strategy's defaults, which are for Adam and AdamW."""
    if setup.optimizer == "sgd":
        return
    frozen = parse_strategy(setup.strategy).frozen
    usual = setup.replace(lr=None, head_lr=None).rates
    for name, rate, default in zip(("lr", "head_lr"), setup.rates, usual, strict=True):
        if name == "lr" and frozen:
            continue
        what = f"{name}={rate:g} for {setup.strategy!r}, whose default is {default:g}"
        if rate > TOO_HIGH * default:
            yield Finding(
                "rate-out-of-range", "warning", f"{what}, will probably undo what was pretrained, or diverge",
                f"Lower {name}, or let find_lr(setup, clips) look for one", name,
            )  # fmt: skip
        elif rate < TOO_LOW * default:
            yield Finding(
                "rate-out-of-range", "warning", f"{what}, will hardly change a thing in {setup.epochs} epochs",
                f"Raise {name}, or let find_lr(setup, clips) look for one", name,
            )  # fmt: skip


def check_val(tasks: Sequence[Task], val: Tensor) -> Iterator[Finding]:
    """Val targets (n, tasks; a multilabel task takes a column per class) by which nothing can be judged."""
    columns = target_slices(tasks)
    for task in tasks:
        own = val[:, columns[task.name]]
        known = own[~torch.isnan(own)]
        if not len(known):
            yield Finding(
                "val-unlabelled", "warning",
                f"none of the {len(val)} val clips has a label of {task.name!r}: nothing tells whether it is learned",
                "Move labelled clips to val, by whole groups", task.name,
            )  # fmt: skip
        elif len(known) > 1 and bool((known == known[0]).all()):
            clips = int((~torch.isnan(own)).any(1).sum())
            yield Finding(
                "val-unlabelled", "warning",
                f"all {clips} val labels of {task.name!r} are the same: its val score means nothing",
                "Split again (split_by_group), or take more groups into val", task.name,
            )  # fmt: skip


def check_clips(clips: Tensor, *, num_frames: int, size_px: int, source: str, sampling: str) -> Iterator[Finding]:
    """A batch uint8 (B, T, H, W, C), against what the backbone takes."""
    wanted = (num_frames, size_px, size_px)
    if clips.ndim != 5 or tuple(clips.shape[1:4]) != wanted:
        yield Finding(
            "wrong-clips", "error",
            f"the clips are {' x '.join(map(str, clips.shape[1:4]))} (frames, height, width), but {source} takes "
            f"{' x '.join(map(str, wanted))}",
            f"Decode with num_frames={num_frames}, size_px={size_px}; or Setup(num_frames=..., size_px=...), which "
            "adapts the backbone's positions",
        )  # fmt: skip
        return
    flat = clips.flatten(1)
    blank = flat.amax(1) == flat.amin(1)
    still = ~clips[:, 1:].ne(clips[:, :-1]).flatten(1).any(1)
    if int(blank.sum()) > len(clips) / 2:
        yield Finding(
            "wrong-clips", "error", f"{int(blank.sum())} of the first {len(clips)} clips show one colour only",
            "Look at them (wb.ClipPlayer), and let clips.doctor() read the files",
        )  # fmt: skip
    elif sampling != "single" and num_frames > 1 and int(still.sum()) > len(clips) / 2:
        yield Finding(
            "wrong-clips", "warning",
            f"in {int(still.sum())} of the first {len(clips)} clips all {num_frames} frames are the same",
            "Their windows may be shorter than two frames: look at start_seconds, end_seconds and sampling",
        )  # fmt: skip


def check_frozen(setup: Setup, moved: Sequence[str]) -> Iterator[Finding]:
    """Names of frozen weights that are no longer what they were."""
    if moved:
        yield Finding(
            "frozen-moved", "error",
            f"{len(moved)} weight(s) that {setup.strategy!r} keeps frozen have changed, first {moved[0]}",
            "Something else writes to them: a second optimiser, a shared tensor, a copy. This run is not the strategy "
            "that it is named after",
        )  # fmt: skip


def check_heads(
    tasks: Sequence[Task], labelled: Sequence[Task], norms: Mapping[str, float], unmoved: set[str], steps: int
) -> Iterator[Finding]:
    """Last layers that do not train. ``norms``: largest gradient norm of each weight that should train, -1 where it
    never had a gradient; ``labelled``: the tasks with a label in the batches that were looked at."""
    for i, task in enumerate(tasks):
        name = f"head.linears.{i}.weight"
        if name not in norms:
            reason, fix = "is frozen", "Apply the strategy again: under every one the heads train"
        elif task not in labelled:
            continue
        elif norms[name] <= 0:
            reason = "gets no gradient" if norms[name] < 0 else "gets a gradient of exactly zero"
            fix = "Is its output part of the loss, and not detached? Are the features that it reads all zero?"
        elif name in unmoved:
            reason = f"has not moved in {steps} steps"
            fix = "Is head_lr above 0, and is the layer among the optimiser's parameters?"
        else:
            continue
        yield Finding("head-not-training", "error", f"the last layer of {task.name!r} {reason}", fix, task.name)


def check_gradients(norms: Mapping[str, float], ndims: Mapping[str, int], sampled: int) -> Iterator[Finding]:
    """Weights, apart from the last layers, that never had a gradient in ``sampled`` steps. A bias may have one of zero
    by mathematics: softmax does not see that of attention keys."""
    idle = [
        name for name, norm in norms.items()
        if not name.startswith("head.linears.") and (norm < 0 or (norm == 0 and ndims[name] > 1))
    ]  # fmt: skip
    if idle:
        yield Finding(
            "no-gradient", "error",
            f"{len(idle)} of {len(norms)} weights that should train got no gradient in {sampled} steps looked at, "
            f"first {idle[0]}",
            "Do the outputs depend on them? Is nothing detached, and no torch.no_grad() inside the model?",
        )  # fmt: skip


def check_learning(
    task: Task, seen: Evidence, *, stuck: bool, steps: int, setup: Setup, rate_warned: bool
) -> Iterator[Finding]:
    """Of an epoch after enough steps. ``stuck``: for two epochs the outputs have said nothing of the targets."""
    guess = _guess(task, seen)
    losses = f"{task.name!r}: after {steps} steps the training loss is {seen.loss:.3f}, that of guessing {guess}"
    # Class weights, focal loss and logit adjustment want other logits than plain cross entropy does.
    plain = setup.loss == "ce" and setup.class_weights is None
    if stuck and seen.spread < 0.01:
        fix = "Lower lr (the features may have collapsed), and look at what the network is given"
        same = f"; every clip gets the same answer to within {seen.spread:.1g}"
        yield Finding("constant", "warning", losses + same, fix, task.name)
    elif stuck:
        if rate_warned:
            fix = "The learning rate is out of range: mend that first"
        elif parse_strategy(setup.strategy).pretrained:
            fix = "Are the labels right, and visible in the clips as sampled? Else raise lr (find_lr) or train longer"
        else:
            fix = "From random weights it can take thousands of steps: begin from a pretrained backbone or train longer"
        yield Finding("not-learning", "warning", losses, fix, task.name)
    elif plain and seen.loss > 1.3 * seen.guess + 0.1:
        yield Finding("worse-than-guess", "warning", losses, "Lower lr and head_lr, or warm up for longer", task.name)


def _guess(task: Task, seen: Evidence) -> str:
    if task.kind == "regression":
        return f"{seen.guess:.3f} (always the mean)"
    classes = max(2, len(task.classes))
    even = abs(seen.guess - math.log(classes)) < 0.02
    return f"{seen.guess:.3f} " + (f"(ln {classes})" if even else f"(the entropy of its {classes} classes)")


def check_overfitting(history: Sequence[Line]) -> Iterator[Finding]:
    """``history`` up to now, with ``epoch, train_loss, val_loss, val_score``. A val loss alone often rises while the
    score still improves (the model grows too sure), so the score must have stopped as well."""
    now = history[-1]
    known = [h for h in history if math.isfinite(h["val_loss"]) and math.isfinite(h["val_score"])]
    if len(known) < 4 or now is not known[-1]:
        return
    best = min(known, key=lambda h: h["val_loss"])
    top = max(h["val_score"] for h in known if h["epoch"] <= best["epoch"] + 1)
    recent = sum(h["val_score"] for h in known[-3:]) / 3  # a val score of few clips jumps about
    risen = now["val_loss"] > 1.25 * best["val_loss"] + 0.05
    fallen = now["train_loss"] < 0.8 * best["train_loss"]
    if now["epoch"] >= best["epoch"] + 3 and risen and fallen and recent <= top:
        yield Finding(
            "overfitting", "warning",
            f"since epoch {int(best['epoch'])} the val loss rose from {best['val_loss']:.3f} to {now['val_loss']:.3f} "
            f"and the val score is {recent:.3f} (mean of three epochs), no better than the {top:.3f} of then, while "
            f"the train loss fell from {best['train_loss']:.3f} to {now['train_loss']:.3f}",
            "Fewer epochs or patience=3, more augmentation (rand_augment, mixup), or train less of the backbone "
            "(linear, lora)",
        )  # fmt: skip
