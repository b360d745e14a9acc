"""What runs say of damaged or rearranged clips, and their scores on shared resamples."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from workbench.analysis.comparing.evidence import Evidence, gather
from workbench.analysis.predictions import Predictions, task_rows
from workbench.data.cache import reason_of
from workbench.data.corruptions import clip_seed, corrupted_views
from workbench.data.loading.guard import run_guarded
from workbench.data.loading.reading import Reading, Rows
from workbench.data.tables import ClipTable, Task
from workbench.models.tml import TML
from workbench.training.metrics import RANKED_BY_PROBABILITY
from workbench.training.predict import TIME_LIMIT_SECONDS, outputs_of, prediction_frame
from workbench.training.runs import Run

log = logging.getLogger(__name__)
_CHUNK = 16  # clips at a time: five severities of 16 clips of 16 x 224 px are 190 MB

Outputs = dict[str, torch.Tensor]


def answers(run: Run, model: TML, table: ClipTable, frames: Any, split: str) -> Predictions:
    """Predictions on frames ``(n, [V,] T, S, S, 3)`` of the table's clips, as they were read or rearranged."""
    return _predictions(run, table, outputs_of(model, frames), split)


def rearranged(
    run: Run, model: TML, table: ClipTable, frames: Any, order: Callable[[int, str], np.ndarray], split: str
) -> Predictions:
    """Predictions where each clip shows its frames in another order: ``order(T, clip_id)`` gives positions ``(T,)``."""
    ids, parts = table.frame.clip_id.astype(str).to_numpy(), []
    for first in range(0, len(ids), _CHUNK):
        chunk = np.asarray(frames[first : first + _CHUNK])
        moved = [
            clip[..., order(clip.shape[-4], name), :, :, :] for clip, name in zip(chunk, ids[first:], strict=False)
        ]
        parts.append(outputs_of(model, np.stack(moved)))
    return _predictions(run, table, _joined(parts), split)


def damaged(
    runs: Mapping[str, tuple[Run, TML]], table: ClipTable, kind: str, severities: Sequence[int], *, seed: int,
    split: str, workers: int, progress: bool,
) -> tuple[dict[str, dict[int, Predictions]], dict[int, str]]:  # fmt: skip
    """Predictions by run and severity under one corruption, of runs that read clips alike; and the rows of the table
    that could not be damaged, with their reasons (they are missing from the predictions)."""
    some = next(iter(runs.values()))[0]
    reader = Rows(table, Reading(**some.protocol.reading()))
    ids = table.frame.clip_id.astype(str).to_numpy()
    items = [
        {"kind": kind, "severities": list(severities), "seed": clip_seed(ids[i], seed), **reader.item(i)}
        for i in range(len(table))
    ]
    bad: dict[int, str] = {}
    parts: dict[str, dict[int, list[Outputs]]] = {name: {s: [] for s in severities} for name in runs}
    waiting: list[np.ndarray] = []

    def flush() -> None:
        if not waiting:
            return
        clips = np.stack(waiting, axis=1)  # (severities, chunk, V, T, S, S, 3)
        waiting.clear()
        for severity, chunk in zip(severities, clips, strict=True):
            for name, (_, model) in runs.items():
                parts[name][severity].append(outputs_of(model, chunk[:, 0] if chunk.shape[1] == 1 else chunk))

    outcomes = run_guarded(
        corrupted_views, items, workers=workers, time_limit_seconds=TIME_LIMIT_SECONDS,
        progress=kind if progress else None,
    )  # fmt: skip
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, Exception):
            bad[row] = reason_of(outcome)
            log.warning("%s under %s: %s", ids[row], kind, bad[row])
            continue
        waiting.append(outcome)
        if len(waiting) == _CHUNK:
            flush()
    flush()
    if len(bad) == len(table):
        raise ValueError(f"none of the {len(table)} clips can be read under {kind!r}; the first: {bad[0]}")
    kept = table[[i for i in range(len(table)) if i not in bad]]
    made = {
        name: {s: _predictions(runs[name][0], kept, _joined(found), split) for s, found in of_run.items()}
        for name, of_run in parts.items()
    }
    return made, bad


def evidence_of(task: Task, cells: Mapping[str, Predictions], split: str, *, resamples: int, seed: int) -> Evidence:
    """Every cell's main metric on the same clips (those that all cells have) and the same resamples of groups."""
    shared = set.intersection(*(set(p.predictions.clip_id.astype(str)) for p in cells.values()))
    rows = {}
    for name, made in cells.items():
        frame = made.predictions[made.predictions.clip_id.astype(str).isin(shared)]
        rows[name] = task_rows(Predictions(made.name, made.tasks, frame, made.protocol), task, split)
    return gather(task, rows, None, resamples=resamples, seed=seed)


def chance(one: Evidence) -> float:
    """The metric of an answer that does not look at the clip: the most frequent class always, or any ranking."""
    if one.metric in RANKED_BY_PROBABILITY and one.task.kind == "binary":
        return 0.5 if one.metric == "auroc" else float((one.target == 1).mean())
    if one.metric == "accuracy" and len(one.target):
        return float(np.unique(one.target, return_counts=True)[1].max() / len(one.target))
    if one.task.kind == "multilabel":
        return float(np.nanmean(one.target))
    return 0.0


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _predictions(run: Run, table: ClipTable, outputs: Outputs, split: str) -> Predictions:
    frame = prediction_frame(table, run.tasks, outputs, run.standard).assign(split=split)
    return Predictions(run.name, run.tasks, frame, run.protocol)
