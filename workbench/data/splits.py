"""Train, val and test without leaks: whole groups go to one side."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.data.tables import SPLITS, ClipTable

log = logging.getLogger(__name__)


def split_by_group(
    table: ClipTable,
    *,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    stratify: str | None = None,
) -> ClipTable:
    """A new table whose ``split`` column keeps each group in one of train, val and test.

    ``fractions`` are the shares of clips (a 0 leaves that split empty). With ``stratify`` (a task) each split gets
    about that share of each class too, as far as whole groups allow: groups are placed one by one, the least balanced
    first, where they hurt least (the greedy idea of scikit-learn's StratifiedGroupKFold, for unequal shares).
    Raises ValueError when there are fewer groups than splits.
    """
    shares = _check_fractions(fractions)
    counts, groups = _class_counts(table, stratify)
    used = [i for i, share in enumerate(shares) if share > 0]
    if len(groups) < len(used):
        raise ValueError(
            f"{len(groups)} group(s) cannot fill {len(used)} splits without cutting a group in two; "
            "use fewer splits (a fraction of 0) or a finer group column"
        )
    side = _place(counts, shares[used], np.random.default_rng(seed))
    names = dict(zip(groups, (SPLITS[used[s]] for s in side), strict=True))
    return table._with(table.frame.assign(split=table.frame.group.map(names)))


def k_fold_by_group(
    table: ClipTable, *, folds: int = 5, seed: int = 0, stratify: str | None = None, val_fraction: float = 0.15
) -> list[ClipTable]:
    """``folds`` tables; each group is in test exactly once, and val is taken from the rest, by group too.

    scikit-learn's StratifiedGroupKFold (with ``stratify``) or GroupKFold makes the folds.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    if folds < 2 or not 0 < val_fraction < 1:
        raise ValueError(f"folds={folds} must be at least 2 and val_fraction={val_fraction} between 0 and 1")
    codes = _group_codes(table)
    if len(np.unique(codes)) < folds + 1:
        raise ValueError(
            f"{len(np.unique(codes))} group(s) are too few for {folds} folds that each leave train and val"
        )
    kind = GroupKFold if stratify is None else StratifiedGroupKFold
    splitter = kind(n_splits=folds, shuffle=True, random_state=seed)
    strata = np.zeros(len(table), int) if stratify is None else _strata(table, stratify)
    tables = []
    for _, test in splitter.split(np.zeros(len(table)), strata, codes):
        in_test = np.zeros(len(table), bool)
        in_test[test] = True
        rest = split_by_group(
            table[~in_test], fractions=(1 - val_fraction, val_fraction, 0), seed=seed, stratify=stratify
        )
        column = pd.Series("test", index=table.frame.index, dtype=object)
        column[~in_test] = rest.frame.split.to_numpy(object)
        tables.append(table._with(table.frame.assign(split=column)))
    return tables


def split_randomly(
    table: ClipTable,
    *,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    stratify: str | None = None,
    allow_leak: bool = False,
) -> ClipTable:
    """Clips to splits at random, whatever their group.

    Refused where groups hold several clips, as a model can then recognise the group (its room, its person) instead of
    the class and score too well; ``allow_leak=True`` does it all the same, to show exactly that.
    """
    sizes = table.frame.group.value_counts()
    if (sizes > 1).any() and not allow_leak:
        raise ValueError(
            f"{int((sizes > 1).sum())} group(s) hold more than one clip (the largest {int(sizes.max())}): a random "
            "split puts parts of one group on both sides and inflates every score; use split_by_group, "
            "or allow_leak=True to show the effect"
        )
    alone = table._with(table.frame.assign(group=[f"clip {i}" for i in range(len(table))]))
    split = split_by_group(alone, fractions=fractions, seed=seed, stratify=stratify).frame.split
    return table._with(table.frame.assign(split=split.to_numpy(object)))


def groups_across_splits(table: ClipTable) -> list[str]:
    """Groups with clips in more than one split."""
    spread = table.frame.dropna(subset=["split"]).groupby("group").split.nunique()
    return [str(g) for g in spread[spread > 1].index]


def _check_fractions(fractions: Sequence[float]) -> np.ndarray:
    shares = np.asarray(fractions, float)
    if shares.shape != (3,) or not (shares >= 0).all() or not np.isclose(shares.sum(), 1) or shares[0] == 0:
        raise ValueError(f"fractions={tuple(fractions)} must be three shares (train, val, test) that add up to 1")
    return shares


def _group_codes(table: ClipTable) -> np.ndarray:
    if not len(table):
        raise ValueError("the table has no clips to split")
    if table.frame.group.isna().any():
        raise ValueError(f"{int(table.frame.group.isna().sum())} clip(s) have no group; fill the group column")
    return pd.factorize(table.frame.group, sort=True)[0]


def _strata(table: ClipTable, task: str) -> np.ndarray:
    """One whole number per clip: its class; for regression its fifth of the range; one more for "no label"."""
    values = table.targets(task)
    missing = np.isnan(values)
    if table.task(task).kind == "regression" and not missing.all():
        values = np.digitize(values, np.nanquantile(values, [0.2, 0.4, 0.6, 0.8])).astype(float)
    return np.where(missing, -1, np.nan_to_num(values)).astype(int)


def _class_counts(table: ClipTable, stratify: str | None) -> tuple[np.ndarray, list[str]]:
    """(groups, classes) numbers of clips, and the groups' names in that order."""
    codes = _group_codes(table)
    strata = np.zeros(len(table), int) if stratify is None else _strata(table, stratify)
    classes = np.unique(strata, return_inverse=True)[1]
    counts = np.zeros((codes.max() + 1, classes.max() + 1))
    np.add.at(counts, (codes, classes), 1)
    return counts, sorted(table.frame.group.unique())


def _place(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A split for each group: greedy, then none left empty."""
    goal = shares[:, None] * counts.sum(0)
    weight = 1 / np.maximum(counts.sum(0), 1)
    filled = np.zeros_like(goal)
    order = rng.permutation(len(counts))
    # The groups that unbalance most while there is still room; equal ones stay in random order.
    order = order[np.argsort(-(counts[order].std(1) + counts[order].sum(1)), kind="stable")]
    side = np.empty(len(counts), int)
    for group in order:
        # Growth of the squared distance to the goal, each class weighing alike; ties go to a random split.
        before, after = filled - goal, filled + counts[group] - goal
        cost = ((after**2 - before**2) / np.maximum(goal, 1e-9) * weight).sum(1)
        best = np.flatnonzero(np.isclose(cost, cost.min(), rtol=1e-9, atol=1e-12))
        side[group] = rng.choice(best)
        filled[side[group]] += counts[group]
    for empty in np.setdiff1d(np.arange(len(shares)), side):
        donors = np.flatnonzero(np.bincount(side, minlength=len(shares))[side] > 1)
        side[donors[np.argmin(counts[donors].sum(1))]] = empty
    return side
