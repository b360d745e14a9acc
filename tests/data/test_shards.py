"""A sharded corpus holds the same clips as the files it was made of, and is read shard by shard."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.data.layouts import open_clips
from workbench.data.sources import shards
from workbench.data.sources.archives import read_bytes
from workbench.data.sources.shards import shard_files, shard_order, write_shards
from workbench.data.splits import groups_across_splits
from workbench.data.tables import ClipTable, DatasetInfo, Task

TASKS = (Task("label", "multiclass", ("cat", "dog")), Task("score", "regression"))


def make_table(root: Path, n: int = 30) -> ClipTable:
    """Clip ``i`` is a file that says so; the last two clips are parts of one file."""
    (root / "v").mkdir(parents=True)
    for i in range(n - 1):
        (root / "v" / f"{i}.MP4").write_bytes(f"clip {i} ".encode() * (i + 1))
    number = [*range(n - 1), n - 2]
    frame = pd.DataFrame(
        {
            "clip_id": [f"c{i}" for i in range(n)], "path": [f"v/{i}.MP4" for i in number],
            "start_seconds": [np.nan] * (n - 2) + [0.0, 1.5], "end_seconds": [np.nan] * (n - 2) + [1.5, 3.0],
            "split": ["train"] * (n - 10) + ["val"] * 6 + ["test"] * 4, "group": [f"g{i // 2}" for i in range(n)],
            "label": ["cat", "dog"] * (n // 2), "score": [None, *np.linspace(0, 1, n - 1)], "room": "ünï",
        }
    )  # fmt: skip
    return ClipTable(frame, TASKS, root=root, info=DatasetInfo(name="pets", licence="CC0", horizontal_flip=True))


def test_write_shards_keeps_every_clip_label_split_and_byte(tmp_path: Path) -> None:
    table = make_table(tmp_path / "files")
    made = write_shards(table, tmp_path / "shards", clips_per_shard=8, progress=False)
    opened = open_clips(tmp_path / "shards")  # the saved table inside
    assert opened.fingerprint() == made.fingerprint() and opened.tasks == table.tasks and opened.info == table.info
    assert [read_bytes(f) for f in made.files()] == [f.read_bytes() for f in table.files()]
    same = [c for c in table.frame.columns if c != "path"]
    pd.testing.assert_frame_equal(made.frame[same], table.frame[same], check_dtype=False)
    assert made.frame.source_path.tolist() == table.frame.path.tolist()
    assert sorted(p.name for p in (tmp_path / "shards").glob("*.tar")) == [
        "test-000000.tar", "train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar",
    ]  # fmt: skip
    sizes = made.frame.groupby(made.frame.path.str.split("/").str[0]).size()
    assert sizes["train-000000.tar"] == sizes["train-000001.tar"] == 8 and sizes["train-000002.tar"] == 4
    assert made.frame.path.iloc[-1] == made.frame.path.iloc[-2]  # one file, stored once


def test_write_shards_is_a_webdataset_of_plain_members(tmp_path: Path) -> None:
    write_shards(make_table(tmp_path / "files"), tmp_path / "shards", clips_per_shard=8, progress=False)
    with tarfile.open(tmp_path / "shards" / "train-000001.tar") as archive:
        names = archive.getnames()
        record = json.load(archive.extractfile(names[1]))
        number = int(record["clip_id"][1:])
        assert archive.extractfile(names[0]).read() == f"clip {number} ".encode() * (number + 1)  # type: ignore[union-attr]
    assert [n.split(".")[1] for n in names] == ["mp4", "json"] * 8
    assert [n.split(".")[0] for n in names[::2]] == [n.split(".")[0] for n in names[1::2]]
    assert record["label"] == ("cat", "dog")[number % 2] and record["room"] == "ünï" and record["start_seconds"] is None


def test_open_clips_reads_bare_shards_by_their_records(tmp_path: Path) -> None:
    made = write_shards(make_table(tmp_path / "files"), tmp_path / "shards", clips_per_shard=8, progress=False)
    (tmp_path / "shards" / "clips.parquet").unlink()
    for source in (tmp_path / "shards", tmp_path / "shards" / "*.tar"):
        table = open_clips(source, label_column=["label", "score"])
        both = table.frame.set_index("clip_id"), made.frame.set_index("clip_id").loc[table.frame.clip_id]
        assert table.tasks == TASKS and len(table) == 30 and not groups_across_splits(table)
        for column in ("path", "split", "group", "label", "score", "start_seconds", "end_seconds", "room"):
            assert both[0][column].dropna().tolist() == both[1][column].dropna().tolist(), column
    train = open_clips(tmp_path / "shards" / "train-{000000..000001}.tar", label_column="label", unlabelled=False)
    assert len(train) == 16 and set(train.frame.path.str[:16]) == {"train-000000.tar", "train-000001.tar"}
    with pytest.raises(FileNotFoundError, match=r"1 of 4 shards.*train-000003\.tar"):
        open_clips(tmp_path / "shards" / "train-{000000..000003}.tar", label_column="label")
    with pytest.raises(FileNotFoundError, match="no such tar"):
        open_clips(tmp_path / "shards" / "tra?n-9*.tar")


def write_members(path: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in content.items():
            archive.addfile(shards._header(name, len(data)), shards.BytesIO(data))


def test_open_clips_reads_shards_from_elsewhere(tmp_path: Path) -> None:
    write_members(
        tmp_path / "x-0.tar", {"a/1.mp4": b"1", "a/1.cls": b"3", "a/1.pyd": b"no", "2.left.webm": b"2", "2.cls": b"5"}
    )
    table = open_clips(tmp_path / "x-0.tar", fractions=(0.5, 0, 0.5))
    assert table.frame.path.tolist() == ["x-0.tar/a/1.mp4", "x-0.tar/2.left.webm"]
    assert table.frame.label.tolist() == ["3", "5"] and read_bytes(table.files()[1]) == b"2"
    write_members(tmp_path / "classes.tar", {f"set/{c}/{i}.mp4": b"x" for c in ("wave", "clap") for i in range(3)})
    folders = open_clips(tmp_path / "classes.tar")
    assert folders.task("label").classes == ("clap", "wave") and folders.frame.label.value_counts().tolist() == [3, 3]
    bare = open_clips(tmp_path / "x-0.tar", unlabelled=True)
    assert bare.tasks == () and bare.frame.split.isna().all() and len(bare) == 2
    write_members(tmp_path / "odd.tar", {"1.mp4": b"1", "1.json": b"[1, 2]"})
    with pytest.raises(ValueError, match=r"odd\.tar.*'1\.json' holds a list"):
        open_clips(tmp_path / "odd.tar")
    write_members(tmp_path / "none.tar", {"1.txt": b"1"})
    with pytest.raises(ValueError, match="holds no video"):
        open_clips(tmp_path / "none.tar")


def test_write_shards_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(tmp_path / "files")
    whole = write_shards(table, tmp_path / "whole", clips_per_shard=8, progress=False)
    real, calls = shards._add_file, []

    def dies(archive: tarfile.TarFile, stored: str, source: Path) -> None:
        calls.append(stored)
        if len(calls) == 15:
            raise KeyboardInterrupt
        real(archive, stored, source)

    monkeypatch.setattr(shards, "_add_file", dies)
    with pytest.raises(KeyboardInterrupt):
        write_shards(table, tmp_path / "cut", clips_per_shard=8, progress=False)
    left = sorted(os.listdir(tmp_path / "cut"))
    assert [n for n in left if n.endswith(".tar")] == left  # no half-written file stays
    done = len(calls) - 1
    again = write_shards(table, tmp_path / "cut", clips_per_shard=8, progress=False)
    assert again.fingerprint() == whole.fingerprint() and len(calls) < 29 + done  # finished shards were kept
    for file in (tmp_path / "whole").glob("*.tar"):
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes()


def test_write_shards_refuses_a_folder_of_other_shards(tmp_path: Path) -> None:
    table = make_table(tmp_path / "files")
    write_shards(table, tmp_path / "shards", clips_per_shard=8, progress=False)
    with pytest.raises(FileExistsError, match="holds other clips"):
        write_shards(table, tmp_path / "shards", clips_per_shard=9, progress=False)
    with pytest.raises(FileExistsError, match=r"another table \(train-000002\.tar\)"):
        write_shards(table, tmp_path / "shards", clips_per_shard=12, progress=False)
    relabelled = table._with(table.frame.assign(label="cat"))
    with pytest.raises(FileExistsError, match="holds other labels"):
        write_shards(relabelled, tmp_path / "shards", clips_per_shard=8, progress=False)
    with pytest.raises(ValueError, match="clips_per_shard=0"):
        write_shards(table, tmp_path / "new", clips_per_shard=0)


def test_write_shards_quarantines_a_missing_file(tmp_path: Path) -> None:
    table = make_table(tmp_path / "files")
    (tmp_path / "files" / "v" / "3.MP4").unlink()
    made = write_shards(table, tmp_path / "shards", clips_per_shard=8, progress=False)
    assert made.quarantine.to_numpy().tolist() == [["c3", "v/3.MP4", "the file does not exist"]]
    kept = [i for i in range(30) if i != 3]
    assert made.frame.clip_id.tolist() == [f"c{i}" for i in kept]
    assert [read_bytes(f) for f in made.files()] == [table.files()[i].read_bytes() for i in kept]


def test_write_shards_takes_clips_that_lie_in_tars(tmp_path: Path) -> None:
    table = make_table(tmp_path / "files")
    once = write_shards(table, tmp_path / "one", clips_per_shard=8, progress=False)
    twice = write_shards(once, tmp_path / "two", clips_per_shard=5, progress=False)
    assert [read_bytes(f) for f in twice.files()] == [f.read_bytes() for f in table.files()]
    assert twice.frame.source_path.tolist() == table.frame.path.tolist()


def test_data_verb_writes_shards_that_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from workbench.cli import main

    table = make_table(tmp_path / "files")
    table.save(tmp_path / "files")
    shards_folder = str(tmp_path / "shards")
    assert main(["data", str(tmp_path / "files"), "--shards", shards_folder, "--clips-per-shard", "8"]) == 0
    assert "in " + shards_folder in capsys.readouterr().out
    assert [read_bytes(f) for f in open_clips(shards_folder).files()] == [f.read_bytes() for f in table.files()]
    (tmp_path / "shards" / "clips.parquet").unlink()
    assert main(["data", shards_folder, "--label-column", "label"]) == 0
    assert "label (multiclass, 2 classes)" in capsys.readouterr().out
    assert main(["data", str(tmp_path / "files" / "v"), "--unlabelled"]) == 0
    assert "29 clips (in no split)" in capsys.readouterr().out
    assert main(["data", shards_folder, "--label-column", "label", "--layout", "ucf101", "--fold", "2"]) == 2


def test_load_clips_streams_shards_and_goes_on_at_a_position(tmp_path: Path) -> None:
    from workbench.data.clips import write_clip
    from workbench.data.loading.loader import load_clips

    (tmp_path / "files").mkdir()
    for i in range(8):
        write_clip(tmp_path / "files" / f"{i}.mp4", np.full((4, 32, 32, 3), 30 * i, np.uint8), fps=8)
    files = open_clips(tmp_path / "files", unlabelled=True)
    table = write_shards(files, tmp_path / "shards", clips_per_shard=3, progress=False)
    order = shard_order(table, seed=1, epoch=2, buffer=3)
    options: dict[str, Any] = {"num_frames": 2, "size_px": 16, "cache": False, "workers": 1}
    whole = list(load_clips(table, order=order, **options))
    assert [row for row, _ in whole] == order.tolist()
    for row, clip in whole:
        assert isinstance(clip, np.ndarray) and abs(float(clip.mean()) - 30 * row) < 3  # grey level names the clip
    rest = list(load_clips(table, order=order[5:], **options))
    assert [r for r, _ in rest] == [r for r, _ in whole[5:]]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(rest, whole[5:], strict=True))


def make_listed(shard_of: list[str]) -> ClipTable:
    paths = [f"{s}/{i}.mp4" for i, s in enumerate(shard_of)]
    frame = pd.DataFrame({"clip_id": paths, "path": paths, "start_seconds": np.nan, "end_seconds": np.nan})
    return ClipTable(frame.assign(split="train", group="g"), [])


def test_shard_order_reads_each_shard_in_one_stretch() -> None:
    table = make_listed([f"x-{i % 10}.tar" for i in range(200)])  # ten shards of twenty, rows interleaved
    order = shard_order(table, seed=3, buffer=20)
    assert sorted(order) == list(range(200))
    stretches = (order % 10).reshape(10, 20)
    assert (stretches == stretches[:, :1]).all() and len(set(stretches[:, 0])) == 10
    assert any(not (np.diff(row) > 0).all() for row in order.reshape(10, 20))  # and shuffles inside
    mixed = (shard_order(table, seed=3, buffer=60) % 10).reshape(-1, 20)
    assert len(set(mixed[:3].ravel())) == 3 and len(set(mixed[0])) == 3  # three shards are mixed, then the next three


def test_shard_order_is_fixed_by_seed_and_epoch_and_shuffles_loose_files() -> None:
    table = make_listed(["a.tar"] * 40 + ["b.tar/deep"] * 40)
    orders = [shard_order(table, seed=s, epoch=e).tolist() for s, e in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0] == orders[1] and len({tuple(o) for o in orders}) == 3
    loose = make_listed(["folder"] * 50)
    order = shard_order(loose, buffer=1)
    assert sorted(order) == list(range(50)) and order.tolist() != list(range(50))
    assert shard_order(make_listed([])).shape == (0,)
    with pytest.raises(ValueError, match="buffer=0"):
        shard_order(table, buffer=0)


def test_shard_files_expands_braces_globs_and_folders(tmp_path: Path) -> None:
    for name in ("x-08.tar", "x-09.tar", "x-10.tar", "y.tar", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    for source, names in (
        ("x-{08..10}.tar", ["x-08.tar", "x-09.tar", "x-10.tar"]), ("x-{08..08}.tar", ["x-08.tar"]),
        ("?-*.tar", ["x-08.tar", "x-09.tar", "x-10.tar"]), ("y.tar", ["y.tar"]),
        ("", ["x-08.tar", "x-09.tar", "x-10.tar", "y.tar"]),
    ):  # fmt: skip
        assert [p.name for p in shard_files(tmp_path / source)] == names


def test_write_shards_refuses_the_folder_of_the_clips_themselves(tmp_path: Path) -> None:
    table = make_table(tmp_path / "files")
    with pytest.raises(FileExistsError, match="holds the clips themselves"):
        write_shards(table, tmp_path / "files", progress=False)
    assert sorted(p.name for p in (tmp_path / "files").iterdir()) == ["v"]
