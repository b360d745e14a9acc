"""The training doctor: watches a run while it trains, and says what is wrong and what to do about it.

It must not cost what it saves. Per batch it keeps the logits that are there anyway; at the first steps and then at
every sixteenth it takes the norm of each gradient, on the device; once an epoch it looks at both; after epochs 1, 2,
4, 8 and so on, and after the last, at every frozen weight. Nothing waits for the device but these looks. What it says
is logged, and kept in ``run.json`` (``run.findings``).

=====================  ==============================================================================================
code                   seen when
=====================  ==============================================================================================
``not-learning``       outputs say no more of the training targets than guessing does (a loss at ln K, or at the
                       entropy of the class shares) for two epochs, after at least 3 epochs and 50 steps
``constant``           the same, and every clip gets nearly the same answer
``worse-than-guess``   after as many steps, the plain training loss lies well above that of guessing
``head-not-training``  a task's last layer is frozen, gets no gradient or does not move
``no-gradient``        another weight that should train never got a gradient
``frozen-moved``       a weight that should stay put did not, by a single bit
``overfitting``        val loss a quarter above its best, val score of three epochs no better, train loss a fifth lower
``rate-out-of-range``  a peak rate above 30 times, or below a hundredth of, the strategy's default
``val-unlabelled``     no val clip has a label of a task, or all have the same one
``wrong-clips``        the network gets another number of frames or size than it takes; or clips without any motion
                       though several frames are sampled; or clips of one colour
=====================  ==============================================================================================

A loss that is not a number stops training; :mod:`workbench.training.checking.nonfinite` says where it began.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.data.mix import Pairing
from workbench.data.tables import Task
from workbench.data.tasks import target_slices
from workbench.models.tml import TML
from workbench.training.balance_spec import parse_balance
from workbench.training.checking import checks
from workbench.training.checking.evidence import Evidence, Seen
from workbench.training.checking.findings import Finding
from workbench.training.setup import Setup

log = logging.getLogger(__name__)

_LEVEL = {"error": logging.WARNING, "warning": logging.WARNING, "note": logging.INFO}
ENOUGH_EPOCHS, ENOUGH_STEPS, ENOUGH_SAMPLES = 3, 50, 4


class Checkup:
    """Watches one run. ``train_targets`` and ``val_targets`` float (n, tasks), NaN where missing; a multilabel task
    takes a column per class.

    Made before the first step, when weights are as the strategy left them. The loop calls :meth:`at_start` with the
    first batch, :meth:`after_backward` when gradients are there and not yet clipped, :meth:`after_epoch` with a line of
    the history; :meth:`state_dict` goes into the checkpoint, so that a resumed run ends with the same findings.
    ``findings`` are what was found so far, each once; ``evidence`` holds, per epoch and task, what the outputs said of
    the targets. Raises ValueError where the targets are not those of the tasks.
    """

    def __init__(
        self, model: TML, tasks: Sequence[Task], setup: Setup, train_targets: Tensor, *,
        val_targets: Tensor | None = None,
    ) -> None:  # fmt: skip
        for name, targets in (("train_targets", train_targets), ("val_targets", val_targets)):
            if targets is not None and (targets.ndim != 2 or targets.shape[1] != sum(t.num_targets for t in tasks)):
                raise ValueError(
                    f"{name} of shape {tuple(targets.shape)} do not fit {len(tasks)} task(s); expected (clips, tasks), "
                    "with a column per class of a multilabel one"
                )
        self.model, self.tasks, self.setup = model, tuple(tasks), setup
        self.findings: list[Finding] = []
        self.evidence: list[dict[str, Evidence]] = []
        self._seen = Seen(self.tasks)
        self._parameters = dict(model.named_parameters())
        self._trains = [name for name, p in self._parameters.items() if p.requires_grad]
        self._frozen = {name: p for name, p in self._parameters.items() if not p.requires_grad}
        self._heads = {name: p for name, p in self._parameters.items() if name.startswith("head.linears.")}
        self._stamps = stamps(self._frozen | self._heads)  # as they are now, before the first step
        self._norms: Tensor | None = None  # (trainable,): largest gradient norm so far, -1 where there was none
        self._labelled = torch.zeros(len(self.tasks), dtype=torch.bool)  # in the batches whose norms were taken
        self._sampled = 0
        self._uninformed = {task.name: 0 for task in self.tasks}  # epochs running
        # Tasks that the setup itself takes out, by static:<task>=0: that they do not learn is no finding.
        self._left_out = {name for name, weight in parse_balance(setup.balance, solvers=False).weights if weight == 0}
        self._epoch = self._step = 0
        self._note(checks.check_rates(setup))
        if val_targets is not None:
            self._note(checks.check_val(self.tasks, val_targets))

    def at_start(self, clips: Tensor) -> None:
        """The first batch as it goes to the network, uint8 (B, T, H, W, C)."""
        backbone = self.model.backbone
        self._note(checks.check_clips(
            clips.detach(), num_frames=backbone.num_frames, size_px=backbone.size_px, source=backbone.source,
            sampling=self.setup.sampling,
        ))  # fmt: skip

    def after_backward(
        self, step: int, outputs: Mapping[str, Tensor], targets: Tensor, pairing: Pairing | None = None
    ) -> None:
        """A batch's gradients are there, not yet clipped. ``step``: optimiser steps done. ``targets`` (B, tasks) as
        they were before mixing."""
        self._seen.add(outputs, targets, pairing)
        if step < 16 or step % 16 == 0:
            self._take_norms(targets)

    @torch.no_grad()
    def _take_norms(self, targets: Tensor) -> None:
        grads = [self._parameters[name].grad for name in self._trains]
        there = [g for g in grads if g is not None]
        if there:
            found = iter(torch._foreach_norm(there))
            none = there[0].new_full((), -1.0)
            norms = torch.stack([none if g is None else next(found).to(none) for g in grads])
            self._norms = norms if self._norms is None else torch.maximum(self._norms.to(norms.device), norms)
        known = ~torch.isnan(targets)
        labelled = torch.stack([known[:, where].any() for where in target_slices(self.tasks).values()])
        self._labelled = self._labelled.to(labelled.device) | labelled
        self._sampled += 1

    def after_epoch(self, line: checks.Line, history: Sequence[checks.Line]) -> list[Finding]:
        """After each epoch, with its line of the history (``epoch, step, train_loss, val_loss, val_score``) and all
        lines so far, this one included. Returns what is new."""
        said = len(self.findings)
        self._epoch, self._step = int(line["epoch"]), int(line["step"])
        if self._epoch & (self._epoch - 1) == 0 or self._epoch == self.setup.epochs:
            same = self._same(self._frozen)
            self._note(checks.check_frozen(self.setup, [name for name in self._frozen if name not in same]))
        if self._sampled >= ENOUGH_SAMPLES:
            never = [-1.0] * len(self._trains)
            norms = dict(zip(self._trains, never if self._norms is None else self._norms.tolist(), strict=True))
            known = zip(self.tasks, self._labelled.tolist(), strict=True)
            labelled = [t for t, some in known if some and t.name not in self._left_out]
            self._note(checks.check_heads(self.tasks, labelled, norms, self._same(self._heads), self._step))
            ndims = {name: self._parameters[name].ndim for name in self._trains}
            self._note(checks.check_gradients(norms, ndims, self._sampled))
        self._look_at_outputs()
        self._note(checks.check_overfitting(history))
        self._seen.clear()
        return self.findings[said:]

    def _same(self, parameters: Mapping[str, nn.Parameter]) -> set[str]:
        """Names of those that are what they were before the first step."""
        return {name for name, stamp in stamps(parameters).items() if stamp == self._stamps[name]}

    def _look_at_outputs(self) -> None:
        """A task's labels may lie in few of the clips: an epoch without any counts for nothing."""
        found = {task.name: e for i, task in enumerate(self.tasks) if (e := self._seen.evidence(i)) is not None}
        self.evidence.append(found)
        enough = self._epoch >= ENOUGH_EPOCHS and self._step >= ENOUGH_STEPS
        warned = any(f.code == "rate-out-of-range" for f in self.findings)
        for task in self.tasks:
            if (seen := found.get(task.name)) is None or task.name in self._left_out:
                continue
            self._uninformed[task.name] = self._uninformed[task.name] + 1 if seen.uninformed else 0
            stuck = self._uninformed[task.name] >= 2
            if enough:
                self._note(checks.check_learning(
                    task, seen, stuck=stuck, steps=self._step, setup=self.setup, rate_warned=warned
                ))  # fmt: skip

    def _note(self, found: Iterable[Finding]) -> None:
        """Keep and log what has not been said yet."""
        said = {(f.code, f.about) for f in self.findings}
        for finding in found:
            if (finding.code, finding.about) not in said:
                dated = replace(finding, epoch=self._epoch, step=self._step)
                self.findings.append(dated)
                log.log(_LEVEL[dated.severity], "training doctor: %s", dated)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, on the CPU."""
        return {
            "findings": [f.to_json() for f in self.findings],
            "evidence": [{name: vars(e) for name, e in epoch.items()} for epoch in self.evidence],
            "seen": self._seen.state_dict(),
            "stamps": dict(self._stamps),
            "norms": None if self._norms is None else self._norms.cpu(),
            "labelled": self._labelled.cpu(),
            "sampled": self._sampled,
            "uninformed": dict(self._uninformed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was; an empty one is the beginning. Weights go on being compared with those before
        the first step, so a frozen one that a checkpoint changed is found too."""
        if not state:
            return
        self.findings = [Finding.from_json(f) for f in state["findings"]]
        self.evidence = [{name: Evidence(**e) for name, e in epoch.items()} for epoch in state["evidence"]]
        self._seen.load_state_dict(state["seen"])
        self._stamps, self._norms, self._labelled = dict(state["stamps"]), state["norms"], state["labelled"]
        self._sampled, self._uninformed = state["sampled"], dict(state["uninformed"])


@torch.no_grad()
def stamps(parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """The sum of each weight's bits, read as whole numbers: exact, and another one when a bit changes (but for changes
    that cancel, which an optimiser's do not)."""
    if not parameters:
        return {}
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for p in parameters.values():
        flat = p.detach().reshape(-1)
        whole = flat.numel() * flat.element_size() % 8 == 0  # eight bytes at a time: several times faster
        sums.append(flat.view(torch.int64 if whole else kinds[flat.element_size()]).sum(dtype=torch.int64))
    return dict(zip(parameters, torch.stack(sums).tolist(), strict=True))
