"""How several losses become one step: weights on the losses, or on the tasks' gradients where the tasks meet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workbench.training.aggregation import aggregation_weights, gramian, torchjd_module
from workbench.training.balance_spec import BalanceSpec, parse_balance
from workbench.training.conflict import Conflict, gradients

_GRADNORM_RATE = 0.025


@dataclass(frozen=True)
class BalanceStep:
    """What one step did; tensors stay on their device."""

    tasks: tuple[str, ...]
    """Those that had a label in this batch, in order."""
    weights: Tensor
    """Of each, on its loss or, for aggregators, on its gradient (tasks,)."""
    losses: Tensor
    """Unweighted (tasks,)."""
    conflict: Conflict | None = None


@dataclass(frozen=True)
class _Labelled:
    """The tasks that this batch has labels for."""

    names: tuple[str, ...]
    rows: Tensor
    """Their places among all tasks."""
    losses: list[Tensor] = field(repr=False)

    def values(self) -> Tensor:
        return torch.stack([loss.detach().float() for loss in self.losses])


class Balance(nn.Module):
    """Turns the losses of a batch into gradients. ``backward`` replaces ``loss.backward()``.

    ``spec`` as :func:`parse_balance` reads it; ``tasks`` the names in the model's order. Everything it learns or counts
    is in ``state_dict`` (a resumed run goes on exactly); what it learns by gradient (``uncertainty``) is in
    ``parameters()`` and belongs into the optimiser, without weight decay.
    """

    steps: Tensor
    weights: Tensor
    """Of the tasks' losses (tasks,): what ``static`` fixes and ``gradnorm`` moves."""
    sums: Tensor
    means: Tensor
    first: Tensor

    def __init__(self, spec: str | BalanceSpec, tasks: Sequence[str], *, seed: int = 0) -> None:
        super().__init__()
        self.tasks, self.seed = tuple(tasks), seed
        self.spec = parse_balance(spec, self.tasks) if isinstance(spec, str) else spec
        count = len(self.tasks)
        fixed = dict(self.spec.weights)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("weights", torch.tensor([fixed.get(t, 1.0) for t in self.tasks]))
        if self.spec.method == "uncertainty":
            self.log_variances = nn.Parameter(torch.zeros(count))
        elif self.spec.method == "dwa":
            self.register_buffer("sums", torch.zeros(2, count, dtype=torch.double))  # of losses, and how many
            self.register_buffer(
                "means", torch.full((2, count), torch.nan, dtype=torch.double)
            )  # of the last two epochs
        elif self.spec.method == "gradnorm":
            self.register_buffer("first", torch.full((count,), torch.nan))

    def backward(
        self,
        losses: Mapping[str, Tensor],
        *,
        labelled: Mapping[str, int] | None = None,
        tokens: Tensor | None = None,
        shared: Sequence[Tensor] = (),
        heads: Sequence[Tensor] = (),
        accumulation: int = 1,
        measure: bool = False,
    ) -> BalanceStep:
        """Add this batch's gradient to ``.grad`` of every parameter that the losses depend on.

        ``losses``: a scalar per task, each part of the graph. ``labelled``: how many clips have each task's label; a
        task with none takes no part in the balance, and gets a gradient of exactly zero. ``tokens`` (B, N, D) as
        :func:`~workbench.training.conflict.watch_tokens` sees them: needed by methods at the tokens and by ``measure``,
        which compares the tasks' gradients there also where the method does not. ``shared`` and ``heads`` as
        :func:`~workbench.training.conflict.split_parameters` gives them: needed by methods at the weights.
        ``accumulation``: gradients are divided by it. Raises ValueError where something needed is missing.
        """
        if set(losses) != set(self.tasks):
            raise ValueError(f"losses are of {sorted(losses)}, but this balance is of {list(self.tasks)}")
        known = [t for t in self.tasks if labelled is None or labelled[t] > 0]
        rows = torch.tensor([self.tasks.index(t) for t in known], dtype=torch.long, device=self.weights.device)
        given = _Labelled(tuple(known), rows, [losses[t] for t in known])
        idle = [losses[t] for t in self.tasks if t not in known]
        self.steps += 1
        if not known:
            (torch.stack(idle).sum() * 0).backward()
            return BalanceStep((), rows.float(), rows.float())
        if self.spec.aggregates:
            return self._aggregate(given, idle, tokens, shared, heads, accumulation)
        conflict = None
        if measure or self.spec.needs_gradients:
            conflict = Conflict(given.names, gramian(self._rows(given, tokens, shared)))
        weights = self._loss_weights(given, conflict)
        objective = self._objective(given, weights)
        if idle:
            objective = objective + torch.stack(idle).sum() * 0
        (objective / accumulation if accumulation > 1 else objective).backward()
        return BalanceStep(given.names, weights.detach(), given.values(), conflict)

    def end_epoch(self) -> None:
        """To be called after each epoch: ``dwa`` compares epochs."""
        if self.spec.method == "dwa":
            mean = torch.where(self.sums[1] > 0, self.sums[0] / self.sums[1], torch.nan)
            self.means.copy_(torch.stack([self.means[1], mean]))
            self.sums.zero_()

    def _loss_weights(self, given: _Labelled, conflict: Conflict | None) -> Tensor:
        """Weight of each labelled task's loss in this step."""
        method, value, rows = self.spec.method, self.spec.value or 0.0, given.rows
        if method == "uncertainty":
            return torch.exp(-self.log_variances[rows])
        if method == "random":
            # A generator of its own on the CPU: the same weights on every device, whatever else draws.
            chance = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.steps))
            return torch.softmax(torch.randn(len(rows), generator=chance), 0).to(rows.device) * len(rows)
        if method == "dwa":
            self.sums[0, rows] += given.values().double()
            self.sums[1, rows] += 1
            # A task whose history is not known yet is taken to stand still.
            pace = torch.nan_to_num(self.means[1] / self.means[0], nan=1.0)[rows]
            return (len(rows) * torch.softmax(pace / value, 0)).float()
        if method == "gradnorm" and conflict is not None:
            self._even_out(given, conflict)
        return self.weights[rows]

    def _even_out(self, given: _Labelled, conflict: Conflict) -> None:
        """GradNorm's step on the weights: each |w g| towards the mean of all, times how far the task lags to the power
        alpha. The derivative of that distance with respect to w is the sign times |g|, taken in units of the mean |g|,
        so that the rate does not depend on the losses' scale; then the weights sum to what they did."""
        rows, losses = given.rows, given.values()
        self.first[rows] = torch.where(self.first[rows].isnan(), losses, self.first[rows])
        weights, norms = self.weights[rows], conflict.norms
        pace = losses / self.first[rows].clamp(min=1e-12)
        lag = pace / pace.mean().clamp(min=1e-12)
        wanted = (weights * norms).mean() * lag ** (self.spec.value or 0.0)
        slope = torch.sign(weights * norms - wanted) * norms / norms.mean().clamp(min=1e-30)
        moved = (weights - _GRADNORM_RATE * slope).clamp(min=1e-3)
        self.weights[rows] = moved * (weights.sum() / moved.sum())

    def _objective(self, given: _Labelled, weights: Tensor) -> Tensor:
        values, method = torch.stack(given.losses), self.spec.method
        if method == "sum":
            return values.sum()
        if method == "uncertainty":
            # Twice the paper's L / (2 s^2) + log s, with log s^2 learned: it starts as the plain sum.
            return (weights * values).sum() + self.log_variances[given.rows].sum()
        if method in ("geometric", "stch"):
            made = torchjd_module("scalarization", method)
            ones = torch.ones_like(values)
            one: Any = made.GeometricMean() if method == "geometric" else made.STCH(self.spec.value, weights=ones)
            # Times the number of tasks: for equal losses the gradient is that of the plain sum.
            return one(values.clamp(min=1e-8) if method == "geometric" else values) * len(values)
        return (weights.to(values.dtype) * values).sum()

    def _rows(self, given: _Labelled, tokens: Tensor | None, shared: Sequence[Tensor]) -> list[list[Tensor]]:
        """Each labelled task's gradient where the tasks meet; the graph stays."""
        return [gradients(loss, self._meeting(tokens, shared), retain_graph=True) for loss in given.losses]

    def _meeting(self, tokens: Tensor | None, shared: Sequence[Tensor]) -> list[Tensor]:
        if self.spec.at == "weights":
            if not len(shared):
                raise ValueError(f"balance={str(self.spec)!r}: the tasks share nothing that trains; use balance='sum'")
            return list(shared)
        if tokens is None or not tokens.requires_grad:
            why = (
                "no tokens were given" if tokens is None else "the backbone is frozen: nothing before its tokens trains"
            )
            raise ValueError(f"balance={str(self.spec)!r} compares gradients at the encoder's tokens, but {why}")
        return [tokens]

    def _aggregate(
        self, given: _Labelled, idle: list[Tensor], tokens: Tensor | None, shared: Sequence[Tensor],
        heads: Sequence[Tensor], accumulation: int,
    ) -> BalanceStep:  # fmt: skip
        """Weigh the gradients of what is shared; what is not gets the plain sum."""
        meeting = self._meeting(tokens, shared)
        plain: list[Tensor] = []
        if self.spec.at == "tokens":
            rows = self._rows(given, tokens, shared)
        else:
            rows, plain = self._whole_rows(given, idle, meeting, heads)
        products = gramian(rows)
        seed = self.seed * 1_000_003 + int(self.steps)
        weights = aggregation_weights(self.spec.method, products, value=self.spec.value, seed=seed)
        scale = (weights / accumulation).unbind()
        combined = [_weighted(scale, parts) for parts in zip(*rows, strict=True)]
        if self.spec.at == "tokens":
            # One backward pass of the plain sum, in which the step takes the place of the sum's gradient at the tokens.
            objective = torch.stack(given.losses).sum() + (torch.stack(idle).sum() * 0 if idle else 0)
            hook = meeting[0].register_hook(lambda _: combined[0])
            try:
                (objective / accumulation).backward()
            finally:
                hook.remove()
        else:
            for parameter, gradient in zip(heads, plain, strict=True):
                _accumulate(parameter, gradient / accumulation)
            for parameter, gradient in zip(shared, combined, strict=True):
                _accumulate(parameter, gradient)
        return BalanceStep(given.names, weights, given.values(), Conflict(given.names, products))

    def _whole_rows(
        self, given: _Labelled, idle: list[Tensor], shared: Sequence[Tensor], heads: Sequence[Tensor]
    ) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Each labelled task's gradient of the shared weights, and the sum of all tasks' gradients of the others."""
        rows: list[list[Tensor]] = []
        plain: list[Tensor] = []
        losses = (*given.losses, *idle)  # tasks without labels come last: zeros for what is theirs alone
        for i, loss in enumerate(losses):
            found = gradients(loss, [*shared, *heads], retain_graph=i + 1 < len(losses))
            own = found[len(shared) :]
            plain = [a + b for a, b in zip(plain, own, strict=True)] if plain else own
            if i < len(given.names):
                rows.append(found[: len(shared)])
        return rows, plain


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _weighted(weights: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    total = weights[0].to(parts[0].dtype) * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total.add_(weight.to(part.dtype) * part)
    return total
