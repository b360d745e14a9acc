"""Where a loss that is not a number came from, found by doing the step once more with hooks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def first_nonfinite(model: nn.Module, forward: Callable[..., tuple[Any, Tensor]], *batch: Any) -> str | None:
    """The first place in ``model`` where a number is NaN or infinite, in words; None where all are finite.

    ``forward(model, *batch)`` gives outputs and loss. Looked at in this order: weights; each module's output, in the
    order of the computation; the loss; the gradient at each module's output, from the loss backwards; gradients of
    weights. Hooks are gone afterwards, and so are the gradients of this extra step; those that were there stay.
    """
    broken = [name for name, p in model.named_parameters() if not _finite(p)]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        return f"the weights of {broken[0]}{more}: the step before had a gradient that was not finite"
    kept = {p: p.grad for p in model.parameters()}
    found: list[str] = []
    hooks = _listen(model, found)
    try:
        for p in kept:
            p.grad = None
        with torch.enable_grad():
            loss = forward(model, *batch)[1]
        if found:
            return f"the output of {found[0]}"
        if not _finite(loss):
            return "the loss itself, though every output of the model is finite"
        loss.backward()
        if found:
            return f"the gradient at {found[0]}"
        bad = [name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
        return f"the gradient of {bad[0]}" if bad else None
    finally:
        for hook in hooks:
            hook.remove()
        for p, grad in kept.items():
            p.grad = grad


def _listen(model: nn.Module, found: list[str]) -> list[Any]:
    """Note the first module whose own output, or the gradient at its output, is not finite. A module ends after those
    inside it, so the innermost is the first to be noted."""
    hooks: list[Any] = []
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"

        def look(_m: nn.Module, _inputs: Any, output: Any, label: str = label) -> None:
            for tensor in _tensors(output):
                if not found and not _finite(tensor):
                    found.append(label)
                if tensor.requires_grad:  # the handle is kept: this may be a parameter, which outlives the step
                    hooks.append(tensor.register_hook(lambda grad: _note(found, label, grad)))

        hooks.append(module.register_forward_hook(look))
    return hooks


def _note(found: list[str], label: str, gradient: Tensor) -> None:
    if not found and not _finite(gradient):
        found.append(label)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "tokens"):
        yield from _tensors(value.tokens)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
