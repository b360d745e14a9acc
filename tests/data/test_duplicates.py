"""Copies are found whatever was done to them, and clips that only look alike are not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.data.videos import encode, moving
from workbench.data.checks.duplicates import find_duplicates, near_pairs, signatures_of
from workbench.data.checks.survey import survey_file
from workbench.data.clips import write_clip
from workbench.data.tables import ClipTable, Task


def signature(path: Path) -> np.ndarray:
    return survey_file(str(path)).signature


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    return [moving(seed, frames=32, size=128) for seed in range(8)]


def test_near_pairs_finds_each_kind_of_copy_and_nothing_else(originals: list[np.ndarray], tmp_path: Path) -> None:
    copies = {
        "quality": lambda p, v: write_clip(p, v, 25, crf=38),
        "codec": lambda p, v: encode(p.with_suffix(".avi"), v, codec="mpeg4"),
        "size": lambda p, v: write_clip(p, v[:, ::2, ::2], 25),
        "rate": lambda p, v: write_clip(p, v[::2], 12.5),
        "brightness": lambda p, v: write_clip(p, np.clip(v.astype(int) + 20, 0, 255).astype(np.uint8), 25),
    }
    prints = [signature(write_clip(tmp_path / f"{i}.mp4", v, 25)) for i, v in enumerate(originals)]
    prints += [signature(copy(tmp_path / f"{name}.mp4", originals[i])) for i, (name, copy) in enumerate(copies.items())]
    pairs = near_pairs(signatures_of(np.stack(prints)))
    assert pairs[["first", "second"]].to_numpy().tolist() == [[i, 8 + i] for i in range(5)]


def test_near_pairs_keeps_clips_of_one_fixed_camera_apart() -> None:
    rng = np.random.default_rng(0)
    room = rng.integers(60, 180, (16, 16))
    clips = np.repeat(room[None, None], 4, 0).repeat(8, 1).astype(float)
    for clip, column in ((0, 2), (1, 12)):  # something crosses at two different places
        for t in range(8):
            clips[clip, t, 2 * t : 2 * t + 2, column] += 60
    clips[2:] += rng.normal(0, 0.3, (2, 8, 16, 16))  # the empty room twice: these are one picture
    pairs = near_pairs(signatures_of(np.round(clips).astype(np.uint8)))
    assert pairs[["first", "second"]].to_numpy().tolist() == [[2, 3]] and np.isnan(pairs.moves[0])


def test_near_pairs_agrees_with_a_plain_loop_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (30, 8, 16, 16)).astype(np.uint8)
    frames[[7, 21, 29]] = frames[3]
    monkeypatch.setattr("workbench.data.checks.duplicates._BLOCK", 7)
    pairs = near_pairs(signatures_of(frames))
    # each copy once, paired with the first of its kind
    assert pairs[["first", "second"]].to_numpy().tolist() == [[3, 7], [3, 21], [3, 29]]
    assert pairs.looks.to_numpy() == pytest.approx(1) and pairs.moves.to_numpy() == pytest.approx(1)


def test_near_pairs_of_many_copies_grow_with_their_number_and_cross_splits() -> None:
    frames = np.repeat(np.random.default_rng(2).integers(0, 256, (2, 8, 16, 16)).astype(np.uint8), 1500, axis=0)
    pairs = near_pairs(signatures_of(frames))
    assert len(pairs) == 2 * 1499 and set(pairs["first"]) == {0, 1500} and pairs["second"].is_unique


def test_signatures_of_ignores_a_lamp_that_is_switched_on() -> None:
    clip = np.full((1, 8, 16, 16), 100, np.uint8)
    clip[0, 4:] += 50
    assert signatures_of(clip).energy[0] == 0
    with pytest.raises(ValueError, match=r"must be \(n, T, H, W\)"):
        signatures_of(clip[0])


def test_find_duplicates_tells_kind_splits_and_labels() -> None:
    rng = np.random.default_rng(0)
    marks = rng.integers(0, 256, (3, 8, 16, 16)).astype(np.uint8)
    rows = [("a", "train", "x", "1"), ("b", "test", "y", "1"), ("c", "train", "x", "2"), ("d", "val", None, "3")]
    frame = pd.DataFrame(rows, columns=["path", "split", "y", "content"])
    table = ClipTable(
        frame.assign(clip_id=frame.path, group=frame.path, start_seconds=np.nan, end_seconds=np.nan),
        [Task("y", "multiclass", ("x", "y"))],
    )
    found = find_duplicates(table, frame, {"a": marks[0], "b": marks[0], "c": marks[1], "d": marks[1]})
    assert found[["first", "second", "kind", "splits", "labels_differ"]].to_numpy().tolist() == [
        ["a", "b", "exact", "train/test", "y"], ["c", "d", "near", "train/val", ""],
    ]  # fmt: skip
    assert find_duplicates(table, frame.assign(content=list("1234")), {}).empty


@pytest.mark.realdata
@pytest.mark.slow
def test_near_pairs_finds_no_copy_among_real_clips(clips_root: Path) -> None:
    for name, files in (("egogestar", 237), ("fight_surv", 300)):
        paths = sorted((clips_root / name).glob("*/*.*"))
        assert len(paths) == files
        assert near_pairs(signatures_of(np.stack([signature(p) for p in paths]))).empty
