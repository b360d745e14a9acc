"""What trains: from the whole model to one linear layer."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import pandas as pd
from torch import nn

from workbench.models import adapters
from workbench.models.tml import TML
from workbench.models.tracing import Wiring, activation_bytes, wiring

METHODS = ("all", "partial", "llrd", "lora", "adapter", "bitfit")
# Least and largest value a method takes. Widths and ranks beyond these are mistakes of typing.
_LIMITS = {"partial": (1, 1000), "llrd": (0.0, 1.0), "lora": (1, 4096), "adapter": (1, 65536)}


@dataclass(frozen=True)
class Strategy:
    """A way of transferring a backbone. ``str(strategy)`` is how it is spelled (``lora:8``), and parses to the same."""

    name: str
    pretrained: bool
    """False: the backbone starts from fresh weights (``load_backbone(..., weights="random")``)."""
    head: str
    """The head it is built with: ``mean`` or ``query`` (see :class:`workbench.models.tml.TML`)."""
    frozen: bool
    """True: only the head trains."""
    method: str = "all"
    """What of the backbone trains where it is not frozen: ``all``; ``partial``, the last ``value`` blocks and what
    follows them; ``llrd``, all, each block's rate ``value`` times that of the block after it; ``lora``, matrices of
    rank ``value`` beside the attention projections; ``adapter``, an ST-Adapter of width ``value`` before each block;
    ``bitfit``, the biases. The heads always train."""
    value: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is not one of {', '.join(METHODS)}")
        if self.frozen and self.method != "all":
            raise ValueError(f"strategy {self.name!r} is frozen, so nothing of its backbone trains: no method fits")
        if (limits := _LIMITS.get(self.method)) is None:
            if self.value is not None:
                raise ValueError(f"strategy {self.name!r} takes no value; got {self.value!r}")
            return
        low, high = limits
        whole = isinstance(low, int)
        if isinstance(self.value, bool) or not isinstance(self.value, int if whole else int | float):
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{self.name}:{self.value} needs {kind}, for example {STRATEGIES[self.method]}")
        if not (low <= self.value <= high) or self.value == 0:
            above = f"from {low}" if whole else "above 0"
            raise ValueError(f"{self.name}:{self.value} must lie {above} up to {high:g}")
        object.__setattr__(self, "value", int(self.value) if whole else float(self.value))

    @property
    def whole(self) -> bool:
        """Every weight of the backbone trains, so that a run's own weights are the model."""
        return not self.frozen and self.method in ("all", "llrd")

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}:{self.value}"


def _tuned(method: str, value: float | None = None) -> Strategy:
    return Strategy(method, pretrained=True, head="mean", frozen=False, method=method, value=value)


# In the order of how much of the backbone is free. A bare name takes the value that stands here:
# two blocks (one brings most of the gain, four to six all of it: MAE, https://arxiv.org/abs/2111.06377, figure 9);
# decay 0.75 (VideoMAE's fine-tuning on Kinetics, https://arxiv.org/abs/2203.12602, appendix; 0.7 on UCF101);
# rank 8 (RoBERTa in the LoRA paper, https://arxiv.org/abs/2106.09685, table 9);
# width 64 (ST-Adapter takes half of the hidden size, 384 of 768; the embedded backbone has 192).
_KNOWN = (
    Strategy("scratch", pretrained=False, head="mean", frozen=False),
    Strategy("linear", pretrained=True, head="mean", frozen=True),
    Strategy("attentive", pretrained=True, head="query", frozen=True),
    _tuned("bitfit"),
    _tuned("lora", 8),
    _tuned("adapter", 64),
    _tuned("partial", 2),
    _tuned("llrd", 0.75),
    Strategy("full", pretrained=True, head="mean", frozen=False),
)
STRATEGIES = {strategy.name: strategy for strategy in _KNOWN}


def parse_strategy(strategy: str | Strategy) -> Strategy:
    """The strategy spelled so: ``linear``, ``lora`` (rank 8), ``lora:4``; a :class:`Strategy` passes through.

    Raises ValueError on a name that is not known or a value that does not fit.
    """
    if isinstance(strategy, Strategy):
        return strategy
    name, colon, value = strategy.partition(":")
    if name not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is not known; use one of {', '.join(map(str, STRATEGIES.values()))}")
    found = STRATEGIES[name]
    if not colon:
        return found
    if found.value is None:
        raise ValueError(f"strategy={strategy!r}: {name} takes no value; write {name!r}")
    try:
        return replace(found, value=int(value) if isinstance(found.value, int) else float(value))
    except ValueError as error:
        raise ValueError(f"strategy={strategy!r} does not fit; write for example {str(found)!r} ({error})") from error


def apply_strategy(model: TML, strategy: str | Strategy, *, seed: int = 0) -> Strategy:
    """Make ``model`` train what ``strategy`` says and nothing else; returns the strategy.

    Sets ``requires_grad`` of every parameter. LoRA and adapters are put in, drawn from ``seed``; they come with weights
    that change nothing yet. Parameters that the outputs do not depend on (a mask token; the pooling norm under a query
    head, which reads the tokens directly) stay frozen: no gradient would ever reach them. A frozen probe must be built
    with its own head, or it would not be that probe; a model that already carries LoRA or adapters must be built anew.
    Raises ValueError otherwise, or when there are fewer blocks than are to train.
    """
    chosen = parse_strategy(strategy)
    if chosen.frozen and model.head_kind != chosen.head:
        raise ValueError(
            f"strategy {chosen.name!r} is a probe with head={chosen.head!r}, but the model has head="
            f"{model.head_kind!r}; build TML(..., head={chosen.head!r})"
        )
    if there := adapters.inserted(model):
        raise ValueError(f"the model carries modules of strategy {there!r} already; build it anew for {str(chosen)!r}")
    if chosen.method == "lora":
        adapters.insert_lora(model, int(chosen.value or 0), seed=seed)
    elif chosen.method == "adapter":
        adapters.insert_adapters(model, int(chosen.value or 0), seed=seed)
    trains = set() if chosen.frozen else _trains(model, chosen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trains or name.startswith("head."))
    return chosen


def _trains(model: TML, strategy: Strategy) -> set[str]:
    """Names of what trains outside the head."""
    wired = wiring(model)
    parts = _parts(model, wired)
    names = [name for name in parts if not name.startswith("head.")]
    if strategy.method in ("lora", "adapter"):
        chosen = {name for name in names if adapters.is_inserted(name)}
        if idle := sorted(chosen - wired.reached):
            # Some attention modules read a layer's weight without calling the layer: what stands beside it is not seen.
            raise ValueError(f"{len(idle)} of {len(chosen)} inserted weights do nothing, for example {idle[0]}")
    elif strategy.method == "partial":
        count, blocks = int(strategy.value or 0), len(model.backbone.blocks)
        if count > blocks:
            raise ValueError(f"{strategy}: {model.backbone.source} has {blocks} blocks; use at most partial:{blocks}")
        last = {f"backbone block {i}" for i in range(blocks - count, blocks)} | {"backbone norm"}
        chosen = {name for name in names if parts[name] in last}
    elif strategy.method == "bitfit":
        chosen = {name for name in names if name.endswith((".bias", "_bias"))}
    else:
        chosen = set(names)
    return chosen & wired.reached


def _parts(model: TML, wired: Wiring) -> dict[str, str]:
    """The part of the model that each parameter belongs to, in the order of the computation."""
    owner: dict[int, str] = {}

    def claim(parameters: Iterable[nn.Parameter], part: str) -> None:
        for parameter in parameters:
            owner.setdefault(id(parameter), part)

    named, backbone = dict(model.named_parameters()), model.backbone
    claim([p for name, p in named.items() if name in wired.stem], "backbone embedding")
    claim(backbone.embedding.parameters(), "backbone embedding")
    for i, block in enumerate(backbone.blocks):
        claim([p for name, p in named.items() if name.startswith(f"adapters.{i}.")], f"adapter {i}")
        claim(block.parameters(), f"backbone block {i}")
    # Whatever of the backbone is in neither: its final norm, inside the encoder or after the mean.
    claim(backbone.parameters(), "backbone norm")
    claim(model.head.linears.parameters(), "task heads")
    claim(model.head.parameters(), "decoder")
    order = {part: i for i, part in enumerate(dict.fromkeys(owner.values()))}
    parts = {name: owner[id(p)] for name, p in named.items()}
    return dict(sorted(parts.items(), key=lambda pair: order[pair[1]]))


def learning_rates(model: TML, strategy: str | Strategy, backbone_lr: float, head_lr: float) -> dict[str, float]:
    """Peak rate of each parameter that trains, by name, in the model's own order.

    The heads take ``head_lr``; LoRA, adapters and the backbone ``backbone_lr``. Under ``llrd:d`` block i of L takes
    ``backbone_lr * d ** (L - i)``, so the last d times the peak, and the embedding, one step below block 0, the
    lowest, ``d ** (L + 1)``; the final norm the peak (BEiT, https://arxiv.org/abs/2106.08254, and VideoMAE's
    ``get_num_layer_for_vit``).
    """
    chosen, depth = parse_strategy(strategy), len(model.backbone.blocks)
    scale: dict[str, float] = {}
    if chosen.method == "llrd":
        decay = float(chosen.value or 1)
        scale = {f"backbone block {i}": decay ** (depth - i) for i in range(depth)}
        scale["backbone embedding"] = decay ** (depth + 1)
    parts = _parts(model, wiring(model)) if scale else {}
    return {
        name: head_lr if name.startswith("head.") else backbone_lr * scale.get(parts.get(name, ""), 1.0)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class Rated(Protocol):
    """What :func:`report` reads of a ``Setup``."""

    @property
    def strategy(self) -> str: ...
    @property
    def rates(self) -> tuple[float, float]: ...
    @property
    def batch_size(self) -> int: ...


def report(model: TML, setup: Rated | None = None, *, batch_size: int | None = None) -> pd.DataFrame:
    """What trains, by part: one row per part in the order of the computation, no sum row; parts are disjoint.

    Columns: ``group``; parameters, ``trainable`` of ``total``; ``activation_mib``, what a training step keeps there for
    backward, for ``batch_size`` clips (the setup's, else 1) in float32, as
    :func:`~workbench.models.tracing.activation_bytes` counts it; and given a ``Setup`` also ``lr``, the peak rate (NaN
    where nothing trains).
    """
    parts, parameters = _parts(model, wiring(model)), dict(model.named_parameters())
    kept = activation_bytes(model, batch_size or (setup.batch_size if setup else 1))
    rates = learning_rates(model, setup.strategy, *setup.rates) if setup else {}
    rows = pd.DataFrame(
        {
            "group": part,
            "trainable": parameters[name].numel() * parameters[name].requires_grad,
            "total": parameters[name].numel(),
            "lr": rates.get(name, float("nan")),
        }
        for name, part in parts.items()
    )
    frame = rows.groupby("group", sort=False).agg({"trainable": "sum", "total": "sum", "lr": "max"}).reset_index()
    frame["activation_mib"] = frame.group.map(kept).fillna(0.0) / 2**20
    return frame if setup else frame.drop(columns="lr")
