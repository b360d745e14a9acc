"""From clips to predictions with a trained model: the same numbers in training's last step, ``evaluate`` and
``predict``."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.data.cache import DecodedClips, decode_table, reason_of
from workbench.data.clips import read_views
from workbench.data.loading.guard import run_guarded
from workbench.data.protocol import Protocol
from workbench.data.sources.archives import locate
from workbench.data.tables import ClipTable, Task
from workbench.models.tml import TML
from workbench.training.losses import Standard, decide
from workbench.training.probing.features import Features, HeadOnly
from workbench.training.runs import Run

TIME_LIMIT_SECONDS = 60.0
COLUMNS = ("clip_id", "path", "group", "split", "task", "target", "prediction", "probabilities")


def pick_device(device: str = "auto") -> torch.device:
    """``auto``: CUDA, else Apple's MPS, else CPU. Raises ValueError on a device this machine does not have."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    kind = device.split(":")[0]
    if not available.get(kind, False):
        raise ValueError(
            f"device={device!r} is not available here; use one of {[n for n, t in available.items() if t]} or 'auto'"
        )
    return torch.device(device)


@torch.inference_mode()
def outputs_of(model: TML, clips: Any, *, batch_size: int = 32) -> dict[str, Tensor]:
    """Logits of uint8 clips (n, T, H, W, C) in float32, on the CPU: {task: (n, K) or (n,)}; the model is put in eval
    mode.

    Several views per clip (n, V, T, H, W, C) give the logits of the views' mean probability (multiclass, binary) or
    their mean value (regression). ``clips`` is an array or anything that gives one for a slice.
    """
    model.eval()
    device = model.backbone.device
    views = clips.shape[1] if clips.ndim == 6 else 1
    rows = max(1, batch_size // views)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(clips), rows):
        # np.array copies the batch out of the store (torch would warn of a read-only array).
        batch = torch.from_numpy(np.array(clips[start : start + rows])).to(device)
        if batch.ndim == 6:
            batch = batch.flatten(0, 1)
        outputs = model(model.backbone.prepare(batch))
        parts.append({t.name: merge_views(t, outputs[t.name].float(), views).cpu() for t in model.tasks})
    return {task.name: torch.cat([part[task.name] for part in parts]) for task in model.tasks}


@torch.inference_mode()
def outputs_on(model: TML, part: DecodedClips | Features, *, batch_size: int = 32) -> dict[str, Tensor]:
    """:func:`outputs_of` on decoded clips, or the same from stored features of them: the head alone."""
    if not isinstance(part, Features):
        return outputs_of(model, part.clips, batch_size=batch_size)
    model.eval()
    network, device, views = HeadOnly(model, part.kind, part.grid), model.backbone.device, part.views
    rows = max(1, (batch_size if part.kind == "tokens" else 8192) // views)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(part), rows):
        values = torch.from_numpy(np.array(part.values[start : start + rows])).to(device)
        outputs = network(values.flatten(0, 1))
        parts.append({t.name: merge_views(t, outputs[t.name].float(), views).cpu() for t in model.tasks})
    return {task.name: torch.cat([found[task.name] for found in parts]) for task in model.tasks}


def merge_views(task: Task, output: Tensor, views: int) -> Tensor:
    """(n * views, K) or (n * views,) -> (n, K) or (n,): logits whose probabilities are the mean over each clip's
    views; of a regression the mean."""
    if views == 1:
        return output
    output = output.unflatten(0, (-1, views))
    if task.kind == "multiclass":
        return output.log_softmax(-1).logsumexp(1) - math.log(views)
    if task.kind in ("binary", "multilabel"):
        yes, no = (F.logsigmoid(sign * output).logsumexp(1) for sign in (1, -1))
        return yes - no
    return output.mean(1)


def prediction_frame(
    table: ClipTable, tasks: Sequence[Task], outputs: dict[str, Tensor], standard: Standard
) -> pd.DataFrame:
    """The prediction table: one row per clip and task. A task the table has no labels for gets NaN targets.

    A multilabel task's ``target`` is how many classes apply (NaN where none is known); its K labels are in one more
    column, ``targets``, which is None for other tasks and absent without such a one.
    """
    known = {task.name for task in table.tasks}
    parts = []
    for task in tasks:
        predicted, probabilities = decide(task, outputs[task.name], standard)
        targets = _targets(table, task) if task.name in known else np.full((len(table), task.num_targets), np.nan)
        several = task.kind == "multilabel"
        parts.append(pd.DataFrame({
            "clip_id": table.frame.clip_id, "path": table.frame.path, "group": table.frame.group,
            "split": table.frame.split, "task": task.name,
            "target": _number_that_apply(targets) if several else targets.reshape(len(table)),
            "prediction": predicted, "probabilities": probabilities,
            "targets": targets.tolist() if several else None,
        }))  # fmt: skip
    columns = [*COLUMNS, *(["targets"] if any(task.kind == "multilabel" for task in tasks) else [])]
    return pd.concat([part[columns] for part in parts], ignore_index=True)


def _number_that_apply(targets: np.ndarray) -> np.ndarray:
    """(n, K) of 0, 1 and NaN -> (n,)."""
    return np.where(np.isnan(targets).all(1), np.nan, np.nansum(targets, axis=1))


def _targets(table: ClipTable, task: Task) -> np.ndarray:
    """The table's labels as the run numbers them: its classes may have another order, or be only some."""
    own = table.task(task.name)
    if own.kind != task.kind or (own.kind == "binary" and own.classes and task.classes and own.classes != task.classes):
        raise ValueError(
            f"task {task.name!r} is {task.kind} {task.classes or ''} in the run but {own.kind} {own.classes or ''} in "
            f"{table.info.name!r}; rename theirs"
        )
    mine = task.kind in ("multiclass", "multilabel")
    return task.encode(table.frame[task.name]) if mine else own.encode(table.frame[task.name])


def decode_for(
    run: Run,
    clips: ClipTable,
    *,
    protocol: Protocol | None = None,
    one_view: bool = False,
    workers: int = 2,
    progress: bool = True,
) -> tuple[Any, ClipTable]:
    """Clips as the run's (or another) protocol wants them, uint8 (n, T, size, size, 3), or (n, V, T, size, size, 3)
    where it takes V views, and the table without what cannot be decoded. ``one_view`` leaves only the centre view.

    Raises ValueError on a protocol with another frame count or size than the run's model takes.
    """
    p = run.protocol if protocol is None else protocol
    for name in ("num_frames", "size_px"):
        if getattr(p, name) != getattr(run.protocol, name):
            raise ValueError(
                f"{name}={getattr(p, name)} in the protocol, but the model of run {run.name!r} takes "
                f"{getattr(run.protocol, name)}"
            )
    if one_view:
        p = replace(p, num_clips=1, num_crops=1, level="clip")
    decoded = decode_table(clips, **p.reading(), workers=workers, progress=progress)
    return decoded.clips, decoded.table


def predict_table(
    run: Run,
    clips: ClipTable,
    *,
    split: str | None = None,
    protocol: Protocol | None = None,
    device: str = "auto",
    workers: int = 2,
    progress: bool = False,
) -> pd.DataFrame:
    """Predictions of ``run`` on a table, or one split of it, under the run's own protocol or another."""
    chosen = clips if split is None else clips.split(split)
    frames, table = decode_for(run, chosen, protocol=protocol, workers=workers, progress=progress)
    model = run.model(str(pick_device(device)))
    return prediction_frame(table, run.tasks, outputs_of(model, frames), run.standard)


def predict(
    run: Run,
    paths: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    workers: int = 2,
    progress: bool = False,
) -> pd.DataFrame:
    """What ``run`` says of video files: one row per file, in order.

    Columns: ``path``; per multiclass task its class and ``<task>_probability``; per binary task its class (or 0/1)
    and the probability of the positive; per regression its value; and ``reason``, empty or why the file could not be
    read (its predictions are then missing). Files are decoded in child processes with a time limit; a path may lead
    through a tar, as those of shards do. Raises FileNotFoundError when a path is not there.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise ValueError("predict needs at least one path")
    absent = [str(p) for p in listed if not _is_there(p)]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        folder = " (a folder; name the files in it)" if Path(absent[0]).is_dir() else ""
        raise FileNotFoundError(f"no such file: {', '.join(absent[:3])}{more}{folder}")
    model, p = run.model(str(pick_device(device))), run.protocol
    items = [{"path": str(path), **p.reading()} for path in listed]
    outcomes = run_guarded(
        read_views, items, workers=min(workers, len(items)), time_limit_seconds=TIME_LIMIT_SECONDS,
        progress="predicting" if progress else None,
    )  # fmt: skip
    rows: list[dict[str, object]] = []
    waiting: list[np.ndarray] = []
    places: list[int] = []

    def flush() -> None:
        if waiting:
            for place, said in zip(places, _said(run, outputs_of(model, np.stack(waiting))), strict=True):
                rows[place] |= said
            waiting.clear()
            places.clear()

    for path, outcome in zip(listed, outcomes, strict=True):
        bad = isinstance(outcome, Exception)
        rows.append({"path": str(path), "reason": reason_of(outcome) if isinstance(outcome, Exception) else ""})
        if not bad:
            waiting.append(outcome)
            places.append(len(rows) - 1)
        if len(waiting) == 32:
            flush()
    flush()
    return pd.DataFrame(rows, columns=["path", *_said_columns(run), "reason"])


def _is_there(path: str | Path) -> bool:
    try:
        return Path(path).is_file() or locate(path) is not None
    except FileNotFoundError:  # a tar without that member
        return False


def _said_columns(run: Run) -> list[str]:
    return [n for t in run.tasks for n in ([t.name] if t.kind == "regression" else [t.name, f"{t.name}_probability"])]


def _said(run: Run, outputs: dict[str, Tensor]) -> list[dict[str, object]]:
    """Per clip, the columns of :func:`predict` that the model fills."""
    decided = {task.name: decide(task, outputs[task.name], run.standard) for task in run.tasks}
    clips: list[dict[str, object]] = []
    for i in range(len(next(iter(outputs.values())))):
        row: dict[str, object] = {}
        for task in run.tasks:
            value, probabilities = decided[task.name][0][i], decided[task.name][1][i]
            row[task.name] = task.classes[int(value)] if task.classes else float(value)
            if task.kind != "regression":
                row[f"{task.name}_probability"] = max(probabilities) if task.kind == "multiclass" else probabilities[1]
        clips.append(row)
    return clips
