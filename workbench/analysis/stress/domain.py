"""What happens to a run on clips from elsewhere: its score there, how far its features tell the two apart, and how much
of the drop other shares of the classes explain."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from workbench.analysis.bootstrap import MIN_GROUPS, bootstrap, percentile_interval
from workbench.analysis.comparing.evidence import Evidence, gather
from workbench.analysis.mistakes.encode import run_features
from workbench.analysis.predictions import Predictions, task_rows
from workbench.analysis.robustness import tasks_in
from workbench.analysis.shown import ShownReport, interval_text
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable
from workbench.training.metrics import weighted_metrics
from workbench.training.predict import predict_table
from workbench.training.runs import Run

FOLDS = 5


@dataclass(frozen=True, repr=False)
class DomainShift(ShownReport):
    """A run on two tables. Made by :func:`domain_shift`.

    ``table``: one row per task: ``task, metric``; ``source, target`` and ``change`` (target less source; the clips are
    others, so the two are drawn independently), each with ``_low`` and ``_high``; ``adjusted`` likewise: accuracy on
    the target if its classes had the source's shares (NaN elsewhere, or where the target lacks a class);
    ``label_shift``: total variation distance between the shares of the classes (NaN for regression); ``n_source,
    n_target, groups_source, groups_target``.

    ``per_class``: ``task, class, source, target`` (recall) and ``clips_source, clips_target``.

    ``separable``, ``separable_low``, ``separable_high``: AUROC of a linear classifier that tells source from target by
    the run's features, groups held out (the idea of the proxy A-distance, Ben-David et al. 2007). 0.5: alike as far as
    a linear rule sees; 1: not one clip looks as if it came from the other table. It says that they differ, not that the
    difference matters: see the scores for that. NaN with fewer than six groups in either.
    """

    run: str
    source: str
    target: str
    table: pd.DataFrame
    per_class: pd.DataFrame
    separable: float
    separable_low: float
    separable_high: float
    protocol: Protocol

    @property
    def caption(self) -> str:
        """What the numbers mean and what they cannot say."""
        if math.isnan(self.separable):
            apart = f"Fewer than {MIN_GROUPS} groups in one of them: no test of whether features tell them apart."
        else:
            apart = (
                f"Its features tell the two apart with AUROC {self.separable:.2f} [{self.separable_low:.2f}, "
                f"{self.separable_high:.2f}] (linear, groups held out; 0.5 is not at all)."
            )
        return (
            f"Run {self.run!r} on {self.source!r} (source) and {self.target!r} (target). {apart} 'adjusted' weighs the "
            "target's classes as in the source: what is left of the drop does not come from which are frequent. "
            "It may still be other clips of the same kind, or labels given by another rule.\n"
            f"Intervals: 95 % over resamples of groups. Protocol: {self.protocol.describe()}."
        )

    def formatted(self) -> pd.DataFrame:
        """The table as text, for reading."""
        rows = self.table
        shown = {"task": rows.task, "metric": rows.metric}
        for name in ("source", "target", "change", "adjusted"):
            columns = [name, f"{name}_low", f"{name}_high"]
            shown[name] = [interval_text(*v, signed=name == "change") for v in rows[columns].to_numpy(float)]
        shown["label shift"] = [interval_text(v, math.nan, math.nan) for v in rows.label_shift]
        return pd.DataFrame(shown)


def domain_shift(
    run: Run,
    source: ClipTable,
    target: ClipTable,
    *,
    split: str = "test",
    target_split: str | None = None,
    task: str | None = None,
    seed: int = 0,
    resamples: int = 2000,
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
) -> DomainShift:
    """Hold ``run`` on ``split`` of ``source`` against ``target`` (its ``target_split``; None: ``split``).

    Clips of both are read under the run's protocol. Raises ValueError where a split has no clips, the tables share no
    task with the run, or a clip lies in both.
    """
    parts = {"source": source.split(split), "target": target.split(target_split or split)}
    for name, part in parts.items():
        if not len(part):
            raise ValueError(
                f"the {name} table has no clips in the split asked for; source {source!r}, target {target!r}"
            )
    ids = [{str(path.resolve()) + f"@{start}" for path, start in _places(part)} for part in parts.values()]
    if shared := ids[0] & ids[1]:
        raise ValueError(f"{len(shared)} clip(s) lie in both tables; a shift is between different clips")
    common = [t for t in tasks_in(run, source, task) if t.name in {k.name for k in target.tasks}]
    if not common:
        raise ValueError(f"run {run.name!r}, source and target have no task in common; the target has "
                         f"{[t.name for t in target.tasks]}")  # fmt: skip
    made = {}
    for name, part in parts.items():
        frame = predict_table(run, part, device=device, workers=workers, progress=progress).assign(split=split)
        made[name] = Predictions(run.name, run.tasks, frame, run.protocol)
    lines, classes = [], []
    for one in common:
        # Two seeds: the clips of one table say nothing of the other's, so their draws must not go together.
        here, there = (
            gather(one, {name: task_rows(p, one, split)}, None, resamples=resamples, seed=seed + i)
            for i, (name, p) in enumerate(made.items())
        )
        lines.append(_line(here, there, resamples, seed))
        classes += _classes(here, there)
    features = [run_features(run, p, device=device, workers=workers, progress=progress) for p in parts.values()]
    values = [np.asarray(f.values)[:, 0] for f in features]
    groups = [f.table.frame.group.astype(str).to_numpy() for f in features]
    apart = separability(*values, *groups, resamples=resamples, seed=seed)
    return DomainShift(
        run.name, source.info.name, target.info.name, pd.DataFrame(lines),
        pd.DataFrame(classes, columns=["task", "class", "source", "target", "clips_source", "clips_target"]), *apart,
        replace(run.protocol, split=split),
    )  # fmt: skip


def separability(
    source: np.ndarray, target: np.ndarray, source_groups: np.ndarray, target_groups: np.ndarray, *,
    resamples: int = 2000, seed: int = 0,
) -> tuple[float, float, float]:  # fmt: skip
    """AUROC of telling features ``(n, D)`` of two tables apart, with its 95 % interval over groups.

    Logistic regression (L2, C = 0.01, standardised features) scores each clip in a fold that its group is held out of.
    All three are NaN with fewer than six groups in either.
    """
    if min(len(set(source_groups)), len(set(target_groups))) < MIN_GROUPS:
        return math.nan, math.nan, math.nan
    x, y = np.concatenate([source, target]).astype(float), np.repeat([0, 1], [len(source), len(target)])
    names = [f"0 {g}" for g in source_groups] + [f"1 {g}" for g in target_groups]
    groups = np.unique(names, return_inverse=True)[1].reshape(-1)
    scores, folds = np.zeros(len(y)), np.zeros(len(y), int)
    for fold, (train, test) in enumerate(
        StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(x, y, groups)
    ):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(x[train], y[train])
        # Folds are ranked apart: the constants of two fitted models are not comparable.
        scores[test], folds[test] = model.decision_function(x[test]), fold

    def statistics(weights: np.ndarray) -> np.ndarray:  # (r, n) -> (1, r)
        return np.array([[_within_folds(y, scores, folds, w) for w in weights]])

    draws = bootstrap(statistics, groups, resamples=min(resamples, 1000), seed=seed)[0]
    spread = percentile_interval(draws)
    return _within_folds(y, scores, folds, np.ones(len(y))), spread.low, spread.high


def _within_folds(y: np.ndarray, scores: np.ndarray, folds: np.ndarray, weights: np.ndarray) -> float:
    """Mean over folds of the weighted AUROC; NaN where no fold has both tables."""
    found = []
    for fold in np.unique(folds):
        there = (folds == fold) & (weights > 0)
        if len(np.unique(y[there])) == 2:
            found.append(roc_auc_score(y[there], scores[there], sample_weight=weights[there]))
    return float(np.mean(found)) if found else math.nan


def _places(table: ClipTable) -> list:
    return list(zip(table.files(), table.frame.start_seconds.fillna(-1.0), strict=True))


def _shares(one: Evidence) -> np.ndarray:
    """Share of each class among the labelled clips, (K,)."""
    count = max(2, len(one.task.classes))
    return np.bincount(one.target.astype(int), minlength=count) / max(1, len(one.target))


def _line(source: Evidence, target: Evidence, resamples: int, seed: int) -> dict:
    mine, theirs = source.draws["source"], target.draws["target"]
    here, there = source.values["source"], target.values["target"]
    gap = percentile_interval(theirs - mine)
    sure = {"source": percentile_interval(mine), "target": percentile_interval(theirs)}
    adjusted, shift = (math.nan,) * 3, math.nan
    if source.task.kind in ("multiclass", "binary"):
        shift = float(np.abs(_shares(source) - _shares(target)).sum() / 2)
    if source.metric == "accuracy":
        adjusted = _adjusted(source, target, resamples, seed)
    return {
        "task": source.task.name, "metric": source.metric,
        "source": here, "source_low": sure["source"].low, "source_high": sure["source"].high,
        "target": there, "target_low": sure["target"].low, "target_high": sure["target"].high,
        "change": there - here, "change_low": gap.low, "change_high": gap.high,
        "adjusted": adjusted[0], "adjusted_low": adjusted[1], "adjusted_high": adjusted[2], "label_shift": shift,
        "n_source": len(source.clip_id), "n_target": len(target.clip_id), "groups_source": source.num_groups,
        "groups_target": target.num_groups,
    }  # fmt: skip


def _adjusted(source: Evidence, target: Evidence, resamples: int, seed: int) -> tuple[float, float, float]:
    """Accuracy on the target with each clip weighted by its class's share in the source over that in the target."""
    wanted, have = _shares(source), _shares(target)
    if not len(target.target) or ((wanted > 0) & (have == 0)).any():
        return math.nan, math.nan, math.nan
    by_class = np.divide(wanted, have, out=np.zeros_like(wanted), where=have > 0)
    own = by_class[target.target.astype(int)]

    def statistics(weights: np.ndarray) -> np.ndarray:
        return weighted_metrics(
            target.task.kind, ["accuracy"], target=target.target, prediction=target.prediction["target"],
            probabilities=None, weights=weights * own,
        )  # fmt: skip

    spread = percentile_interval(bootstrap(statistics, target.groups, resamples=resamples, seed=seed)[0])
    return float(statistics(np.ones((1, len(own))))[0, 0]), spread.low, spread.high


def _classes(source: Evidence, target: Evidence) -> list[tuple]:
    if source.task.kind not in ("multiclass", "binary"):
        return []
    names = source.task.classes or ("0", "1")
    found = []
    for k, name in enumerate(names):
        masks = [one.target == k for one in (source, target)]
        rights = [source.right("source"), target.right("target")]
        recall = [float(r[m].mean()) if m.any() else math.nan for r, m in zip(rights, masks, strict=True)]
        found.append((source.task.name, name, *recall, int(masks[0].sum()), int(masks[1].sum())))
    return found
