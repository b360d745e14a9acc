"""Joined tables: every label, path and group is checked against what is written down by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.data.combine import concat
from workbench.data.splits import groups_across_splits
from workbench.data.tables import ClipTable, DatasetInfo, Task


def make_table(
    root: Path, name: str, ids: list[str], task: Task, labels: list, *, groups: list[str] | None = None,
    split: list[str] | None = None, paths: list[str] | None = None, flip: bool = True, **columns: object,
) -> ClipTable:  # fmt: skip
    frame = pd.DataFrame(
        {
            "clip_id": ids, "path": paths or [f"{i}.mp4" for i in ids], "start_seconds": np.nan,
            "end_seconds": np.nan, "split": split or ["train"] * len(ids), "group": groups or ids, task.name: labels,
        }
        | columns
    )  # fmt: skip
    return ClipTable(frame, [task], root=root, info=DatasetInfo(name=name, licence=name, horizontal_flip=flip))


GESTURE = Task("gesture", "multiclass", ("left", "right"))
QUALITY = Task("quality", "regression")


def test_concat_leaves_labels_missing_where_a_table_has_no_such_task(tmp_path: Path) -> None:
    one = make_table(tmp_path / "a", "one", ["x", "y"], GESTURE, ["left", "right"], quality=[7.0, 7.0])
    two = make_table(tmp_path / "b" / "c", "two", ["z"], QUALITY, [0.5], flip=False, camera=["front"])
    both = concat([one, two])
    np.testing.assert_array_equal(both.targets("gesture"), [0, 1, np.nan])
    np.testing.assert_array_equal(both.targets("quality"), [np.nan, np.nan, 0.5])  # a free column is no label
    assert both.files() == [*(tmp_path / "a" / n for n in ("x.mp4", "y.mp4")), tmp_path / "b" / "c" / "z.mp4"]
    assert both.frame.path.tolist() == ["a/x.mp4", "a/y.mp4", "b/c/z.mp4"] and both.root == tmp_path.resolve()
    assert both.frame.clip_id.tolist() == ["x", "y", "z"] and both.frame.group.tolist() == ["x", "y", "z"]
    assert both.info == DatasetInfo(name="one + two", licence="one + two", horizontal_flip=False)
    assert both.frame.camera.isna().tolist() == [True, True, False]
    assert (one + two).fingerprint() == both.fingerprint()


def test_concat_keeps_equal_names_of_different_sets_apart(tmp_path: Path) -> None:
    one = make_table(tmp_path / "a", "one", ["x", "y"], GESTURE, ["left", "right"], groups=["p1", "p2"])
    two = make_table(tmp_path / "b", "two", ["x", "z"], GESTURE, ["left", "left"], groups=["p1", "p3"])
    both = concat([one, two], name="both")
    assert both.frame.clip_id.tolist() == ["one/x", "one/y", "two/x", "two/z"]
    assert both.frame.group.tolist() == ["one/p1", "p2", "two/p1", "p3"] and both.info.name == "both"
    same_name = concat([one, two.renamed("one")])  # another root: another set
    assert same_name.frame.clip_id.tolist() == ["one/x", "one/y", "one-2/x", "one-2/z"]
    assert same_name.frame.group.tolist() == ["one/p1", "p2", "one-2/p1", "p3"]


def test_concat_unites_groups_that_hold_the_same_file(tmp_path: Path) -> None:
    one = make_table(tmp_path, "one", ["x", "y"], GESTURE, ["left", "right"], groups=["p1", "p2"])
    two = make_table(tmp_path, "two", ["x", "z"], QUALITY, [0.1, 0.2], groups=["cam", "cam"])
    both = concat([one, two])
    assert both.frame.group.tolist() == ["p1", "p2", "p1", "p1"]  # x.mp4 joins cam to p1, and z comes along
    assert both.frame.clip_id.tolist() == ["one/x", "one/y", "two/x", "two/z"] and both.root == tmp_path
    moved = make_table(tmp_path, "two", ["x", "z"], QUALITY, [0.1, 0.2], groups=["cam", "cam"], split=["test"] * 2)
    with pytest.raises(ValueError, match=r"1 group.*'p1'.*split_by_group"):
        concat([one, moved])
    assert groups_across_splits(concat([one, moved], allow_leak=True)) == ["p1"]


def test_concat_of_parts_of_one_set_gives_the_set_back(tmp_path: Path) -> None:
    table = make_table(tmp_path, "one", list("wxyz"), GESTURE, ["left", "right"] * 2, groups=["p", "q", "p", "q"],
                       paths=["v.mp4", "v.mp4", "w.mp4", "w.mp4"])  # fmt: skip
    assert concat([table[:2], table[2:]]).fingerprint() == table.fingerprint()
    with pytest.raises(ValueError, match="unique"):
        concat([table, table])


def test_concat_unites_classes_and_names_tasks_that_cannot_be_joined(tmp_path: Path) -> None:
    one = make_table(tmp_path / "a", "one", ["x"], GESTURE, ["right"])
    more = make_table(tmp_path / "b", "two", ["y"], Task("gesture", "multiclass", ("up", "left")), ["up"])
    both = concat([one, more])
    assert both.task("gesture").classes == ("left", "right", "up") and both.targets("gesture").tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"'gesture' is multiclass.*regression"):
        concat([one, make_table(tmp_path, "n", ["z"], Task("gesture", "regression"), [1.0])])
    safe = Task("safe", "binary", ("ok", "bad"))
    words = make_table(tmp_path / "a", "one", ["x", "y"], safe, ["bad", "ok"])
    numbers = make_table(tmp_path / "b", "two", ["z"], Task("safe", "binary"), [1])
    assert concat([words, numbers]).targets("safe").tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="names its sides"):
        concat([words, make_table(tmp_path / "b", "two", ["z"], Task("safe", "binary", ("bad", "ok")), ["ok"])])
    with pytest.raises(ValueError, match="at least one"):
        concat([])


def test_concat_joins_quarantines_and_keeps_a_decoder(tmp_path: Path) -> None:
    bad = pd.DataFrame({"clip_id": ["x"], "path": ["x.mp4"], "reason": ["cut"]})
    one = make_table(tmp_path / "a", "one", ["x", "y"], GESTURE, ["left", "right"]).with_quarantine(bad)
    two = make_table(tmp_path / "b", "two", ["x", "z"], GESTURE, ["left", "left"], decoder=["pyav", None])
    both = concat([one, two.with_quarantine(bad)])
    assert both.quarantine.to_numpy().tolist() == [["one/x", "a/x.mp4", "cut"], ["two/x", "b/x.mp4", "cut"]]
    assert both.frame.clip_id.tolist() == ["one/y", "two/z"] and both.frame.decoder.isna().all()
    assert concat([one, two]).frame.decoder.tolist()[1] == "pyav"


def test_concat_warns_of_clips_in_no_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = make_table(tmp_path / "a", "one", ["x"], GESTURE, ["left"])
    two = make_table(tmp_path / "b", "two", ["y", "z"], GESTURE, ["left", "right"], split=[None, None])  # type: ignore[list-item]
    assert concat([one, two]).frame.split.isna().tolist() == [False, True, True]
    assert "2 clip(s) in none" in caplog.text


def test_concat_takes_tables_only(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="concat takes clip tables, not PosixPath|not WindowsPath"):
        concat([tmp_path])  # type: ignore[list-item]


def test_concat_unites_multilabel_classes_and_what_one_table_never_asked_is_unknown_there(tmp_path: Path) -> None:
    one = make_table(tmp_path / "a", "one", ["x", "y"], Task("tags", "multilabel", ("run", "jump")), ["run", None])
    two = make_table(tmp_path / "b", "two", ["z"], Task("tags", "multilabel", ("sit", "run")), ["|"])
    both = concat([one, two])
    assert both.tasks == (Task("tags", "multilabel", ("run", "jump", "sit")),)
    nan = np.nan
    np.testing.assert_array_equal(both.targets("tags"), [[1, 0, nan], [nan, nan, nan], [0, nan, 0]])
