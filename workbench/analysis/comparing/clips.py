"""On which clips do two runs part, and how alike are the answers of many."""

import numpy as np
import pandas as pd

from workbench.analysis.comparing.evidence import Evidence
from workbench.training.metrics import weighted_metrics

OUTCOMES = ("first", "second", "both", "neither")


def clips_of(one: Evidence, first: str, second: str) -> pd.DataFrame:
    """One row per labelled clip: ``clip_id, path, group, truth, first, second`` (what each run said),
    ``first_confidence, second_confidence`` (of what was said) and ``outcome``: which of the two was right: ``first``,
    ``second``, ``both`` or ``neither``.

    In that order, the surest answers foremost. For regression the outcome says whose value was
    nearer to the truth (``both``: equally near), the largest gap first, and confidences are NaN. Raises ValueError for
    a run that was not compared, for twice the same, and for a multilabel task.
    """
    one.check(first, second)
    if first == second:
        raise ValueError(f"first and second are both {first!r}; name two runs")
    table = pd.DataFrame({"clip_id": one.clip_id, "path": one.path, "group": one.group_name})
    said = [one.prediction[first], one.prediction[second]]
    if one.task.kind == "regression":
        off = [np.where(np.isfinite(p), np.abs(p - one.target), np.inf) for p in said]
        table["truth"], table["first"], table["second"] = one.target, *said
        with np.errstate(invalid="ignore"):
            gap = np.nan_to_num(np.abs(off[0] - off[1]), nan=0.0)
        won = [off[0] < off[1], off[1] < off[0]]
        table["first_confidence"] = table["second_confidence"] = np.nan
        outcome = np.select(won, OUTCOMES[:2], "both")
        order = np.argsort(-gap, kind="stable")
    else:
        right = [one.right(run) for run in (first, second)]
        names = np.array([*(one.task.classes or ("0", "1")), "no prediction"], dtype=object)
        table["truth"] = names[one.target.astype(int)]
        for side, run, values in zip(("first", "second"), (first, second), said, strict=True):
            table[side] = names[np.where(np.isfinite(values), values, -1).astype(int)]
            table[f"{side}_confidence"] = one.confidence[run]
        outcome = np.select(
            [right[0] & ~right[1], right[1] & ~right[0], right[0] & right[1]], OUTCOMES[:3], OUTCOMES[3]
        )
        sure = table[["first_confidence", "second_confidence"]].fillna(0.0).sum(axis=1).to_numpy()
        place = np.array([OUTCOMES.index(o) for o in outcome], int)
        order = np.lexsort((-sure, place))
    return table.assign(outcome=outcome).iloc[order].reset_index(drop=True)


def agreement_of(one: Evidence, measure: str | None = None) -> pd.DataFrame:
    """How alike the answers of each two runs are, right or wrong: a square table over the runs.

    ``share`` of clips with the same prediction (the default for classes); Cohen's ``kappa`` (that share beyond what two
    runs with these numbers of each class would share by chance; NaN where each names a single class); for regression
    ``srcc``, the rank correlation of the predicted values. A prediction that is NaN agrees with nothing. Raises
    ValueError for a measure that does not fit the task.
    """
    fits = ("srcc",) if one.task.kind == "regression" else ("share", "kappa")
    measure = fits[0] if measure is None else measure
    if one.task.kind == "multilabel" or measure not in fits:
        raise ValueError(
            f"measure={measure!r} does not fit the {one.task.kind} task {one.task.name!r}; "
            + ("predictions are sets of classes there" if one.task.kind == "multilabel" else f"use one of {fits}")
        )
    runs = list(one.runs)
    said = np.stack([one.prediction[run] for run in runs])
    table = np.full((len(runs), len(runs)), np.nan)
    classes = np.arange(max(2, len(one.task.classes)))
    for i in range(len(runs)):
        if measure == "srcc":
            table[i, i:] = [_srcc(said[i], other) for other in said[i:]]
        elif said.shape[1]:
            table[i, i:] = (said[i:] == said[i]).mean(axis=1)
        table[i:, i] = table[i, i:]
    if measure == "kappa" and said.shape[1]:
        counts = np.stack([(said == c).mean(axis=1) for c in classes], axis=1)  # (runs, K)
        chance = counts @ counts.T
        table = np.divide(table - chance, 1 - chance, out=np.full_like(table, np.nan), where=chance < 1 - 1e-12)
    return pd.DataFrame(table, index=runs, columns=runs)


def _srcc(first: np.ndarray, second: np.ndarray) -> float:
    if not (np.isfinite(first) & np.isfinite(second)).all():
        return float("nan")
    return float(
        weighted_metrics(
            "regression",
            ["srcc"],
            target=first,
            prediction=second,
            probabilities=None,
            weights=np.ones((1, len(first))),
        )[0, 0]
    )
