"""Which labels look wrong? Confident learning on probabilities of models that never saw the clip's label."""

import html
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold, StratifiedKFold
from torch import nn

from workbench.analysis.explaining.refit import refitted
from workbench.analysis.mistakes.encode import run_features
from workbench.analysis.predictions import Predicted, task_rows, tasks_of
from workbench.data.tables import SPLITS, ClipTable, Task
from workbench.training.probing.features import Features

FOLDS = 5
RUN, PROBE = "the run, which did not train on it", "a probe fitted without its group"


@dataclass(frozen=True, repr=False)
class LabelErrors:
    """Clips by how much their label looks wrong, the worst first. Made by :func:`label_errors`.

    ``table``: ``clip_id, path, split, group, given`` (the label), ``suggested`` (the likeliest class), ``p_given,
    p_suggested, quality`` (cleanlab's label quality, 0 to 1, low is suspect), ``flagged`` (cleanlab would call it an
    error) and ``judged_by``.
    """

    task: Task
    table: pd.DataFrame
    accuracy: float
    """Share of given labels that the judging probabilities agree with: of a poor judge a disagreement says little."""
    penalties: tuple[float, ...]
    """Of the probes, one per fold; empty where no probe was needed."""

    @property
    def caption(self) -> str:
        """What judged, how well, and what a candidate is."""
        flagged = int(self.table.flagged.sum())
        by = ", ".join(f"{n} by {who}" for who, n in self.table.judged_by.value_counts().items())
        return (
            f"Task {self.task.name!r}: {flagged} of {len(self.table)} labels flagged (judged: {by}). The judges agree "
            f"with {self.accuracy:.0%} of the labels: where that is low, the list holds clips that are hard rather "
            "than mislabelled. A candidate is a clip to look at, not an error found."
        )

    def __str__(self) -> str:
        shown = ["clip_id", "split", "given", "suggested", "p_given", "p_suggested", "quality", "flagged"]
        return f"{self.table[shown].head(20).to_string(index=False, float_format=_short)}\n\n{self.caption}"

    __repr__ = __str__  # what a shell shows

    def _repr_html_(self) -> str:
        shown = self.table.head(20).drop(columns=["path", "judged_by"])
        body = shown.to_html(index=False, escape=True, border=0, float_format=_short, classes="workbench-errors")
        return f"{body}<p>{html.escape(self.caption)}</p>"


def label_errors(
    run: Predicted,
    clips: ClipTable | None = None,
    *,
    task: str | None = None,
    splits: Sequence[str] | None = None,
    features: Features | np.ndarray | None = None,
    device: str = "auto",
    progress: bool = True,
) -> LabelErrors:
    """List the clips whose label looks wrong, by probabilities that no model took from that label.

    Clips of val and test are judged by the run (val did choose its epoch). Clips of train, which the run has learned by
    heart, are judged by probes cross-fitted on frozen features of the backbone as it was *before* training: five
    folds of whole groups, the penalty chosen inside each. ``clips`` gives the train split; without it only the
    run's own predictions are judged. ``splits``: None is all there are. ``features`` (n, D) of the train clips
    in the table's order spare encoding them.

    Candidates are ranked by the normalised margin and flagged by cleanlab's confident learning (Northcutt, Jiang and
    Chuang 2021, https://arxiv.org/abs/1911.00068).

    Raises ValueError for a regression or multilabel task, splits that are not there, or no labelled clip; ImportError
    without cleanlab.
    """
    one = tasks_of(run, task)[0]
    if one.kind not in ("multiclass", "binary"):
        raise ValueError(f"task {one.name!r} is {one.kind}; label errors are looked for in multiclass and binary tasks")
    there = _splits(run, clips)
    wanted = list(splits) if splits is not None else there
    if absent := [s for s in wanted if s not in there]:
        hint = "; give clips for the train split" if "train" in absent and clips is None else ""
        raise ValueError(f"no clips of split(s) {absent} to judge; there are {there}{hint}")
    parts, chances = [], []
    penalties: tuple[float, ...] = ()
    for split in wanted:
        if split == "train":
            assert clips is not None
            frame, found, penalties = _probed(run, one, clips.split("train"), features, device, progress)
        else:
            frame, found = _by_run(run, one, split)
        parts.append(frame)
        chances.append(found)
    frame, probabilities = pd.concat(parts, ignore_index=True), np.concatenate(chances)
    if not len(frame):
        raise ValueError(f"no clip of {wanted} carries a label for task {one.name!r}")
    return _judged(one, frame, probabilities, penalties)


def _splits(run: Predicted, clips: ClipTable | None) -> list[str]:
    own = set(run.predictions.split.dropna()) if "split" in run.predictions.columns else {run.protocol.split}
    if clips is not None and (clips.frame.split == "train").any():
        own.add("train")
    return [s for s in SPLITS if s in own]


def _by_run(run: Predicted, task: Task, split: str) -> tuple[pd.DataFrame, np.ndarray]:
    rows = task_rows(run, task, split)
    if len(rows) and rows.probabilities is None:
        raise ValueError(f"run {run.name!r} has no probabilities for task {task.name!r}; label errors need them")
    frame = pd.DataFrame(
        {
            "clip_id": rows.clip_id, "path": rows.path, "split": split, "group": rows.group_name,
            "given": rows.target.astype(int), "judged_by": RUN,
        }
    )  # fmt: skip
    empty = np.zeros((0, max(2, len(task.classes))))
    return frame, empty if rows.probabilities is None else rows.probabilities


def _probed(
    run: Any, task: Task, clips: ClipTable, features: Features | np.ndarray | None, device: str, progress: bool
) -> tuple[pd.DataFrame, np.ndarray, tuple[float, ...]]:
    labels = clips.targets(task.name)
    if features is None:
        found = run_features(run, clips, trained=False, device=device, progress=progress)
        clips, features = found.table, found
        labels = clips.targets(task.name)
    values = np.asarray(features.values[:, 0] if isinstance(features, Features) else features, np.float32)
    if values.shape[0] != len(clips) or values.ndim != 2:
        raise ValueError(f"features are {values.shape} for {len(clips)} train clips; give (n, D) in the table's order")
    known = ~np.isnan(labels)
    chosen = clips.frame[known]
    given, groups = labels[known].astype(int), chosen.group.astype(str).tolist()
    frame = pd.DataFrame(
        {
            "clip_id": chosen.clip_id.astype(str).to_numpy(object), "path": chosen.path.to_numpy(object),
            "split": "train", "group": groups, "given": given, "judged_by": PROBE,
        }
    )  # fmt: skip
    return frame, *out_of_sample(task, values[known], given, groups)


def out_of_sample(
    task: Task, values: np.ndarray, labels: np.ndarray, groups: Sequence[str]
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Probabilities (n, K) of each clip from a logistic probe fitted to the other folds, and the folds' penalties.

    ``values`` (n, D), ``labels`` (n,) class indices. Whole ``groups`` are held out where there are at least ten of
    them. Raises ValueError where there are too few clips to fit a probe.
    """
    values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)
    kinds = max(2, len(task.classes))
    probabilities, penalties = np.full((len(labels), kinds), 1.0 / kinds), []
    for train, held in _folds(labels, groups):
        blank = nn.Linear(values.shape[1], task.num_outputs)
        fitted, penalty = refitted(
            blank, task, torch.from_numpy(values[train]), labels[train].astype(float), [groups[i] for i in train]
        )
        penalties.append(penalty)
        with torch.no_grad():
            logits = fitted(torch.from_numpy(values[held])).double()
        if task.kind == "binary":
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        probabilities[held] = logits.softmax(-1).numpy()
    return probabilities, tuple(penalties)


def _folds(labels: np.ndarray, groups: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    empty = np.zeros(len(labels))
    if len(labels) < 2 * FOLDS:
        raise ValueError(
            f"{len(labels)} labelled train clips are too few to judge one another; there must be {2 * FOLDS}"
        )
    if len(set(groups)) >= 2 * FOLDS:
        return list(GroupKFold(FOLDS).split(empty, groups=groups))
    counts = np.bincount(labels)
    if counts[counts > 0].max() < FOLDS:
        raise ValueError(f"no class has {FOLDS} train clips: too few for {FOLDS} folds")
    return list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(empty, labels))


def _judged(
    task: Task, frame: pd.DataFrame, probabilities: np.ndarray, penalties: tuple[float, ...]
) -> LabelErrors:  # fmt: skip
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise ImportError("label errors are found with cleanlab: pip install cleanlab") from error
    given = frame.given.to_numpy(int)
    sums = probabilities.sum(1, keepdims=True)
    probabilities = np.divide(probabilities, sums, out=np.full_like(probabilities, 1 / probabilities.shape[1]),
                              where=sums > 0)  # fmt: skip
    quality = get_label_quality_scores(given, probabilities, method="normalized_margin")
    several = len(np.unique(given)) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class of one or two clips: nothing of it is flagged
        flagged = find_label_issues(given, probabilities, n_jobs=1) if several else np.zeros(len(given), bool)
    names, likely = np.array(task.classes or ("0", "1"), dtype=object), probabilities.argmax(1)
    places = np.arange(len(given))
    table = frame.assign(
        given=names[given], suggested=names[likely], p_given=probabilities[places, given],
        p_suggested=probabilities[places, likely], quality=quality, flagged=flagged,
    )  # fmt: skip
    order = ["clip_id", "path", "split", "group", "given", "suggested", "p_given", "p_suggested", "quality", "flagged"]
    table = table[[*order, "judged_by"]].sort_values("quality", kind="stable").reset_index(drop=True)
    return LabelErrors(task, table, float((likely == given).mean()), penalties)


def _short(value: float) -> str:
    return f"{value:.3g}"
