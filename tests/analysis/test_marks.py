"""Marks: on disk at once, shared by two views, and turned into a table that training takes."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.analysis.mistakes.marks import MARKS, Marks
from workbench.data.tables import ClipTable, Task

TASKS = (Task("kind", "multiclass", ("cat", "dog")), Task("flash", "binary", ("safe", "flashing")),
         Task("score", "regression"))  # fmt: skip


def table(n: int = 6) -> ClipTable:
    frame = pd.DataFrame(
        {
            "clip_id": [f"clip {i}" for i in range(n)], "path": [f"{i}.mp4" for i in range(n)],
            "start_seconds": np.nan, "end_seconds": np.nan, "split": "train", "group": [f"g{i}" for i in range(n)],
            "kind": ["cat", "dog"] * (n // 2), "flash": [0, 1] * (n // 2), "score": np.linspace(0, 1, n),
        }
    )  # fmt: skip
    return ClipTable(frame, TASKS)


def test_set_is_on_disk_at_once_and_read_by_another(tmp_path: Path) -> None:
    path = tmp_path / "marks" / "marks.csv"
    mine, theirs = Marks(path), Marks(path)
    mine.set("clip 1", "kind", "label error", label="cat", note='ears\n, "pointed"')
    found = theirs.get("clip 1", "kind")
    assert found is not None and (found.mark, found.label, found.note) == ("label error", "cat", 'ears , "pointed"')
    theirs.set("clip 2", "kind", "ambiguous")
    assert set(mine.frame.clip_id) == {"clip 1", "clip 2"}
    plain = pd.read_csv(path)
    assert plain.note.tolist()[0] == 'ears , "pointed"' and plain.when.str.endswith("+00:00").all()
    assert os.listdir(path.parent) == ["marks.csv"]  # no lock and no half-written file stays


def test_set_replaces_and_remove_takes_back(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "m.csv")
    marks.set("clip 1", "kind", "ambiguous")
    marks.set("clip 1", "kind", "model error")
    marks.set("clip 1", "flash", "ambiguous")
    assert len(marks) == 2 and marks.get("clip 1", "kind").mark == "model error"  # type: ignore[union-attr]
    marks.remove("clip 1", "kind")
    marks.remove("clip 9", "kind")
    assert marks.frame.task.tolist() == ["flash"]
    assert "1 ambiguous" in repr(marks)


def test_set_from_many_threads_loses_none(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: Marks(path).set(f"clip {i}", "kind", MARKS[i % 3]), range(60)))
    assert set(Marks(path).frame.clip_id) == {f"clip {i}" for i in range(60)}


def test_change_that_fails_leaves_the_file_and_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = Marks(tmp_path / "m.csv")
    marks.set("clip 1", "kind", "ambiguous")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        marks.set("clip 2", "kind", "ambiguous")
    monkeypatch.undo()
    assert marks.frame.clip_id.tolist() == ["clip 1"]
    marks.set("clip 3", "kind", "ambiguous")
    assert len(marks) == 2


def test_stale_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    lock = tmp_path / ".m.csv.lock"
    lock.touch()
    os.utime(lock, (1, 1))
    Marks(tmp_path / "m.csv").set("clip 1", "kind", "ambiguous")
    assert not lock.exists()


def test_hostile_ids_and_numbers_stay_text(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "m.csv")
    for clip_id in ("007", "<img src=x onerror=alert(1)>", "NA", "a,b"):
        marks.set(clip_id, "kind", "ambiguous")
    assert marks.frame.clip_id.tolist() == ["007", "<img src=x onerror=alert(1)>", "NA", "a,b"]


def test_corrected_relabels_masks_and_drops(tmp_path: Path) -> None:
    marks, clips = Marks(tmp_path / "m.csv"), table()
    marks.set("clip 0", "kind", "label error", label="dog")
    marks.set("clip 1", "flash", "label error", label="safe")
    marks.set("clip 2", "score", "label error", label="0.9")
    marks.set("clip 3", "kind", "label error")
    marks.set("clip 4", "kind", "ambiguous")
    marks.set("clip 5", "kind", "model error")
    marks.set("not here", "kind", "label error", label="dog")
    frame = marks.corrected(clips).frame
    assert frame.kind.tolist()[:3] == ["dog", "dog", "cat"] and pd.isna(frame.kind[3])
    assert frame.kind.tolist()[4:] == ["cat", "dog"]
    assert frame.flash.tolist() == [0, 0, 0, 1, 0, 1] and frame.score[2] == 0.9
    assert clips.frame.kind[0] == "cat"  # the table given stays as it was
    dropped = marks.corrected(clips, unknown="drop", ambiguous="drop")
    assert dropped.frame.clip_id.tolist() == ["clip 0", "clip 1", "clip 2", "clip 5"]
    masked = marks.corrected(clips, ambiguous="mask")
    assert np.isnan(masked.targets("kind")).tolist() == [False, False, False, True, True, False]


def test_corrected_without_marks_is_the_same_table(tmp_path: Path) -> None:
    assert Marks(tmp_path / "m.csv").corrected(table()).fingerprint() == table().fingerprint()


def test_marks_refuse_what_makes_no_sense(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "m.csv")
    with pytest.raises(ValueError, match="mark='wrong'"):
        marks.set("clip 1", "kind", "wrong")
    with pytest.raises(ValueError, match="only a label error"):
        marks.set("clip 1", "kind", "ambiguous", label="cat")
    marks.set("clip 1", "kind", "label error", label="horse")
    with pytest.raises(ValueError, match="'horse'"):
        marks.corrected(table())
    with pytest.raises(ValueError, match="unknown='keep'"):
        marks.corrected(table(), unknown="keep")
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no file of marks"):
        Marks(other)
    with pytest.raises(ValueError, match="is a folder"):
        Marks(tmp_path)
