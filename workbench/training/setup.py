"""A transfer setup: everything that decides what a run learns, in one frozen record."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from workbench.data.frames import Sampling, check_views
from workbench.data.tables import DECODERS
from workbench.models.strategies import Strategy, parse_strategy

# Peak learning rates (backbone, heads) for AdamW at batch 16 on some hundreds of clips. Heads start from nothing and
# take more than a pretrained backbone can bear; from random weights the two are alike. Not tuned on clips of ours, and
# the sources are named from memory: look one up before relying on it.
_RATES = {
    "scratch": (5e-4, 5e-4),
    "linear": (0.0, 5e-3),
    "attentive": (0.0, 1e-3),  # V-JEPA 2's probes: 1e-3, https://arxiv.org/abs/2506.09985, appendix
    "bitfit": (1e-3, 1e-3),  # upper end of 1e-4 to 1e-3, BitFit's grid, https://arxiv.org/abs/2106.10199
    "lora": (3e-3, 1e-3),  # ten times "full", the ratio found at every size in thinkingmachines.ai/blog/lora
    "adapter": (5e-4, 1e-3),  # ST-Adapter's rate, https://arxiv.org/abs/2206.13559, appendix
    "partial": (3e-4, 1e-3),  # as "full": MAE tunes its last blocks with the recipe for all
    "llrd": (5e-4, 1e-3),  # VideoMAE's fine-tuning on UCF101 (rate of the last block, times the decay)
    "full": (3e-4, 1e-3),
}


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
    epochs: int = 20
    batch_size: int = 16
    lr: float | None = None
    """Peak rate of what trains outside the heads (backbone, LoRA, adapters); None takes the strategy's default."""
    head_lr: float | None = None
    """Peak rate of the heads; None takes the strategy's default."""
    weight_decay: float = 0.05
    """On matrices; never on biases and norms."""
    warmup: float = 0.1
    """Share of all steps in which the rate rises linearly; then it falls along a cosine to zero."""
    clip_norm: float = 1.0
    accumulation: int = 1
    """Batches per optimiser step."""
    label_smoothing: float = 0.0
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
        for name, least in (
            ("epochs", 1), ("batch_size", 1), ("accumulation", 1), ("rand_augment", 0), ("patience", 0), ("seed", 0),
        ):  # fmt: skip
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                meaning = {"rand_augment": " (operations per clip; 0: none)", "patience": " (0: never stop early)"}
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
            ("clip_norm", 1e-6, 1e6), ("lr", 0, 10), ("head_lr", 0, 10),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and low <= value <= high):
                raise ValueError(f"{name}={value!r} must lie between {low} and {high}")
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder={self.decoder!r} is not one of {', '.join(DECODERS)}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r} is not one of auto, fp32, bf16")
        Sampling(
            num_frames=1, sampling=self.sampling, sampling_rate=self.sampling_rate, fps=self.fps, short=self.short,
            num_clips=self.test_clips,
        )  # fmt: skip
        check_views(1, self.fit, self.test_crops, None)
        if not self.augment and (self.rand_augment or self.erasing):
            raise ValueError(
                f"augment=False with rand_augment={self.rand_augment}, erasing={self.erasing}: these need augment=True"
            )

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
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:8]


def _spelled(strategy: str | Strategy) -> str:
    """The spelling that a run records: with its value, so that it means the same when a default changes."""
    spelling = str(parse_strategy(strategy))
    if isinstance(strategy, Strategy) and parse_strategy(spelling) != strategy:
        raise ValueError(f"{strategy!r} differs from the known {spelling!r}; a setup holds known strategies only")
    return spelling
