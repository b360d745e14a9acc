"""Which training clips taught the model this: Captum's TracInCPFast on a task's last layer."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from captum.influence import TracInCPFast
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from workbench.analysis.explaining.refit import refitted
from workbench.analysis.explaining.targets import evaluating, frames_of
from workbench.data.tables import ClipTable, Task
from workbench.models.tml import TML
from workbench.training.predict import pick_device

log = logging.getLogger(__name__)

Clips = ClipTable | np.ndarray | Tensor
Labels = Sequence[int] | Sequence[float] | np.ndarray | None
OF = ("prediction", "label")
BATCH = 16  # clips per plain pass


@dataclass(frozen=True, repr=False)
class Influence:
    """How much each training clip taught the model about each test clip. Made by :func:`influence`."""

    task: str
    of: str
    """``prediction``: about what the model says of a test clip; ``label``: about what is true of it."""
    scores: np.ndarray
    """float64 (tests, trained): positive where a step on the training clip lowers the test clip's loss."""
    own: np.ndarray
    """float64 (trained,): influence of each training clip on itself; large for what had to be learned by heart."""
    train_ids: tuple[str, ...]
    test_ids: tuple[str, ...]
    train_labels: np.ndarray
    checkpoints: int
    """States of training that the scores are sums over."""
    penalties: tuple[float, ...] = ()
    """Of the last layers fitted anew (``refit=True``), one per state; empty: the runs' own last layers."""

    def __repr__(self) -> str:
        return (
            f"Influence of {len(self.train_ids)} training clips on the {self.of} of task {self.task!r} for "
            f"{len(self.test_ids)} clips; {self.checkpoints} checkpoint(s), last layer only"
            f"{', fitted anew' if self.penalties else ''}"
        )

    def table(self, top: int = 5) -> pd.DataFrame:
        """The ``top`` most helpful and most harmful training clips of each test clip, strongest first.

        Columns ``test_clip, effect, rank, train_clip, train_label, score``; an effect is helpful or harmful.
        """
        rows = []
        for test, scores in zip(self.test_ids, self.scores, strict=True):
            order = np.argsort(-scores, kind="stable")
            for effect, chosen in (("helpful", order[:top]), ("harmful", order[::-1][:top])):
                rows += [
                    {"test_clip": test, "effect": effect, "rank": rank, "train_clip": self.train_ids[i],
                     "train_label": self.train_labels[i], "score": scores[i]}
                    for rank, i in enumerate(chosen, 1)
                ]  # fmt: skip
        return pd.DataFrame(rows)

    def suspects(self, top: int = 20) -> pd.DataFrame:
        """Training clips to look at for a wrong label: those with the largest influence on themselves.

        As good as the last layer: of one that underfits its features, the list holds clips that are merely hard. On
        planted wrong labels a logistic probe with too strong a penalty ranked them at a precision of 0.73 among 20, the
        same features with the penalty chosen by cross-validation at 0.93: use ``influence(..., refit=True)``.
        Columns ``train_clip, train_label, self_influence``. TracIn's own use of it: https://arxiv.org/abs/2002.08484,
        section 4.1.
        """
        order = np.argsort(-self.own, kind="stable")[:top]
        return pd.DataFrame({
            "train_clip": [self.train_ids[i] for i in order], "train_label": self.train_labels[order],
            "self_influence": self.own[order],
        })  # fmt: skip


def influence(
    run: Any, train_clips: Clips, test_clips: Clips, *, task: str | None = None, of: str = "prediction",
    train_labels: Labels = None, test_labels: Labels = None, refit: bool = False, device: str = "auto",
    progress: bool = True,
) -> Influence:  # fmt: skip
    """Which training clips taught ``run`` what it says of ``test_clips``.

    ``run``: a Run, or several states of one training (runs of the same setup stopped after different epochs), whose
    influences add up. ``train_clips``, ``test_clips``: tables with labels, or uint8 (B, T, H, W, 3) with
    ``train_labels`` (class indices, 0/1 or values). ``task``: None is the run's first; multiclass, binary or
    regression. ``of``: ``"prediction"``, what the model says of a test clip, or ``"label"``, what is true of it (needs
    labels). Training clips without a label are left out.
    ``refit``: first fit the task's last layer anew to the training clips, with the penalty that clips held out (by
    their labels as given) ask for; the way to look for wrong labels with a model that is not trained to its end. The
    prediction is then that layer's. Clips are held out from the last layer only: an encoder fine-tuned on them has
    seen their labels, wrong ones too, and its features are then no fair test of a penalty.

    TracIn (https://arxiv.org/abs/2002.08484) follows the loss through the steps of training; Captum's fast form looks
    at the gradients of the last layer's weights alone. Its limits here: a run keeps the weights of one epoch, so one
    run is one checkpoint, the learned one; what clips taught the encoder is not seen; clips are as the protocol reads
    them, without augmentation; scores are relative, and a clip fitted perfectly at the end has none.
    Raises ValueError naming what is accepted.
    """
    if of not in OF:
        raise ValueError(f"of={of!r} is not one of {', '.join(OF)}")
    states = list(run) if isinstance(run, Sequence) else [run]
    if not states:
        raise ValueError("no run to take influence from; give a run, or several states of one training")
    where = str(pick_device(device))
    scores = own = None
    penalties: list[float] = []
    for state in states:
        model: TML = state.model(where)
        chosen = model.task(task) if task else model.tasks[0]
        if chosen.kind == "multilabel":
            raise ValueError(f"task {chosen.name!r} is multilabel; influence needs multiclass, binary or regression")
        shift = getattr(state, "standard", {}).get(chosen.name, (0.0, 1.0))
        trained = _Side(state, model, chosen, train_clips, train_labels, shift, progress)
        tested = _Side(state, model, chosen, test_clips, test_labels, shift, progress)
        trained.keep(~np.isnan(trained.needed("train_clips")))
        linear = _linear(model, chosen)
        if refit:
            linear, penalty = refitted(linear, chosen, trained.features, trained.needed("train_clips"), trained.groups)
            penalties.append(penalty)
            tested.read(linear)
        targets = tested.said if of == "prediction" else torch.from_numpy(tested.needed("test_clips"))
        tracer = _tracer(linear, chosen, trained)
        found = tracer.influence((tested.features, _shaped(chosen, targets))).double().cpu().numpy()
        selfs = tracer.self_influence().double().cpu().numpy()
        scores, own = (found, selfs) if scores is None or own is None else (scores + found, own + selfs)
    assert scores is not None and own is not None and trained.labels is not None
    return Influence(
        chosen.name, of, scores, own, trained.ids, tested.ids, trained.labels, len(states), tuple(penalties)
    )  # fmt: skip


class _Side:
    """Training or test clips as the last layer sees them."""

    def __init__(
        self, run: Any, model: TML, task: Task, clips: Clips, labels: Labels, shift: tuple[float, float], progress: bool
    ) -> None:
        frames, self.ids = frames_of(run, clips, progress)
        self.features, self.outputs = _last_layer(model, task, frames, progress)  # (n, D), (n, K)
        self.shift = shift if task.kind == "regression" else (0.0, 1.0)
        self.labels = _labels(task, clips, labels, self.ids)
        self.groups = _groups(clips, self.ids)
        self.kind = task.kind
        self.said = self._said()

    def _said(self) -> Tensor:
        said = self.outputs.argmax(-1) if self.kind == "multiclass" else self.outputs[:, 0]
        return (said > 0).float() if self.kind == "binary" else said

    @torch.no_grad()
    def read(self, linear: nn.Linear) -> None:
        """Take what ``linear`` says in place of what the model's own last layer said."""
        self.outputs = linear(self.features)
        self.said = self._said()

    def needed(self, name: str) -> np.ndarray:
        """float64 (n,), NaN where missing; a regression's in the model's units."""
        if self.labels is None:
            raise ValueError(f"{name} has no labels; give a table of clips or {name.replace('clips', 'labels')}")
        return (self.labels - self.shift[0]) / self.shift[1]

    def keep(self, rows: np.ndarray) -> None:
        assert self.labels is not None
        self.features, self.labels = self.features[torch.from_numpy(rows)], self.labels[rows]
        self.ids = tuple(np.array(self.ids)[rows])
        self.groups = None if self.groups is None else [g for g, kept in zip(self.groups, rows, strict=True) if kept]


def _labels(task: Task, clips: Clips, labels: Labels, ids: tuple[str, ...]) -> np.ndarray | None:
    if isinstance(clips, ClipTable):
        known = {t.name: t for t in clips.tasks}
        if task.name not in known:
            return None
        coder = task if task.kind == "multiclass" else known[task.name]
        encoded = np.asarray(coder.encode(clips.frame[task.name]), np.float64)
        by_id = dict(zip(clips.frame.clip_id.astype(str), encoded, strict=True))
        return np.array([by_id[i] for i in ids])  # without those that could not be decoded
    if labels is None:
        return None
    found = np.asarray(labels, np.float64)
    if found.shape != (len(ids),):
        raise ValueError(f"labels of shape {found.shape} for {len(ids)} clips; give one number per clip")
    return found


def _groups(clips: Clips, ids: tuple[str, ...]) -> list[str] | None:
    if not isinstance(clips, ClipTable):
        return None
    by_id = dict(zip(clips.frame.clip_id.astype(str), clips.frame.group.astype(str), strict=True))
    return [by_id[i] for i in ids]


def _linear(model: TML, task: Task) -> nn.Linear:
    linear = model.head.linears[[t.name for t in model.tasks].index(task.name)]
    assert isinstance(linear, nn.Linear)
    return linear


def _last_layer(model: TML, task: Task, frames: np.ndarray, progress: bool) -> tuple[Tensor, Tensor]:
    """What goes into the task's last layer (n, D), and what comes out (n, K), on the CPU."""
    linear = _linear(model, task)
    kept: list[tuple[Tensor, Tensor]] = []
    hook = linear.register_forward_hook(lambda _m, args, y: kept.append((args[0].cpu(), y.cpu())))
    try:
        with evaluating(model), torch.no_grad():
            starts = range(0, len(frames), BATCH)
            for start in tqdm(starts, "reading clips", disable=not progress, leave=False):
                batch = torch.from_numpy(frames[start : start + BATCH])
                model(model.backbone.prepare(batch).to(model.backbone.device))
    finally:
        hook.remove()
    features, outputs = zip(*kept, strict=True)
    return torch.cat(features), torch.cat(outputs)


def _shaped(task: Task, targets: Tensor) -> Tensor:
    return targets.long() if task.kind == "multiclass" else targets.float()[:, None]


def _tracer(linear: nn.Linear, task: Task, trained: _Side) -> TracInCPFast:
    """Captum's tracer on a copy of the last layer alone: its input is all that the fast form needs of the model."""
    linear = copy.deepcopy(linear).cpu()
    losses: dict[str, nn.Module] = {
        "multiclass": nn.CrossEntropyLoss(reduction="sum"), "binary": nn.BCEWithLogitsLoss(reduction="sum"),
        "regression": nn.MSELoss(reduction="sum"),
    }  # fmt: skip
    targets = torch.from_numpy(trained.needed("train_clips"))
    return TracInCPFast(
        linear, linear, TensorDataset(trained.features, _shaped(task, targets)),
        checkpoints=["kept"], checkpoints_load_func=lambda _model, _checkpoint: 1.0,  # it holds those weights already
        loss_fn=losses[task.kind], batch_size=1024,
    )  # fmt: skip
