"""Many probes of one frozen backbone from one pass of it over the clips: heads x rates x decays x tasks x seeds.

They train together (:mod:`workbench.training.probing.bank`), are chosen on ``val`` and reported on ``test``; the choice
never looks at ``test``. Choosing among many probes on the set that is then reported flatters them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from workbench.data.layouts import open_clips
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task
from workbench.models.backbones import load_backbone
from workbench.models.strategies import parse_strategy
from workbench.training.feed import feature_feed, stored_views
from workbench.training.finetune import fine_tune, native_bf16
from workbench.training.predict import pick_device
from workbench.training.probing.trial import Chosen, Trial
from workbench.training.runs import Run
from workbench.training.setup import Setup

# V-JEPA 2 trains 20 attentive probes at once, 20 epochs: these rates x these decays, without warm-up, a cosine to zero
# (github.com/facebookresearch/vjepa2, configs/eval/vitl/ssv2.yaml and k400.yaml; 256 clips a batch there). A linear
# layer bears more: ten times those rates, which is our choice.
_DECAYS = (0.01, 0.1, 0.4, 0.8)
_RATES = {"attentive": (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), "linear": (5e-2, 3e-2, 1e-2, 3e-3, 1e-3)}
_KINDS = ("multiclass", "binary", "regression")
# What a batched probe does not do; fields of a Setup and the values that it needs there.
_PLAIN: dict[str, Any] = {
    "optimizer": "adamw", "loss": "ce", "class_weights": None, "label_smoothing": 0.0, "ema": 0.0, "accumulation": 1,
    "patience": 0, "mixup": 0.0, "cutmix": 0.0, "head": None, "decoder_layers": 1, "balance": "sum",
    "task_sampling": "proportional", "measure_conflict": 0,
}  # fmt: skip


@dataclass(frozen=True)
class ProbeRun:
    """The chosen probes of one head and seed, for ``wb.compare``: what it reads of a run."""

    name: str
    tasks: tuple[Task, ...]
    predictions: pd.DataFrame
    """As a run's: val and test, one row per clip and task."""
    protocol: Protocol
    record: dict[str, Any]


@dataclass(repr=False)
class Probes:
    """What :func:`probes` found. ``table`` has a row per probe: ``task, head, seed, lr, weight_decay, metric, val_loss,
    val, test, chosen``; ``val`` and ``test`` are the task's main metric there (NaN where a split has no labels)."""

    table: pd.DataFrame
    tasks: tuple[Task, ...]
    clips: ClipTable
    protocol: Protocol
    seconds: dict[str, dict[str, float]]
    """By head: ``encode_seconds`` (the backbone; 0 where all features were stored) and ``train_seconds`` (all of its
    probes)."""
    chosen: dict[tuple[str, str, int], Chosen] = field(repr=False)
    """By (task, head, seed)."""
    quarantined: int = 0

    @property
    def best(self) -> pd.DataFrame:
        """The chosen probe of each task, head and seed."""
        return self.table[self.table.chosen].drop(columns="chosen").reset_index(drop=True)

    def summary(self) -> pd.DataFrame:
        """Test score of the chosen probes per task and head: mean over seeds, and the 95 % interval of that mean by
        Student's t (NaN for one seed). For an interval over clips, ``wb.compare(found.runs())``."""
        from scipy.stats import t

        rows = []
        for (task, head), part in self.best.groupby(["task", "head"], sort=False):
            scores, n = part.test.to_numpy(float), len(part)
            half = float(t.ppf(0.975, n - 1) * scores.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
            rows.append({
                "task": task, "head": head, "metric": part.metric.iloc[0], "test": scores.mean(),
                "low": scores.mean() - half, "high": scores.mean() + half, "seeds": n,
                "note": "" if n > 1 else "one seed: no interval over seeds",
            })  # fmt: skip
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        lost = f" ({self.quarantined} clips quarantined)" if self.quarantined else ""
        best = self.best.to_string(index=False, float_format=lambda v: f"{v:.4g}")
        return f"{len(self.table)} probes on {self.clips.info.name!r}{lost}; chosen on val (.best):\n{best}"

    def setup(self, task: str, head: str, seed: int | None = None) -> Setup:
        """The setup with which ``wb.fine_tune`` trains the chosen probe by itself."""
        return self._of(task, head, seed).setup

    def state(self, task: str, head: str, seed: int | None = None) -> dict[str, Tensor]:
        """The weights of the chosen probe's head."""
        return self._of(task, head, seed).state

    def run(
        self, task: str, head: str, seed: int | None = None, *, runs_dir: str | Path = "runs", **options: Any
    ) -> Run:
        """The chosen probe as a run folder: trained again by itself, on the features that are stored, in seconds.
        ``options`` go to :func:`~workbench.training.finetune.fine_tune`."""
        return fine_tune(self.setup(task, head, seed), self.clips, runs_dir=runs_dir, **options)

    def runs(self, seed: int | None = None) -> dict[str, ProbeRun]:
        """By head, the predictions of the chosen probes of all tasks (of the first seed, unless named)."""
        seed = int(self.table.seed.iloc[0]) if seed is None else seed
        found = {}
        for head in self.table["head"].unique():
            mine = [one for key, one in self.chosen.items() if key[1:] == (head, seed)]
            if not mine:
                raise ValueError(f"seed={seed} is not among {sorted(self.table.seed.unique().tolist())}")
            record = {
                "parameters": {"trainable": sum(v.numel() for one in mine for v in one.state.values())},
                "data": {"quarantined": self.quarantined}, "timings": {},
            }  # fmt: skip
            frames = [one.predictions for one in mine]
            name = f"{head}-probe-seed{seed}" if seed else f"{head}-probe"
            found[str(head)] = ProbeRun(name, self.tasks, pd.concat(frames, ignore_index=True), self.protocol, record)
        return found

    def _of(self, task: str, head: str, seed: int | None) -> Chosen:
        seed = int(self.table.seed.iloc[0]) if seed is None else seed
        if (task, head, seed) not in self.chosen:
            raise ValueError(f"no probe of task={task!r}, head={head!r}, seed={seed}; there are {list(self.chosen)}")
        return self.chosen[task, head, seed]


def probes(
    clips: ClipTable | str | Path,
    *,
    backbone: str = "nano",
    heads: str | Sequence[str] = ("linear", "attentive"),
    lrs: float | Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    weight_decays: float | Sequence[float] | None = None,
    tasks: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] = (0,),
    epochs: int = 20,
    batch_size: int = 16,
    setup: Setup | None = None,
    device: str = "auto",
    workers: int = 2,
    memory_gb: float = 2.0,
    progress: bool = True,
) -> Probes:
    """Train every combination of head, rate, decay, task and seed on features of one frozen backbone; of each, a list
    or one.

    ``heads``: frozen strategies. ``lrs``: for all heads, or by head (default: V-JEPA 2's grid, ten times that for
    ``linear``). A seed draws the heads and the order of clips. ``setup``: everything else (sampling, augmentation,
    ``feature_views``, warm-up, test views). At most ``memory_gb`` of probes train side by side, the others after them.
    Each probe is what ``wb.fine_tune`` of its own setup gives in float32, but for rounding.

    Raises ValueError on a setup with what batched probes do not do, on a task of another kind or without labels in
    train or val; MemoryError where the tokens that ``attentive`` needs cannot be stored.
    """
    heads = [heads] if isinstance(heads, str) else heads
    seeds = [seeds] if isinstance(seeds, int) else seeds
    lrs = [lrs] if isinstance(lrs, int | float) else lrs
    weight_decays = [weight_decays] if isinstance(weight_decays, int | float) else weight_decays
    table = clips if isinstance(clips, ClipTable) else open_clips(clips)
    table = table.with_tasks(tasks or [task.name for task in table.tasks])
    base = (setup or Setup()).replace(
        strategy="linear", backbone=backbone, tasks=(), epochs=epochs, batch_size=batch_size, lr=None, head_lr=None
    )
    _check(table, base, heads, seeds)
    encoder = load_backbone(backbone, num_frames=base.num_frames, size_px=base.size_px).to(pick_device(device))
    bf16 = base.precision == "bf16" or (base.precision == "auto" and native_bf16(encoder.device))
    precision = "bf16" if bf16 else "fp32"
    trials: list[Trial] = []
    for head in heads:
        given = lrs.get(head) if isinstance(lrs, Mapping) else lrs
        pairs = [(float(lr), float(wd)) for lr in given or _RATES[head] for wd in weight_decays or _DECAYS]
        grid = list(dict.fromkeys(pairs))  # a probe given twice is one
        own = base.replace(strategy=head)
        data = feature_feed(table, own, encoder, workers=workers, progress=progress, precision=precision)
        trials.append(Trial(encoder, data, table.tasks, own, grid, list(seeds)))
        trials[-1].run(memory_gb, progress)
    rows = pd.DataFrame([row for trial in trials for row in trial.rows])
    chosen = {key: one for trial in trials for key, one in trial.chosen.items()}
    rows["chosen"] = [
        (chosen[r.task, r.head, r.seed].setup.head_lr, chosen[r.task, r.head, r.seed].setup.weight_decay)
        == (r.lr, r.weight_decay)
        for r in rows.itertuples()
    ]  # fmt: skip
    seconds = {
        trial.head.name: {"encode_seconds": trial.data.encode_seconds, "train_seconds": trial.seconds}
        for trial in trials
    }
    last = trials[-1].data
    return Probes(rows, table.tasks, table, last.protocol, seconds, chosen, len(last.quarantined()))


def _check(table: ClipTable, base: Setup, heads: Sequence[str], seeds: Sequence[int]) -> None:
    if odd := [head for head in heads if not parse_strategy(head).frozen] or (not heads and ["none"]):
        raise ValueError(f"heads {odd} are no probes; give some of {list(_RATES)}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds={list(seeds)!r}: give at least one, none twice")
    wrong = [f"{name}={getattr(base, name)!r}" for name, needed in _PLAIN.items() if getattr(base, name) != needed]
    if wrong or base.schedule == "plateau" or stored_views(base) == 0:
        also = ["schedule='plateau'"] * (base.schedule == "plateau") + ["feature_views=0"] * (stored_views(base) == 0)
        raise ValueError(f"batched probes do not do {', '.join(wrong + also)}; fine_tune one by one, or leave it")
    if odd_kinds := [task.name for task in table.tasks if task.kind not in _KINDS]:
        raise ValueError(f"task(s) {odd_kinds} are none of {', '.join(_KINDS)}; name others with tasks=")
    for task in table.tasks:
        for split in ("train", "val"):
            if pd.isna(table.split(split).targets(task.name)).all():
                raise ValueError(f"no {split} clip has a label for task {task.name!r}; name others with tasks=")
