"""Levels, pairing and the step budget of a label study, on the tiny table of real files."""
# ruff: noqa: F811 (fixtures come by their names)

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.training.conftest import tiny_checkpoint, tiny_table  # noqa: F401  (fixtures)
from workbench.analysis.label_study import epochs_for, label_study, over_levels
from workbench.data.splits import few_labels
from workbench.data.tables import ClipTable
from workbench.training.runs import load_run


def test_label_study_trains_every_strategy_on_the_same_nested_clips(
    tiny_table: ClipTable, tiny_checkpoint: str, tmp_path: Path
) -> None:
    study = label_study(
        tiny_table, ["scratch", "full"], (1, None), task="direction", seeds=(0, 1), steps=2, runs_dir=tmp_path,
        progress=False, backbone=tiny_checkpoint, batch_size=4, device="cpu",
    )  # fmt: skip
    assert len(study) == 8 and study.clips.tolist() == [2, 2, 16, 16] * 2
    assert study.epochs.tolist() == [2, 2, 1, 1] * 2  # one batch an epoch, and four
    one = study[study.per_class == 1]
    expected = [
        few_labels(tiny_table.with_tasks(["direction"]), 1, task="direction", seed=s).fingerprint() for s in (0, 1)
    ]
    found = [load_run(folder).record["data"]["fingerprint"] for folder in one.folder]
    assert found == [expected[0], expected[0], expected[1], expected[1]]
    test = load_run(study.folder[0]).predictions.query("split == 'test'").dropna(subset="target")
    assert study.value[0] == pytest.approx((test.target == test.prediction).mean())


@pytest.mark.parametrize(("clips", "steps", "epochs"), [(16, 10, 10), (17, 10, 5), (1200, 300, 6), (1200, 10, 6)])
def test_epochs_for_fills_the_steps_and_no_less_than_the_least(clips: int, steps: int, epochs: int) -> None:
    assert epochs_for(clips, steps, 16, 6 if clips == 1200 else 1) == epochs
    assert epochs_for(clips, steps, 16) * math.ceil(clips / 16) >= steps


def study(levels: tuple[float, ...] = (1.0, math.nan)) -> pd.DataFrame:
    rows = []
    for level in levels:
        for seed in range(6):
            for i, name in enumerate(("scratch", "full")):
                value = 0.1 * seed + (0.3 + 0.01 * seed) * i
                rows.append({"strategy": name, "per_class": level, "seed": seed, "clips": 12, "value": value})
    return pd.DataFrame(rows)


def test_over_levels_pairs_by_seed_and_takes_all_labels_for_a_level() -> None:
    """Seeds differ by 0.1, the difference only by 0.01: paired, the interval is ten times narrower."""
    table = over_levels(study(), reference="scratch").set_index("strategy")
    full = table.loc["full"]
    gaps = 0.3 + 0.01 * np.arange(6)
    low, high = stats.t.interval(0.95, 5, loc=gaps.mean(), scale=stats.sem(gaps))
    assert full.difference.tolist() == pytest.approx([gaps.mean()] * 2)
    assert full.difference_low.tolist() == pytest.approx([low] * 2)
    assert full.difference_high.tolist() == pytest.approx([high] * 2)
    assert (full.high - full.low > 5 * (high - low)).all()
    assert table.loc["scratch"].difference.tolist() == pytest.approx([0, 0])


def test_over_levels_does_not_depend_on_the_order_of_the_rows() -> None:
    shuffled = study().sample(frac=1, random_state=0)
    key = ["strategy", "per_class"]
    first, second = (
        over_levels(s, reference="scratch").sort_values(key).reset_index(drop=True) for s in (study(), shuffled)
    )
    pd.testing.assert_frame_equal(first, second)


def test_over_levels_refuses_an_unknown_reference() -> None:
    with pytest.raises(ValueError, match="'linear' is not among"):
        over_levels(study(), reference="linear")


def test_label_study_refuses_clips_without_a_test_label_before_it_trains(
    tiny_table: ClipTable, tiny_checkpoint: str, tmp_path: Path
) -> None:
    unlabelled = tiny_table.frame.direction.where(tiny_table.frame.split != "test")
    table = tiny_table._with(tiny_table.frame.assign(direction=unlabelled))
    with pytest.raises(ValueError, match="no test clip of 'squares' has a label of 'direction'"):
        label_study(table, "full", 1, task="direction", runs_dir=tmp_path, progress=False, backbone=tiny_checkpoint)
    assert not list(tmp_path.iterdir())


def test_label_study_takes_one_strategy_level_and_seed(
    tiny_table: ClipTable, tiny_checkpoint: str, tmp_path: Path
) -> None:
    study = label_study(
        tiny_table, "linear", 1, task="direction", seeds=3, steps=1, runs_dir=tmp_path, progress=False,
        backbone=tiny_checkpoint, device="cpu", workers=1,
    )  # fmt: skip
    assert study[["strategy", "per_class", "seed"]].values.tolist() == [["linear", 1, 3]]
