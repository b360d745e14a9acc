"""No split may cut a group in two, whatever the seed, the sizes or the classes."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from workbench.data.splits import (
    few_labels,
    groups_across_splits,
    k_fold_by_group,
    split_by_group,
    split_randomly,
)
from workbench.data.tables import SPLITS, ClipTable, Task


def make_table(groups: list[str], labels: list[str] | None = None) -> ClipTable:
    n = len(groups)
    frame = pd.DataFrame(
        {
            "clip_id": [f"c{i}" for i in range(n)], "path": [f"c{i}.mp4" for i in range(n)],
            "start_seconds": np.nan, "end_seconds": np.nan, "split": pd.Series(None, index=range(n), dtype=object),
            "group": groups, "y": labels or ["a", "b"] * (n // 2) + ["a"] * (n % 2),
            "score": np.linspace(0, 1, n),
        }
    )  # fmt: skip
    return ClipTable(frame, [Task("y", "multiclass", tuple(sorted(set(frame.y)))), Task("score", "regression")])


def random_table(seed: int) -> ClipTable:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 120))
    groups = [f"g{g}" for g in rng.integers(0, rng.integers(6, 40), n)]
    labels = [str(k) for k in rng.choice(3, n, p=[0.6, 0.3, 0.1])]
    labels[:3] = ["0", "1", "2"]
    return make_table(groups, labels)


@pytest.mark.parametrize("stratify", [None, "y", "score"])
def test_split_by_group_never_cuts_a_group_and_fills_every_split(stratify: str | None) -> None:
    for seed in range(25):
        table = random_table(seed)
        split = split_by_group(table, seed=seed, stratify=stratify)
        assert (split.frame.groupby("group").split.nunique() == 1).all()
        assert set(split.frame.split) == set(SPLITS)
        assert split.frame.drop(columns="split").equals(table.frame.drop(columns="split"))


def test_split_by_group_keeps_the_fractions_of_clips_and_of_classes() -> None:
    # 60 groups of 4 clips, each group of one class: 40 groups "a", 20 groups "b"
    groups = [f"g{i:02d}" for i in range(60) for _ in range(4)]
    labels = [("a" if i < 40 else "b") for i in range(60) for _ in range(4)]
    for seed in range(5):
        frame = split_by_group(make_table(groups, labels), fractions=(0.7, 0.15, 0.15), seed=seed, stratify="y").frame
        counts = frame.groupby(["y", "split"]).size().unstack()
        assert counts.loc["a"].to_dict() == {"train": 112, "val": 24, "test": 24}  # 28, 6 and 6 groups: exact
        assert counts.loc["b"].to_dict() == {"train": 56, "val": 12, "test": 12}


def test_split_by_group_is_fixed_by_the_seed() -> None:
    table = random_table(0)
    first = [split_by_group(table, seed=s).frame.split.tolist() for s in range(6)]
    assert first == [split_by_group(table, seed=s).frame.split.tolist() for s in range(6)]
    assert len({tuple(f) for f in first}) > 1


def test_split_by_group_zero_fraction_leaves_that_split_empty() -> None:
    assert set(split_by_group(random_table(1), fractions=(0.8, 0, 0.2)).frame.split) == {"train", "test"}


def test_split_by_group_fills_a_split_too_small_for_any_group() -> None:
    # Shares of 1 % of 30 clips: by size alone all three groups of ten belong to train.
    for seed in range(5):
        split = split_by_group(make_table([f"g{i // 10}" for i in range(30)]), fractions=(0.98, 0.01, 0.01), seed=seed)
        assert set(split.frame.split) == set(SPLITS)


def test_split_by_group_names_too_few_groups_and_bad_fractions() -> None:
    with pytest.raises(ValueError, match=r"2 group.*3 splits"):
        split_by_group(make_table(["g0"] * 5 + ["g1"] * 5))
    for fractions in ((0.5, 0.5), (0.6, 0.6, -0.2), (0.5, 0.2, 0.2), (0, 0.5, 0.5)):
        with pytest.raises(ValueError, match="fractions"):
            split_by_group(random_table(0), fractions=fractions)


def test_split_by_group_refuses_clips_without_a_group() -> None:
    with pytest.raises(ValueError, match=r"1 clip.*no group"):
        split_by_group(make_table(["g0", "g1", "g2", None]))  # type: ignore[list-item]


@pytest.mark.parametrize("stratify", [None, "y"])
def test_k_fold_tests_every_clip_once_and_never_cuts_a_group(stratify: str | None) -> None:
    for seed in range(6):
        table = random_table(seed)
        folds = k_fold_by_group(table, folds=3, seed=seed, stratify=stratify)
        tested = np.sum([(f.frame.split == "test").to_numpy() for f in folds], axis=0)
        assert len(folds) == 3 and (tested == 1).all()
        for fold in folds:
            assert not groups_across_splits(fold) and set(fold.frame.split) == set(SPLITS)


def test_k_fold_names_too_few_groups() -> None:
    with pytest.raises(ValueError, match="too few for 5 folds"):
        k_fold_by_group(make_table([f"g{i % 5}" for i in range(20)]), folds=5)


def test_split_randomly_is_refused_for_grouped_clips_unless_asked() -> None:
    table = make_table([f"g{i % 4}" for i in range(40)])
    with pytest.raises(ValueError, match="allow_leak=True"):
        split_randomly(table)
    leaky = split_randomly(table, allow_leak=True)
    assert groups_across_splits(leaky) and leaky.frame.group.equals(table.frame.group)
    assert leaky.frame.split.value_counts().to_dict() == {"train": 28, "val": 6, "test": 6}
    alone = split_randomly(make_table([f"g{i}" for i in range(40)]))
    assert set(alone.frame.split) == set(SPLITS)


def make_many(groups: int, classes: int, seed: int = 0, mixed: float = 0.1) -> ClipTable:
    """About ten clips a group, most of one class, a class twice as frequent as the next."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, groups * 10)
    odds = 0.5 ** np.arange(classes)
    main = rng.choice(classes, groups, p=odds / odds.sum())
    other = rng.random(len(group)) < mixed
    label = np.where(other, rng.integers(0, classes, len(group)), main[group])
    frame = pd.DataFrame({"clip_id": np.arange(len(group)), "path": "x.mp4", "start_seconds": np.nan})
    frame = frame.assign(end_seconds=np.nan, split=None, group=group, y=label.astype(str))
    return ClipTable(frame, [Task("y", "multiclass", tuple(map(str, range(classes))))])


@pytest.mark.parametrize("stratify", [None, "y"])
def test_split_by_group_of_very_many_groups_keeps_shares_of_clips_and_classes(stratify: str | None) -> None:
    table = make_many(30_000, 6)
    tracemalloc.start()
    try:
        frame = split_by_group(table, seed=1, stratify=stratify).frame
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (frame.groupby("group").split.nunique() == 1).all()
    shares = frame.split.value_counts(normalize=True)
    assert shares[["train", "val", "test"]].tolist() == pytest.approx([0.7, 0.15, 0.15], abs=0.001)
    if stratify:
        per_class = pd.crosstab(frame.y, frame.split, normalize="index")
        assert per_class.loc["0"].tolist() == pytest.approx([0.15, 0.7, 0.15], abs=0.003)
        assert per_class.loc["5"].tolist() == pytest.approx([0.15, 0.7, 0.15], abs=0.02)  # 1 % of the groups
    assert peak < 300 * len(table)  # bytes per clip, however many groups and classes
    again = split_by_group(table, seed=1, stratify=stratify).frame.split
    assert again.equals(frame.split) and not split_by_group(table, seed=2, stratify=stratify).frame.split.equals(again)


def test_split_by_group_of_very_many_groups_is_exact_to_a_group_where_each_holds_one_class() -> None:
    table = make_many(22_000, 8, mixed=0)
    frame = split_by_group(table, stratify="y").frame
    largest = table.frame.group.value_counts().max()
    counts = pd.crosstab(frame.y, frame.split)
    goal = counts.sum(axis=1).to_numpy()[:, None] * [0.15, 0.7, 0.15]  # test, train, val
    assert (abs(counts.to_numpy() - goal) <= 2 * largest).all()


def test_split_by_group_of_very_many_groups_takes_no_dense_table_of_classes() -> None:
    table = make_many(25_000, 40)
    frame = table.frame.assign(y=[f"c{i % 5000}" for i in range(len(table))])
    wide = ClipTable(frame, [Task("y", "multiclass", tuple(f"c{i}" for i in range(5000)))])
    tracemalloc.start()
    try:
        split_by_group(wide, stratify="y")
        assert tracemalloc.get_traced_memory()[1] < 200e6  # 25,000 groups by 5,000 classes of float64 are 1,000 MB
    finally:
        tracemalloc.stop()


def test_k_fold_of_very_many_groups_tests_every_clip_once() -> None:
    table = make_many(21_000, 3)
    folds = k_fold_by_group(table, folds=3, stratify="y")
    tested = np.sum([(f.frame.split == "test").to_numpy() for f in folds], axis=0)
    assert (tested == 1).all() and not any(groups_across_splits(f) for f in folds)
    assert [len(f.test) / len(table) for f in folds] == pytest.approx([1 / 3] * 3, abs=0.001)


def test_groups_across_splits_by_hand() -> None:
    table = make_table(["b", "b", "a", "a", "c", "c", "d"])
    split = table._with(table.frame.assign(split=["train", "test", "val", "val", None, "train", None]))
    assert groups_across_splits(split) == ["b"] and groups_across_splits(table) == []


def labelled_table(seed: int = 0) -> ClipTable:
    """Three classes of 60, 30 and 12 clips in 40 groups, a few labels missing, split by group."""
    rng = np.random.default_rng(seed)
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 12
    table = split_by_group(make_table([f"g{g}" for g in rng.integers(0, 40, 102)], labels), seed=1, stratify="y")
    frame = table.frame.copy()
    frame.loc[frame.index[::17], "y"] = None
    return table._with(frame)


def test_few_labels_keeps_exactly_that_many_of_each_class_and_all_of_val_and_test() -> None:
    table = labelled_table()
    few = few_labels(table, 5, task="y", seed=3)
    assert few.train.frame.y.value_counts().to_dict() == {"a": 5, "b": 5, "c": 5}
    for split in ("val", "test"):
        assert few.split(split).frame.equals(table.split(split).frame)
    kept = table.frame[table.frame.clip_id.isin(few.frame.clip_id)].reset_index(drop=True)
    assert few.frame.equals(kept)  # rows, groups and their order as they were


def test_few_labels_of_one_seed_are_nested_and_of_another_differ() -> None:
    table = labelled_table()
    chosen = [set(few_labels(table, n, task="y", seed=0).train.frame.clip_id) for n in (1, 2, 5)]
    assert chosen[0] < chosen[1] < chosen[2]
    draws = {frozenset(few_labels(table, 2, task="y", seed=s).train.frame.clip_id) for s in range(8)}
    assert len(draws) == 8


def test_few_labels_does_not_depend_on_the_order_of_the_rows() -> None:
    table = labelled_table()
    shuffled = table[np.random.default_rng(5).permutation(len(table))]
    first, second = (set(few_labels(t, 3, task="y", seed=2).frame.clip_id) for t in (table, shuffled))
    assert first == second


def test_few_labels_does_not_depend_on_other_clips() -> None:
    table = labelled_table()
    frame = table.frame
    few = few_labels(table, 3, task="y", seed=2).train.frame.clip_id
    spare = (frame.split == "train") & ~frame.clip_id.isin(few) & (frame.index % 2 == 0)
    for gone in (frame.split == "val", spare):
        assert set(few_labels(table[~gone.to_numpy()], 3, task="y", seed=2).train.frame.clip_id) == set(few)


def test_few_labels_names_the_class_that_lacks() -> None:
    table = labelled_table()
    least = int(table.train.frame.y.value_counts().min())
    with pytest.raises(ValueError, match=rf"'c' has {least}; at most {least} can be had"):
        few_labels(table, least + 1, task="y")
    assert len(few_labels(table, least, task="y").train) == 3 * least


def test_few_labels_refuses_a_regression_and_counts_a_binary_task() -> None:
    table = labelled_table()
    with pytest.raises(ValueError, match="'score' is regression"):
        few_labels(table, 2, task="score")
    with pytest.raises(ValueError, match="per_class=0"):
        few_labels(table, 0, task="y")
    frame = table.frame.assign(alarm=np.arange(len(table)) % 2)
    few = few_labels(ClipTable(frame, [Task("alarm", "binary")]), 4, task="alarm")
    assert few.train.frame.alarm.value_counts().to_dict() == {0: 4, 1: 4}


def test_few_labels_draws_every_clip_equally_often() -> None:
    """2 of the n clips of a class, 600 seeds: each is drawn 2/n of the time (five standard deviations)."""
    table = labelled_table()
    train = table.train.frame
    names = train.clip_id[train.y == "c"].tolist()
    counts = dict.fromkeys(names, 0)
    for seed in range(600):
        drawn = few_labels(table, 2, task="y", seed=seed).train.frame
        for name in drawn.clip_id[drawn.y == "c"]:
            counts[name] += 1
    share = 2 / len(names)
    assert np.abs(np.array(list(counts.values())) / 600 - share).max() < 5 * np.sqrt(share * (1 - share) / 600)
