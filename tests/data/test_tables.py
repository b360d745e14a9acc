"""The clip table: what it refuses, keeps and notices."""

import hashlib
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.data.tables import REQUIRED, ClipTable, DatasetInfo, Task

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


def test_decoder_column_is_optional_checked_and_counted_in_the_fingerprint() -> None:
    table = make_table(decoder=["pyav", None, "decord", None])
    assert table.fingerprint() != make_table().fingerprint()
    assert make_table(decoder=[None] * 4).fingerprint() == make_table().fingerprint()
    with pytest.raises(ValueError, match=r"decoder must be one of .*'pyav'.*found \['opencv'\]"):
        make_table(decoder=["opencv", None, None, None])
    with pytest.raises(ValueError, match="'decoder' is taken"):
        Task("decoder", "binary")


def test_save_keeps_what_is_label_safe_and_the_decoder(tmp_path: Path) -> None:
    info = DatasetInfo(name="toy", horizontal_flip=True, time_reversal=True)
    table = ClipTable(make_frame(decoder=["pyav", None, None, "auto"]), [SAFE], root=tmp_path, info=info)
    loaded = ClipTable.load(table.save(tmp_path))
    assert loaded.info == info and loaded.fingerprint() == table.fingerprint()
    card = tmp_path / "dataset.toml"
    card.write_text("".join(line for line in card.open() if "time_reversal" not in line))  # a card from before
    assert ClipTable.load(tmp_path).info == DatasetInfo(name="toy", horizontal_flip=True)


def test_table_without_tasks_says_so() -> None:
    table = ClipTable(make_frame(split=[None] * 4), [])
    assert repr(table).endswith(": 4 clips (in no split), 4 groups\n  tasks: none")
    assert len(table.train) == 0 and len(table.head(2)) == 2


def make_long(n: int) -> pd.DataFrame:
    rows = np.arange(n)
    return pd.DataFrame(
        {
            "clip_id": [f"v/{i}.mp4" for i in rows], "path": [f"v/{i}.mp4" for i in rows], "start_seconds": np.nan,
            "end_seconds": np.nan, "split": np.array(["train", "val", "test"])[rows % 3],
            "group": [f"g{i // 10}" for i in rows], "action": np.array(["left", "right"])[rows % 2],
        }
    )  # fmt: skip


def test_clip_table_work_does_not_grow_by_python_steps_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long table is checked and encoded by whole columns: only suspicious paths are parsed one by one."""
    from workbench.data import tables

    parsed: list[str] = []
    real = tables._leaves_root

    def counted(path: str) -> bool:
        parsed.append(path)
        return real(path)

    monkeypatch.setattr(tables, "_leaves_root", counted)
    frame = make_long(100_000)
    frame.loc[7, "path"] = "v/two..dots.mp4"  # suspicious, but fine
    table = ClipTable(frame, [ACTION])
    assert parsed == ["v/two..dots.mp4"]
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        table.targets("action")
        repr(table)
        ClipTable(frame, [ACTION])
    finally:
        sys.setprofile(None)
    assert steps < 20_000  # calls and returns of Python and C functions, for 100,000 rows


def test_fingerprint_of_a_long_table_keeps_memory_bounded_and_equals_the_whole_text() -> None:
    table = ClipTable(make_long(120_000), [ACTION])
    columns = [*REQUIRED, "action"]
    text = table.frame[columns].sort_values("clip_id").to_csv(index=False, float_format="%.9g")
    whole = hashlib.sha256((text + repr([ACTION.to_json()])).encode()).hexdigest()[:16]
    del text
    tracemalloc.start()
    try:
        assert table.fingerprint() == whole
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


def test_clip_table_names_rows_without_an_id_and_subscripts_it_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"1 row\(s\) of the clip table have no clip_id"):
        make_table(clip_id=["a", "b", "c", None])
    for wrong in (3, "train"):
        with pytest.raises(TypeError, match="give a slice"):
            make_table()[wrong]
