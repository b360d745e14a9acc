"""The doctor finds what was made wrong on purpose, and nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.data import doctor
from workbench.data.clips import write_clip
from workbench.data.doctor import examine
from workbench.data.tables import ClipTable, Task


def noise(seed: int, frames: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 32, 32, 3), np.uint8)


def make_table(folder: Path, rows: list[tuple[str, str, str, str]]) -> ClipTable:
    frame = pd.DataFrame(rows, columns=["path", "split", "group", "y"])
    frame = frame.assign(clip_id=frame.path, start_seconds=np.nan, end_seconds=np.nan)
    return ClipTable(frame, [Task("y", "multiclass", ("a", "b"))], root=folder)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        write_clip(folder / f"{i}.mp4", noise(i), 25)
    return folder


CLEAN = [
    ("0.mp4", "train", "g0", "a"), ("1.mp4", "train", "g1", "b"), ("2.mp4", "val", "g2", "a"),
    ("3.mp4", "val", "g3", "b"), ("4.mp4", "test", "g4", "a"), ("5.mp4", "test", "g5", "b"),
]  # fmt: skip


def test_examine_finds_nothing_in_a_clean_table(videos: Path) -> None:
    report = examine(make_table(videos, CLEAN), progress=False, workers=1)
    assert report.counts() == {"ok": 6, "warning": 0, "quarantined": 0} and report.warnings == []
    assert report.table.fingerprint() == make_table(videos, CLEAN).fingerprint()
    assert report.files.columns[:3].tolist() == ["path", "verdict", "reason"]
    assert report.files.num_frames.tolist() == [16] * 6


def test_examine_quarantines_with_a_human_reason_and_warns_of_short_and_flat(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "v"
    shutil.copytree(videos, folder)
    (folder / "1.mp4").write_bytes(b"")
    (folder / "2.mp4").write_text("<b>no video</b>")
    write_clip(folder / "3.mp4", noise(3, frames=3), 25)
    write_clip(folder / "4.mp4", np.full((16, 32, 32, 3), 90, np.uint8), 25)
    report = examine(make_table(folder, CLEAN), progress=False, workers=1)
    files = report.files.set_index("path")
    assert files.verdict.to_dict() == {
        "0.mp4": "ok", "1.mp4": "quarantined", "2.mp4": "quarantined", "3.mp4": "warning", "4.mp4": "warning",
        "5.mp4": "ok",
    }  # fmt: skip
    assert "0 bytes" in files.reason["1.mp4"] and "text file" in files.reason["2.mp4"]
    assert "very short: about 3 frame" in files.reason["3.mp4"] and "flat" in files.reason["4.mp4"]
    assert report.table.frame.path.tolist() == ["0.mp4", "3.mp4", "4.mp4", "5.mp4"]
    assert report.table.quarantine.path.tolist() == ["1.mp4", "2.mp4"]
    assert any("no train clip of b" in w for w in report.warnings)
    assert "2 quarantined" in str(report) and "2 quarantined" in report._repr_html_()


def test_examine_warns_of_leaks_copies_clashes_and_empty_splits(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "v"
    shutil.copytree(videos, folder)
    shutil.copy(folder / "0.mp4", folder / "4.mp4")
    rows = [
        ("0.mp4", "train", "g0", "a"), ("1.mp4", "train", "g1", "b"), ("2.mp4", "test", "g1", "a"),
        ("4.mp4", "test", "g4", "b"),
    ]  # fmt: skip
    text = "\n".join(examine(make_table(folder, rows), progress=False, workers=1).warnings)
    assert "1 group(s) lie in more than one split (g1)" in text
    assert "exact copy in another split (0.mp4 = 4.mp4)" in text
    assert "two different labels of 'y'" in text
    assert "no clip in split 'val'" in text


def test_examine_warns_of_imbalance_only_from_ten_to_one(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"{i}.mp4", "train", f"g{i}", "a") for i in range(10)] + [("10.mp4", "train", "g10", "b")]
    assert any("10 train clips" in w for w in doctor._label_warnings(make_table(videos, rows), "y"))
    assert not any("train clips" in w for w in doctor._label_warnings(make_table(videos, rows[1:]), "y"))


def test_verdict_quarantines_where_the_decoders_show_different_frames() -> None:
    outcome = {"difference": 36.0, "seconds": 4.0, "fps": 25.0, "flat": False}
    assert doctor._verdict(outcome, 16)["verdict"] == "quarantined"
    assert "different frames" in doctor._verdict(outcome, 16)["reason"]
    assert doctor._verdict(outcome | {"difference": 2.7}, 16)["verdict"] == "warning"
    assert doctor._verdict(outcome | {"difference": 0.2}, 16)["verdict"] == "ok"


def test_report_html_escapes_names(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "<img src=x>.mp4").write_bytes(b"")
    table = make_table(tmp_path, [("<img src=x>.mp4", "train", "g", "a")])
    text = examine(table, progress=False, workers=1)._repr_html_()
    assert "<img" not in text and "&lt;img src=x&gt;.mp4" in text


@pytest.mark.realdata
def test_examine_ends_with_a_verdict_on_troublesome_files(clips_root: Path) -> None:
    names = [
        "derived/derived__text_renamed.mp4", "derived/derived__truncated_no_moov.mp4", "no_video_stream/exo__audio.mp3",
        "no_video_stream/exo__sample.audio.mp4", "corrupt_or_undecodable/decord__corrupted.mp4",
        "corrupt_or_undecodable/fate__displaymatrix.mp4", "corrupt_or_undecodable/fate__mov-tenc-only-encrypted.mp4",
        "start_offset_editlist/fate__mov_stream_shorter_than_movie.mp4", "plain_ok/mmaction2__demo.mp4",
        "rotation/exo__video_1.mp4", "very_short/fate__crop-to-container-dims-canon.mp4",
    ]  # fmt: skip
    rows = [(name, "train", name, "a") for name in names]
    report = examine(make_table(clips_root / "trouble", rows), progress=False, time_limit_seconds=60, num_frames=8)
    verdicts = report.files.verdict.tolist()
    assert verdicts[:7] == ["quarantined"] * 7 and verdicts[8:] == ["ok", "ok", "warning"]
    assert report.files.reason[:7].str.len().min() > 10


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.timeout(1200)
def test_examine_ends_with_a_verdict_on_every_troublesome_file(clips_root: Path) -> None:
    folder = clips_root / "trouble"
    names = sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*"))
    report = examine(make_table(folder, [(name, "train", name, "a") for name in names]), progress=False)
    assert len(report.files) == len(names) >= 89
    verdict = report.files.set_index("path").verdict
    assert (verdict[[n for n in names if n.startswith("no_video_stream")]] == "quarantined").all()
    assert (verdict[[n for n in names if n.startswith("plain_ok")]] == "ok").all()
