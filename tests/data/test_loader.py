"""Clips stream in order, decode once, and survive whatever dies."""

import logging
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.data.clips import READER_VERSION, ClipDecodeError, decoder_name, read_views, write_clip
from workbench.data.loading import loader as loader_module
from workbench.data.loading import store as store_module
from workbench.data.loading.contents import content_id
from workbench.data.loading.guard import ItemTimeoutError
from workbench.data.loading.loader import load_clips
from workbench.data.loading.pool import GuardedPool
from workbench.data.loading.reading import Reading, Rows
from workbench.data.loading.store import Store, entry_bytes
from workbench.data.tables import ClipTable, Task

HOW: dict[str, Any] = {"num_frames": 4, "size_px": 32}
SIZE = entry_bytes((1, 4, 32, 32, 3))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of 12 noisy frames; clip i is about grey level 20 + 18 i."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for i in range(12):
        noise = rng.integers(0, 20, (12, 48, 64, 3), np.uint8)
        write_clip(folder / f"{i:02}.mp4", noise + np.uint8(20 + 18 * i), 25)
        os.utime(folder / f"{i:02}.mp4", (1e9, 1e9))
    return folder


def table_of(folder: Path, names: list[str] | None = None, **columns: object) -> ClipTable:
    names = sorted(p.name for p in folder.glob("*.mp4")) if names is None else names
    frame = pd.DataFrame(
        {"clip_id": names, "path": names, "start_seconds": np.nan, "end_seconds": np.nan, "split": "train",
         "group": names, "y": 1.0} | columns
    )  # fmt: skip
    return ClipTable(frame, [Task("y", "binary")], root=folder)


def fresh(folder: Path, name: str, **options: Any) -> np.ndarray:
    return read_views(folder / name, **HOW | options)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were given to a child to decode."""
    names: list[str] = []
    original = GuardedPool.submit

    def counted(self: GuardedPool, function: Any, item: Any) -> Any:
        names.append(Path(item["reading"]["path"]).name)
        return original(self, function, item)

    monkeypatch.setattr(GuardedPool, "submit", counted)
    return names


def test_load_clips_streams_what_read_views_returns_in_the_order_asked_for(videos: Path, tmp_path: Path) -> None:
    table, order = table_of(videos), [7, 2, 2, 11, 0]
    for cache in (False, True, True):
        out = list(load_clips(table, **HOW, num_clips=2, cache_dir=tmp_path, cache=cache, order=order))
        assert [row for row, _ in out] == order
        for row, clip in out:
            np.testing.assert_array_equal(clip, fresh(videos, f"{row:02}.mp4", num_clips=2))
            assert isinstance(clip, np.ndarray) and clip.shape == (2, 4, 32, 32, 3) and clip.flags.writeable
        assert out[1][1] is not out[2][1]  # one row twice: writing into one must not change the other
        assert cache or not any(tmp_path.iterdir())


def test_load_clips_decodes_only_in_the_first_epoch(videos: Path, tmp_path: Path, decoded: list[str]) -> None:
    table = table_of(videos)
    rng = np.random.default_rng(0)
    for epoch in range(4):
        order = rng.permutation(len(table))
        out = dict(load_clips(table, **HOW, cache_dir=tmp_path, order=order))
        assert sorted(decoded) == (table.frame.path.tolist() if epoch == 0 else [])
        decoded.clear()
        np.testing.assert_array_equal(out[5], fresh(videos, "05.mp4"))


def test_load_clips_resumes_from_the_rest_of_the_order(videos: Path, tmp_path: Path, decoded: list[str]) -> None:
    table, order = table_of(videos), list(range(11, -1, -1))
    stream = load_clips(table, **HOW, cache_dir=tmp_path, order=order)
    first = [next(stream)[0] for _ in range(5)]
    stream.close()
    rest = [row for row, _ in load_clips(table, **HOW, cache_dir=tmp_path, order=order[5:])]
    assert first + rest == order


def test_load_clips_shares_entries_between_tables_paths_and_tars(
    videos: Path, tmp_path: Path, decoded: list[str]
) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    with tarfile.open(moved / "x.tar", "w") as tar:
        for i in range(4):
            shutil.copy(videos / f"{i:02}.mp4", moved / f"other-{i}.mp4")
            tar.add(videos / f"{i:02}.mp4", f"clips/{i}.mp4")
    store = tmp_path / "cache"
    twice = table_of(moved, [f"other-{i}.mp4" for i in (0, 1, 2, 3)] + [f"x.tar/clips/{i}.mp4" for i in (3, 2, 1, 0)])
    out = dict(load_clips(twice, **HOW, cache_dir=store))
    assert len(decoded) == 4  # equal bytes side by side in one table
    for i in range(4):
        np.testing.assert_array_equal(out[i], out[7 - i])
    decoded.clear()
    dict(load_clips(table_of(videos), **HOW, cache_dir=store, order=[3, 1]))
    assert decoded == []
    dict(load_clips(table_of(videos)[[1, 5]], **HOW, cache_dir=store))
    assert decoded == ["05.mp4"]


def test_load_clips_decodes_a_file_that_changed_and_no_other(videos: Path, tmp_path: Path, decoded: list[str]) -> None:
    folder, store = tmp_path / "videos", tmp_path / "cache"
    shutil.copytree(videos, folder)
    dict(load_clips(table_of(folder), **HOW, cache_dir=store))
    decoded.clear()
    shutil.copy(folder / "00.mp4", folder / "03.mp4")
    write_clip(folder / "04.mp4", np.full((10, 48, 64, 3), 7, np.uint8), 25)
    out = dict(load_clips(table_of(folder), **HOW, cache_dir=store))
    assert decoded == ["04.mp4"]
    np.testing.assert_array_equal(out[3], fresh(videos, "00.mp4"))
    assert isinstance(out[4], np.ndarray) and abs(out[4].mean() - 7) < 3


def test_load_clips_reads_a_row_by_its_own_decoder(videos: Path, tmp_path: Path, decoded: list[str]) -> None:
    if decoder_name() != "decord":
        pytest.skip("decord is not installed: there is one decoder")
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(videos / "01.mp4", folder)
    (folder / "bad.mp4").write_bytes(b"\0" * 2000)
    table = table_of(folder, decoder=["pyav", pd.NA])
    assert [Rows(table, Reading(**HOW)).item(row)["decoder"] for row in (0, 1)] == ["pyav", "decord"]
    dict(load_clips(table, **HOW, cache_dir=tmp_path / "cache"))
    decoded.clear()
    dict(load_clips(table_of(folder, ["01.mp4"]), **HOW, decoder="pyav", cache_dir=tmp_path / "cache"))
    assert decoded == []  # the same pixels under the same name
    dict(load_clips(table_of(folder, ["01.mp4"]), **HOW, cache_dir=tmp_path / "cache"))
    assert decoded == ["01.mp4"]


def test_key_follows_every_argument_of_reading_and_the_clips_times(videos: Path) -> None:
    content = content_id(videos / "00.mp4")
    base: dict[str, Any] = {"num_frames": 4, "size_px": 32}

    def key(table: ClipTable | None = None, content: str = content, **options: Any) -> str:
        return Rows(table or table_of(videos), Reading(**base | options)).key(0, content)

    changes: list[dict[str, Any]] = [
        {"num_frames": 5}, {"size_px": 33}, {"fit": "pad"}, {"sampling": "single"}, {"num_clips": 2}, {"num_crops": 3},
        {"sampling": "dense"}, {"sampling": "dense", "sampling_rate": 2}, {"sampling": "fps", "fps": 5},
        {"sampling": "fps", "fps": 6}, {"short": "wrap"}, {"resize_px": 40}, {"content": "other"},
        {"table": table_of(videos, start_seconds=0.1)}, {"table": table_of(videos, end_seconds=0.1)},
    ]  # fmt: skip
    keys = [key(), *(key(**change) for change in changes)]
    assert len(set(keys)) == len(changes) + 1
    assert key(resize_px=32) == key() == key(decoder=decoder_name()) and len(key()) == 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.data.loading.reading.READER_VERSION", READER_VERSION + 1)
        assert key() not in keys


def test_load_clips_yields_the_errors_of_bad_files_and_remembers_them(
    videos: Path, tmp_path: Path, decoded: list[str]
) -> None:
    folder, store = tmp_path / "mixed", tmp_path / "cache"
    folder.mkdir()
    shutil.copy(videos / "00.mp4", folder / "a.mp4")
    (folder / "b.mp4").write_text("not a video, but some text")
    table = table_of(folder, ["a.mp4", "b.mp4", "none.mp4"])
    first = dict(load_clips(table, **HOW, cache_dir=store))
    assert isinstance(first[0], np.ndarray)
    assert isinstance(first[1], ClipDecodeError) and "text" in first[1].reason
    assert isinstance(first[2], ClipDecodeError) and "does not exist" in first[2].reason
    decoded.clear()
    again = dict(load_clips(table, **HOW, cache_dir=store))
    assert decoded == ["none.mp4"]  # a file that comes later is found; the others are known
    assert isinstance(again[1], ClipDecodeError) and str(again[1]) == str(first[1])


@pytest.mark.parametrize("damage", ["truncate", "flip", "zero", "remove"])
def test_load_clips_never_returns_a_damaged_entry(
    videos: Path, tmp_path: Path, decoded: list[str], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(videos)
    dict(load_clips(table, **HOW, cache_dir=tmp_path))
    monkeypatch.setattr(store_module, "_checked", {})  # as in a new process
    monkeypatch.setattr(store_module, "_maps", {})
    for path in sorted((tmp_path / "clips").rglob("*.clip"))[:3]:
        raw = bytearray(path.read_bytes())
        if damage == "remove":
            path.unlink()
            continue
        if damage == "flip":
            raw[len(raw) // 2] ^= 0x10
        path.write_bytes({"truncate": raw[: len(raw) // 2], "flip": raw, "zero": bytes(len(raw))}[damage])
    decoded.clear()
    for row, clip in load_clips(table, **HOW, cache_dir=tmp_path):
        np.testing.assert_array_equal(clip, fresh(videos, f"{row:02}.mp4"))
    assert len(decoded) == 3
    decoded.clear()
    dict(load_clips(table, **HOW, cache_dir=tmp_path))
    assert decoded == []


def test_load_clips_says_up_front_what_cannot_fit_and_stores_none_of_it(
    videos: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE_GB", str(11.5 * SIZE / 1e9))
    table = table_of(videos)
    stream = load_clips(table, **HOW, cache_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        next(stream)
    assert "decoded anew at each use" in caplog.text
    for row, clip in stream:
        np.testing.assert_array_equal(clip, fresh(videos, f"{row:02}.mp4"))
    assert not list(tmp_path.rglob("*.clip"))
    twice = [clip for _, clip in load_clips(table, **HOW, cache_dir=tmp_path, order=[3, 3, *range(12)])][:2]
    assert isinstance(twice[0], np.ndarray) and isinstance(twice[1], np.ndarray)
    assert not np.shares_memory(*twice)  # decoded once for both: writing into one must not change the other
    dict(load_clips(table, **HOW, cache_dir=tmp_path, order=range(11)))  # this fits
    assert len(list(tmp_path.rglob("*.clip"))) == 11
    decoded.clear()
    assert len(dict(load_clips(table, **HOW, cache_dir=tmp_path))) == 12
    assert decoded == ["11.mp4"]  # what is there is read


def test_load_clips_holds_the_bound_and_evicts_what_was_used_longest_ago(
    videos: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE_GB", str(6.5 * SIZE / 1e9))
    table = table_of(videos)

    def load(order: range) -> int:
        decoded.clear()
        for row, clip in load_clips(table, **HOW, cache_dir=tmp_path, order=order):
            np.testing.assert_array_equal(clip, fresh(videos, f"{row:02}.mp4"))
        entries = list(tmp_path.rglob("*.clip"))
        assert sum(p.stat().st_size for p in entries) <= 6.5 * SIZE
        return len(decoded)

    assert load(range(5)) == 5
    with caplog.at_level(logging.WARNING):
        assert load(range(5, 10)) == 5  # one more is stored; the rest would push out what is in use
    assert "full of clips used in the last hour" in caplog.text
    assert load(range(10)) == 4
    for path in tmp_path.rglob("*.clip"):
        os.utime(path, (time.time() - 7200,) * 2)
    assert load(range(2)) == 0  # reading counts as a use
    assert load(range(6, 10)) == 4  # in the place of 2 to 5
    assert load(range(2)) == 0
    assert load(range(6, 10)) == 0


def test_load_clips_works_on_where_the_store_cannot_be_written(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "clips").write_text("in the way of the folder")
    with caplog.at_level(logging.WARNING):
        out = list(load_clips(table_of(videos), **HOW, cache_dir=tmp_path))
    assert "could not be stored" in caplog.text
    np.testing.assert_array_equal(out[3][1], fresh(videos, "03.mp4"))


def test_load_clips_keeps_each_files_own_size_without_size_px(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sizes"
    folder.mkdir()
    write_clip(folder / "a.mp4", np.full((5, 32, 64, 3), 90, np.uint8), 25)
    write_clip(folder / "b.mp4", np.full((5, 64, 32, 3), 90, np.uint8), 25)
    for _ in range(2):
        out = dict(load_clips(table_of(folder), num_frames=2, size_px=None, cache_dir=tmp_path / "cache"))
        assert [np.shape(out[i]) for i in (0, 1)] == [(1, 2, 32, 64, 3), (1, 2, 64, 32, 3)]
    assert len(list(tmp_path.rglob("*.clip"))) == 2


def test_load_clips_retries_what_timed_out_when_given_more_time(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(videos)[[0]]
    with monkeypatch.context() as patch:
        patch.setattr(loader_module, "outcome_of", lambda _: ItemTimeoutError("took longer than 5 s"))
        patch.setattr(Store, "has", lambda *_: False)
        dict(load_clips(table, **HOW, cache_dir=tmp_path, time_limit_seconds=5))
    for path in tmp_path.rglob("*.clip"):
        path.unlink()
    same = dict(load_clips(table, **HOW, cache_dir=tmp_path, time_limit_seconds=5))
    assert isinstance(same[0], ItemTimeoutError) and str(same[0]) == "took longer than 5 s"
    assert isinstance(dict(load_clips(table, **HOW, cache_dir=tmp_path, time_limit_seconds=60))[0], np.ndarray)


def test_decode_item_does_not_store_a_file_that_changed_since_it_was_hashed(videos: Path, tmp_path: Path) -> None:
    reading = Rows(table_of(videos), Reading(**HOW)).item(0)
    clip = loader_module.decode_item(reading, str(tmp_path), "ab" * 32, "other-stamp", True)
    assert isinstance(clip, np.ndarray) and not Store(tmp_path).has("ab" * 32)
    assert loader_module.decode_item(reading, str(tmp_path), "ab" * 32, "other-stamp", False) is None


def test_load_clips_refuses_what_does_not_go_together(videos: Path) -> None:
    table = table_of(videos)
    for change, message in (
        ({"fit": "squeeze"}, "fit='squeeze'"), ({"num_frames": 0}, "num_frames=0"), ({"decoder": "x"}, "decoder='x'"),
        ({"sampling": "fps"}, "fps"), ({"workers": 0}, "workers=0"), ({"num_crops": 2}, "num_crops=2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_clips(table, **HOW | change)
    for order in ([12], [-1]):
        with pytest.raises(IndexError, match=r"0\.\.11"):
            load_clips(table, **HOW, order=order)


FILL = """
import sys; sys.path[:0] = [sys.argv[1]]
from workbench.data.loading.loader import load_clips
from workbench.data.tables import ClipTable
table = ClipTable.load(sys.argv[2])
print("ready", flush=True)
for row, clip in load_clips(table, num_frames=4, size_px=32, cache_dir=sys.argv[3], workers=1):
    if isinstance(clip, Exception): raise clip
print("done", flush=True)
"""


def filler(repo: Path, table: Path, store: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FILL, str(repo), str(table), str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_two_processes_fill_one_store_and_one_is_killed_again_and_again(
    videos: Path, tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, store = tmp_path / "many", tmp_path / "cache"
    many.mkdir()
    for i in range(60):
        source = (videos / f"{i % 12:02}.mp4").read_bytes()
        (many / f"{i:02}.mp4").write_bytes(source + b"\0" * i)  # the same frames, other bytes: 60 entries
    table = table_of(many)
    table.save(tmp_path / "table")
    random.seed(0)
    survivor = filler(repo, tmp_path / "table", store)
    for _ in range(4):
        victim = filler(repo, tmp_path / "table", store)
        assert victim.stdout is not None and victim.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0.1, 0.9))
        victim.kill()
        victim.wait()
        victim.stdout.close()
    out, _ = survivor.communicate(timeout=200)
    assert out.split() == ["ready", "done"]

    def forbidden(*_: object) -> Iterator[None]:
        raise AssertionError("decoded again")

    monkeypatch.setattr(GuardedPool, "submit", forbidden)
    monkeypatch.setattr(store_module, "_checked", {})
    monkeypatch.setattr(store_module, "_maps", {})
    rows = 0
    for row, clip in load_clips(table, **HOW, cache_dir=store):
        np.testing.assert_array_equal(clip, fresh(videos, f"{row % 12:02}.mp4"))
        rows += 1
    assert rows == 60 == len(list(store.rglob("*.clip")))


def test_load_clips_gives_rows_of_equal_bytes_arrays_of_their_own(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE_GB", "0")  # so that they come through the pipe, once
    expected = fresh(videos, "03.mp4")
    for _, clip in load_clips(table_of(videos), **HOW, order=[3, 3, 3], cache_dir=tmp_path, workers=1):
        assert isinstance(clip, np.ndarray)
        np.testing.assert_array_equal(clip, expected)
        clip[:] = 0  # what a caller does to its clip is its own affair


def test_load_clips_learns_nothing_from_a_file_that_changes_while_it_is_read(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    names, original = ["00.mp4", "01.mp4", "02.mp4"], GuardedPool.submit

    def changed_first(self: GuardedPool, function: Any, item: Any) -> Any:
        path = Path(item["reading"]["path"])
        if path.name == "00.mp4":
            path.rename(folder / "away")
        if path.name == "01.mp4":
            os.utime(path, (1.1e9, 1.1e9))
        return original(self, function, item)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(GuardedPool, "submit", changed_first)
        first = dict(load_clips(table_of(folder, names), **HOW, cache_dir=tmp_path / "c", workers=1))
    assert isinstance(first[0], ClipDecodeError) and not caplog.text
    (folder / "away").rename(folder / "00.mp4")
    for row, clip in load_clips(table_of(folder, names), **HOW, cache_dir=tmp_path / "c", workers=1):
        np.testing.assert_array_equal(clip, fresh(folder, names[row]))


def test_load_clips_works_on_in_another_working_folder(
    videos: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(videos.parent)
    where = os.path.relpath(tmp_path)
    clips = load_clips(table_of(Path(videos.name)), **HOW, cache_dir=where, order=[*range(12)] * 10)
    seen = [next(clips)]
    monkeypatch.chdir(tmp_path.parent)
    seen += clips
    for row, clip in seen:
        np.testing.assert_array_equal(clip, fresh(videos, f"{row:02}.mp4"))
    assert len(seen) == 120 and len(decoded) == len(list(tmp_path.rglob("*.clip"))) == 12


def test_load_clips_without_a_cache_needs_no_home(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("WORKBENCH_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    ((_, clip),) = load_clips(table_of(videos), **HOW, order=[0], cache=False, workers=1)
    np.testing.assert_array_equal(clip, fresh(videos, "00.mp4"))


def test_load_clips_of_native_size_does_not_list_the_store_for_every_clip(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings: list[int] = []
    original = Store.make_room

    def counted(self: Store, wanted: int) -> int:
        listings.append(wanted)
        return original(self, wanted)

    monkeypatch.setattr(Store, "make_room", counted)
    assert len(list(load_clips(table_of(videos), num_frames=4, size_px=None, cache_dir=tmp_path, workers=1))) == 12
    assert len(listings) == 1


def test_key_of_numpy_numbers_is_that_of_python_s(videos: Path) -> None:
    table = table_of(videos)
    plain, numpy = (
        Rows(table, Reading(num_frames=kind(4), size_px=kind(32), sampling="fps", fps=number(5)))
        for kind, number in ((int, float), (np.int64, np.float64))
    )
    assert plain.key(0, "x") == numpy.key(0, "x")
