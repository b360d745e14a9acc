"""Decoded once, found again by content, read like an array."""

import logging
import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.data import cache
from workbench.data.cache import decode_table
from workbench.data.clips import decoder_name, read_clip, read_views, write_clip
from workbench.data.frames import ShortClipError
from workbench.data.loading import store as store_module
from workbench.data.loading.guard import ItemTimeoutError
from workbench.data.loading.pool import GuardedPool
from workbench.data.tables import ClipTable, Task


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips; clip i is of grey level 40 + 30 i."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        write_clip(folder / f"{i}.mp4", np.full((10, 48, 64, 3), 40 + 30 * i, np.uint8), 25)
    return folder


def table_of(folder: Path, **columns: object) -> ClipTable:
    names = sorted(p.name for p in folder.glob("*.mp4"))
    frame = pd.DataFrame(
        {
            "clip_id": names, "path": names, "start_seconds": np.nan, "end_seconds": np.nan,
            "split": (["train", "train", "val", "test", "train", "test"] * 2)[: len(names)], "group": names,
            "y": [float(i % 2) for i in range(len(names))],
        } | columns
    )  # fmt: skip
    return ClipTable(frame, [Task("y", "binary")], root=folder)


def decode(table: ClipTable, cache_dir: Path, **options: object) -> cache.DecodedClips:
    settings = {"num_frames": 4, "size_px": 32, "progress": False, "workers": 1} | options
    return decode_table(table, cache_dir=cache_dir, **settings)


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(GuardedPool, "submit", forbidden)


def test_decode_table_holds_what_read_clip_returns_row_by_row(videos: Path, tmp_path: Path) -> None:
    table = table_of(videos)[[3, 0, 5]]
    decoded = decode(table, tmp_path)
    expected = np.stack([read_clip(p, num_frames=4, size_px=32) for p in table.files()])
    np.testing.assert_array_equal(decoded.clips, expected)
    assert decoded.clips.shape == (3, 4, 32, 32, 3) and decoded.clips.dtype == np.uint8 and len(decoded) == 3
    assert decoded.table.frame.clip_id.tolist() == ["3.mp4", "0.mp4", "5.mp4"]


def test_decode_table_second_call_opens_without_decoding(
    videos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = np.array(decode(table_of(videos), tmp_path).clips)
    request.getfixturevalue("no_decoding")
    np.testing.assert_array_equal(decode(table_of(videos), tmp_path).clips, first)
    relabelled = table_of(videos, y=1.0, group="all")
    np.testing.assert_array_equal(decode(relabelled, tmp_path).clips, first)


def test_decode_table_key_follows_content_and_options_not_paths(
    videos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(videos, moved)
    store = tmp_path / "cache"
    decode(table_of(videos), store)
    request.getfixturevalue("no_decoding")
    assert decode(table_of(moved), store).clips[5, 0, 0, 0, 0] == pytest.approx(190, abs=3)
    for change in ({"num_frames": 5}, {"size_px": 16}, {"fit": "pad"}, {"sampling": "single"}, {"decoder": "pyav"}):
        if change == {"decoder": decoder_name()}:
            continue
        with pytest.raises(AssertionError, match="decoded again"):
            decode(table_of(videos), store, **change)
    with pytest.raises(AssertionError, match="decoded again"):
        decode(table_of(videos, end_seconds=0.2), store)
    write_clip(moved / "5.mp4", np.full((10, 48, 64, 3), 77, np.uint8), 25)
    with pytest.raises(AssertionError, match="decoded again"):
        decode(table_of(moved), store)


def test_decode_table_quarantines_and_never_replaces(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    folder, store = tmp_path / "mixed", tmp_path / "cache"
    shutil.copytree(videos, folder)
    (folder / "1.mp4").write_text("not a video")
    (folder / "4.mp4").write_bytes(b"")
    table = table_of(folder)
    with caplog.at_level(logging.WARNING):
        decoded = decode(table, store)
    assert decoded.table.frame.clip_id.tolist() == ["0.mp4", "2.mp4", "3.mp4", "5.mp4"]
    levels = np.array(decoded.clips).reshape(4, -1).mean(1)
    assert np.abs(levels - [40, 100, 130, 190]).max() < 3
    reasons = dict(zip(decoded.table.quarantine.clip_id, decoded.table.quarantine.reason, strict=True))
    assert set(reasons) == {"1.mp4", "4.mp4"} and "text" in reasons["1.mp4"] and "empty" in reasons["4.mp4"]
    assert [r.message.split(":")[0] for r in caplog.records] == ["quarantined 1.mp4", "quarantined 4.mp4"]
    request.getfixturevalue("no_decoding")
    again = decode(table, store)
    assert again.table.quarantine.equals(decoded.table.quarantine) and again.clips.shape == (4, 4, 32, 32, 3)


def test_decode_table_names_an_emptied_split_and_an_empty_table(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(videos, folder)
    (folder / "2.mp4").write_bytes(b"")  # the only val clip
    with pytest.raises(ValueError, match=r"no clip of the split.*val"):
        decode(table_of(folder), tmp_path / "cache")
    for path in folder.glob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 6 clips"):
        decode(table_of(folder), tmp_path / "cache")
    with pytest.raises(ValueError, match="no clips to decode"):
        decode(table_of(folder)[[]], tmp_path / "cache")


def test_decode_table_shares_entries_between_splits_and_tables(
    videos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    table = table_of(videos)
    whole = np.array(decode(table, tmp_path).clips)
    request.getfixturevalue("no_decoding")
    np.testing.assert_array_equal(decode(table.train, tmp_path).clips, whole[(table.frame.split == "train").to_numpy()])
    np.testing.assert_array_equal(decode(table[[5, 1]], tmp_path).clips, whole[[5, 1]])


def test_decode_table_epochs_after_the_first_never_decode(
    videos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    decoded = decode(table_of(videos), tmp_path)
    request.getfixturevalue("no_decoding")
    for epoch in range(3):
        for i in np.random.default_rng(epoch).permutation(len(decoded)):
            assert decoded.clips[i].mean() == pytest.approx(40 + 30 * i, abs=3)


def test_decode_table_retries_a_clip_that_timed_out_when_given_more_time(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(videos)
    original = GuardedPool.submit

    def hangs(self: GuardedPool, function: Any, item: Any) -> Any:
        if not item["reading"]["path"].endswith("0.mp4"):
            return original(self, function, item)
        return type("Late", (), {"exception": lambda _: ItemTimeoutError("took longer than 5 s"), "done": bool})()

    with monkeypatch.context() as patch:
        patch.setattr(GuardedPool, "submit", hangs)
        assert len(decode(table, tmp_path, time_limit_seconds=5)) == 5
    same = decode(table, tmp_path, time_limit_seconds=5)
    assert same.table.quarantine.reason.tolist() == ["took longer than 5 s; the decoder hangs or crashes on this file"]
    assert len(decode(table, tmp_path, time_limit_seconds=60)) == 6


def test_decode_table_quarantines_a_short_clip_under_short_error(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    write_clip(folder / "0.mp4", np.full((3, 48, 64, 3), 40, np.uint8), 25)
    for _ in range(2):
        decoded = decode(table_of(folder), tmp_path / "cache", short="error")
        assert decoded.table.quarantine.clip_id.tolist() == ["0.mp4"]
        assert "3 frame(s)" in decoded.table.quarantine.reason[0]
    assert cache.reason_of(ShortClipError("too short")) == "too short"
    assert cache.reason_of(ShortClipError("too short", "/clips/a.mp4")) == "too short"


def test_decode_table_raises_what_says_nothing_of_the_clip(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fit='squeeze'"):
        decode(table_of(videos), tmp_path, fit="squeeze")
    with pytest.raises(ValueError, match="size_px=None"):
        decode(table_of(videos), tmp_path, size_px=None)
    with pytest.raises(TypeError, match="broken"):
        cache.reason_of(TypeError("broken library"))


def test_decode_table_reads_through_a_table_that_does_not_fit(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE_GB", "0.00004")  # three clips of 12 kB
    folder = tmp_path / "mixed"
    shutil.copytree(videos, folder)
    (folder / "1.mp4").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        decoded = decode(table_of(folder), tmp_path / "cache")
    assert "decoded anew at each use" in caplog.text
    assert decoded.table.quarantine.clip_id.tolist() == ["1.mp4"]
    assert decoded.clips[[4, 0]].mean((1, 2, 3, 4)) == pytest.approx([190, 40], abs=3)
    assert not list(tmp_path.rglob("*.clip"))
    submitted: list[object] = []
    monkeypatch.setattr(GuardedPool, "submit", lambda *a: submitted.append(a))
    again = decode(table_of(folder), tmp_path / "cache")  # what decodes and what does not is known by now
    assert len(again) == 5 and not submitted


def test_clip_array_indexes_as_numpy_does(videos: Path, tmp_path: Path) -> None:
    clips = decode(table_of(videos), tmp_path).clips
    several = decode(table_of(videos), tmp_path, num_clips=2, num_crops=3).clips
    assert several.shape == (6, 6, 4, 32, 32, 3) and several.ndim == 6 and several.size == several.nbytes == 442368
    expected = [read_views(p, num_frames=4, size_px=32, num_clips=2, num_crops=3) for p in table_of(videos).files()]
    np.testing.assert_array_equal(several, np.stack(expected))
    mask = np.array([True, False, True, False, False, True])
    for array in (clips, several):
        whole = np.array(array)
        indices: list[Any] = [
            0, -1, np.int64(2), slice(None), slice(1, 5, 2), slice(None, None, -1), slice(4, 2), [3, 1, 1], [-1, 0],
            np.array([[0, 1], [2, 3]]), mask, np.array([], int), (2, 1), (slice(2), 0), (slice(2), slice(1, 3)),
            ([0, 2], [1, 3]), ([0, 2], slice(None), 3), (np.array([[0], [1]]), 2), (mask, 0), ..., (..., 0), (),
            (1, ..., 0), (slice(None), None),
        ]  # fmt: skip
        for index in indices:
            got = array[index]
            np.testing.assert_array_equal(got, whole[index], err_msg=repr(index))
            assert isinstance(got, np.ndarray) and got.flags.writeable, index
        for index in (6, -7, [6], (7, 0), np.array([True, False])):
            with pytest.raises(IndexError):
                array[index]
        np.testing.assert_array_equal(np.stack(list(array)), whole)
        assert np.asarray(array, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="without a copy"):
        clips.__array__(copy=False)
    clips[0][:] = 0  # a copy: writing into it changes nothing
    assert clips[0].mean() == pytest.approx(40, abs=3)


def test_clip_array_read_into_fills_an_array_that_is_there(videos: Path, tmp_path: Path) -> None:
    clips = decode(table_of(videos), tmp_path).clips
    out = np.zeros((3, 4, 32, 32, 3), np.uint8)
    assert clips.read_into(out, [5, 0, 5]) is out
    np.testing.assert_array_equal(out, np.array(clips)[[5, 0, 5]])
    for wrong in (out[:2], out.astype(np.int8), np.zeros((3, 4, 32, 32, 6), np.uint8)[..., ::2]):
        with pytest.raises(ValueError, match=r"C-contiguous uint8 \(3, 4, 32, 32, 3\)"):
            clips.read_into(wrong, [5, 0, 5])


def test_clip_array_decodes_again_what_was_evicted_or_damaged(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = decode(table_of(videos), tmp_path)
    whole = np.array(decoded.clips)
    entries = sorted(tmp_path.rglob("*.clip"))
    entries[0].unlink()
    entries[1].write_bytes(entries[1].read_bytes()[:-100])
    entries[2].write_bytes(bytes(entries[2].stat().st_size))
    monkeypatch.setattr(store_module, "_checked", {})
    monkeypatch.setattr(store_module, "_maps", {})
    np.testing.assert_array_equal(decoded.clips, whole)
    assert sorted(tmp_path.rglob("*.clip")) == entries
    np.testing.assert_array_equal(decoded.clips[0], whole[0])


def test_clip_array_never_shows_a_file_that_changed_or_went_away(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    decoded = decode(table_of(folder), tmp_path / "cache")
    for path in tmp_path.rglob("*.clip"):
        path.unlink()
    write_clip(folder / "0.mp4", np.full((10, 48, 64, 3), 250, np.uint8), 25)
    (folder / "1.mp4").unlink()
    with pytest.raises(RuntimeError, match=r"0\.mp4 has changed"):
        decoded.clips[0]
    with pytest.raises(RuntimeError, match=r"1\.mp4 could be decoded before.*does not exist"):
        decoded.clips[1]
    assert decoded.clips[2].mean() == pytest.approx(100, abs=3)


def test_clip_array_survives_a_process_boundary(videos: Path, tmp_path: Path) -> None:
    import copy

    clips = decode(table_of(videos), tmp_path).clips
    next(tmp_path.rglob("*.clip")).unlink()
    np.testing.assert_array_equal(copy.deepcopy(clips), clips)  # as pickling does


def test_default_cache_dir_is_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    assert cache.default_cache_dir() == tmp_path
    monkeypatch.delenv("WORKBENCH_CACHE")
    assert cache.default_cache_dir() == Path.home() / ".cache" / "video-transfer-workbench"


def test_clip_array_ends_its_processes_when_a_clip_is_gone(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    decoded = decode(table_of(folder), tmp_path / "cache")
    for path in tmp_path.rglob("*.clip"):
        path.unlink()
    (folder / "1.mp4").unlink()
    with pytest.raises(RuntimeError, match="does not exist"):
        decoded.clips[:3]
    assert not multiprocessing.active_children()


def test_clip_array_is_read_by_several_threads_at_once(videos: Path, tmp_path: Path) -> None:
    decoded = decode(table_of(videos), tmp_path)
    whole = np.array(decoded.clips)
    for path in tmp_path.rglob("*.clip"):
        path.unlink()
    with ThreadPoolExecutor(6) as threads:
        for clip, expected in zip(threads.map(decoded.clips.__getitem__, range(6)), whole, strict=True):
            np.testing.assert_array_equal(clip, expected)


def test_clip_array_is_found_from_another_working_folder(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(videos.parent)
    table = table_of(Path(videos.name))
    decoded = decode(table, Path("relative"))
    whole = np.array(decoded.clips)
    next((videos.parent / "relative").rglob("*.clip")).unlink()
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(decoded.clips, whole)
    assert not list(tmp_path.iterdir())
