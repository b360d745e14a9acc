"""Crossed draws of groups and seeds: by hand, against the variance of a mean, and paired as promised."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from workbench.analysis.crossed import Drawn, Resamples, groups_of, mean_of, pair, verdict_of
from workbench.analysis.predictions import Predictions
from workbench.analysis.repeats import Spread
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

TASK = Task("action", "multiclass", ("a", "b"))
PROTOCOL = Protocol(num_frames=8, size_px=32)


def said(right: Sequence[bool], groups: Sequence[str], *, ids: str = "c", task: Task = TASK) -> Predictions:
    """Predictions of class 0, which is true where ``right`` says so."""
    frame = pd.DataFrame({
        "clip_id": [f"{ids}{i}" for i in range(len(right))], "task": task.name, "split": "test", "group": list(groups),
        "target": 0.0, "prediction": [0.0 if r else 1.0 for r in right],
        "probabilities": [[1.0, 0.0] if r else [0.0, 1.0] for r in right],
    })  # fmt: skip
    return Predictions("run", (task,), frame, PROTOCOL)


def grid(table: np.ndarray) -> dict[int, Predictions]:
    """One run per row of a bool table (seeds, groups), a clip per group."""
    return {s: said(row.tolist(), [f"g{i:02d}" for i in range(len(row))]) for s, row in enumerate(table)}


def test_score_is_the_mean_over_seeds_and_draws_both() -> None:
    runs = {0: said([True, True, False, False], "aabb"), 1: said([True, True, True, True], "aabb")}
    draws = Resamples.draw(["a", "b"], [0, 1], resamples=4000)
    score = draws.score(runs, "action")
    assert score.value == pytest.approx(0.75) and score.by_seed == {0: 0.5, 1: 1.0}
    assert (score.metric, score.n, score.groups) == ("accuracy", 4, 2)
    # One seed of two and one group of two: seed 0 on group b gives 0, every other cell 1.
    found, counts = np.unique(score.draws, return_counts=True)
    assert found.tolist() == [0.0, 1.0]
    assert counts[0] / 4000 == pytest.approx(0.25, abs=0.03)


def test_draws_of_one_seed_have_the_variance_of_a_mean_of_groups() -> None:
    right = np.random.default_rng(0).random((1, 8)) < 0.6
    score = Resamples.draw([f"g{i:02d}" for i in range(8)], [0], resamples=20_000).score(grid(right), "action")
    assert score.draws.var() == pytest.approx(right.var(ddof=1) / 8, rel=0.04)


def test_draws_of_seeds_have_the_variance_of_a_mean_of_seeds() -> None:
    """Within a seed all groups are alike, so that only the seeds vary."""
    right = np.repeat(np.array([[1], [1], [0], [1], [0]], bool), 12, axis=1)
    score = Resamples.draw([f"g{i:02d}" for i in range(12)], range(5), resamples=20_000).score(grid(right), "action")
    assert score.draws.var() == pytest.approx(right[:, 0].var(ddof=1) / 5, rel=0.04)


def test_draws_add_up_where_groups_and_seeds_both_vary() -> None:
    """Numbers that are a group's part plus a seed's have the two variances added: Owen's bootstrap is exact there."""
    rng = np.random.default_rng(1)
    groups, seeds = rng.normal(size=9), rng.normal(size=6)
    draws = Resamples.draw([f"g{i}" for i in range(9)], range(6), resamples=40_000)
    means = draws.by_group @ groups / 8 + draws.by_seed @ seeds / 5
    assert means.var() == pytest.approx(groups.var(ddof=1) / 9 + seeds.var(ddof=1) / 6, rel=0.04)


def test_score_equals_sklearns_auroc_and_knows_the_groups_of_the_rarer_class() -> None:
    rng, task = np.random.default_rng(0), Task("safe", "binary")
    target, p = rng.integers(0, 2, 40).astype(float), rng.random(40)
    target[:30] = 0
    frame = pd.DataFrame({
        "clip_id": [f"c{i:02d}" for i in range(40)], "task": "safe", "split": "test",
        "group": [f"g{i // 4}" for i in range(40)], "target": target, "prediction": (p > 0.5).astype(float),
        "probabilities": [[1 - x, x] for x in p],
    })  # fmt: skip
    runs = {0: Predictions("run", (task,), frame, PROTOCOL)}
    score = Resamples.draw(groups_of(runs, ["safe"]), [0], resamples=50).score(runs, "safe")
    assert score.value == pytest.approx(roc_auc_score(target, p))
    assert score.deciding == len({i // 4 for i in range(40) if target[i]})


def test_pairing_removes_what_the_seeds_and_groups_share() -> None:
    """Both sides are right on the same clips, one of them on one group more, in every seed."""
    rng = np.random.default_rng(2)
    base = rng.random((6, 10)) < 0.5
    base[:, 3] = False
    more = base.copy()
    more[:, 3] = True
    draws = Resamples.draw([f"g{i:02d}" for i in range(10)], range(6), resamples=2000)
    gap = pair(draws.score(grid(more), "action"), draws.score(grid(base), "action"), "action")
    assert gap.value == pytest.approx(0.1)
    assert np.allclose(gap.draws, draws.by_group[:, 3] / 9)  # nothing but how often that group was drawn


def test_as_share_of_is_undefined_where_the_base_is_not_above_zero() -> None:
    change = Drawn(0.1, np.array([0.1, 0.2, 0.3])).as_share_of(Drawn(0.5, np.array([0.4, 0.0, -0.1])))
    assert change.value == pytest.approx(0.2)
    assert change.draws[0] == pytest.approx(0.25) and np.isnan(change.draws[1:]).all()


def test_mean_of_averages_resample_by_resample() -> None:
    mean = mean_of([Drawn(1.0, np.array([1.0, 3.0])), Drawn(2.0, np.array([3.0, 5.0]))])
    assert (mean.value, mean.draws.tolist()) == (1.5, [2.0, 4.0])
    assert np.isnan(mean_of([]).value)


@pytest.mark.parametrize(
    ("low", "high", "seeds", "deciding", "says"),
    [
        (0.1, 0.2, 6, 6, "gain"), (-0.2, -0.1, 6, 6, "loss"), (-0.1, 0.2, 6, 6, "no clear difference"),
        (0.1, 0.2, 5, 6, "too few seeds"), (0.1, 0.2, 6, 5, "too few groups"), (0.0, 0.2, 6, 6, "no clear difference"),
    ],
)  # fmt: skip
def test_verdict_of_needs_seeds_groups_and_an_interval_off_zero(
    low: float, high: float, seeds: int, deciding: int, says: str
) -> None:
    assert verdict_of(Spread((low + high) / 2, low, high, seeds), seeds=seeds, deciding=deciding) == says
    assert verdict_of(Spread(np.nan, low, high, seeds), seeds=seeds, deciding=deciding) == "undefined"


def test_what_cannot_be_paired_is_refused() -> None:
    runs = {0: said([True, False], "ab"), 1: said([True, False], "ab", ids="d")}
    draws = Resamples.draw(["a", "b"], [0, 1], resamples=10)
    with pytest.raises(ValueError, match="seeds 0 and 1 were tested on other clips"):
        draws.score(runs, "action")
    with pytest.raises(ValueError, match=r"no run of seed\(s\) \[1\]"):
        draws.score({0: runs[0]}, "action")
    one = Resamples.draw(["a", "b"], [0], resamples=10)
    with pytest.raises(ValueError, match=r"not tested on the same clips \(4 rows differ"):
        pair(one.score(runs, "action"), one.score({0: runs[1]}, "action"), "action")
    with pytest.raises(ValueError, match="group 'b' is not among the 1"):
        Resamples.draw(["a"], [0], resamples=10).score(runs, "action")
    with pytest.raises(ValueError, match="at least one of each"):
        Resamples.draw([], [0])
