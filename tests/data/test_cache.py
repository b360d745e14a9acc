"""Decoded once, found again by content, whole or not at all."""

import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.data import cache
from workbench.data.cache import decode_table
from workbench.data.clips import read_clip, write_clip
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

    monkeypatch.setattr(cache, "run_guarded", forbidden)


def test_decode_table_holds_what_read_clip_returns_row_by_row(videos: Path, tmp_path: Path) -> None:
    table = table_of(videos)[[3, 0, 5]]
    decoded = decode(table, tmp_path)
    expected = np.stack([read_clip(p, num_frames=4, size_px=32) for p in table.files()])
    assert isinstance(decoded.clips, np.memmap) and not decoded.clips.flags.writeable
    np.testing.assert_array_equal(decoded.clips, expected)
    assert decoded.table.frame.clip_id.tolist() == ["3.mp4", "0.mp4", "5.mp4"]


def test_decode_table_second_call_opens_without_decoding(
    videos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = decode(table_of(videos), tmp_path).clips.copy()
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
        if change == {"decoder": cache.decoder_name()}:
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
    levels = decoded.clips.reshape(4, -1).mean(1)
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


def test_decode_table_leaves_nothing_half_made_when_it_fails(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object):
        yield np.zeros((4, 32, 32, 3), np.uint8)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "run_guarded", breaks)
        with pytest.raises(KeyboardInterrupt):
            decode(table_of(videos), tmp_path)
    assert not list((tmp_path / "clips").iterdir())
    assert decode(table_of(videos), tmp_path).clips[5].mean() == pytest.approx(190, abs=3)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_decode_table_survives_kill_in_the_middle(videos: Path, tmp_path: Path, repo: Path) -> None:
    store = tmp_path / "cache"
    script = (
        f"import sys, time; sys.path[:0] = [{str(repo)!r}]\n"
        "import numpy as np\n"
        "from workbench.data import cache\n"
        "from workbench.data.tables import ClipTable\n"
        "def slow(*a, **k):\n"
        "    yield np.zeros((4, 32, 32, 3), np.uint8)\n"
        "    print('half', flush=True); time.sleep(300)\n"
        "cache.run_guarded = slow\n"
        f"table = ClipTable.load({str(tmp_path / 'table')!r})\n"
        f"cache.decode_table(table, num_frames=4, size_px=32, cache_dir={str(store)!r}, progress=False)\n"
    )
    table = table_of(videos)
    table.save(tmp_path / "table")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = list((store / "clips").iterdir())
    assert len(left) == 1 and left[0].name.endswith(".part")
    np.testing.assert_array_equal(decode(table, store).clips[1], read_clip(table.files()[1], num_frames=4, size_px=32))
    long_ago = time.time() - 2 * cache._STALE_SECONDS
    import os

    os.utime(left[0], (long_ago, long_ago))
    decode(table, store, size_px=16)
    assert not left[0].exists()


def test_decode_table_retries_a_clip_that_timed_out_when_given_more_time(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(function: object, items: list, **_: object):
        for item in items:
            late = item["path"].endswith("0.mp4")
            yield cache.ItemTimeoutError("took longer than 5 s") if late else np.zeros((4, 32, 32, 3), np.uint8)

    table = table_of(videos)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "run_guarded", hangs)
        assert len(decode(table, tmp_path, time_limit_seconds=5)) == 5
    same = decode(table, tmp_path, time_limit_seconds=5)
    assert same.table.quarantine.reason.tolist() == ["took longer than 5 s; the decoder hangs or crashes on this file"]
    assert len(decode(table, tmp_path, time_limit_seconds=60)) == 6


def test_default_cache_dir_is_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    assert cache.default_cache_dir() == tmp_path
    monkeypatch.delenv("WORKBENCH_CACHE")
    assert cache.default_cache_dir() == Path.home() / ".cache" / "video-transfer-workbench"
