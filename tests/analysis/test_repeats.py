"""Scores over splits, seeds and groups: by hand, against scikit-learn and SciPy, and paired as promised."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from workbench.analysis.repeats import Repeated, difference, over_groups, over_seeds


def predictions(right: list[bool], groups: list[str]) -> pd.DataFrame:
    """Two classes, truth always 0; ``prediction`` 0 where right."""
    said = [0.0 if r else 1.0 for r in right]
    return pd.DataFrame(
        {
            "clip_id": [f"c{i}" for i in range(len(right))], "group": groups, "target": 0.0, "prediction": said,
            "probabilities": [[1 - p, p] for p in said],
        }
    )  # fmt: skip


def test_over_groups_averages_seeds_within_splits_and_then_splits() -> None:
    parts = {
        (0, 0): predictions([True, True, False, False], ["a", "a", "b", "b"]),  # 0.5
        (0, 1): predictions([True, True, True, True], ["a", "a", "b", "b"]),  # 1
        (1, 0): predictions([False, False], ["c", "d"]),  # 0
    }
    score = over_groups(parts, "multiclass", resamples=500)
    assert score.value == pytest.approx((0.75 + 0.0) / 2)
    assert score.by_part == {(0, 0): 0.5, (0, 1): 1.0, (1, 0): 0.0}
    # Split 0: one of its two groups is drawn, a gives 1, b 0.5; half of it, as split 1 is always 0.
    drawn, counts = np.unique(score.draws, return_counts=True)
    assert drawn.tolist() == [0.25, 0.5]
    assert np.abs(counts / 500 - [0.5, 0.5]).max() < 0.08
    assert (score.low, score.high, score.n) == (0.25, 0.5, 4)


def test_over_groups_has_the_variance_of_a_mean_of_few_groups_per_split() -> None:
    rng, parts, variance = np.random.default_rng(1), {}, 0.0
    for split, count in enumerate((5, 4, 4, 3)):
        right = rng.random((count, 10)) < rng.uniform(0.3, 0.95, (count, 1))
        parts[split, 0] = predictions(right.ravel().tolist(), [f"g{g}" for g in range(count) for _ in range(10)])
        variance += right.mean(1).var(ddof=1) / count / 4**2
    assert over_groups(parts, "multiclass", resamples=20_000).draws.var() == pytest.approx(variance, rel=0.03)


def test_over_groups_equals_sklearns_auroc_on_binary_tasks() -> None:
    rng = np.random.default_rng(0)
    target, scores = rng.integers(0, 2, 40), rng.random(40).round(1)
    frame = pd.DataFrame(
        {
            "clip_id": [f"{i:02d}" for i in range(40)], "group": rng.integers(0, 9, 40).astype(str),
            "target": target.astype(float), "prediction": (scores > 0.5).astype(float),
            "probabilities": [[1 - s, s] for s in scores],
        }
    )  # fmt: skip
    assert over_groups({(0, 0): frame}, "binary").value == pytest.approx(roc_auc_score(target, scores))


def test_over_groups_ignores_the_order_of_rows_and_unlabelled_clips() -> None:
    frame = predictions([True, False, True, True], ["a", "b", "c", "d"])
    unlabelled = frame.tail(1).assign(clip_id="z", target=np.nan)
    shuffled = pd.concat([unlabelled, frame.iloc[[2, 0, 3, 1]]])
    one, two = (over_groups({(0, 0): f}, "multiclass") for f in (frame, shuffled))
    assert one.value == two.value == 0.75
    assert (one.draws == two.draws).all()


def test_difference_is_paired_on_the_same_draws() -> None:
    """Where one score is another plus a constant for every clip, their difference has no width at all."""
    groups = ["a", "b", "c", "d", "e", "f"]
    worse = over_groups({(0, 0): predictions([False] * 6, groups)}, "multiclass")
    better = over_groups({(0, 3): predictions([True] * 6, groups)}, "multiclass")
    assert difference(better, worse) == difference(better, worse)
    gap = difference(better, worse)
    assert (gap.value, gap.low, gap.high) == (1.0, 1.0, 1.0)
    mixed = over_groups({(0, 0): predictions([True, False] * 3, groups)}, "multiclass")
    same = difference(mixed, over_groups({(0, 7): predictions([True, False] * 3, groups)}, "multiclass"))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert mixed.low < mixed.value < mixed.high


def test_difference_refuses_other_groups() -> None:
    here = over_groups({(0, 0): predictions([True, True], ["a", "b"])}, "multiclass")
    there = over_groups({(0, 0): predictions([True, True], ["a", "c"])}, "multiclass")
    with pytest.raises(ValueError, match="do not share their test groups"):
        difference(here, there)


def test_over_groups_refuses_seeds_on_other_clips_and_nothing() -> None:
    one, two = predictions([True, True], ["a", "b"]), predictions([True, True], ["a", "x"])
    with pytest.raises(ValueError, match="split 0: seeds 0 and 1"):
        over_groups({(0, 0): one, (0, 1): two}, "multiclass")
    with pytest.raises(ValueError, match="nothing to average"):
        over_groups({}, "multiclass")


def test_over_groups_gives_no_interval_for_one_group() -> None:
    score = over_groups({(0, 0): predictions([True, False], ["a", "a"])}, "multiclass")
    assert isinstance(score, Repeated) and score.value == 0.5
    assert np.isnan([score.low, score.high]).all()


def test_over_seeds_is_students_interval() -> None:
    values = np.array([0.1, 0.3, 0.2, 0.25, 0.4, 0.15])
    spread = over_seeds(values)
    low, high = stats.t.interval(0.95, 5, loc=values.mean(), scale=stats.sem(values))
    assert (spread.value, spread.low, spread.high, spread.n) == pytest.approx((values.mean(), low, high, 6))


def test_over_seeds_gives_no_interval_for_one_seed_and_refuses_missing_numbers() -> None:
    assert np.isnan([over_seeds([0.4]).low, over_seeds([0.4]).high]).all()
    with pytest.raises(ValueError, match="finite"):
        over_seeds([0.1, float("nan")])
