"""The clip table: what it refuses, keeps and notices."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.data.tables import ClipTable, DatasetInfo, Task

ACTION = Task("action", "multiclass", ("left", "right"))
SAFE = Task("safe", "binary")
SCORE = Task("score", "regression")


def make_frame(n: int = 4, **columns: object) -> pd.DataFrame:
    base = {
        "clip_id": [f"c{i}" for i in range(n)],
        "path": [f"clips/c{i}.mp4" for i in range(n)],
        "start_seconds": np.nan,
        "end_seconds": np.nan,
        "split": ["train", "train", "val", "test"][:n],
        "group": [f"g{i}" for i in range(n)],
        "action": ["left", "right", "left", None][:n],
        "safe": [0.0, 1.0, np.nan, 1.0][:n],
        "score": [0.1, 0.2, 0.3, np.nan][:n],
        "camera": ["a", "b", "a", "b"][:n],
    }
    return pd.DataFrame(base | columns)


def make_table(**columns: object) -> ClipTable:
    return ClipTable(make_frame(**columns), [ACTION, SAFE, SCORE], info=DatasetInfo(name="toy", licence="CC0"))


def test_targets_encode_by_hand() -> None:
    table = make_table()
    np.testing.assert_array_equal(table.targets("action"), [0, 1, 0, np.nan])
    np.testing.assert_array_equal(table.targets("safe"), [0, 1, np.nan, 1])
    np.testing.assert_array_equal(table.targets("score"), [0.1, 0.2, 0.3, np.nan])


def test_targets_name_an_unknown_label() -> None:
    with pytest.raises(ValueError, match=r"unknown label.*'up'.*'left', 'right'"):
        make_table(action=["left", "up", "left", "right"]).targets("action")
    with pytest.raises(ValueError, match=r"binary.*2\.0"):
        make_table(safe=[0, 1, 2, 1]).targets("safe")


@pytest.mark.parametrize(
    "arguments", [("a", "ordinal"), ("a", "multiclass", ("one",)), ("a", "multiclass", ("x", "x")), ("group", "binary")]
)
def test_task_refuses_what_it_cannot_mean(arguments: tuple) -> None:
    with pytest.raises(ValueError, match=arguments[0]):
        Task(*arguments)


@pytest.mark.parametrize(
    "path",
    [
        "../x.mp4",
        "a/../../x.mp4",
        "/x.mp4",
        "..\\x.mp4",
        "a\\..\\..\\x.mp4",
        "C:\\x.mp4",
        "C:x.mp4",
        "\\\\host\\share\\x",
    ],
)
def test_clip_table_refuses_paths_that_leave_the_root(path: str) -> None:
    paths = ["clips/a.mp4", path, "clips/b..mp4", "clips/c.mp4"]
    with pytest.raises(ValueError, match="leaves the table's root"):
        make_table(path=paths)
    allowed = ClipTable(make_frame(path=paths), [ACTION], allow_outside_root=True)
    assert len(allowed.train) == 2


def test_clip_table_names_missing_columns_twice_used_ids_and_odd_splits() -> None:
    with pytest.raises(ValueError, match=r"lacks the column.*'group'"):
        ClipTable(make_frame().drop(columns="group"), [ACTION])
    with pytest.raises(ValueError, match=r"unique.*c1"):
        make_table(clip_id=["c1", "c1", "c2", "c3"])
    with pytest.raises(ValueError, match="holdout"):
        make_table(split=["train", "val", "test", "holdout"])


def test_save_then_load_gives_the_same_table(tmp_path: Path) -> None:
    table = make_table().with_quarantine(
        pd.DataFrame({"clip_id": ["c1"], "path": ["clips/c1.mp4"], "reason": ['"cut"']})
    )
    table = table.renamed('quotes " and ünïcode')
    table.root = tmp_path
    loaded = ClipTable.load(table.save(tmp_path))
    pd.testing.assert_frame_equal(loaded.frame, table.frame, check_dtype=False)
    pd.testing.assert_frame_equal(loaded.quarantine, table.quarantine, check_dtype=False)
    assert (loaded.tasks, loaded.info, loaded.fingerprint()) == (table.tasks, table.info, table.fingerprint())
    assert loaded.files() == table.files()


def test_save_elsewhere_still_finds_the_clips(tmp_path: Path) -> None:
    (tmp_path / "data" / "clips").mkdir(parents=True)
    (tmp_path / "data" / "clips" / "c0.mp4").write_bytes(b"x")
    table = ClipTable(make_frame(1), [SAFE], root=tmp_path / "data")
    loaded = ClipTable.load(table.save(tmp_path / "tables" / "one"))
    assert loaded.files()[0].read_bytes() == b"x"
    assert str(tmp_path) not in (tmp_path / "tables" / "one" / "dataset.toml").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"action": ["left", "left", "left", None]},
        {"split": ["train", "val", "val", "test"]},
        {"group": ["g0", "g0", "g2", "g3"]},
        {"score": [0.1, 0.2, 0.31, np.nan]},
        {"end_seconds": [np.nan, 1.0, np.nan, np.nan]},
        {"path": ["clips/z.mp4", "clips/c1.mp4", "clips/c2.mp4", "clips/c3.mp4"]},
    ],
)
def test_fingerprint_changes_with_a_label_split_group_time_or_path(change: dict) -> None:
    assert make_table(**change).fingerprint() != make_table().fingerprint()


def test_fingerprint_ignores_row_order_and_metadata() -> None:
    table = make_table()
    assert table[[3, 1, 0, 2]].fingerprint() == table.fingerprint()
    assert make_table(camera=["z"] * 4).fingerprint() == table.fingerprint()
    assert table.with_tasks(["safe"]).fingerprint() != table.fingerprint()


def test_getitem_takes_masks_positions_and_slices() -> None:
    table = make_table()
    assert table[np.array([True, False, True, False])].frame.clip_id.tolist() == ["c0", "c2"]
    assert table[[2, 0]].frame.clip_id.tolist() == ["c2", "c0"]
    assert table[1:3].frame.clip_id.tolist() == ["c1", "c2"]
    assert len(table[[]]) == 0


def test_with_quarantine_takes_clips_out_and_remembers_the_first_reason() -> None:
    bad = pd.DataFrame({"clip_id": ["c1"], "path": ["clips/c1.mp4"], "reason": ["cut"]})
    once = make_table().with_quarantine(bad)
    again = once.with_quarantine(bad.assign(reason="other"))
    assert once.frame.clip_id.tolist() == ["c0", "c2", "c3"]
    assert again.quarantine[["clip_id", "reason"]].to_numpy().tolist() == [["c1", "cut"]]
    assert again.train.quarantine.equals(again.quarantine) and "1 quarantined" in repr(again)
