"""What trains: from the whole model to one linear layer."""

from dataclasses import dataclass

import pandas as pd
from torch import nn

from workbench.models.tml import TML, QueryHead


@dataclass(frozen=True)
class Strategy:
    """A way of transferring a backbone."""

    name: str
    pretrained: bool
    """False: the backbone starts from fresh weights (``load_backbone(..., weights="random")``)."""
    head: str
    """The head it is built with: ``mean`` or ``query`` (see :class:`workbench.models.tml.TML`)."""
    frozen: bool
    """True: only the head trains."""


STRATEGIES = {
    s.name: s
    for s in (
        Strategy("scratch", pretrained=False, head="mean", frozen=False),
        Strategy("linear", pretrained=True, head="mean", frozen=True),
        Strategy("attentive", pretrained=True, head="query", frozen=True),
        Strategy("full", pretrained=True, head="mean", frozen=False),
    )
}
PLANNED = ("partial", "llrd", "lora", "adapter", "bitfit")


def parse_strategy(strategy: str | Strategy) -> Strategy:
    """The strategy of that name; a :class:`Strategy` passes through. Raises on a name that is not known."""
    if isinstance(strategy, Strategy):
        return strategy
    if strategy in STRATEGIES:
        return STRATEGIES[strategy]
    known = ", ".join(STRATEGIES)
    if strategy.split(":")[0] in PLANNED:
        raise ValueError(f"strategy={strategy!r} is planned but not there yet; use one of {known}")
    raise ValueError(f"strategy={strategy!r} is not known; use one of {known} ({', '.join(PLANNED)} are not there yet)")


def apply_strategy(model: TML, strategy: str | Strategy) -> Strategy:
    """Set ``requires_grad`` of every parameter of ``model`` to what ``strategy`` says; returns the strategy.

    A frozen probe must be built with its own head, or it would not be that probe. The backbone's pooling norm is
    frozen under a query head, which reads the tokens directly: nothing would ever reach it.
    """
    chosen = parse_strategy(strategy)
    if chosen.frozen and model.head_kind != chosen.head:
        raise ValueError(
            f"strategy {chosen.name!r} is a probe with head={chosen.head!r}, but the model has head="
            f"{model.head_kind!r}; build TML(..., head={chosen.head!r})"
        )
    model.backbone.requires_grad_(not chosen.frozen)
    model.head.requires_grad_(True)
    if isinstance(model.head, QueryHead):
        model.backbone.norm.requires_grad_(False)
    return chosen


def report(model: TML) -> pd.DataFrame:
    """Parameters by part: columns ``group, trainable, total``, one row per part, no sum row; parts are disjoint."""
    backbone = model.backbone
    parts: dict[str, list[nn.Module]] = {"backbone embedding": [backbone.embedding]}
    parts |= {f"backbone block {i}": [block] for i, block in enumerate(backbone.blocks)}
    # Whatever of the backbone is in neither: its final norm, inside the encoder or after the mean.
    parts["backbone norm"] = [backbone]
    parts["task heads"] = [model.head.linears]
    parts["decoder"] = [model.head]
    rows, counted = [], set()
    for group, modules in parts.items():
        own = {id(p): p for module in modules for p in module.parameters() if id(p) not in counted}
        counted |= set(own)
        trainable = sum(p.numel() for p in own.values() if p.requires_grad)
        rows.append((group, trainable, sum(p.numel() for p in own.values())))
    frame = pd.DataFrame(rows, columns=["group", "trainable", "total"])
    return frame[frame.total > 0].reset_index(drop=True)
