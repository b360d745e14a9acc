"""Damaged copies with known scores: what was done to them is in the file and in the label."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.data.clips import probe, read_clip, write_clip
from workbench.data.splits import groups_across_splits
from workbench.data.synthetic.ladder import ladder_score, quality_ladder
from workbench.data.synthetic.textures import texture
from workbench.data.tables import ClipTable, DatasetInfo, Task


def frames(seed: int, count: int = 10, height: int = 48, width: int = 60) -> np.ndarray:
    image = (texture(np.random.default_rng(seed), 64).transpose(1, 2, 0) * 255).astype(np.uint8)[:height, :width]
    return np.stack([np.roll(image, 2 * t, axis=1) for t in range(count)])


@pytest.fixture
def table(tmp_path: Path) -> ClipTable:
    root = tmp_path / "source"
    root.mkdir()
    for i in range(12):
        write_clip(root / f"{i}.mp4", frames(i), fps=10, crf=12)
    frame = pd.DataFrame({
        "clip_id": [f"clip {i}" for i in range(12)], "path": [f"{i}.mp4" for i in range(12)], "start_seconds": np.nan,
        "end_seconds": np.nan, "split": ["train"] * 6 + ["val"] * 3 + ["test"] * 3,
        "group": [f"g{i // 3}" for i in range(12)], "gesture": ["a", "b"] * 6,
    })  # fmt: skip
    return ClipTable(frame, [Task("gesture", "multiclass", ("a", "b"))], root=root, info=DatasetInfo(name="set"))


def test_ladder_score_falls_evenly() -> None:
    assert [ladder_score(s) for s in range(6)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    with pytest.raises(ValueError, match="severity=6"):
        ladder_score(6)


def test_quality_ladder_keeps_groups_splits_and_labels(table: ClipTable, tmp_path: Path) -> None:
    made = quality_ladder(table, tmp_path / "copies", copies=2, progress=False)
    assert len(made) == 24 and made.frame.clip_id.is_unique
    assert [t.name for t in made.tasks] == ["gesture", "quality"]
    assert made.frame.quality.tolist() == pytest.approx([1 - s / 5 for s in made.frame.severity])
    assert not groups_across_splits(made)
    pairs = made.frame.assign(source=made.frame.clip_id.str[:-2]).groupby("source")
    assert (pairs.split.nunique() == 1).all() and (pairs.gesture.nunique() == 1).all()
    assert all(f.exists() for f in made.files()) and made.info.name == "set-ladder"
    alone = quality_ladder(table, tmp_path / "copies", copies=2, keep_labels=False, progress=False)
    assert [t.name for t in alone.tasks] == ["quality"] and "gesture" not in alone.frame


def test_quality_ladder_writes_what_the_label_says(table: ClipTable, tmp_path: Path) -> None:
    """Undamaged copies are nearest to their source; blur takes the fine detail away, more at each step."""
    made = quality_ladder(table[:4], tmp_path, kinds=["blur"], severities=[0, 2, 5], copies=4, progress=False)
    assert set(made.frame.degradation) == {"blur"} and set(made.frame.severity) == {0, 2, 5}
    seen = np.stack([read_clip(f, num_frames=10).astype(int) for f in made.files()])
    detail = pd.Series(np.abs(np.diff(seen, axis=3)).mean((1, 2, 3, 4))).groupby(made.frame.severity).mean()
    assert detail[0] > 1.5 * detail[2] > 2 * detail[5]
    sources = {i: read_clip(f, num_frames=10) for i, f in zip(table.frame.clip_id, table.files(), strict=True)}
    pristine = np.flatnonzero(made.frame.severity == 0)
    for i in pristine:
        assert np.abs(seen[i] - sources[made.frame.clip_id[i][:-2]]).mean() < 6
    info = probe(made.files()[pristine[0]])
    assert (info.num_frames, info.fps, info.width, info.height) == (10, pytest.approx(10), 60, 48)


def test_quality_ladder_of_a_clip_depends_on_nothing_else_and_is_written_once(table: ClipTable, tmp_path: Path) -> None:
    whole = quality_ladder(table[:8], tmp_path / "copies", progress=False)
    before = {f: f.stat().st_mtime_ns for f in whole.files()}
    part = quality_ladder(table[4:7], tmp_path / "copies", progress=False)
    assert part.frame.path.tolist() == whole.frame.path[4:7].tolist()
    assert {f: f.stat().st_mtime_ns for f in whole.files()} == before
    other = quality_ladder(table[:8], tmp_path / "copies", seed=1, progress=False)
    assert other.frame.severity.tolist() != whole.frame.severity.tolist()
    assert len(set(whole.frame.severity)) > 2 and len(set(whole.frame.degradation)) > 2


def test_quality_ladder_shrinks_crops_to_even_and_cuts_in_time(table: ClipTable, tmp_path: Path) -> None:
    made = quality_ladder(
        table[:1], tmp_path / "copies", severities=[1], short_side_px=25, max_seconds=0.4, progress=False
    )
    info = probe(made.files()[0])
    assert (info.width, info.height) == (30, 24) and info.num_frames == 4
    frame = table.frame.assign(start_seconds=0.2, end_seconds=0.5)
    cut = ClipTable(frame, table.tasks, root=table.root)
    piece = quality_ladder(cut[:1], tmp_path / "copies", kinds=["blur"], severities=[0], progress=False)
    shown = read_clip(piece.files()[0], num_frames=3).astype(int)
    assert probe(piece.files()[0]).num_frames == 3
    assert np.abs(shown - read_clip(table.files()[0], num_frames=10)[2:5]).mean() < 6


def test_quality_ladder_quarantines_what_cannot_be_read(table: ClipTable, tmp_path: Path) -> None:
    (table.root / "3.mp4").write_bytes(b"no video")
    made = quality_ladder(table, tmp_path / "copies", progress=False)
    assert len(made) == 11 and made.quarantine.clip_id.tolist() == ["clip 3"]
    assert made.quarantine.reason.item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "gesture"}, "has a column 'gesture' already"), ({"kinds": ["rain"]}, "unknown degradation 'rain'"),
        ({"severities": [7]}, "severity=7"), ({"kinds": []}, "at least one of each"), ({"copies": 0}, "copies=0"),
    ],
)  # fmt: skip
def test_quality_ladder_names_what_it_cannot_do(table: ClipTable, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quality_ladder(table, tmp_path / "copies", progress=False, **options)
