"""The doctor finds what was made wrong on purpose, and nothing else."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.data.videos import encode, moving, song_with_cover
from workbench.cli import main
from workbench.data import doctor
from workbench.data.checks.duplicates import overlapping
from workbench.data.checks.survey import Survey, survey_file
from workbench.data.checks.verdicts import OTHER_FRAMES, clip_reasons
from workbench.data.clips import ClipDecodeError, write_clip
from workbench.data.doctor import DoctorReport, examine, other_files
from workbench.data.layouts import open_clips
from workbench.data.loading.guard import ItemCrashError, ItemTimeoutError
from workbench.data.splits import split_randomly
from workbench.data.synthetic.faults import plant_faults
from workbench.data.tables import ClipTable, Task


def make_table(folder: Path, rows: list[tuple[str, str | None, str, str]], tasks: bool = True) -> ClipTable:
    frame = pd.DataFrame(rows, columns=["path", "split", "group", "y"])
    frame = frame.assign(clip_id=frame.path, start_seconds=np.nan, end_seconds=np.nan)
    return ClipTable(frame, [Task("y", "multiclass", ("a", "b"))] if tasks else [], root=folder)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        write_clip(folder / f"{i}.mp4", moving(i), 25)
    return folder


CLEAN: list[tuple[str, str | None, str, str]] = [
    ("0.mp4", "train", "g0", "a"), ("1.mp4", "train", "g1", "b"), ("2.mp4", "val", "g2", "a"),
    ("3.mp4", "val", "g3", "b"), ("4.mp4", "test", "g4", "a"), ("5.mp4", "test", "g5", "b"),
]  # fmt: skip


def test_examine_finds_nothing_in_a_clean_table(videos: Path) -> None:
    report = examine(make_table(videos, CLEAN), progress=False, workers=1)
    assert report.counts() == {"ok": 6, "warning": 0, "quarantined": 0}
    assert report.warnings == [] and report.notes == [] and report.duplicates.empty and report.leaks.empty
    assert report.table.fingerprint() == make_table(videos, CLEAN).fingerprint()
    assert report.files.columns[:3].tolist() == ["path", "verdict", "reason"]
    assert report.files.num_frames.tolist() == [24] * 6 and report.files.codec.tolist() == ["h264"] * 6


def test_examine_quarantines_with_a_human_reason_and_warns_of_short_and_flat(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "v"
    shutil.copytree(videos, folder)
    (folder / "1.mp4").write_bytes(b"")
    (folder / "2.mp4").write_text("<b>no video</b>")
    write_clip(folder / "3.mp4", moving(3, frames=3), 25)
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
    write_clip(folder / "5.mp4", moving(1)[:, ::2, ::2], 25, crf=30)
    rows = [
        ("0.mp4", "train", "g0", "a"), ("1.mp4", "train", "g1", "b"), ("2.mp4", "test", "g1", "a"),
        ("4.mp4", "test", "g4", "b"), ("5.mp4", "test", "g5", "b"),
    ]  # fmt: skip
    report = examine(make_table(folder, rows), progress=False, workers=1)
    text = "\n".join(report.warnings)
    assert "1 group(s) with 2 clips lie in more than one split (g1)" in text
    assert report.leaks.to_numpy().tolist() == [["g1", "train/test", 2]]
    assert "exact copy in another split (0.mp4 = 4.mp4)" in text
    assert "show the same as one in another split (1.mp4 = 5.mp4)" in text
    assert "two different labels of 'y' (0.mp4 = 4.mp4)" in text
    assert "no clip in split 'val'" in text


def test_examine_finds_every_planted_fault(tmp_path: Path) -> None:
    faults = plant_faults(tmp_path / "clips", clips_per_class=20)
    report = examine(open_clips(tmp_path / "clips"), progress=False)
    verdict = report.files.set_index("path").verdict
    for fault in faults[faults.verdict.isin(["quarantined", "warning"])].itertuples():
        assert verdict[fault.path] == fault.verdict, fault.fault
    others = verdict.drop(faults.path[faults.verdict != "table"])
    assert set(others.index[others != "ok"]) <= {"test/right/holiday.mp4"}  # 48 px wide: decord gives 4 channels there
    planted = faults[faults.verdict == "table"].set_index("fault").path
    pairs = {frozenset(pair): kind for *pair, kind in report.duplicates[["first", "second", "kind"]].to_numpy()}
    assert pairs == {
        frozenset([planted["copy"], "train/left/left_03.mp4"]): "exact",
        frozenset([planted["re-encoded"], "train/right/right_03.mp4"]): "near",
    }
    assert "brightness" in set(report.shortcuts.fact[report.shortcuts.alarm == "held out"])
    assert any("mirror destroys labels: it swaps 'left' and 'right'" in note for note in report.notes)


def test_examine_reads_clips_with_pyav_where_decord_cannot_be_trusted(tmp_path: Path) -> None:
    encode(tmp_path / "0.mp4", moving(0), codec="h264")
    write_clip(tmp_path / "1.mp4", moving(1), 25)
    frames = moving(2)
    encode(tmp_path / "2.ivf", frames, codec="libsvtav1", preset="12")
    rows = [(p.name, "train", p.name, "a") for p in sorted(tmp_path.iterdir())]
    report = examine(make_table(tmp_path, rows), decoder="decord", progress=False, workers=1)
    files = report.files.set_index("path")
    assert files.verdict.tolist() == ["ok", "ok", "warning"] and "decoder='pyav'" in files.reason["2.ivf"]
    assert report.table.frame.decoder.isna().tolist() == [True, True, False]
    assert report.table.frame.decoder[2] == "pyav" and len(report.table) == 3


def test_examine_gives_each_clip_of_one_file_its_own_verdict_and_finds_overlaps(videos: Path) -> None:
    frame = pd.DataFrame(
        {
            "clip_id": ["a", "b", "c"], "path": "0.mp4", "start_seconds": [0.0, 0.5, 5.0],
            "end_seconds": [0.8, np.nan, 6.0], "split": ["train", "test", "train"], "group": "g",
        }
    )  # fmt: skip
    report = examine(ClipTable(frame, [], root=videos), num_frames=8, progress=False, workers=1)
    assert report.files.verdict.tolist() == ["ok", "ok", "quarantined"]
    assert report.files.seconds[:2].tolist() == pytest.approx([0.8, 0.46])
    assert "no frame between 5.0 and 6.0" in report.files.reason[2]
    assert any("overlapping clips in two splits (0.mp4)" in w for w in report.warnings)
    assert overlapping(ClipTable(frame[:2], [], root=videos)) == ["0.mp4"]
    assert overlapping(ClipTable(frame[:2].assign(start_seconds=[0, 0.8]), [], root=videos)) == []


def test_examine_without_labels_or_splits_has_no_warnings_about_them(videos: Path) -> None:
    rows = [(f"{i}.mp4", None, str(i), "a") for i in range(6)]
    report = examine(make_table(videos, rows, tasks=False), progress=False, workers=1)
    assert report.counts()["ok"] == 6 and report.warnings == [] and report.shortcuts.empty


def test_examine_warns_of_a_cover_picture_and_leaves_it_out_of_the_table(videos: Path, tmp_path: Path) -> None:
    shutil.copy(videos / "0.mp4", tmp_path / "0.mp4")
    song_with_cover(tmp_path / "song.mp3")
    rows = [("0.mp4", "train", "0", "a"), ("song.mp3", "train", "1", "b")]
    report = examine(make_table(tmp_path, rows), progress=False, workers=1)
    assert report.files.verdict.tolist() == ["ok", "warning"] and "cover picture" in report.files.reason[1]
    assert report.table.frame.path.tolist() == ["0.mp4"] and report.table.quarantine.path.tolist() == ["song.mp3"]


def outcome(**changes: object) -> dict[str, object]:
    return {"problem": "", "difference": 0.2, "seconds": 4.0, **changes}


def test_judge_prefers_pyav_where_the_decoders_show_different_frames(videos: Path) -> None:
    survey = survey_file(str(videos / "0.mp4"))
    judged = doctor._judge(survey, None, outcome(difference=36.0), 16, "decord")
    assert (judged["verdict"], judged["decoder"]) == ("warning", "pyav") and "different frames" in judged["reason"]
    judged = doctor._judge(survey, None, outcome(difference=2.7), 16, "decord")
    assert (judged["verdict"], judged["decoder"]) == ("warning", None)
    assert doctor._judge(survey, None, outcome(), 16, "decord")["verdict"] == "ok"
    judged = doctor._judge(survey, None, ClipDecodeError("p", "why"), 16, "decord")
    assert (judged["verdict"], judged["reason"]) == ("quarantined", "why")
    assert doctor._judge(None, "gone", None, 16, "decord") == {"verdict": "quarantined", "reason": "gone"}
    assert clip_reasons(outcome(difference=OTHER_FRAMES), survey, 16, "decord") != []


def test_examine_survives_hangs_crashes_and_bombs_in_both_passes(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: dict[str, Exception] = {
        "0.mp4": ItemTimeoutError("took longer than 1 s"), "1.mp4": ItemCrashError("the decoding process died"),
        "2.mp4": MemoryError(),
    }  # fmt: skip

    def stand_in(function: object, items: list[dict[str, object]], **_: object) -> list[object]:
        names = [Path(str(item["path"])).name for item in items]
        if function is doctor.inspect_file:
            return [lost.get(n) or (survey_file(str(videos / n)), n) for n in names]
        return [
            ItemTimeoutError("took longer than 1 s") if n == "3.mp4" and item["decoder"] == "decord" else outcome()
            for n, item in zip(names, items, strict=True)
        ]

    monkeypatch.setattr(doctor, "run_guarded", stand_in)
    report = examine(make_table(videos, CLEAN), decoder="decord", progress=False)
    assert report.files.verdict.tolist() == ["quarantined"] * 3 + ["warning", "ok", "ok"]
    assert "hangs or crashes" in report.files.reason[0] and "8.0 GiB" in report.files.reason[2]
    assert "decord hangs" in report.files.reason[3] and report.table.frame.decoder.tolist()[0] == "pyav"


def test_other_files_lists_what_a_class_folder_ignores(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(3):
            write_clip(tmp_path / label / f"{i}.mp4", moving(i, frames=2), 25)
    (tmp_path / "a" / "song.ogg").write_bytes(b"OggS" + bytes(100))
    (tmp_path / "README.md").write_text("read me")
    table = open_clips(tmp_path)
    assert other_files(table, tmp_path) == ["a/song.ogg"]
    report = examine(table, also=["a/song.ogg"], progress=False, num_frames=2)
    assert len(report.files) == 7 and report.files.verdict[6] == "quarantined" and len(report.table) == 6
    assert len(report.table.quarantine) == 0  # it never was a clip


def test_write_json_is_strict_and_has_one_object_per_file(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "é.mp4").write_bytes(b"")
    write_clip(tmp_path / "v" / "one.mp4", moving(0, frames=1), 25)
    rows = [("é.mp4", "train", "0", "a"), ("one.mp4", "train", "1", "b")]
    report = examine(make_table(tmp_path / "v", rows), progress=False, workers=1)
    file = report.write_json(tmp_path / "r.json")
    text = file.read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    first, second = json.loads(text)
    assert (first["path"], first["verdict"], first["num_frames"]) == ("é.mp4", "quarantined", None)
    assert (second["verdict"], second["num_frames"], second["motion"]) == ("warning", 1, None)


def test_doctor_verb_examines_any_folder_and_writes_json_and_html(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "loose"
    shutil.copytree(videos, folder)
    (folder / "renamed.dat").write_bytes((videos / "0.mp4").read_bytes())
    (folder / "junk.mp4").write_bytes(b"\x00\x01\x02" * 99)
    json_file, page = tmp_path / "r.json", tmp_path / "r.html"
    assert main(["doctor", str(folder), "--json", str(json_file), "--html", str(page), "--workers", "1"]) == 1
    verdicts = {row["path"]: row["verdict"] for row in json.loads(json_file.read_text())}
    assert verdicts == {f"{i}.mp4": "ok" for i in range(6)} | {"renamed.dat": "ok", "junk.mp4": "quarantined"}
    assert "examined without labels" in capsys.readouterr().out and "junk.mp4" in page.read_text()
    (folder / "junk.mp4").unlink()
    assert main(["doctor", str(folder), "--workers", "1"]) == 0


def test_report_html_escapes_names(tmp_path: Path) -> None:
    (tmp_path / "<img src=x>.mp4").write_bytes(b"")
    table = make_table(tmp_path, [("<img src=x>.mp4", "train", "g", "a")])
    text = examine(table, progress=False, workers=1)._repr_html_()
    assert "<img" not in text and "&lt;img src=x&gt;.mp4" in text


def test_importing_probing_in_a_child_loads_no_pandas_and_no_torch() -> None:
    heavy = "{'pandas', 'torch', 'sklearn'}"
    code = f"import sys, workbench.data.checks.probing; raise SystemExit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def agreement(report: DoctorReport, manifest: Path) -> list[str]:
    """Files on which the verdict and the manifest disagree; decodable is a frame and no error."""
    with open(manifest, encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    decodable = {r["file"]: int(r["decoded_frames"] or 0) > 0 and not r["pyav18_error"] for r in rows}
    verdict = report.files.set_index("path").verdict
    return [path for path, good in decodable.items() if good != (verdict[path] != "quarantined")]


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.timeout(1200)
def test_examine_agrees_with_the_manifest_of_troublesome_files(clips_root: Path) -> None:
    folder = clips_root / "trouble"
    report = examine(open_clips(folder, unlabelled=True), progress=False)
    assert len(report.files) == 89
    # Its titles are not UTF-8, which alone stops PyAV in its default settings; all of its 71 frames decode.
    assert agreement(report, folder / "MANIFEST.tsv") == ["corrupt_or_undecodable/exo__video_desks.3gp"]
    files = report.files.set_index("path")
    assert (files.verdict[files.index.str.startswith("plain_ok")] == "ok").all()
    for kind, word in (
        ("vfr/", "VFR"), ("size_change/", "size change"), ("interlaced/", "interlaced"), ("very_short/", "very short"),
    ):  # fmt: skip
        assert files.reason[files.index.str.startswith(kind)].str.contains(word).all(), kind
    assert report.table.frame.decoder.isin(["pyav"]).sum() >= 10


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.timeout(1200)
def test_examine_finds_cameras_on_both_sides_and_the_resolution_shortcut(clips_root: Path) -> None:
    table = split_randomly(open_clips(clips_root / "fight_surv", task="fight"), allow_leak=True, stratify="fight")
    report = examine(table, cross_check=False, progress=False)
    assert report.counts() == {"ok": 300, "warning": 0, "quarantined": 0}
    sides = table.frame.groupby("group").split.nunique()
    assert set(report.leaks.group) == set(sides.index[sides > 1].astype(str)) and len(report.leaks) > 10
    row = report.shortcuts.set_index("fact").loc["resolution"]
    assert row.alarm == "held out" and row.low > 0.5 and 0.6 < row.held_out < row.in_sample < 0.8
    assert report.duplicates.empty


def test_survey_and_files_carry_the_same_facts(videos: Path) -> None:
    report = examine(make_table(videos, CLEAN[:1]), progress=False, workers=1, cross_check=False)
    survey: Survey = survey_file(str(videos / "0.mp4"))
    for name in ("num_frames", "fps", "width", "brightness", "motion", "steadiness", "file_bytes"):
        assert report.files[name][0] == getattr(survey, name)


def test_doctor_verb_fails_on_clips_that_were_quarantined_before_and_lists_them(videos: Path, tmp_path: Path) -> None:
    table = make_table(videos, CLEAN)
    gone = pd.DataFrame({"clip_id": ["9"], "path": ["9.mp4"], "reason": ["the file does not exist"]})
    saved = table.with_quarantine(gone).save(tmp_path / "saved")
    file = tmp_path / "new" / "verdicts.json"
    assert main(["doctor", str(saved), "--json", str(file), "--workers", "1"]) == 1
    rows = json.loads(file.read_text())
    assert len(rows) == 7 and (rows[-1]["path"], rows[-1]["verdict"]) == ("9.mp4", "quarantined")
    assert main(["doctor", str(table.save(tmp_path / "clean")), "--workers", "1"]) == 0


def test_examine_blames_no_file_for_a_decoder_that_cannot_be_loaded(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "run_guarded", lambda _, items, **__: [ImportError("no room")] * len(items))
    with pytest.raises(ValueError, match=r"memory_gib=0\.1: no room"):
        examine(make_table(videos, CLEAN), progress=False, memory_gib=0.1)
    with pytest.raises(ValueError, match="memory_gib=0 must be above 0"):
        examine(make_table(videos, CLEAN), progress=False, memory_gib=0)


def test_examine_reads_each_clip_by_the_decoder_that_its_table_names(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table(videos, CLEAN)
    chosen = table._with(table.frame.assign(decoder=["pyav", None, "auto", None, None, None]))
    report = examine(chosen, progress=False, workers=1, decoder="decord")
    assert report.files.difference.isna().tolist() == [True] + [False] * 5  # PyAV is not compared with itself
    assert report.table.frame.decoder.fillna("-").tolist() == ["pyav", "-", "auto", "-", "-", "-"]
    monkeypatch.setattr("workbench.data.clips.available_decoders", lambda: ("decord", "pyav"))
    absent = table._with(table.frame.assign(decoder="torchcodec"))
    with pytest.raises(ValueError, match="torchcodec"):
        examine(absent, progress=False, workers=1)


def test_report_keeps_one_line_per_file_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a\nb.mp4").write_bytes(b"")
    report = examine(make_table(tmp_path, [("a\nb.mp4", None, "g", "a")], tasks=False), progress=False, workers=1)
    assert r"  quarantined: a\nb.mp4: the file is empty" in str(report).splitlines()[1]
