"""Chances of clips: even where that can be, uniform where it already is, and none left out."""

import numpy as np
import pytest

from workbench.training.feed import EpochOrder
from workbench.training.task_sampling import LEAST_CHANCE, task_balanced


def labelled(*blocks: tuple[int, tuple[int, ...]]) -> np.ndarray:
    """(how many clips, which tasks they have of three)."""
    rows = [[t in tasks for t in range(3)] for count, tasks in blocks for _ in range(count)]
    return np.array(rows)


def shares(known: np.ndarray, chances: np.ndarray) -> np.ndarray:
    return chances @ known


def test_task_balanced_gives_joined_data_sets_equal_parts() -> None:
    known = labelled((80, (0,)), (15, (1,)), (5, (2,)))
    chances = task_balanced(known)
    assert chances.sum() == pytest.approx(1)
    assert shares(known, chances) == pytest.approx([1 / 3] * 3, abs=2e-3)
    assert np.ptp(chances[:80]) == 0  # clips with the same labels are alike


def test_task_balanced_evens_out_what_a_task_of_all_clips_leaves_open() -> None:
    known = labelled((90, (0, 2)), (10, (1, 2)))  # gestures, fights, and quality on both
    assert shares(known, task_balanced(known)) == pytest.approx([0.5, 0.5, 1.0], abs=2e-3)


@pytest.mark.parametrize(
    "blocks", [[(10, (0, 1, 2))], [(7, (0,)), (7, (1,)), (7, (2,))], [(5, (0,)), (5, (1,)), (5, (0, 1)), (10, (2,))]]
)
def test_task_balanced_of_an_even_table_is_uniform(blocks: list[tuple[int, tuple[int, ...]]]) -> None:
    known = labelled(*blocks)
    assert task_balanced(known) == pytest.approx(np.full(len(known), 1 / len(known)), rel=1e-3)


def test_task_balanced_leaves_no_labelled_clip_out_and_draws_no_other() -> None:
    known = labelled((50, (0,)), (50, (0, 1, 2)), (20, ()))  # even only without the first fifty
    chances = task_balanced(known)
    assert chances[:50] == pytest.approx(np.full(50, LEAST_CHANCE / 100), rel=1e-3)
    assert not chances[100:].any() and chances.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="no clip has a label of any task"):
        task_balanced(np.zeros((3, 2), bool))


def test_epoch_order_draws_each_clip_as_often_as_its_chance_says_rounded() -> None:
    chances = np.array([0.4, 0.25, 0.2, 0.1, 0.05] + [0.0] * 5)
    order, counts = EpochOrder(10, seed=3, windows=4, chances=chances), np.zeros((200, 10))
    for order.epoch in range(200):
        drawn = list(order)
        assert len(drawn) == len(order) == 10 and list(order) == drawn
        counts[order.epoch] = np.bincount([i // 4 for i in drawn], minlength=10)
    assert (np.abs(counts - 10 * chances) < 1).all()
    assert counts.mean(0) == pytest.approx(10 * chances, abs=0.12)
    assert len({tuple(row) for row in counts.tolist()}) > 1


def test_epoch_order_with_chances_depends_on_seed_and_epoch_alone() -> None:
    chances = np.full(6, 1 / 6)
    made = [EpochOrder(6, seed=s, chances=chances) for s in (1, 1, 2)]
    made[1].epoch = 1
    assert len({tuple(order) for order in made}) == 3
    assert sorted(made[0]) == list(range(6))
