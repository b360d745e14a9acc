"""A place in the model where tokens can be read, differentiated and replaced, in the same shape for every family."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from workbench.models.backbones import Backbone
from workbench.models.tml import TML
from workbench.models.tokens import Tokens

Layer = int | str
"""``"pixels"``, ``"embedding"`` (what block 0 takes), or the number of a block whose output is meant."""


def check_layer(backbone: Backbone, layer: Layer) -> Layer:
    """``layer`` as a name or a number from 0. Raises ValueError naming what there is."""
    depth = len(backbone.blocks)
    if layer in ("pixels", "embedding"):
        return layer
    if isinstance(layer, int) and not isinstance(layer, bool) and -depth <= layer < depth:
        return layer % depth
    raise ValueError(f"layer={layer!r} is not 'pixels', 'embedding' or the number of one of {depth} blocks")


@contextmanager
def tapped(backbone: Backbone, layer: Layer, *, volume: bool = False) -> Iterator[nn.Identity]:
    """Inside, all tokens after ``layer`` pass through the module that this yields, which Captum can be pointed at.

    It sees (B, P + N, D), prefix first, then time-major, whatever the family's own order, and one row per clip where
    the family encodes frame by frame. With ``volume`` it sees the grid alone as channels first, (B, D, T', H', W'): the
    layout that Captum's Grad-CAM takes for granted.
    """
    tap = nn.Identity()
    module = backbone.embedding if layer == "embedding" else backbone.blocks[int(layer)]

    def route(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output  # V-JEPA 2 and TimeSformer return tuples
        found = backbone.tokens_of(hidden)
        count = 0 if found.prefix is None else found.prefix.shape[1]
        if volume:
            tokens, prefix = tap(found.tokens.transpose(1, 2).unflatten(2, found.grid)), found.prefix
            tokens = tokens.flatten(2).transpose(1, 2)
        else:
            joined = tap(found.tokens if found.prefix is None else torch.cat((found.prefix, found.tokens), 1))
            tokens, prefix = joined[:, count:], joined[:, :count] if count else None
        hidden = backbone.hidden_of(Tokens(tokens, found.grid, prefix))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hook = module.register_forward_hook(route)
    try:
        yield tap
    finally:
        hook.remove()


def places(attributions: torch.Tensor, backbone: Backbone) -> torch.Tensor:
    """Attributions at a tap (B, P + N, D), or of pixels (B, T, C, H, W), summed for each token of the grid: (B, N)."""
    if attributions.ndim == 5:
        t, h, w = backbone.grid
        cut = attributions.unflatten(4, (w, -1)).unflatten(3, (h, -1)).unflatten(1, (t, -1))  # B t f C h p w q
        return cut.sum((2, 3, 5, 7)).flatten(1)
    return attributions[:, -backbone.grid[0] * backbone.grid[1] * backbone.grid[2] :].sum(-1)


class TaskOutput(nn.Module):
    """One task's outputs as a (B, K) tensor: what Captum can differentiate."""

    def __init__(self, model: TML, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.last: torch.Tensor | None = None
        """The outputs of the last call, (B, K)."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        y = columns(self.model(pixel_values)[self.task])
        self.last = y.detach()
        return y


def columns(y: torch.Tensor) -> torch.Tensor:
    """A task's outputs (B, K) or (B,) as (B, K)."""
    return y if y.ndim == 2 else y[:, None]


def picked(outputs: torch.Tensor, targets: list[int] | None) -> torch.Tensor:
    """The outputs (B,) of ``targets``; None: the largest ones, what was predicted."""
    chosen = outputs.argmax(-1) if targets is None else torch.tensor(targets, device=outputs.device)
    return outputs.gather(1, chosen[:, None])[:, 0]
