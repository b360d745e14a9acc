"""How far tasks pull apart: lengths of, and angles between, their gradients where they share the network."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from workbench.models.tml import TML, QueryHead
from workbench.training.aggregation import gramian


@dataclass(frozen=True)
class Conflict:
    """Gradients of several tasks' losses with respect to what they share, on the device they were computed on."""

    tasks: tuple[str, ...]
    products: Tensor
    """Inner products (tasks, tasks)."""

    @property
    def norms(self) -> Tensor:
        """Length of each task's gradient (tasks,)."""
        return self.products.diagonal().clamp(min=0).sqrt()

    @property
    def cosines(self) -> Tensor:
        """Between each pair (tasks, tasks): 1 they want the same, 0 they do not meet, below 0 each undoes some of the
        other's work. NaN where a gradient is zero."""
        norms = self.norms
        return (self.products / (norms[:, None] * norms)).clamp(-1, 1)


class Watched:
    """What :func:`watch_tokens` saw last."""

    def __init__(self) -> None:
        self.tokens: Tensor | None = None


@contextmanager
def watch_tokens(model: TML) -> Iterator[Watched]:
    """Inside, ``.tokens`` is the (B, N, D) that the backbone gave last, part of the graph.

    A hook, because wrappers of mixed precision hand out converted copies, through which no loss was computed. A model
    that is compiled as a whole has no such tensor: compile ``model.backbone`` alone.
    """
    seen = Watched()

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.tokens = output.tokens

    hook = model.backbone.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def split_parameters(model: TML, at: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What trains, as (shared by the tasks, the rest).

    ``at="tokens"``: before and after the encoder's tokens. ``at="weights"``: all but the tasks' own queries and last
    layers.
    """
    head = model.head
    own = {id(p) for p in head.linears.parameters()}
    if isinstance(head, QueryHead):
        own |= {id(p) for p in (head.queries, *head.added)}
    after = {id(p) for p in (*head.parameters(), *model.backbone.norm.parameters())}
    rest = after if at == "tokens" else own
    trains = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trains if id(p) not in rest], [p for p in trains if id(p) in rest]


def layers_of(model: TML) -> dict[str, list[nn.Parameter]]:
    """Shared parameters that train, by depth: ``embedding``, ``block 0`` ..., ``decoder`` (parts without any left out).

    Adapters and LoRA count with the block they stand in where they are part of it, else as ``embedding``.
    """
    shared, _ = split_parameters(model, "weights")
    place = {id(p): "decoder" for p in (*model.head.parameters(), *model.backbone.norm.parameters())}
    for i, block in enumerate(model.backbone.blocks):
        place |= {id(p): f"block {i}" for p in block.parameters()}
    layers: dict[str, list[nn.Parameter]] = {}
    for name in ("embedding", *(f"block {i}" for i in range(len(model.backbone.blocks))), "decoder"):
        if found := [p for p in shared if place.get(id(p), "embedding") == name]:
            layers[name] = found
    return layers


def conflict_by_layer(
    losses: Mapping[str, Tensor], layers: Mapping[str, Sequence[nn.Parameter]], *, retain_graph: bool = False
) -> pd.DataFrame:
    """The tasks' gradients compared layer by layer: ``layer, task, other, cosine, norm_task, norm_other``, a row per
    layer and pair. Costs a whole backward pass per task, so it is for intervals, before the step's own backward with
    ``retain_graph=True``. Gradients of the parameters are left as they were."""
    wanted = [p for group in layers.values() for p in group]
    last = len(losses) - 1
    rows = [gradients(loss, wanted, retain_graph=retain_graph or i < last) for i, loss in enumerate(losses.values())]
    tasks, table, start = tuple(losses), [], 0
    for layer, group in layers.items():
        found = Conflict(tasks, gramian([row[start : start + len(group)] for row in rows]))
        start += len(group)
        norms, cosines = found.norms.tolist(), found.cosines.tolist()
        for i, task in enumerate(tasks):
            for j in range(i + 1, len(tasks)):
                table.append((layer, task, tasks[j], cosines[i][j], norms[i], norms[j]))
    return pd.DataFrame(table, columns=["layer", "task", "other", "cosine", "norm_task", "norm_other"])


def gradients(loss: Tensor, wanted: Sequence[Tensor], *, retain_graph: bool) -> list[Tensor]:
    """d loss / d each tensor; zeros where it has no part in the loss."""
    found = torch.autograd.grad(loss, wanted, retain_graph=retain_graph, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]
