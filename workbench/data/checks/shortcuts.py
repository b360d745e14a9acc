"""Could a model cheat? Whether facts of the file alone (size, rate, length, brightness ...) give the label away.

Each fact, and all together, goes into a small decision tree. Two numbers come out. *Held out*: cross-validated with
whole groups held out, with a bootstrap interval over groups: what a model could gain on new groups. *In sample*: the
tree judged on what it was fitted to, beside the share of label shufflings that reach as much: what a model could gain
where train and test share groups, as after a random split.
"""

import logging
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.data.tables import ClipTable

log = logging.getLogger(__name__)

FACTS: dict[str, tuple[str, ...]] = {
    "resolution": ("width", "height"),
    "fps": ("fps",),
    "duration": ("seconds",),
    "brightness": ("brightness",),
    "file size": ("file_bytes",),
    "audio": ("has_audio",),
}
"""Facts by the name they are reported under, and the columns of the doctor's table that make them up."""
_FOLDS, _REPEATS, _DEPTH = 5, 5, 3
_CHUNK, _MOST_CLIPS = 2_000_000, 20_000
_SURE = 0.01
_WORTH = 0.05
"""An interval that excludes chance by less than this is true and does not matter."""


@dataclass(frozen=True)
class Score:
    """A number with its 95 % bootstrap interval over groups."""

    value: float
    low: float
    high: float
    surely: float
    """Lower end of the interval that is wide enough for all facts at once (Bonferroni): what an alarm goes by."""


def shortcut_alarms(table: ClipTable, facts: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One row per task and fact: ``task, fact, metric, chance, in_sample, p_shuffled, held_out, low, high, alarm``.

    ``facts`` has a row per clip of ``table`` with the columns of :data:`FACTS`; clips with a missing fact or label are
    left out. The metric is AUROC (two classes), balanced accuracy (more) or rank correlation (regression). ``alarm`` is
    ``held out`` where the value is 0.05 or more above chance and its interval, widened for the number of facts, clear
    of it; ``in sample`` where only the fit itself beats all but 1 % of shuffled labels (clips shuffled); else empty.
    Without a shortcut the first comes up in about 1 to 3 % of facts. Tasks with too few groups (two per class, ten in
    all) and multilabel tasks have no row; of more than 20,000 clips as many are drawn, by whole groups.
    """
    rows = []
    usable = {name: [c for c in columns if c in facts] for name, columns in FACTS.items()}
    usable = {name: columns for name, columns in usable.items() if columns}
    usable |= {"all together": [c for columns in usable.values() for c in columns]}
    for task in table.tasks:
        if task.kind == "multilabel":
            continue
        target = table.targets(task.name)
        for name, columns in usable.items():
            values = facts[columns].to_numpy(float)
            known = ~np.isnan(target) & ~np.isnan(values).any(1)
            known &= _at_most(table.frame.group, _MOST_CLIPS, seed)
            group = pd.factorize(table.frame.group[known])[0]
            row = _judge(values[known], target[known], group, task.kind == "regression", resamples, seed)
            if row is not None:
                rows.append({"task": task.name, "fact": name, **row})
    columns = ["task", "fact", "metric", "chance", "in_sample", "p_shuffled", "held_out", "low", "high", "alarm"]
    return pd.DataFrame(rows, columns=columns)


def _at_most(groups: pd.Series, clips: int, seed: int) -> np.ndarray:
    """A mask of whole groups, drawn at random, with about as many clips."""
    codes = pd.factorize(groups)[0]
    share = min(1.0, clips / max(1, len(codes)))
    return (np.random.default_rng(seed).random(codes.max(initial=0) + 1) < share)[codes]


def _judge(
    values: np.ndarray, target: np.ndarray, group: np.ndarray, regression: bool, resamples: int, seed: int
) -> dict[str, object] | None:
    keep = np.ones(len(target), bool) if regression else _enough_groups(target, group)
    values, target, group = values[keep], target[keep], np.unique(group[keep], return_inverse=True)[1]
    classes = np.unique(target)
    if len(classes) < 2 or len(np.unique(group)) < 2 * _FOLDS:
        return None
    target = target if regression else np.searchsorted(classes, target)
    kind = "rank correlation" if regression else "AUROC" if len(classes) == 2 else "balanced accuracy"
    chance = {"rank correlation": 0.0, "AUROC": 0.5, "balanced accuracy": 1 / len(classes)}[kind]
    row: dict[str, object] = {"metric": kind, "chance": chance}
    if (np.ptp(values, axis=0) == 0).all():  # every clip is the same: nothing to learn from
        return row | {
            "in_sample": chance,
            "p_shuffled": 1.0,
            "held_out": chance,
            "low": chance,
            "high": chance,
            "alarm": "",
        }
    fitted, p = _in_sample(values, target, kind, seed)
    score = held_out(values, target, group, kind, resamples=resamples, seed=seed)
    proven = score.surely > chance and score.value - chance >= _WORTH
    hinted = p <= _SURE and fitted - chance >= _WORTH
    return row | {
        "in_sample": fitted, "p_shuffled": p, "held_out": score.value, "low": score.low, "high": score.high,
        "alarm": "held out" if proven else "in sample" if hinted else "",
    }  # fmt: skip


def _enough_groups(target: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Clips of the classes that occur in at least two groups: others cannot be held out."""
    spread = pd.Series(group).groupby(target).transform("nunique")
    return (spread >= 2).to_numpy()


def held_out(
    values: np.ndarray, target: np.ndarray, group: np.ndarray, kind: str, *, resamples: int = 1000, seed: int = 0
) -> Score:
    """A small tree's score on groups it was not fitted to, the mean over five shuffled five-fold splits.

    ``values (n, facts)``, ``target (n,)`` class index or number, ``group (n,)`` codes ``0..G-1``. The interval draws
    groups with replacement; it knows nothing of the tree's own variation.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    tables = []
    for repeat in range(_REPEATS):
        splitter = (GroupKFold if kind == "rank correlation" else StratifiedGroupKFold)(
            n_splits=_FOLDS, shuffle=True, random_state=seed + repeat
        )
        predicted: np.ndarray | None = None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class")  # such a class misses some folds
            folds = list(splitter.split(values, target, group))
        for train, test in folds:
            output = _outputs(_fitted(values[train], target[train], kind), values[test], kind, int(target.max()) + 1)
            if predicted is None:
                predicted = np.zeros((len(target), *output.shape[1:]))
            predicted[test] = output
        assert predicted is not None
        tables.append(_sufficient(predicted, target, group, kind))
    ones = np.ones((1, int(group.max()) + 1))
    value = float(np.mean([_metric(ones, t, kind)[0] for t in tables]))
    drawn = np.concatenate(
        [np.mean([_metric(w, t, kind) for t in tables], axis=0) for w in _draws(group, resamples, seed)]
    )
    low, high, surely = np.nanpercentile(drawn, [2.5, 97.5, 2.5 / (1 + len(FACTS))])
    return Score(value, float(low), float(high), float(surely))


def _in_sample(values: np.ndarray, target: np.ndarray, kind: str, seed: int, shuffles: int = 99) -> tuple[float, float]:
    """The tree's score on its own clips, and the share of label shufflings in which it does as well."""
    alone = np.zeros(len(target), int)
    ones = np.ones((1, 1))

    def score(labels: np.ndarray) -> float:
        output = _outputs(_fitted(values, labels, kind), values, kind, int(target.max()) + 1)
        return float(_metric(ones, _sufficient(output, labels, alone, kind), kind)[0])

    found, rng = score(target), np.random.default_rng(seed)
    reached = sum(score(rng.permutation(target)) >= found for _ in range(shuffles))
    return found, (1 + reached) / (1 + shuffles)


def _fitted(values: np.ndarray, target: np.ndarray, kind: str) -> object:
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    leaf = max(5, len(target) // 50)
    if kind == "rank correlation":
        return DecisionTreeRegressor(max_depth=_DEPTH, min_samples_leaf=leaf, random_state=0).fit(values, target)
    depth = _DEPTH if kind == "AUROC" else _DEPTH + 2  # enough leaves for some ten classes
    tree = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=leaf, class_weight="balanced", random_state=0)
    return tree.fit(values, target)


def _outputs(tree: object, values: np.ndarray, kind: str, classes: int) -> np.ndarray:
    """Scores (n,) for AUROC and regression, votes (n, K) for balanced accuracy."""
    if kind == "rank correlation":
        return np.asarray(tree.predict(values))  # type: ignore[attr-defined]
    votes = np.zeros((len(values), classes))
    votes[:, tree.classes_.astype(int)] = tree.predict_proba(values)  # type: ignore[attr-defined]
    return votes[:, 1] if kind == "AUROC" else votes


def _sufficient(output: np.ndarray, target: np.ndarray, group: np.ndarray, kind: str) -> np.ndarray:
    """What each group adds to the metric, so that a resample is one product: ``(G, ...)``."""
    count = int(group.max()) + 1
    if kind == "AUROC":  # (G, 2, S): clips of each class at each distinct score
        scores, place = np.unique(output.round(9), return_inverse=True)
        table = np.zeros((count, 2, len(scores)))
        np.add.at(table, (group, target.astype(int), place), 1)
    elif kind == "balanced accuracy":  # (G, 2, K): clips of each class, and those hit; a tie of m counts 1/m
        best = np.isclose(output, output.max(1, keepdims=True))
        hit = best[np.arange(len(target)), target.astype(int)] / best.sum(1)
        table = np.zeros((count, 2, output.shape[1]))
        np.add.at(table, (group, np.zeros_like(group), target.astype(int)), 1)
        np.add.at(table, (group, np.ones_like(group), target.astype(int)), hit)
    else:  # (G, 6): moments of the ranks
        x, y = (pd.Series(v).rank().to_numpy() / len(target) for v in (output, target))
        table = np.zeros((count, 6))
        np.add.at(table, group, np.column_stack([np.ones_like(x), x, y, x * x, y * y, x * y]))
    return table


def _metric(weights: np.ndarray, table: np.ndarray, kind: str) -> np.ndarray:
    """The metric for each row of group weights ``(r, G)``; NaN where a resample lacks a class."""
    sums = np.tensordot(weights, table, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind == "AUROC":
            negative, positive = sums[:, 0], sums[:, 1]
            below = np.cumsum(negative, axis=1) - negative / 2  # a tie counts half
            return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))
        if kind == "balanced accuracy":
            return np.nanmean(np.where(sums[:, 0] > 0, sums[:, 1] / sums[:, 0], np.nan), axis=1)
        n, x, y, xx, yy, xy = sums.T
        spread = np.sqrt((n * xx - x * x) * (n * yy - y * y))
        return np.where(spread > 1e-12, (n * xy - x * y) / spread, 0.0)


def _draws(group: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """How often each group is drawn, ``(r, G)`` at a time."""
    count, rng = int(group.max()) + 1, np.random.default_rng(seed)
    step = max(1, _CHUNK // count)
    return [
        rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - first)).astype(float)
        for first in range(0, resamples, step)
    ]
