"""``fine_tune``: from a setup and a table of clips to a finished run folder."""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from workbench.data.layouts import open_clips
from workbench.data.splits import groups_across_splits
from workbench.data.tables import ClipTable
from workbench.models.backbones import Backbone
from workbench.models.strategies import parse_strategy
from workbench.models.tml import TML
from workbench.training.balance_spec import parse_balance
from workbench.training.feed import Feed, feed, stored_views
from workbench.training.locking import alone_in
from workbench.training.loop import Progress, Watcher, train
from workbench.training.losses import Standard, standardisation
from workbench.training.predict import outputs_on, pick_device, prediction_frame
from workbench.training.probing.features import Features
from workbench.training.runs import Run, build_model, environment, load_run, save_run
from workbench.training.setup import Setup
from workbench.training.trackers import check_trackers, tracked

log = logging.getLogger(__name__)


def fine_tune(
    setup: Setup | str,
    clips: ClipTable | str | Path,
    *,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    compile_model: bool = False,
    workers: int = 2,
    progress: bool = True,
    watch: Watcher | None = None,
    trackers: Sequence[str] = (),
    started: Callable[[Path], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Run:
    """Train one setup on a table's ``train`` split, watch it on ``val``, predict ``val`` and ``test``.

    ``setup`` may be just a strategy's name. The run goes to a folder in ``runs_dir`` named after table, setup and data;
    called again with the same, it resumes what was interrupted, returns what is finished, and waits while another
    process is at it. ``device``: ``auto``, ``cpu``, ``cuda``, ``mps``. ``compile_model`` runs the network through
    ``torch.compile``. ``watch`` is called with the history (a DataFrame) after every epoch. ``trackers`` also get it:
    ``tensorboard``, ``trackio``, ``mlflow``, whose files lie in ``runs_dir`` (:mod:`workbench.training.trackers`).
    ``started`` is told the run's folder once it is known. ``should_stop`` is asked between steps: where it says True, a
    checkpoint is written and KeyboardInterrupt raised. Raises ValueError on a table without train or val clips or
    without labels, ImportError where a tracker or the solver of ``setup.balance`` is not installed.
    """
    setup = Setup(strategy=setup) if isinstance(setup, str) else setup
    table = clips if isinstance(clips, ClipTable) else open_clips(clips)
    table = table.with_tasks(setup.tasks or [task.name for task in table.tasks])
    label = name or setup_label(setup)
    backbone_lr, head_lr = setup.rates
    # Spelled out, so that a run says what it did even when a default changes.
    setup = setup.replace(
        tasks=tuple(task.name for task in table.tasks), lr=backbone_lr, head_lr=head_lr,
        feature_views=stored_views(setup),
    )  # fmt: skip
    check_trackers(trackers)
    _check_labels(table)
    _check_balance(setup, table, compile_model)
    _say_idle(setup, table)
    if leaks := groups_across_splits(table):
        log.warning("%s: %d group(s) lie in more than one split; scores will be too good", table.info.name, len(leaks))
    chosen = pick_device(device)
    model = build_model(setup, table.tasks)
    fingerprint = model.backbone.fingerprint()
    folder = Path(runs_dir) / _folder_name(label, setup, table, fingerprint)
    if started:
        started(folder)
    if not (folder / "run.json").exists():
        with alone_in(folder):
            if not (folder / "run.json").exists():  # else whoever was waited for has finished it
                follow = partial(tracked, trackers, folder, label, setup.to_json())
                accelerator = make_accelerator(setup, chosen, compile_model=compile_model)
                return _train_and_save(
                    model, table, setup, folder, label, fingerprint, accelerator,
                    workers=workers, progress=progress, watch=watch, follow=follow, should_stop=should_stop,
                )  # fmt: skip
    log.info("%s is finished already; reading it", folder)
    return load_run(folder)


def _train_and_save(
    model: TML,
    table: ClipTable,
    setup: Setup,
    folder: Path,
    label: str,
    fingerprint: str,
    accelerator: Accelerator,
    *,
    workers: int,
    progress: bool,
    watch: Watcher | None,
    follow: Callable[[], AbstractContextManager[Watcher | None]],
    should_stop: Callable[[], bool] | None,
) -> Run:
    """The work of :func:`fine_tune` once the run's folder is known to be new or interrupted, and ours."""
    began = time.monotonic()
    cuda = accelerator.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()  # the record's peak is this run's, not the process's
    model.backbone.to(accelerator.device)
    precision = precision_of(accelerator)
    data = feed(table, setup, model.backbone, workers=workers, progress=progress, precision=precision)
    feed_seconds = time.monotonic() - began
    standard = standardisation(data.train.table, table.tasks)
    # The loop seeds every step, the GPU too; the caller's own randomness stays as it was.
    with torch.random.fork_rng(devices=[0] if cuda else []), follow() as also:
        state, kept = train(
            model, data, setup, accelerator, folder, standard,
            flip=table.info.horizontal_flip, reverse=table.info.time_reversal, progress=progress,
            watch=_both(watch, also), should_stop=should_stop,
        )  # fmt: skip
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.load_state_dict(kept, strict=False)
    predictions = _predictions(model, data, standard)
    record = _record(label, setup, table, data, model, state, standard, fingerprint, accelerator, feed_seconds)
    run = save_run(folder, record, history=pd.DataFrame(state.history), predictions=predictions, weights=kept)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return run


def _both(*watchers: Watcher | None) -> Watcher:
    """One watcher that calls those there are."""

    def watch(history: pd.DataFrame) -> None:
        for watcher in watchers:
            if watcher:
                watcher(history)

    return watch


_NUMBERS = ("rand_augment", "erasing", "mixup", "cutmix", "label_smoothing", "drop_path", "ema")
_NAMED = {"optimizer": "adamw", "schedule": "cosine", "loss": "ce", "balance": "sum"}


def setup_label(setup: Setup) -> str:
    """A short name that tells setups of one sweep apart."""
    parts = [setup.strategy]
    if setup.head not in (None, parse_strategy(setup.strategy).head):
        parts.append(setup.head)
    if setup.decoder_layers != 1:
        parts.append(f"decoder{setup.decoder_layers}")
    if not setup.task_attention:
        parts.append("apart")
    named = {"single": "single-frame", "dense": f"dense{setup.sampling_rate}", "fps": f"{setup.fps}fps"}
    if setup.sampling in named:
        parts.append(named[setup.sampling])
    if not setup.augment:
        parts.append("plain")
    parts += [f"{n}{getattr(setup, n):g}" for n in _NUMBERS if getattr(setup, n)]
    parts += [v for n, usual in _NAMED.items() if (v := getattr(setup, n)) != usual]
    if setup.task_sampling != "proportional":
        parts.append("task-balanced")
    if setup.class_weights:
        parts.append("balanced" if setup.class_weights == "balanced" else "weighted")
    # The default, spelled out or not, is the same setup.
    if setup.feature_views not in (None, stored_views(setup.replace(feature_views=None))):
        parts.append(f"views{setup.feature_views}")
    if setup.seed:
        parts.append(f"seed{setup.seed}")
    return "-".join(parts)


def _folder_name(label: str, setup: Setup, table: ClipTable, backbone: str) -> str:
    """Readable, and different for another setup, table, labels or backbone weights."""
    safe_flips = f"{table.info.horizontal_flip} {table.info.time_reversal}"
    identity = f"{setup.fingerprint()} {table.fingerprint()} {backbone} {safe_flips}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{table.info.name}-{label}")
    return f"{safe}-{digest}"


def _check_labels(table: ClipTable) -> None:
    if not table.tasks:
        raise ValueError(f"{table.info.name!r} has no task to learn; name a label column when opening it")
    for task in table.tasks if len(table.train) else ():  # no train clips at all: the feed says so
        labels = table.train.targets(task.name)
        if pd.isna(labels).all():
            raise ValueError(f"no train clip of {table.info.name!r} has a label for task {task.name!r}")
        seen = set(np.flatnonzero((labels == 1).any(0)) if task.kind == "multilabel" else labels)
        if unseen := [c for i, c in enumerate(task.classes) if i not in seen]:
            more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
            log.warning("%s: no train clip of %s%s of task %r", table.info.name, ", ".join(unseen[:5]), more, task.name)


def _check_balance(setup: Setup, table: ClipTable, compile_model: bool) -> None:
    """That the balance fits the tasks, and its solver is there, before anything is decoded."""
    spec = parse_balance(setup.balance, [task.name for task in table.tasks])
    if compile_model and (spec.needs_gradients or setup.measure_conflict):
        asked = f"balance={setup.balance!r}" if spec.needs_gradients else f"measure_conflict={setup.measure_conflict}"
        raise ValueError(f"{asked} takes gradients inside the model, which compile_model=True fuses; leave one of them")


def _say_idle(setup: Setup, table: ClipTable) -> None:
    """Name what was asked for and has no effect on these tasks under this strategy."""
    kinds = {task.kind for task in table.tasks}
    if setup.lr and parse_strategy(setup.strategy).frozen:
        log.warning(
            "lr=%g does nothing: strategy %s freezes the backbone; head_lr (%g) is the rate of what trains",
            setup.lr, setup.strategy, setup.head_lr,
        )  # fmt: skip
    if not kinds & {"multiclass", "binary"} and (setup.loss != "ce" or setup.class_weights == "balanced"):
        asked = f"loss={setup.loss!r}" if setup.loss != "ce" else "class_weights='balanced'"
        log.warning("%s does nothing: no task is multiclass or binary", asked)
    head = setup.head or parse_strategy(setup.strategy).head
    for name, idle in (("decoder_layers", setup.decoder_layers > 1), ("task_attention", not setup.task_attention)):
        if idle and head == "mean":
            log.warning("%s=%s does nothing: head='mean' has no decoder; use head='query'", name, getattr(setup, name))
    if len(table.tasks) == 1:
        for name, usual in (("balance", "sum"), ("task_sampling", "proportional"), ("measure_conflict", 0)):
            if (value := getattr(setup, name)) != usual:
                log.warning("%s=%r has nothing to compare: %r is the only task", name, value, table.tasks[0].name)
    if setup.label_smoothing and "multiclass" not in kinds:
        log.warning("label_smoothing=%g does nothing: no task is multiclass", setup.label_smoothing)


def native_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself; where it is emulated, float32 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))


def make_accelerator(setup: Setup, device: torch.device, *, compile_model: bool = False) -> Accelerator:
    """Accelerate for this device and precision. Its state is process-wide and would keep an earlier run's, so reset
    it."""
    if device.index:
        raise ValueError(
            f"device={str(device)!r}: training takes the first visible GPU; set CUDA_VISIBLE_DEVICES={device.index} "
            "and use device='cuda'"
        )
    AcceleratorState._reset_state(reset_partial_state=True)
    bf16 = setup.precision == "bf16" or (setup.precision == "auto" and native_bf16(device))
    return Accelerator(
        mixed_precision="bf16" if bf16 else "no",
        gradient_accumulation_steps=setup.accumulation,
        cpu=device.type == "cpu",
        dynamo_backend="inductor" if compile_model else None,
    )


def precision_of(accelerator: Accelerator) -> str:
    """``bf16`` or ``fp32``, as features are computed for it."""
    return "bf16" if accelerator.mixed_precision == "bf16" else "fp32"


def _predictions(model: TML, data: Feed, standard: Standard) -> pd.DataFrame:
    parts = [p for p in (data.val_views, data.test) if p is not None]
    frames = [prediction_frame(p.table, model.tasks, outputs_on(model, p), standard) for p in parts]
    return pd.concat(frames, ignore_index=True)


def _record(
    label: str,
    setup: Setup,
    table: ClipTable,
    data: Feed,
    model: TML,
    state: Progress,
    standard: Standard,
    backbone_fingerprint: str,
    accelerator: Accelerator,
    feed_seconds: float,
) -> dict[str, Any]:
    backbone: Backbone = model.backbone
    counts = {"train": len(data.train), "val": len(data.val), "test": len(data.test) if data.test else 0}
    quarantined = data.quarantined()
    seconds = state.seconds
    return {
        "name": label,
        "setup": setup.to_json(),
        "protocol": data.protocol.to_json(),
        "tasks": [task.to_json() for task in model.tasks],
        "data": {
            "name": table.info.name, "fingerprint": table.fingerprint(), "root": str(table.root.resolve()),
            "clips": counts, "groups": int(table.frame.group.nunique()),
            "leaking_groups": len(groups_across_splits(table)),
            "quarantined": len(quarantined), "quarantine": quarantined,
        },
        "parameters": {
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "total": sum(p.numel() for p in model.parameters()),
        },
        "timings": {
            "train_seconds": round(seconds, 3), "encode_seconds": round(data.encode_seconds, 3),
            "decode_seconds": round(feed_seconds - data.encode_seconds, 3),
            "clips_per_second": round(len(state.history) * counts["train"] / max(seconds, 1e-9), 3),
        },
        "features": {
            "kind": data.train.kind, "views": data.train.views, "dtype": data.train.values.dtype.name,
        } if isinstance(data.train, Features) else None,
        "kept_epoch": state.kept_epoch,
        "best_epoch": state.best_epoch,
        "best_val_score": state.best_score,
        "findings": state.findings,
        "backbone_fingerprint": backbone_fingerprint,
        "device": {
            "kind": accelerator.device.type, "precision": accelerator.mixed_precision,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if accelerator.device.type == "cuda" else None,
        },
        "environment": environment(),
        "standardise": {name: list(pair) for name, pair in standard.items()},
        "num_tokens": int(backbone.grid[0] * backbone.grid[1] * backbone.grid[2]),
    }  # fmt: skip
