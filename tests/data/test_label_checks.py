"""Class names that a flip swaps are found in many spellings; the measured check sees what planted motion says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.data.checks.label_checks import (
    class_counts,
    flip_checks,
    flip_warnings,
    label_warnings,
    motion_paths,
    swapped_classes,
)
from workbench.data.checks.survey import survey_file
from workbench.data.layouts import open_clips
from workbench.data.tables import ClipTable, DatasetInfo, Task


def make(labels: list[str | None], splits: list[str] | None = None, **info: bool) -> ClipTable:
    n = len(labels)
    frame = pd.DataFrame({"path": [f"{i}.mp4" for i in range(n)], "y": labels, "split": splits or ["train"] * n})
    frame = frame.assign(clip_id=frame.path, group=frame.path, start_seconds=np.nan, end_seconds=np.nan)
    classes = tuple(sorted({x for x in labels if x}))
    return ClipTable(frame, [Task("y", "multiclass", classes)], info=DatasetInfo(name="t", **info))


@pytest.mark.parametrize(
    ("one", "two", "flips"),
    [
        ("left", "right", "mr"), ("Swipe_Left", "Swipe_Right", "mr"), ("swipeLeft", "swipeRight", "mr"),
        ("moving something from left to right", "moving something from right to left", "mr"),
        ("turn clockwise", "turn anti-clockwise", "mr"), ("Rotate Counter Clockwise", "rotate clockwise", "mr"),
        ("CW", "ccw", "mr"), ("hand-L", "hand-R", "m"), ("open door", "close door", "r"), ("Opening", "Closing", "r"),
        ("PushCart", "PullCart", "r"), ("zoom in", "zoom out", "r"), ("sit down", "stand up", "r"),
        ("move up", "move down", "r"), ("fold paper", "unfold paper", "r"), ("turn light on", "turn light off", "r"),
        ("putting into box", "taking out of box", "r"), ("walk", "run", ""), ("leftovers", "rightovers", ""),
    ],
)  # fmt: skip
def test_swapped_classes_reads_names_in_many_spellings(one: str, two: str, flips: str) -> None:
    for flip in ("mirror", "reversal"):
        found = swapped_classes([one, two, "something else"], flip)
        assert found == ([(one, two)] if flip[0] in flips else []), flip


def test_swapped_classes_lists_a_pair_once_and_refuses_other_flips() -> None:
    assert swapped_classes(["up", "down", "left", "right"], "reversal") == [("up", "down"), ("left", "right")]
    with pytest.raises(ValueError, match="flip='upside down'"):
        swapped_classes(["a"], "upside down")


def test_motion_paths_follows_a_moving_block_by_hand() -> None:
    clip = np.full((1, 8, 16, 16), 50, np.uint8)
    for t in range(8):
        clip[0, t, 4, t : t + 2] = 250
    path = motion_paths(clip)[0]
    grid = np.linspace(-1, 1, 16)
    # from t to t + 1 the pixels t and t + 2 change, so the centre of change is pixel t + 1 of row 4
    assert path[:, 0] == pytest.approx(grid[1:8], abs=1e-3) and path[:, 1] == pytest.approx(grid[4], abs=1e-3)


def crossing(rng: np.random.Generator, step: int) -> np.ndarray:
    clip = np.full((8, 16, 16), 60, np.uint8)
    row, first = rng.integers(4, 10), 8 - 4 * step
    for t in range(8):
        clip[t, row : row + 2, max(0, first + t * step) : max(0, first + t * step) + 2] = 220
    return clip


def test_flip_checks_measures_that_a_mirror_swaps_directions_of_motion() -> None:
    rng = np.random.default_rng(0)
    label = ["a", "b"] * 20  # names that say nothing
    clips = np.stack([crossing(rng, 1 if x == "a" else -1) for x in label])
    mirror, reversal = flip_checks(make(label), clips)
    assert (mirror.as_is, mirror.flipped, mirror.destroys) == (1.0, 0.0, True)
    assert (reversal.flipped, reversal.destroys) == (0.0, True)
    # where and not whither: a mirror leaves the row, so the label
    rows = np.stack([np.roll(crossing(rng, 1), 0 if x == "a" else 5, axis=1) for x in label])
    assert not any(c.destroys for c in flip_checks(make(label), np.where(rows > 0, rows, 60)))
    assert flip_checks(make(label[:8]), clips[:8]) == []  # too few groups to say


def test_flip_checks_finds_nothing_in_chance() -> None:
    rng = np.random.default_rng(1)
    label = ["a", "b"] * 30
    clips = np.stack([crossing(rng, int(rng.choice([-1, 1]))) for _ in label])
    assert not any(c.destroys for c in flip_checks(make(label), clips))


def test_flip_warnings_warns_only_of_flips_that_the_table_calls_safe() -> None:
    names = ["turn left", "turn right"]
    warnings, notes = flip_warnings(make(names, horizontal_flip=True), [])
    assert (
        len(warnings) == 1
        and "horizontal_flip = false" in warnings[0]
        and "'turn left' and 'turn right'" in warnings[0]
    )
    assert len(notes) == 1 and "a reversal destroys labels" in notes[0]
    warnings, notes = flip_warnings(make(names), [])
    assert warnings == [] and len(notes) == 2
    assert flip_warnings(make(["run", "walk"], horizontal_flip=True, time_reversal=True), []) == ([], [])


def test_label_warnings_warns_of_imbalance_only_from_ten_to_one() -> None:
    assert any("10 train clips" in w for w in label_warnings(make(["a"] * 10 + ["b"]), "y"))
    assert not any("train clips" in w for w in label_warnings(make(["a"] * 9 + ["b"]), "y"))


def test_class_counts_and_missing_labels_by_hand() -> None:
    table = make(["a", "a", "b", None, "b"], ["train", "val", "train", "train", "test"])
    assert class_counts(table).to_numpy().tolist() == [["y", "a", 1, 1, 0], ["y", "b", 1, 0, 1]]
    assert label_warnings(table, "y") == ["task 'y': 1 clip(s) have no label and are left out of its loss and metrics"]


@pytest.mark.realdata
@pytest.mark.slow
def test_flip_checks_sees_that_pointing_gestures_have_a_direction(clips_root: Path) -> None:
    table = open_clips(clips_root / "egogestar", task="gesture", exclude=["unclassified"])
    signatures = np.stack([survey_file(str(p)).signature for p in table.files()])
    for check in flip_checks(table, signatures):
        assert check.destroys and check.as_is > 0.6 and check.flipped < 0.3
    table = open_clips(clips_root / "fight_surv", task="fight")
    signatures = np.stack([survey_file(str(p)).signature for p in table.files()])
    assert not any(check.destroys for check in flip_checks(table, signatures))


def test_multilabel_task_is_counted_per_class_and_left_out_of_checks_for_one_class_per_clip() -> None:
    table = make(["a", "b", "a"], ["train", "train", "test"])
    frame = table.frame.assign(tags=["x|y", None, "?x|y"])
    sets = ClipTable(frame, [Task("tags", "multilabel", ("x", "y"))], info=table.info)
    counted = class_counts(sets).set_index("class")[["train", "val", "test"]]
    assert counted.loc["x"].tolist() == [1, 0, 0] and counted.loc["y"].tolist() == [1, 0, 1]
    assert label_warnings(sets, "tags") == [
        "task 'tags': 1 clip(s) have no label and are left out of its loss and metrics"
    ]
    assert flip_checks(sets, np.zeros((3, 8, 16, 16), np.uint8)) == []
