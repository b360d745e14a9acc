"""Each layout gives the table written down by hand; each mistake gets a sentence that says what to do."""

import logging
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.data.layouts import infer_task, open_clips
from workbench.data.splits import groups_across_splits
from workbench.data.tables import ClipTable, DatasetInfo, Task


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten clips, and one that is no class."""
    names = [f"{label}/{i:02d}.mp4" for label in ("wave", "clap") for i in range(10)]
    return touch(tmp_path / "set", *names, "junk/0.mp4")


def write_groups(folder: Path, **columns: object) -> pd.DataFrame:
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*.mp4"))
    frame = pd.DataFrame({"path": paths, "group": [f"s{i % 5}" for i in range(len(paths))], "light": 1.5} | columns)
    frame.to_csv(folder / "groups.csv", index=False)
    return frame


def test_open_clips_folder_has_one_class_per_subfolder(folder: Path) -> None:
    table = open_clips(folder, task="gesture", exclude=("junk",))
    assert table.tasks == (Task("gesture", "multiclass", ("clap", "wave")),)
    assert table.frame.path.tolist() == [f"{c}/{i:02d}.mp4" for c in ("clap", "wave") for i in range(10)]
    assert table.frame.gesture.tolist() == ["clap"] * 10 + ["wave"] * 10
    assert table.frame.group.tolist() == table.frame.path.tolist() and table.info.horizontal_flip is False
    counts = pd.crosstab(table.frame.gesture, table.frame.split)
    assert counts.loc["clap"].sum() == 10 and (counts.to_numpy() >= 1).all()
    assert all(p.is_file() for p in table.files())


def test_open_clips_folder_takes_groups_and_metadata_from_groups_csv(folder: Path) -> None:
    listed = write_groups(folder).set_index("path")
    table = open_clips(folder, task="gesture", group_column="group", exclude=("junk",))
    assert table.frame.group.tolist() == listed.group[table.frame.path].tolist()
    assert not groups_across_splits(table) and (table.frame.light == 1.5).all()
    found = open_clips(folder, task="gesture", exclude=("junk",))  # groups.csv is found by itself: no silent leak
    assert found.fingerprint() == table.fingerprint()


def test_open_clips_folder_names_trouble_in_groups_csv(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"groups\.csv.*columns path and person"):
        open_clips(folder, group_column="person")
    frame = write_groups(folder)
    with pytest.raises(ValueError, match=r"lacks the column.*person.*'path', 'group', 'light'"):
        open_clips(folder, group_column="person")
    frame.iloc[1:].to_csv(folder / "groups.csv", index=False)
    with pytest.raises(ValueError, match=r"no group for 1 clip.*clap/00\.mp4"):
        open_clips(folder, group_column="group")


def test_open_clips_folder_split_is_fixed_by_the_seed(folder: Path) -> None:
    splits = [open_clips(folder, seed=s).frame.split.tolist() for s in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1] and len({tuple(s) for s in splits}) > 1


def test_open_clips_folder_honours_split_folders_and_makes_a_missing_val(tmp_path: Path) -> None:
    names = [f"{s}/{c}/{i}.mp4" for s in ("train", "validation", "test") for c in ("a", "b") for i in range(6)]
    table = open_clips(touch(tmp_path / "three", *names))
    assert [p.split("/")[0] for p in table.frame.path] == [{"val": "validation"}.get(s, s) for s in table.frame.split]
    two = open_clips(touch(tmp_path / "two", *[n for n in names if not n.startswith("val")]))
    assert (two.frame.split[two.frame.path.str.startswith("test/")] == "test").all()
    made = two.frame[two.frame.path.str.startswith("train/")].split.value_counts()
    assert made["val"] == 2 and made["train"] == 10  # 12 clips, 0.15 / 0.85 of them, one of each class


def test_open_clips_folder_names_an_empty_class(folder: Path) -> None:
    (folder / "point").mkdir()
    (folder / "point" / "notes.txt").write_text("later")
    with pytest.raises(ValueError, match=r"'point'.*no video.*exclude=\('point',\)"):
        open_clips(folder)
    assert len(open_clips(folder, exclude=("point", "junk"))) == 20


def test_open_clips_folder_counts_ignored_files_and_keeps_renamed_text(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "wave" / "notes.txt").write_text("x")
    (folder / "clap" / "thumb.jpg").write_bytes(b"x")
    (folder / "clap" / "._00.mp4").write_bytes(b"x")  # what macOS leaves behind
    (folder / "clap" / "text.mp4").write_text("a text file")
    with caplog.at_level(logging.WARNING):
        table = open_clips(folder, exclude=("junk",))
    assert len(table) == 21 and "clap/text.mp4" in set(table.frame.path)
    assert len(caplog.records) == 1 and "ignored 2 file(s)" in caplog.text


def test_open_clips_names_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_clips(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no class folders"):
        open_clips(tmp_path / "empty")
    with pytest.raises(ValueError, match="2 video file.*without a label"):
        open_clips(touch(tmp_path / "flat", "a.mp4", "b.mp4"))
    with pytest.raises(ValueError, match=r"1 class.*\['a'\]"):
        open_clips(touch(tmp_path / "one", "a/a.mp4"))
    with pytest.raises(ValueError, match="single file.*unlabelled=True"):
        open_clips(touch(tmp_path, "a.mp4") / "a.mp4")
    with pytest.raises(ValueError, match=r"none of: a folder, a \.csv"):
        open_clips(touch(tmp_path, "a.tgz") / "a.tgz")
    with pytest.raises(FileNotFoundError, match="source is empty"):
        open_clips("")
    with pytest.raises(ValueError, match="layout='table' needs a file"):
        open_clips(tmp_path, layout="table")
    with pytest.raises(FileNotFoundError, match="root='nowhere' is not a folder"):
        open_clips(make_csv(tmp_path), root="nowhere")
    with pytest.raises(ValueError, match=r"exclude=\['nine'\]"):
        open_clips(touch(tmp_path / "two", "a/a.mp4", "b/b.mp4"), exclude=("nine",))


def make_csv(folder: Path, n: int = 24, suffix: str = ".csv", **columns: object) -> Path:
    frame = pd.DataFrame(
        {
            "path": [f"v/{i:02d}.mp4" for i in range(n)],
            "label": ["cat", "dog", "emu"] * (n // 3),
            "alarm": [0, 1] * (n // 2),
            "quality": np.linspace(0, 1, n),
            "room": [f"r{i % 6}" for i in range(n)],
        }
        | columns
    )
    file = folder / f"clips{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(file)
    else:
        frame.to_csv(file, index=False)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_open_clips_file_infers_the_kind_of_each_label(tmp_path: Path, suffix: str) -> None:
    table = open_clips(
        make_csv(tmp_path, suffix=suffix), label_column=["label", "alarm", "quality"], group_column="room"
    )
    assert table.tasks == (
        Task("label", "multiclass", ("cat", "dog", "emu")), Task("alarm", "binary"), Task("quality", "regression"),
    )  # fmt: skip
    assert table.targets("label").tolist() == [0, 1, 2] * 8 and table.targets("alarm").tolist() == [0, 1] * 12
    assert not groups_across_splits(table) and table.frame.group.nunique() == 6
    assert table.root == tmp_path and set(table.frame.split) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([0, 1, 1], Task("y", "binary")),
        ([0.0, 1.0, None], Task("y", "binary")),
        ([True, False], Task("y", "binary")),
        ([1, 2, 3], Task("y", "multiclass", ("1", "2", "3"))),
        ([1, 2, None], Task("y", "multiclass", ("1", "2"))),
        (list(range(21)), Task("y", "regression")),
        (list(range(20)), Task("y", "multiclass", tuple(map(str, range(20))))),
        ([0.5, 1.0], Task("y", "regression")),
        (["no", "yes"], Task("y", "multiclass", ("no", "yes"))),
        (["b|a", "c", None, "|", "?d|a"], Task("y", "multilabel", ("a", "b", "c", "d"))),
    ],
)
def test_infer_task_by_hand(values: list, task: Task) -> None:
    assert infer_task(pd.DataFrame({"y": values}), "y") == task


def test_open_clips_file_reads_split_times_tasks_and_missing_labels(tmp_path: Path) -> None:
    file = make_csv(
        tmp_path, label=["1", "2", None] * 8, fold=["Train", "valid", "TEST", "training"] * 6,
        a=[0.5] * 24, b=[1.5] * 24,
    )  # fmt: skip
    task = Task("label", "multiclass", ("2", "1"))
    table = open_clips(file, tasks=[task], split_column="fold", start_column="a", end_column="b")
    assert table.frame.split.tolist() == ["train", "val", "test", "train"] * 6
    np.testing.assert_array_equal(table.targets("label"), [1, 0, np.nan] * 8)
    assert (table.frame.start_seconds == 0.5).all() and (table.frame.end_seconds == 1.5).all()
    assert table.frame.clip_id[0] == "v/00.mp4#0.5-1.5"


def test_open_clips_refuses_splits_that_cut_a_group_unless_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "v/00.mp4")
    open_clips(make_csv(tmp_path, split=["train", "val", "test"] * 8), group_column="label")
    assert not caplog.records
    leaky = make_csv(tmp_path, split=["train", "val", "test"] * 8)
    with pytest.raises(ValueError, match=r"2 group\(s\) on both sides, e\.g\. '0'.*allow_leak=True"):
        open_clips(leaky, group_column="alarm")
    table = open_clips(leaky, group_column="alarm", allow_leak=True)
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "2 group(s) lie in more" in caplog.text
    assert table.frame.split.tolist() == ["train", "val", "test"] * 8
    saved = table.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="allow_leak=True"):
        open_clips(saved)
    assert open_clips(saved, allow_leak=True).fingerprint() == table.fingerprint()


def test_open_clips_file_keeps_a_class_that_is_called_none(tmp_path: Path) -> None:
    file = make_csv(tmp_path, label=["None", "NA", "wave"] * 8, quality=[0.5, "NA", "None"] * 8, alarm=[0, 1, ""] * 8)
    table = open_clips(file, label_column=["label", "quality", "alarm"])
    assert table.task("label").classes == ("NA", "None", "wave") and not np.isnan(table.targets("label")).any()
    assert table.task("quality").kind == "regression" and table.task("alarm").kind == "binary"
    np.testing.assert_array_equal(table.targets("quality"), [0.5, np.nan, np.nan] * 8)
    np.testing.assert_array_equal(table.targets("alarm"), [0, 1, np.nan] * 8)


def test_open_clips_file_renames_the_label_column_to_the_task(tmp_path: Path) -> None:
    table = open_clips(make_csv(tmp_path), task="animal", label_column="label", exclude=("emu",))
    assert table.tasks == (Task("animal", "multiclass", ("cat", "dog")),) and len(table) == 16
    assert table.targets("animal").tolist() == [0, 1] * 8


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"label_column": "species"}, r"lacks the column.*species.*'path', 'label'"),
        ({}, {"path_column": "file"}, r"lacks the column.*'file'"),
        ({}, {"group_column": "camera"}, r"lacks the column.*'camera'"),
        ({"split": ["holdout"] * 24}, {}, "holdout"),
        ({"path": ["../x.mp4"] * 24, "clip_id": range(24)}, {}, "leaves the table's root"),
        ({"start_seconds": ["soon"] * 24}, {}, "must hold seconds.*soon"),
        ({"room": [None, *["r"] * 23]}, {"group_column": "room"}, "1 row.*no room"),
        ({"label": ["cat"] * 24}, {}, "at least 2"),
        ({}, {"tasks": [Task("label", "multiclass", ("cat", "dog"))]}, "unknown label.*emu"),
        ({}, {"groups": "g.csv"}, "groups cannot be used"),
        ({}, {"exclude": ("cow",)}, "exclude=.*cow"),
        ({}, {"start_column": "begin"}, r"lacks the column.*'begin'"),
        ({"start_seconds": [-1.0] * 24}, {}, "start_seconds counts from a file's first frame; found -1"),
        ({"label": [np.inf, *range(23)]}, {}, "column 'label' has an infinite label"),
        ({"quality": ["high", *range(23)]}, {"tasks": [Task("quality", "regression")]}, r"regression.*\['high'\]"),
        ({"path": ["v/00.mp4"] * 24}, {}, "clip_id must be unique.*remove the repeated rows"),
        ({}, {"label_column": ["label", "label"]}, "name one twice"),
        ({}, {"unlabelled": True, "label_column": "label"}, "label_column cannot be used with unlabelled=True"),
    ],
)
def test_open_clips_file_names_the_mistake(tmp_path: Path, columns: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_clips(make_csv(tmp_path, **columns), **options)


def test_open_clips_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    for name, content in (
        ("a.csv", b""),
        ("b.parquet", b"no parquet"),
        ("c.csv", b"\xff\xfe\x00\x81"),
        ("d.csv", b"path,label\n"),
        ("e.csv", "path,label\nä.mp4,cat\n".encode("latin-1")),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            open_clips(tmp_path / name)


def test_open_clips_saved_table_comes_back_and_refuses_idle_options(folder: Path, tmp_path: Path) -> None:
    table = open_clips(folder, task="gesture", exclude=("junk",))
    saved = table.save(tmp_path / "saved")
    assert open_clips(saved).fingerprint() == table.fingerprint() and open_clips(table) is table
    assert open_clips(saved, task="gesture").files()[0].is_file()
    with pytest.raises(ValueError, match="group_column cannot be used"):
        open_clips(saved, group_column="person")
    with pytest.raises(ValueError, match="no task 'colour'"):
        open_clips(table, task="colour")
    for idle in ({"seed": 3}, {"horizontal_flip": True}, {"fractions": (0.5, 0.3, 0.2)}, {"path_column": "file"}):
        with pytest.raises(ValueError, match=f"{next(iter(idle))} cannot be used"):
            open_clips(saved, **idle)
    with pytest.raises(ValueError, match="path_column cannot be used with a source that is no list"):
        open_clips(folder, path_column="file")
    with pytest.raises(ValueError, match="task name 'path' is taken"):
        open_clips(folder, task="path")
    (saved / "dataset.toml").write_text("name = ")
    with pytest.raises(ValueError, match=r"dataset\.toml' is not the card of a saved table"):
        open_clips(saved)


def test_open_clips_saved_table_with_files_elsewhere_opens_when_asked(tmp_path: Path) -> None:
    file = make_csv(tmp_path, path=[f"/far/{i}.mp4" for i in range(24)])
    saved = open_clips(file, allow_outside_root=True).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="leaves the table's root"):
        open_clips(saved)
    assert open_clips(saved, allow_outside_root=True).frame.path[0] == "/far/0.mp4"


def test_open_clips_warns_of_what_looks_like_a_slip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "v/00.mp4")
    for label, said in (
        (["cat", "cat ", "dog"] * 8, "differ only by spaces or capitals: ['cat', 'cat ']"),
        ([1.5, 2.5, "high"] * 8, "mixes 2 numbers with words such as 'high'"),
    ):
        caplog.clear()
        assert len(open_clips(make_csv(tmp_path, label=label)).tasks[0].classes) == 3
        assert said in caplog.text
    caplog.clear()
    open_clips(make_csv(tmp_path))
    assert not caplog.records
    (tmp_path / "v/00.mp4").unlink()
    open_clips(make_csv(tmp_path))
    assert "none of the first 24 files that the list names is there" in caplog.text
    caplog.clear()
    open_clips(touch(tmp_path / "classes", "a/1.mp4", "a/2.mp4", "b/3.mp4", "loose.mp4"))
    assert "1 video file(s) that lie in no class folder, e.g. loose.mp4" in caplog.text


def test_open_clips_names_the_separator_of_a_list_without_commas(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("path;label\na.mp4;cat\n")
    with pytest.raises(ValueError, match="separated by ';'; save it with commas"):
        open_clips(tmp_path / "clips.csv")


def test_open_clips_true_and_false_are_binary_with_and_without_gaps(tmp_path: Path) -> None:
    for label, first in (([True, False, True] * 8, 1.0), ([None, False, True] * 8, np.nan)):
        for suffix in (".csv", ".parquet"):
            table = open_clips(make_csv(tmp_path, suffix=suffix, label=label))
            assert table.tasks == (Task("label", "binary"),)
            np.testing.assert_array_equal(table.targets("label"), [first, 0, 1] * 8)


def test_open_clips_folder_warns_of_a_group_of_a_file_that_is_not_there(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = write_groups(folder)
    open_clips(folder, exclude=("junk",))  # its row is no mistake: the file is there
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    pd.concat([listed, listed.head(1).assign(path="wave/lost.mp4")]).to_csv(folder / "groups.csv", index=False)
    open_clips(folder)
    assert "1 row(s) name a file that is not there, e.g. wave/lost.mp4" in caplog.text


def test_open_clips_takes_tasks_not_names_for_tasks(tmp_path: Path) -> None:
    for given in (["label"], Task("label", "binary")):
        with pytest.raises(TypeError, match="must be a list of Task; label_column takes the names"):
            open_clips(make_csv(tmp_path), tasks=given)


def test_open_clips_playground_asks_the_playground(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    playground = pytest.importorskip("workbench.data.synthetic.playground")
    made = ClipTable(open_clips(folder).frame, [Task("label", "multiclass", ("clap", "junk", "wave"))],
                     info=DatasetInfo(name="stand-in"))  # fmt: skip
    monkeypatch.setattr(playground, "playground", lambda: made)
    assert open_clips("playground") is made


def test_open_clips_unlabelled_takes_every_file_but_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = touch(tmp_path / "mixed", "a/1.mp4", "a/video.dat", "b/deep/2", "c.txt", "d.mp4", "__e.mp4", ".hidden.mp4",
                 "__MACOSX/1.mp4", "pictures/p.jpg")  # fmt: skip
    for name in ("c.txt", "a/video.dat", "b/deep/2"):
        (root / name).write_bytes(b"\0\1\xff video")  # a video of that name
    (root / "d.mp4").write_text("a renamed text file")
    (root / "README").write_text("ünï")
    (root / "list.csv").write_text("path,label\n")
    (root / "empty.mp4").write_bytes(b"")
    (root / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    os.mkfifo(root / "pipe.mp4")  # opening it would wait for ever
    table = open_clips(root, unlabelled=True)
    assert table.frame.path.tolist() == [
        "__e.mp4", "a/1.mp4", "a/video.dat", "b/deep/2", "c.txt", "d.mp4", "empty.mp4", "gone.mp4", "pictures/p.jpg",
    ]  # fmt: skip
    assert table.tasks == () and table.frame.split.isna().all() and table.frame.group.equals(table.frame.path)
    assert open_clips(table.save(tmp_path / "saved")).fingerprint() == table.fingerprint()
    with pytest.raises(ValueError, match="label_column cannot be used"):
        open_clips(root, unlabelled=True, label_column="y")
    with pytest.raises(ValueError, match="exclude cannot be used with clips without labels"):
        open_clips(root, unlabelled=True, exclude=("a",))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no file that could be a clip"):
        open_clips(tmp_path / "none", unlabelled=True)


def test_open_clips_unlabelled_takes_class_folders_lists_and_single_files(folder: Path, tmp_path: Path) -> None:
    write_groups(folder)
    table = open_clips(folder, unlabelled=True)
    assert len(table) == 21 and table.frame.group.nunique() == 5 and table.tasks == ()
    listed = open_clips(make_csv(tmp_path).rename(tmp_path / "l.csv"), unlabelled=True, group_column="room")
    assert listed.tasks == () and len(listed) == 24 and listed.frame.group.nunique() == 6
    assert listed.frame.label[0] == "cat"  # stays as metadata
    one = open_clips(folder / "wave" / "00.mp4", unlabelled=True)
    assert one.files() == [folder / "wave" / "00.mp4"] and len(one) == 1
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_clips(folder / "wave" / "77.mp4", unlabelled=True)


def test_open_clips_names_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "a/1.mp4", "b/2.mp4")
    try:
        open(os.fsencode(root) + b"/a/\xff.mp4", "wb").close()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    with pytest.raises(ValueError, match="not UTF-8; rename the file"):
        open_clips(root)


def test_open_clips_table_takes_what_is_label_safe(folder: Path, tmp_path: Path) -> None:
    table = open_clips(folder, exclude=("junk",), horizontal_flip=True, time_reversal=True, licence="CC0", name="n")
    assert table.info == DatasetInfo(name="n", licence="CC0", horizontal_flip=True, time_reversal=True)
    assert open_clips(folder).info == DatasetInfo(name="set")


def test_open_clips_file_of_many_rows_reads_by_whole_columns(tmp_path: Path) -> None:
    n = 100_000
    rows = np.arange(n)
    pd.DataFrame(
        {"path": [f"{i // 100}/{i}.mp4" for i in rows], "label": [f"c{i % 50}" for i in rows], "room": rows // 10,
         "split": np.array(["Train", "valid", "test"])[rows // 10 % 3]}
    ).to_parquet(tmp_path / "many.parquet")  # fmt: skip
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    tracemalloc.start()
    sys.setprofile(count)
    try:
        table = open_clips(tmp_path / "many.parquet", group_column="room")
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(table) == n and table.frame.group.nunique() == n / 10 and len(table.val) == 33_330
    assert calls < n  # less than one call or return of any function per row
    assert peak < 60e6


@pytest.mark.realdata
def test_open_clips_egogestar_holds_sessions_out(clips_root: Path) -> None:
    table = open_clips(clips_root / "egogestar", task="gesture", group_column="group", exclude=("unclassified",))
    assert len(table) == 217 and table.frame.group.nunique() == 22 and table.task("gesture").num_outputs == 10
    assert not groups_across_splits(table) and table.info.horizontal_flip is False
    assert (pd.crosstab(table.frame.gesture, table.frame.split) >= 2).to_numpy().all()
    assert {"motion", "brightness"} <= set(table.frame.columns)


def test_open_clips_tells_near_times_late_in_a_long_file_apart(tmp_path: Path) -> None:
    starts = [36000 + i / 100 for i in range(24)]
    table = open_clips(
        make_csv(tmp_path, path=["v/00.mp4"] * 24, start_seconds=starts, room=range(24)), group_column="room"
    )
    assert table.frame.clip_id[1] == "v/00.mp4#36000.01-nan"
