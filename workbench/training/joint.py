"""Several tasks in one step while training: what a setup's balance does with their losses, and what is noted of it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from workbench.models.tml import TML
from workbench.training.balance import Balance, BalanceStep
from workbench.training.conflict import Watched, split_parameters, watch_tokens
from workbench.training.setup import Setup

NOTED = ("loss_", "weight_", "norm_", "cosine_")
"""How the columns of a history begin that :meth:`Joint.end_epoch` gives."""


class Joint:
    """The balance of one run, what it needs of the model, and the means of its numbers since the epoch began.

    A part of the run's checkpoint: a resumed run goes on to the bit. Numbers are kept on the device and read once an
    epoch, so that nothing waits for them.
    """

    def __init__(self, setup: Setup, model: TML, device: torch.device | str) -> None:
        self.tasks = tuple(task.name for task in model.tasks)
        self.balance = Balance(setup.balance, self.tasks, seed=setup.seed).to(device)
        self.head_lr = setup.rates[1]
        self._model = model
        anyhow = len(self.tasks) == 1 or self.balance.spec.needs_gradients
        self._every = 0 if anyhow else setup.measure_conflict
        self._split = split_parameters(model, self.balance.spec.at or "tokens")
        rows = 3 + len(self.tasks)  # losses, weights, norms, cosines; a column per task
        self._sums = torch.zeros(2, rows, len(self.tasks), device=device)  # of numbers, and how many

    @property
    def compares(self) -> bool:
        """Whether the tasks' gradients are compared, at some steps at least."""
        return self._every > 0 or (len(self.tasks) > 1 and self.balance.spec.needs_gradients)

    def groups(self) -> list[dict[str, Any]]:
        """What the balance learns, for the optimiser: at the heads' rate, without decay."""
        learned = list(self.balance.parameters())
        return [{"params": learned, "lr": self.head_lr, "peak": self.head_lr, "weight_decay": 0.0}] if learned else []

    def watch(self, step: int) -> AbstractContextManager[Watched]:
        """Round the forward pass of ``step``: keeps its tokens where they are needed."""
        at_tokens = self.balance.spec.at == "tokens" or self._measures(step)
        return watch_tokens(self._model) if at_tokens else nullcontext(Watched())

    def backward(
        self, losses: Mapping[str, Tensor], labelled: Mapping[str, int], seen: Watched, step: int, accumulation: int
    ) -> BalanceStep:
        """Gradients of a batch, divided by ``accumulation``, the batches of its step; see :meth:`Balance.backward`."""
        shared, heads = self._split
        done = self.balance.backward(
            losses, labelled=labelled, tokens=seen.tokens, shared=shared, heads=heads, accumulation=accumulation,
            measure=self._measures(step),
        )  # fmt: skip
        if len(self.tasks) > 1 and done.tasks:
            self._note(done)
        return done

    def end_epoch(self) -> dict[str, float]:
        """Means over the epoch's batches: ``loss_<task>`` and ``weight_<task>`` and, where gradients are compared,
        ``norm_<task>`` and ``cosine_<task>_<other>``; over those batches that tell, NaN without any. Nothing for one
        task."""
        self.balance.end_epoch()
        if len(self.tasks) == 1:
            return {}
        means = (self._sums[0] / self._sums[1]).tolist()
        self._sums.zero_()
        line: dict[str, float] = {}
        for prefix, row in zip(NOTED[: 3 if self.compares else 2], means, strict=False):
            line |= {f"{prefix}{task}": value for task, value in zip(self.tasks, row, strict=True)}
        if self.compares:
            for i, task in enumerate(self.tasks):
                for j in range(i + 1, len(self.tasks)):
                    line[f"cosine_{task}_{self.tasks[j]}"] = means[3 + i][j]
        return line

    def _measures(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    @torch.no_grad()
    def _note(self, done: BalanceStep) -> None:
        line = torch.full_like(self._sums[0], torch.nan)
        rows = torch.tensor([self.tasks.index(task) for task in done.tasks], device=line.device)
        line[0, rows], line[1, rows] = done.losses.to(line), done.weights.to(line)
        if done.conflict is not None:
            line[2, rows] = done.conflict.norms.to(line)
            line[3 + rows[:, None], rows] = done.conflict.cosines.to(line)
        self._sums[0] += torch.nan_to_num(line)
        self._sums[1] += ~torch.isnan(line)

    def state_dict(self) -> dict[str, Any]:
        return {"balance": self.balance.state_dict(), "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.balance.load_state_dict(state["balance"])
            self._sums.copy_(state["sums"])
