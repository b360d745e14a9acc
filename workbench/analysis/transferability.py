"""Which backbone will serve these clips, before any of them is fine-tuned; and how far such a forecast was right."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.predictions import Predicted
from workbench.analysis.repeats import score_of
from workbench.analysis.transfer_scores import SCORES
from workbench.data.layouts import open_clips
from workbench.data.tables import ClipTable
from workbench.models.backbones import Backbone, load_backbone
from workbench.training.metrics import main_metric
from workbench.training.predict import pick_device
from workbench.training.probing.features import features_of

log = logging.getLogger(__name__)

KINDS = ("multiclass", "binary", "regression")
LEAST_CLIPS = 3
MIN_SETUPS = 5
"""With four setups even a perfect order has a two-sided p of 2 / 4! = 0.08: nothing could be shown."""


def transferability(
    clips: ClipTable | str | Path,
    backbones: str | Path | Sequence[str | Path] | Mapping[str, str | Path | Backbone] = ("nano",),
    *,
    tasks: str | Sequence[str] | None = None,
    scores: str | Sequence[str] = tuple(SCORES),
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of each backbone's frozen features for each task, on the table's train clips; nothing is trained.

    One row per backbone and task: ``backbone, task, kind, metric, n, groups, features``, a column per score (see
    :mod:`workbench.analysis.transfer_scores`; ``knn`` and ``probe`` are in units of ``metric``, on groups held out;
    ``separation`` and ``probe`` are the baselines a score should beat; NaN where a score has no meaning for the kind),
    and ``seconds`` for reading, encoding (cached) and scoring. Only the order of backbones within a task is a forecast.

    ``backbones``: names, folders or hub ids, or a mapping from names of your own to these or to loaded backbones. Val
    and test clips are never looked at. Raises ValueError on an unknown score or without labelled train clips.
    """
    table = clips if isinstance(clips, ClipTable) else open_clips(clips)
    table = table.train.with_tasks([task.name for task in table.tasks] if tasks is None else tasks)
    scores = [scores] if isinstance(scores, str) else scores
    if unknown := sorted(set(scores) - set(SCORES)):
        raise ValueError(f"unknown score(s) {unknown}; there are {list(SCORES)}")
    if not len(table) or not table.tasks:
        raise ValueError(f"{table.info.name!r} has no train clips with a task; the scores are computed on those")
    for task in table.tasks:
        if task.kind not in KINDS:
            raise ValueError(
                f"task {task.name!r} is {task.kind}; scores are for {', '.join(KINDS)}: name others in tasks"
            )
        if (n := int((~np.isnan(table.targets(task.name))).sum())) < LEAST_CLIPS:
            raise ValueError(
                f"{n} train clip(s) of {table.info.name!r} have a label of {task.name!r}; the scores need {LEAST_CLIPS}"
            )
    backbones = [backbones] if isinstance(backbones, str | Path) else backbones
    named = dict(backbones) if isinstance(backbones, Mapping) else {str(name): name for name in backbones}
    rows: list[dict[str, Any]] = []
    for name, given in named.items():
        began = time.monotonic()
        backbone = given if isinstance(given, Backbone) else load_backbone(given)
        found = features_of(backbone, table, device=str(pick_device(device)), workers=workers, progress=progress)
        values = np.asarray(found.values)[:, 0].astype(np.float64)  # (n, D), the plain view
        encoded = time.monotonic() - began
        rows += [_row(name, task.name, values, found.table, scores, encoded) for task in table.tasks]
    return pd.DataFrame(rows)


def _row(
    name: str, task: str, values: np.ndarray, table: ClipTable, scores: Sequence[str], encoded: float
) -> dict[str, Any]:
    kind, target = table.task(task).kind, table.targets(task)
    known = ~np.isnan(target)
    groups = pd.factorize(table.frame.group[known].fillna(table.frame.clip_id[known]))[0]
    row: dict[str, Any] = {
        "backbone": name, "task": task, "kind": kind, "metric": main_metric(kind), "n": int(known.sum()),
        "groups": len(np.unique(groups)), "features": values.shape[1],
    }  # fmt: skip
    began = time.monotonic()
    for score in scores:
        row[score] = SCORES[score](values[known], target[known], groups, kind)
    return row | {"seconds": encoded + time.monotonic() - began}


def beside_runs(scores: pd.DataFrame, runs: Mapping[str, Predicted], *, split: str = "test") -> pd.DataFrame:
    """``scores`` with a column ``trained``: the main metric that the run of each backbone reached on ``split``.

    ``runs`` is keyed by the names in the column ``backbone``; a row without a run, or whose run lacks the task, gets
    NaN. Raises ValueError where no name fits.
    """
    if not set(runs) & set(scores.backbone):
        raise ValueError(f"runs {list(runs)} name none of the backbones {sorted(set(scores.backbone))}")
    return scores.assign(
        trained=[_trained(runs.get(name), task, split) for name, task in zip(scores.backbone, scores.task, strict=True)]
    )


def _trained(run: Predicted | None, task: str, split: str) -> float:
    if run is None or task not in {t.name for t in run.tasks}:
        return math.nan
    return score_of(run, task, split=split)[1]


def rank_agreement(
    table: pd.DataFrame, *, against: str = "trained", scores: Sequence[str] | None = None, by: str = "task"
) -> pd.DataFrame:
    """How well each score orders setups as training did: one row per task and score.

    Columns: ``task, score, n`` (setups with both), ``kendall`` (tau-b) with ``low, high`` (95 %, Fisher's z with
    variance 0.437 / (n - 4): Fieller, Hartley and Pearson, Biometrika 44, 1957), ``p`` (two-sided, exact without ties),
    ``spearman``, and ``note``: with fewer than five setups nothing can be shown, and interval and p are NaN.
    """
    if against not in table:
        raise ValueError(f"no column {against!r}; add it with beside_runs(scores, runs)")
    names = [s for s in SCORES if s in table] if scores is None else list(scores)
    rows = []
    for task, part in table.groupby(by, sort=False):
        for name in names:
            pairs = part[[name, against]].dropna()
            if len(pairs):
                rows.append({by: task, "score": name} | _agreement(pairs[name].to_numpy(), pairs[against].to_numpy()))
    return pd.DataFrame(rows, columns=[by, "score", "n", "kendall", "low", "high", "p", "spearman", "note"])


def _agreement(score: np.ndarray, trained: np.ndarray) -> dict[str, Any]:
    from scipy.stats import kendalltau, norm, spearmanr

    n = len(score)
    row: dict[str, Any] = dict.fromkeys(("kendall", "low", "high", "p", "spearman"), math.nan) | {"n": n, "note": ""}
    if n < 2 or len(np.unique(score)) < 2 or len(np.unique(trained)) < 2:
        return row | {"note": "one value only: there is no order"}
    found = kendalltau(score, trained)
    tau = float(found.statistic)
    row |= {"kendall": tau, "spearman": float(spearmanr(score, trained).statistic)}
    if n < MIN_SETUPS:
        return row | {"note": f"{n} setups are too few to show agreement; it takes {MIN_SETUPS}"}
    # A perfect order has no finite z: it counts as one step of the last of n (n - 1) / 2 pairs short of it.
    inside = math.atanh(float(np.clip(tau, -1 + 2 / (n * (n - 1)), 1 - 2 / (n * (n - 1)))))
    half = float(norm.ppf(0.975)) * math.sqrt(0.437 / (n - 4))
    return row | {
        "low": min(math.tanh(inside - half), tau), "high": max(math.tanh(inside + half), tau), "p": float(found.pvalue),
    }  # fmt: skip
