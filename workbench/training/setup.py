"""A transfer setup: everything that decides what a run learns, in one frozen record."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from workbench.data.frames import Sampling, check_views
from workbench.data.tables import DECODERS
from workbench.models.strategies import Strategy, parse_strategy
from workbench.training.balance_spec import parse_balance
from workbench.training.losses import parse_loss

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "one_cycle", "plateau", "constant")
TASK_SAMPLINGS = ("proportional", "balanced")
HEADS = ("mean", "query")

# Peak learning rates (backbone, heads) for AdamW at batch 16 on some hundreds of clips, mostly for a small backbone
# such as nano: not tuned on clips of ours. Heads start from nothing and take more than a pretrained backbone can bear;
# from random weights the two are alike. Where a source stands it was looked up; the published recipes themselves, for
# large backbones and batches, are in :mod:`workbench.training.recipes`.
_RATES = {
    "scratch": (5e-4, 5e-4),  # as "llrd": VideoMAE's base rate
    "linear": (0.0, 5e-3),  # highest of V-JEPA 2's probes, configs/eval/vitl/ssv2.yaml: a linear layer bears it
    "attentive": (0.0, 1e-3),  # V-JEPA's probe, configs/evals/vitl16_ssv2_16x2x3.yaml; V-JEPA 2 tries 1e-4 to 5e-3
    "bitfit": (1e-3, 1e-3),  # default of the authors' run_glue.py, batch 8: github.com/benzakenelad/BitFit
    "lora": (3e-3, 1e-3),  # ten times "full", the ratio of "LoRA Without Regret", thinkingmachines.ai/blog/lora
    "adapter": (5e-4, 1e-3),  # half of ST-Adapter's 1e-3 per 256 clips, main.py: github.com/linziyi96/st-adapter
    "partial": (3e-4, 1e-3),  # as "full"
    "llrd": (5e-4, 1e-3),  # VideoMAE's --lr on UCF101 (there per 256 clips), of the last block times the decay
    "full": (3e-4, 1e-3),  # ours: below "llrd", since here the lowest block takes the whole rate
}

# Fields that came after runs had been made, and what those did: never to be changed, whatever the defaults become.
_LATER = {
    "head": None, "decoder_layers": 1, "task_attention": True, "balance": "sum", "task_sampling": "proportional",
    "measure_conflict": 0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One way of transferring a backbone to a table of clips. Checked when made; ``to_json`` and back is lossless."""

    strategy: str = "full"
    """``scratch`` (random weights); ``linear`` and ``attentive`` (frozen backbone, trained head); ``bitfit`` (biases);
    ``lora:<rank>`` and ``adapter:<width>`` (small modules in a frozen backbone); ``partial:<blocks>`` (the last ones);
    ``llrd:<decay>`` (all, lower layers slower); ``full``. A bare ``lora`` means ``lora:8`` and is recorded so, as are
    ``adapter:64``, ``partial:2`` and ``llrd:0.75``. A :class:`~workbench.models.strategies.Strategy` may be given
    and is recorded as it is spelled."""
    backbone: str = "nano"
    """``nano``, a local folder or a hub id."""
    num_frames: int | None = None
    """Frames per clip, where it should not be the checkpoint's number; positions follow by the family's rule."""
    size_px: int | None = None
    """Height and width, likewise."""
    tasks: tuple[str, ...] = ()
    """Names of the table's tasks to learn together; empty means all of them."""
    head: str | None = None
    """``mean`` (a linear layer per task on the mean token) or ``query`` (a decoder in which a learned query per task
    reads the tokens: TML); None takes the strategy's own, which is ``query`` for ``attentive`` and ``mean`` else."""
    decoder_layers: int = 1
    """Of ``query``: blocks of the decoder."""
    task_attention: bool = True
    """Of ``query``: whether the queries of several tasks see each other."""
    balance: str = "sum"
    """How the losses of several tasks become one step: ``sum``; weights on the losses (``static:safety=2``,
    ``uncertainty``, ``dwa``, ``random``, ``gradnorm``, ``geometric``, ``stch``); or an aggregation of the tasks'
    gradients, ``upgrad@tokens`` or ``upgrad@weights`` and others (see :mod:`workbench.training.balance_spec`).
    Recorded with its value and place: a bare ``dwa`` is ``dwa:2``, ``pcgrad`` is ``pcgrad@tokens``."""
    task_sampling: str = "proportional"
    """``proportional``: an epoch shows each clip once, so a task is seen as often as it has labels; ``balanced``: clips
    are drawn, with repeats, so that each task has as many labelled clips on average, which is for joined tables."""
    measure_conflict: int = 0
    """Every so many steps the tasks' gradients are compared at the encoder's tokens, where the balance does not do so
    anyhow; 0: never. It costs a backward pass of the head per task."""
    epochs: int = 20
    batch_size: int = 16
    lr: float | None = None
    """Peak rate of what trains outside the heads (backbone, LoRA, adapters); None takes the strategy's default."""
    head_lr: float | None = None
    """Peak rate of the heads; None takes the strategy's default."""
    optimizer: str = "adamw"
    """``adamw``, ``adam`` (decay in the gradient) or ``sgd``, which needs ``lr`` and ``head_lr``: Adam's do not fit."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam and AdamW."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 0.05
    """On matrices; never on biases and norms."""
    schedule: str = "cosine"
    """``cosine`` (to zero), ``one_cycle`` (up and down), ``plateau`` (a tenth whenever the val loss stops falling) or
    ``constant``; :mod:`workbench.training.optim` has the formulas."""
    warmup: float = 0.1
    """Share of all steps in which the rate rises; linearly, but for ``one_cycle``."""
    ema: float = 0.0
    """Decay of an exponential moving average of what trains, updated every step; 0: none. The average is then what val
    scores and what is kept. It looks back about 1 / (1 - ema) steps."""
    clip_norm: float = 1.0
    accumulation: int = 1
    """Batches per optimiser step."""
    loss: str = "ce"
    """Of multiclass and binary tasks: ``ce`` (cross entropy); for rare classes ``focal:<gamma>`` or
    ``logit_adjusted:<tau>`` (see :class:`~workbench.training.losses.Criterion`). A bare ``focal`` is ``focal:2``,
    ``logit_adjusted`` is ``logit_adjusted:1``. The val loss is the plain cross entropy under each."""
    class_weights: Any = None
    """What a label counts in training: None (all alike), ``"balanced"`` (inverse to its class's number), or by task one
    of these, or weights by class, ``{"action": {"fall": 3.0}, "safe": "balanced"}``. Kept as sorted pairs."""
    label_smoothing: float = 0.0
    """Of multiclass tasks."""
    drop_path: float = 0.0
    """Probability that the backbone's last block is skipped for a clip, earlier ones less, where it trains (see
    :mod:`workbench.models.droppath`)."""
    augment: bool = True
    crop_scale: float = 0.6
    """Smallest random crop, as a share of the frame's area."""
    rand_augment: int = 0
    """Random operations per clip, geometric and photometric (see :mod:`workbench.data.augment`); 0: none."""
    magnitude: float = 7.0
    """Their strength, from 0 to 10."""
    erasing: float = 0.0
    """Probability that a clip loses a box, the same in all frames."""
    mixup: float = 0.0
    """alpha of the Beta distribution of the weights with which two clips of a batch are averaged; 0: never."""
    cutmix: float = 0.0
    """The same for a box of one clip put into another. With both, each batch takes either by even chance."""
    mix_regression: bool = False
    """Mix also where a task is regression, and interpolate its targets. Else such tables are not mixed."""
    feature_views: int | None = None
    """For ``linear`` and ``attentive``, whose backbone is frozen: views of each training clip that are encoded once and
    stored, of which each epoch shows a random one. 1: the plain view; more add random ones, the same for every seed.
    None: 5, or 1 with ``augment=False``. 0: clips are encoded, augmented afresh, at each step, as they always are where
    they are mixed (``mixup``, ``cutmix``)."""
    patience: int = 0
    """0: train all epochs and keep the last. Else stop when the val score has not risen for this many epochs, and keep
    the best."""
    sampling: str = "uniform"
    """Which frames of a clip the model sees: ``uniform``, ``dense``, ``fps`` or ``single`` (one frame, repeated: what
    can be had without motion); :mod:`workbench.data.frames` works each by hand."""
    sampling_rate: int = 1
    """``dense``: step between kept frames, in frames."""
    fps: float | None = None
    """``fps``: kept frames per second."""
    short: str = "repeat_last"
    """What a clip shorter than its window does: ``repeat_last``, ``wrap`` or ``error`` (it is quarantined)."""
    test_clips: int = 1
    """Windows along time per clip when val and test are scored; the probabilities of all views are averaged."""
    test_crops: int = 1
    """Squares per window then: 1 (the centre) or 3 (along the long side)."""
    fit: str = "crop"
    decoder: str = "auto"
    precision: str = "auto"
    """``fp32``, ``bf16``, or ``auto``: bf16 where the device computes in it natively."""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", (self.tasks,) if isinstance(self.tasks, str) else tuple(self.tasks))
        object.__setattr__(self, "strategy", _spelled(self.strategy))
        kind, value = parse_loss(self.loss)
        object.__setattr__(self, "loss", kind if kind == "ce" else f"{kind}:{value:g}")
        object.__setattr__(self, "class_weights", _pairs(self.class_weights))
        # Solvers are looked for when training starts: a run can be read where they are not installed.
        object.__setattr__(self, "balance", str(parse_balance(self.balance, self.tasks or None, solvers=False)))
        for name, least in (
            ("epochs", 1), ("batch_size", 1), ("accumulation", 1), ("rand_augment", 0), ("patience", 0), ("seed", 0),
            ("decoder_layers", 1), ("measure_conflict", 0),
        ):  # fmt: skip
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                meaning = {
                    "rand_augment": " (operations per clip; 0: none)", "patience": " (0: never stop early)",
                    "measure_conflict": " (steps between measurements; 0: never)",
                }  # fmt: skip
                raise ValueError(f"{name}={number!r} must be a whole number of at least {least}{meaning.get(name, '')}")
        for name in ("num_frames", "size_px"):
            number = getattr(self, name)
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(
                    f"{name}={number!r} must be a whole number of at least 1, or None: the checkpoint's own"
                )
        for name, low, high in (
            ("warmup", 0, 1), ("crop_scale", 0.05, 1), ("magnitude", 0, 10), ("erasing", 0, 1), ("mixup", 0, 100),
            ("cutmix", 0, 100), ("label_smoothing", 0, 0.99), ("weight_decay", 0, 10),
            ("clip_norm", 1e-6, 1e6), ("lr", 0, 10), ("head_lr", 0, 10), ("momentum", 0, 0.9999), ("ema", 0, 0.99999),
            ("drop_path", 0, 0.9),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and name in ("lr", "head_lr"):
                continue
            if isinstance(value, bool) or not (isinstance(value, int | float) and low <= value <= high):
                raise ValueError(f"{name}={value!r} must lie between {low} and {high}")
        for name in ("augment", "mix_regression", "task_attention"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False")
        for name, known in (
            ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("decoder", DECODERS),
            ("precision", ("auto", "fp32", "bf16")), ("task_sampling", TASK_SAMPLINGS), ("head", (None, *HEADS)),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(str, known))}")
        self._check_frozen()
        self._check_optimizer()
        self._check_views()
        Sampling(
            num_frames=1, sampling=self.sampling, sampling_rate=self.sampling_rate, fps=self.fps, short=self.short,
            num_clips=self.test_clips,
        )  # fmt: skip
        check_views(1, self.fit, self.test_crops, None)
        if not self.augment and (self.rand_augment or self.erasing):
            raise ValueError(
                f"augment=False with rand_augment={self.rand_augment}, erasing={self.erasing}: these need augment=True"
            )

    def _check_frozen(self) -> None:
        """What a probe cannot do: have another head, or compare gradients where none arrive."""
        strategy, spec = parse_strategy(self.strategy), parse_balance(self.balance, solvers=False)
        if not strategy.frozen:
            return
        if self.head not in (None, strategy.head):
            raise ValueError(
                f"head={self.head!r}, but strategy={self.strategy!r} is a probe with head={strategy.head!r}: leave head"
            )
        if spec.at == "weights" and strategy.head == "mean":
            raise ValueError(
                f"balance={self.balance!r}: under strategy={self.strategy!r} the tasks share nothing that trains; "
                "use 'sum'"
            )
        asked = leave = ""
        if spec.at == "tokens":
            asked = f"balance={self.balance!r}"
            leave = (
                "one of balance='sum', 'static:<task>=<weight>', 'uncertainty', 'dwa', 'random'; attentive also "
                "'<method>@weights'"
            )
        elif self.measure_conflict and not spec.needs_gradients:  # which would be measured anyhow, where it can be
            asked, leave = f"measure_conflict={self.measure_conflict}", "measure_conflict=0"
        if asked:
            raise ValueError(
                f"{asked} compares gradients at the encoder's tokens, but strategy={self.strategy!r} freezes the "
                f"encoder: nothing before its tokens trains. Use a strategy that trains it, or {leave}"
            )

    def _check_views(self) -> None:
        views = self.feature_views
        if views is None or (views == 0 and not isinstance(views, bool)):
            return
        if isinstance(views, bool) or not isinstance(views, int) or views < 0:
            raise ValueError(f"feature_views={views!r} must be a whole number of at least 0, or None")
        if not parse_strategy(self.strategy).frozen:
            raise ValueError(f"feature_views={views}, but strategy={self.strategy!r} trains the backbone: leave it")
        if self.mixup or self.cutmix:
            raise ValueError(f"feature_views={views} with mixup or cutmix: mixed clips cannot be stored; use 0 or None")
        if views > 1 and not self.augment:
            raise ValueError(f"feature_views={views} with augment=False: only the plain view is there; use 1 or None")

    def _check_optimizer(self) -> None:
        betas = self.betas
        pair = isinstance(betas, list | tuple) and len(betas) == 2
        if not pair or not all(isinstance(b, int | float) and 0 <= b < 1 for b in betas):
            raise ValueError(
                f"betas={betas!r} must be two numbers, each at least 0 and below 1, for example (0.9, 0.999)"
            )
        object.__setattr__(self, "betas", tuple(betas))
        needed = ["head_lr"] if parse_strategy(self.strategy).frozen else ["lr", "head_lr"]
        if self.optimizer == "sgd" and (absent := [name for name in needed if getattr(self, name) is None]):
            raise ValueError(
                f"optimizer='sgd' needs {' and '.join(absent)}: the defaults are for Adam, which scales its steps; "
                "try 0.01 to 0.1 first"
            )

    @property
    def weights_by_task(self) -> dict[str, str | dict[str, float]]:
        """``class_weights`` as a mapping; ``"*"`` stands for all tasks that have classes."""
        if isinstance(self.class_weights, str):
            return {"*": self.class_weights}
        return {
            task: weights if isinstance(weights, str) else dict(weights) for task, weights in self.class_weights or ()
        }

    @property
    def rates(self) -> tuple[float, float]:
        """Peak rates (backbone, heads)."""
        backbone, heads = _RATES[parse_strategy(self.strategy).name]
        return (backbone if self.lr is None else self.lr), (heads if self.head_lr is None else self.head_lr)

    def replace(self, **changes: Any) -> "Setup":
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> "Setup":
        unknown = sorted(set(record) - {f.name for f in fields(Setup)})
        if unknown:
            raise ValueError(f"unknown setup field(s) {unknown}; a setup has {[f.name for f in fields(Setup)]}")
        return Setup(**record)

    def fingerprint(self) -> str:
        """Eight hex digits that change when any field does."""
        # Runs made before a field was there did what its first default says, and are found again.
        record = {k: v for k, v in self.to_json().items() if k not in _LATER or v != _LATER[k]}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]


def _spelled(strategy: str | Strategy) -> str:
    """The spelling that a run records: with its value, so that it means the same when a default changes."""
    spelling = str(parse_strategy(strategy))
    if isinstance(strategy, Strategy) and parse_strategy(spelling) != strategy:
        raise ValueError(f"{strategy!r} differs from the known {spelling!r}; a setup holds known strategies only")
    return spelling


def _pairs(weights: Any) -> Any:
    """Class weights as None, ``"balanced"`` or sorted pairs, so that a setup can be hashed. Takes mappings or pairs."""
    wrong = ValueError(
        f"class_weights={weights!r} must be None, 'balanced', or by task 'balanced' or positive weights by class: "
        "{'action': {'fall': 3.0}}"
    )
    if weights is None or weights == "balanced":
        return weights
    try:
        by_task = {
            str(task): own if isinstance(own, str) else {str(c): float(w) for c, w in dict(own).items()}
            for task, own in dict(weights).items()
        }
    except (TypeError, ValueError):
        raise wrong from None
    numbers = [w for own in by_task.values() if isinstance(own, Mapping) for w in own.values()]
    if any(isinstance(own, str) and own != "balanced" for own in by_task.values()) or not all(
        0 < w < float("inf") for w in numbers
    ):
        raise wrong
    return (
        tuple(sorted((t, own if isinstance(own, str) else tuple(sorted(own.items()))) for t, own in by_task.items()))
        or None
    )
