"""Train, val and test without leaks: whole groups go to one side."""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.data.tables import SPLITS, ClipTable

log = logging.getLogger(__name__)

_GREEDY_GROUPS = 20_000
"""Up to here each group is weighed against every class (about a second); beyond, groups are dealt class by class."""


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
    first, where they hurt least (the greedy idea of scikit-learn's StratifiedGroupKFold, for unequal shares). More
    than 20,000 groups are instead dealt in random order, class by class, each to the split that is furthest behind its
    share: as even at that size, and a million clips take seconds. Raises ValueError when there are fewer groups than
    splits.
    """
    shares = _check_fractions(fractions)
    codes, strata = _codes(table, stratify)
    used = [i for i, share in enumerate(shares) if share > 0]
    if codes.max() + 1 < len(used):
        raise ValueError(
            f"{codes.max() + 1} group(s) cannot fill {len(used)} splits without cutting a group in two; "
            "use fewer splits (a fraction of 0) or a finer group column"
        )
    side = _sides(codes, strata, shares[used], seed)
    return table._with(table.frame.assign(split=np.array([SPLITS[i] for i in used], dtype=object)[side][codes]))


def k_fold_by_group(
    table: ClipTable, *, folds: int = 5, seed: int = 0, stratify: str | None = None, val_fraction: float = 0.15
) -> list[ClipTable]:
    """``folds`` tables; each group is in test exactly once, and val is taken from the rest, by group too.

    scikit-learn's StratifiedGroupKFold (with ``stratify``) or GroupKFold makes the folds; more than 20,000 groups are
    dealt as in :func:`split_by_group`.
    """

    if folds < 2 or not 0 < val_fraction < 1:
        raise ValueError(f"folds={folds} must be at least 2 and val_fraction={val_fraction} between 0 and 1")
    codes, strata = _codes(table, stratify)
    if codes.max() + 1 < folds + 1:
        raise ValueError(f"{codes.max() + 1} group(s) are too few for {folds} folds that each leave train and val")
    fold_of = _folds(codes, strata, folds, seed, stratified=stratify is not None)
    tables = []
    for fold in range(folds):
        in_test = fold_of == fold
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


def few_labels(table: ClipTable, per_class: int, *, task: str, seed: int = 0) -> ClipTable:
    """The same table with ``per_class`` training clips of each class of ``task``; val and test stay as they are.

    Each class's clips are put in a random order that depends on ``seed`` and their ``clip_id`` alone, and the first
    ones are kept: with one seed 5 per class are part of 20 per class, and these of 100, whatever order the rows are in.
    Training clips without a label of ``task`` go; groups, and clips in no split, are untouched.

    Raises ValueError where ``task`` has no classes, or naming the classes that have too few training clips.
    """
    if isinstance(per_class, bool) or not isinstance(per_class, int | np.integer) or per_class < 1:
        raise ValueError(f"per_class={per_class!r} must be a whole number of at least 1")
    kind = table.task(task).kind
    if kind not in ("multiclass", "binary"):
        raise ValueError(f"task {task!r} is {kind}: only multiclass and binary tasks have classes to count")
    in_train = (table.frame.split == "train").to_numpy()
    codes = np.where(in_train, table.targets(task), np.nan)
    _enough_per_class(table, task, codes, per_class)
    # A number of each id by itself, so that neither the order of the rows nor other clips change who comes first.
    drawn = [hashlib.sha256(f"{seed} {clip_id}".encode()).digest() for clip_id in table.frame.clip_id]
    rank = np.array([int.from_bytes(digest[:8], "little") for digest in drawn], np.uint64)
    keep = ~in_train
    for code in range(max(2, len(table.task(task).classes))):
        rows = np.flatnonzero(codes == code)
        keep[rows[np.argsort(rank[rows])[:per_class]]] = True
    return table[keep]


def _enough_per_class(table: ClipTable, task: str, codes: np.ndarray, per_class: int) -> None:
    names = table.task(task).classes or ("0", "1")
    counts = {name: int((codes == i).sum()) for i, name in enumerate(names)}
    if lacking := {name: n for name, n in counts.items() if n < per_class}:
        said = ", ".join(f"{name!r} has {n}" for name, n in list(lacking.items())[:5])
        more = f" and {len(lacking) - 5} more classes" if len(lacking) > 5 else ""
        raise ValueError(
            f"too few training clips for per_class={per_class} of task {task!r}: {said}{more}; "
            f"at most {min(counts.values())} can be had of every class"
        )


def groups_across_splits(table: ClipTable) -> list[str]:
    """Groups with clips in more than one split."""
    known = table.frame.split.notna().to_numpy() & table.frame.group.notna().to_numpy()
    codes, groups = pd.factorize(table.frame.group[known], sort=True)
    pairs = pd.unique(codes * len(SPLITS) + pd.Categorical(table.frame.split[known], SPLITS).codes)
    spread = np.bincount(pairs // len(SPLITS), minlength=len(groups))
    return [str(groups[g]) for g in np.flatnonzero(spread > 1)]


def _check_fractions(fractions: Sequence[float]) -> np.ndarray:
    shares = np.asarray(fractions, float)
    if shares.shape != (3,) or not (shares >= 0).all() or not np.isclose(shares.sum(), 1) or shares[0] == 0:
        raise ValueError(f"fractions={tuple(fractions)} must be three shares (train, val, test) that add up to 1")
    return shares


def _codes(table: ClipTable, stratify: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The number of each clip's group (in the order of their names) and of its class, int64 (n,) each."""
    if not len(table):
        raise ValueError("the table has no clips to split")
    if table.frame.group.isna().any():
        raise ValueError(f"{int(table.frame.group.isna().sum())} clip(s) have no group; fill the group column")
    codes = pd.factorize(table.frame.group, sort=True)[0].astype(np.int64)
    strata = np.zeros(len(table), np.int64) if stratify is None else _strata(table, stratify)
    return codes, np.unique(strata, return_inverse=True)[1]


def _strata(table: ClipTable, task: str) -> np.ndarray:
    """One whole number per clip: its class (multilabel: its set of them); for regression its fifth of the range; one
    more for "no label"."""
    values = table.targets(task)
    if values.ndim == 2:
        return np.unique(np.nan_to_num(values, nan=2.0), axis=0, return_inverse=True)[1].reshape(-1)
    missing = np.isnan(values)
    if table.task(task).kind == "regression" and not missing.all():
        values = np.digitize(values, np.nanquantile(values, [0.2, 0.4, 0.6, 0.8])).astype(float)
    return np.where(missing, -1, np.nan_to_num(values)).astype(int)


def _sides(codes: np.ndarray, strata: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """The split of each group, as an index of ``shares``; none is left empty."""
    rng = np.random.default_rng(seed)
    if codes.max() >= _GREEDY_GROUPS:
        return _deal(codes, strata, shares, rng)
    counts = np.zeros((codes.max() + 1, strata.max() + 1))
    np.add.at(counts, (codes, strata), 1)
    return _place(counts, shares, rng)


def _folds(codes: np.ndarray, strata: np.ndarray, folds: int, seed: int, *, stratified: bool) -> np.ndarray:
    """The fold that tests each clip."""
    if codes.max() >= _GREEDY_GROUPS:
        return _deal(codes, strata, np.full(folds, 1 / folds), np.random.default_rng(seed))[codes]
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    kind = StratifiedGroupKFold if stratified else GroupKFold
    splitter = kind(n_splits=folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(codes), int)
    for fold, (_, test) in enumerate(splitter.split(np.zeros(len(codes)), strata, codes)):
        fold_of[test] = fold
    return fold_of


def _deal(codes: np.ndarray, strata: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A split for each of many groups: in random order within the class that a group mostly holds, each goes to the
    split furthest behind its share. Memory is a few numbers per clip, whatever the number of classes."""
    classes = int(strata.max()) + 1
    pairs, counts = np.unique(codes * classes + strata, return_counts=True)
    by_count = np.lexsort((counts, pairs // classes))  # the last entry of each group is its largest class
    last = by_count[np.flatnonzero(np.diff(pairs[by_count] // classes, append=-1))]
    main, sizes = pairs[last] % classes, np.bincount(codes)
    order = np.lexsort((rng.random(len(sizes)), main))
    behind, side = [0.0] * len(shares), np.empty(len(sizes), int)
    gains = shares.tolist()
    # Plain numbers: a NumPy call per group would cost a hundred times as much.
    for group, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        behind = [b + g * size for b, g in zip(behind, gains, strict=True)]
        chosen = behind.index(max(behind))
        behind[chosen] -= size
        side[group] = chosen
    return _none_empty(side, sizes, len(shares))


def _none_empty(side: np.ndarray, sizes: np.ndarray, splits: int) -> np.ndarray:
    """Give each empty split the smallest group of a split that has several."""
    for empty in np.setdiff1d(np.arange(splits), side):
        donors = np.flatnonzero(np.bincount(side, minlength=splits)[side] > 1)
        side[donors[np.argmin(sizes[donors])]] = empty
    return side


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
    return _none_empty(side, counts.sum(1), len(shares))
