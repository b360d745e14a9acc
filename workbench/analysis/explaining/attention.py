"""Where tokens look, read as the task's head reads them: layer by layer from the last to the first, streamed.

Only a row of weights per clip travels backwards through the layers, ``reading @ weights``; no N x N matrix is ever
held, let alone multiplied with another.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.analysis.explaining.taps import columns, picked
from workbench.models.probe import Softmax
from workbench.models.tml import TML
from workbench.models.tokens import Tokens


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Attention followed through the layers: (B, A, N, N) per layer, first layer first -> (B, N, N), rows sum to 1.

    Each layer counts as ``0.5 * mean over heads + 0.5 * I`` (the residual path), rows renormalised; entry (i, j) of the
    product is how much of output token i comes from input token j. Abnar and Zuidema, https://arxiv.org/abs/2005.00928
    """
    if not attentions:
        raise ValueError("no attention maps to roll out; take them from Backbone.forward_with_attention")
    eye = torch.eye(attentions[0].shape[-1], device=attentions[0].device)  # (N, N)
    product = eye.expand(len(attentions[0]), -1, -1)  # (B, N, N)
    for attention in attentions:
        mixed = 0.5 * attention.float().mean(1) + 0.5 * eye  # (B, N, N)
        product = mixed / mixed.sum(-1, keepdim=True) @ product  # later layers act from the left
    return product


def read_rollout(softmaxes: Sequence[Softmax], reading: Tensor) -> Tensor:
    """``reading @ rollout(weights)`` without the matrices: (B, P + N) -> (B, P + N). A sum of 1 stays 1."""
    for softmax in reversed(softmaxes):
        reading = 0.5 * softmax.read(reading).mean(1) + 0.5 * reading
    return reading


def head_reading(model: TML, tokens: Tokens, task: str) -> tuple[Tensor, Tensor]:
    """How much of each token the task's head takes in, prefix first: (B, P + N), sums to 1; and the outputs (B, K).

    The last cross-attention of the task's query, averaged over heads; evenly for a mean. Heads do not read a prefix.
    """
    clips, n, _ = tokens.tokens.shape
    if model.head_kind == "query":
        maps, outputs = task_attention(model, tokens, task)
        read = maps[:, -1].mean(1)  # (B, N)
    else:
        read, outputs = tokens.tokens.new_full((clips, n), 1 / n), columns(model.forward_tokens(tokens)[task])
    prefix = 0 if tokens.prefix is None else tokens.prefix.shape[1]
    return torch.nn.functional.pad(read, (prefix, 0)), outputs


def attention_maps(model: TML, task: str, pixel_values: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """(B, N) for ``rollout``, (B, L, A, N) for ``attention``; sums to 1 over N. And the outputs (B, K).

    What flows to prefix tokens, which belong to no place, is left out, and the rest scaled to sum to 1. L counts
    softmaxes: a family that divides attention has two to a block, time and space.
    """
    tokens, softmaxes = model.backbone.forward_recording(pixel_values)
    reading, outputs = head_reading(model, tokens, task)
    if method == "rollout":
        read = read_rollout(softmaxes, reading)
    else:
        read = torch.stack([softmax.read(reading) for softmax in softmaxes], 1)  # (B, L, A, P + N)
    read = read[..., -tokens.tokens.shape[1] :]
    return read / read.sum(-1, keepdim=True), outputs


def task_attention(model: TML, tokens: Tokens, task: str) -> tuple[Tensor, Tensor]:
    """The cross-attention of the task's query in each layer and head of the decoder: (B, L, A, N), sums to 1 over N.
    And the outputs (B, K).

    Raises ValueError where the head has no queries.
    """
    if model.head_kind != "query":
        raise ValueError(
            f"head={model.head_kind!r} has no queries that attend; use a model with a query head "
            "(strategy 'attentive'), or method='rollout'"
        )
    outputs, maps = model.task_maps(tokens)
    return maps[task], columns(outputs[task])


def gradient_attention(model: TML, task: str, pixel_values: Tensor, targets: list[int] | None) -> tuple[Tensor, Tensor]:
    """Attention that counts where raising it would raise the target's output: (B, N), not negative; and the outputs.

    Each layer adds ``mean over heads of max(0, weights * gradient)`` to the identity, and the layers are multiplied:
    Chefer et al., https://arxiv.org/abs/2103.15679 (their equations 5 and 6; 10 for a decoder's cross-attention). What
    a token says of itself through the residual path alone is left out, as they do.
    """
    with torch.enable_grad(), _weights_of_head(model) as seen:
        pixel_values = pixel_values.detach().requires_grad_()  # so that there is a graph, though no weight asks for one
        tokens, softmaxes = model.backbone.forward_recording(pixel_values, values=True)
        outputs = columns(model.forward_tokens(tokens)[task])
        chosen = picked(outputs, targets)
        contexts = [s.context for s in softmaxes if s.context is not None]
        gradients = torch.autograd.grad(chosen.sum(), [*contexts, *(weights for _, weights in seen)])
    with torch.no_grad():
        own = None
        if model.head_kind == "query":
            reading = _decoder_reading(model, task, seen, gradients[len(contexts) :])
        else:
            reading = tokens.tokens.new_full(tokens.tokens.shape[:2], 1 / tokens.tokens.shape[1])
        prefix = 0 if tokens.prefix is None else tokens.prefix.shape[1]
        reading = torch.nn.functional.pad(reading, (prefix, 0))
        if model.head_kind != "query":
            own = reading
        for softmax, gradient in zip(reversed(softmaxes), reversed(gradients[: len(contexts)]), strict=True):
            reading = reading + softmax.read_weighted(reading, gradient).mean(1)
        return (reading if own is None else reading - own)[:, prefix:], outputs.detach()


def _decoder_reading(model: TML, task: str, seen: Sequence[tuple[str, Tensor]], gradients: Sequence[Tensor]) -> Tensor:
    """Relevance of each token to the task's query after all layers of the decoder, (B, N)."""
    row = [t.name for t in model.tasks].index(task)
    queries = to_tokens = None
    for (kind, weights), gradient in zip(seen, gradients, strict=True):
        mixed = (weights * gradient).clamp_min(0).mean(1)  # (B, Q, Q) or (B, Q, N)
        if queries is None:
            queries = torch.eye(mixed.shape[1]).to(mixed).expand(len(mixed), -1, -1)
        if kind == "self":
            queries = queries + mixed @ queries
            to_tokens = to_tokens if to_tokens is None else to_tokens + mixed @ to_tokens
        else:
            added = queries.transpose(1, 2) @ mixed
            to_tokens = added if to_tokens is None else to_tokens + added
    assert to_tokens is not None
    return to_tokens[:, row]


@contextmanager
def _weights_of_head(model: TML) -> Iterator[list[tuple[str, Tensor]]]:
    """Collects ("self" or "cross", weights (B, A, Q, Q or N)) of the decoder's attention, in the order they run.

    The weights that torch's module returns are a copy beside its output, so they have no gradient: here the output is
    made anew of weights that have one.
    """
    seen: list[tuple[str, Tensor]] = []

    def again(kind: str, module: nn.MultiheadAttention, args: tuple[Tensor, ...], _out: Any) -> tuple[Tensor, None]:
        projections = zip(args[:3], module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True)
        q, k, v = (
            nn.functional.linear(x, w, b).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
            for x, w, b in projections
        )  # each (B, A, Q or N, d)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        if not weights.requires_grad:  # queries that no clip has touched yet
            weights.requires_grad_()
        seen.append((kind, weights))
        return module.out_proj((weights @ v).transpose(1, 2).flatten(2)), None

    hooks: list[Any] = []
    try:
        for name, module in model.head.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                kind = "self" if "self" in name.rsplit(".", 1)[-1] else "cross"
                hooks.append(module.register_forward_hook(partial(again, kind)))
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
