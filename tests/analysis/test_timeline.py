"""A long video by windows: probabilities worked out by hand, events, smoothing, and one decoding of each frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analysis.screened import TASKS, BrightRun, grey_video, probability
from tests.data.test_judging import flicker
from workbench.analysis.screening import Roles
from workbench.analysis.timeline import events_of, screen_video, smoothed
from workbench.data.clips import ClipDecodeError, write_clip
from workbench.data.streaming import VideoStream
from workbench.data.tables import ClipTable, DatasetInfo
from workbench.training.predict import predict_table

QUIET: dict[str, Any] = {"device": "cpu", "progress": False}
ROLES = Roles(TASKS[1], TASKS[0], TASKS[2])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds: dark, but bright from 4 to 6 s, and from 9 s on."""
    levels = [50.0] * 40 + [220.0] * 20 + [50.0] * 30 + [200.0] * 30
    return grey_video(tmp_path_factory.mktemp("long") / "a <b>.mp4", levels)


def test_screen_video_says_what_can_be_worked_out_by_hand(path: Path) -> None:
    found = screen_video(BrightRun(), path, window_seconds=2, overlap=0.5, smoothing=1, threshold=0.5, **QUIET)
    assert found.table["start_seconds"].tolist() == list(range(11))
    halves = {3: 135.0, 5: 135.0, 8: 125.0}  # windows that lie half in a bright stretch
    levels = [halves.get(i, 220.0 if i == 4 else 200.0 if i > 8 else 50.0) for i in range(11)]
    np.testing.assert_allclose(found.table["safety_probability"], [probability(v) for v in levels], atol=0.02)
    np.testing.assert_allclose(found.table["quality"], np.array(levels) / 255, atol=0.01)
    assert found.table["action"].tolist() == ["lit" if v > 127.5 else "dim" for v in levels]
    events = found.events
    assert events[["start_seconds", "end_seconds", "windows"]].to_numpy().tolist() == [[3, 7, 3], [9, 12, 2]]
    assert events["peak_seconds"].tolist() == [5, 10] and set(events["review"]) == {"model only"}
    assert set(found.posters) >= set(np.flatnonzero(found.table["flagged"]))


def test_screen_video_says_what_predict_says_of_the_stretch_cut_out(path: Path) -> None:
    run = BrightRun()
    found = screen_video(run, path, window_seconds=1.7, overlap=0.3, smoothing=1, threshold=0.5, **QUIET)
    spans = found.table[["start_seconds", "end_seconds"]]
    frame = spans.assign(clip_id=[f"w{i:02d}" for i in range(len(spans))], path=path.name, split="test", group="a")
    table = ClipTable(frame, (), root=path.parent, info=DatasetInfo(name="cut"))
    rows = predict_table(run, table, device="cpu", workers=1)
    alone = [p[1] for p in rows[rows.task == "safety"].sort_values("clip_id")["probabilities"]]
    np.testing.assert_allclose(found.table["safety_raw"], alone, rtol=1e-6)


def test_screen_video_decodes_each_frame_once(path: Path) -> None:
    for overlap in (0.0, 0.5, 0.9):
        found = screen_video(BrightRun(), path, overlap=overlap, threshold=0.5, **QUIET)
        assert found.decoded == found.num_frames == 120 and found.damaged == 0 and not found.error


def test_the_rule_finds_flashes_that_the_model_does_not_flag(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", flicker(9, 4.0, 5.5), fps=24, crf=12)
    found = screen_video(BrightRun(), path, smoothing=1, threshold=0.99, **QUIET)
    assert found.events["review"].tolist() == ["rule only"]
    event = found.events.iloc[0]
    assert event.start_seconds <= 4.0 and event.end_seconds >= 5.5 and event.general_flashes >= 6
    off = screen_video(BrightRun(), path, smoothing=1, threshold=0.99, flash=False, **QUIET)
    assert off.events.empty and off.table["rule_unsafe"].isna().all()


def test_smoothing_is_a_centred_mean_and_keeps_what_was_said(path: Path) -> None:
    plain = screen_video(BrightRun(), path, smoothing=1, threshold=0.5, **QUIET).table
    mean = screen_video(BrightRun(), path, smoothing=3, threshold=0.5, **QUIET).table
    raw = plain["safety_probability"].to_numpy()
    assert np.array_equal(raw, mean["safety_raw"])
    by_hand = [raw[max(0, i - 1) : i + 2].mean() for i in range(len(raw))]
    np.testing.assert_allclose(mean["safety_probability"], by_hand, rtol=1e-12)
    np.testing.assert_allclose(smoothed(np.arange(5.0), 99), 2.0)


def test_a_threshold_from_val_keeps_its_rate(path: Path) -> None:
    """Fifteen negatives on val: at a rate of 0.1 one may be flagged, that with the score 0.02 + 0.04 x 18 = 0.74."""
    found = screen_video(BrightRun(), path, max_rate=0.1, **QUIET)
    assert found.operating_point.threshold == pytest.approx(0.72)
    with pytest.raises(ValueError, match="no threshold from the val clips of run 'bright'.*threshold="):
        screen_video(BrightRun(), path, max_rate=0.01, **QUIET)


def test_a_video_that_breaks_off_is_screened_up_to_there(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 48, 48, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "a.mp4", noise, fps=12, crf=20, gop=6)
    whole = screen_video(BrightRun(), path, smoothing=1, threshold=0.5, **QUIET).table
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    found = screen_video(BrightRun(), path, smoothing=1, threshold=0.5, **QUIET)
    assert (found.error and len(found.table) < len(whole)) or found.damaged
    np.testing.assert_allclose(found.table["safety_raw"][:2], whole["safety_raw"][:2])
    assert ("STOPPED EARLY" in repr(found)) == bool(found.error) and ("damaged" in repr(found)) == bool(found.damaged)


def test_a_file_cut_short_says_how_much_its_header_promises(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def entered(stream: VideoStream) -> VideoStream:
        stream.lost = 7
        return stream

    monkeypatch.setattr(VideoStream, "__enter__", entered)
    found = screen_video(BrightRun(), path, threshold=0.5, **QUIET)
    assert found.error == "cut short: the file's header promises 7 more frame(s) than it holds"
    assert len(found.table) == 11 and "STOPPED EARLY" in repr(found)


def table_of(flags: list[bool], unsafe: list[bool]) -> pd.DataFrame:
    n = len(flags)
    words = {(True, True): "both", (True, False): "model only", (False, True): "rule only", (False, False): "clear"}
    return pd.DataFrame({
        "start_seconds": np.arange(n) * 1.0, "end_seconds": np.arange(n) + 2.0, "action": ["dim"] * n,
        "safety_probability": np.linspace(0.1, 0.9, n), "quality": np.arange(n) / 10, "red_flashes": 0,
        "general_flashes": [4 if u else 0 for u in unsafe], "rule_unsafe": unsafe, "flagged": flags,
        "review": [words[pair] for pair in zip(flags, unsafe, strict=True)],
    })  # fmt: skip


def test_events_join_windows_that_touch() -> None:
    #             0      1     2     3      4      5      6      7     8
    flags = [False, True, True, False, False, False, False, False, True]
    unsafe = [False, False, True, False, False, True, False, False, False]
    events = events_of(table_of(flags, unsafe), ROLES)
    assert events[["start_seconds", "end_seconds", "review", "peak_window"]].to_numpy().tolist() == [
        [1, 4, "both", 2], [5, 7, "rule only", 5], [8, 10, "model only", 8],
    ]  # fmt: skip
    assert events["general_flashes"].tolist() == [4, 4, 0] and events["quality"].tolist() == [0.2, 0.5, 0.8]
    merged = events_of(table_of(flags, unsafe), ROLES, merge_seconds=1.0)
    assert merged[["start_seconds", "end_seconds", "windows"]].to_numpy().tolist() == [[1, 10, 4]]
    assert events_of(table_of([False] * 9, [False] * 9), ROLES).empty


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"overlap": 1.0}, "overlap=1.0 must be at least 0 and below 1"),
        ({"window_seconds": 0}, "window_seconds=0 must be a positive"),
        ({"smoothing": 2}, "smoothing=2 must be an odd number"),
        ({"merge_seconds": -1}, "merge_seconds=-1"),
        ({"threshold": 1.5}, "threshold=1.5 must be a probability"),
        ({"safety": "action"}, "safety='action' is no binary task"),
    ],
)
def test_screen_video_refuses(path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        screen_video(BrightRun(), path, **({"threshold": 0.5} | QUIET | given))


def test_screen_video_refuses_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("hello")
    with pytest.raises(ClipDecodeError, match="a text file"):
        screen_video(BrightRun(), tmp_path / "a.mp4", threshold=0.5, **QUIET)


def test_to_csv_writes_every_window(path: Path, tmp_path: Path) -> None:
    found = screen_video(BrightRun(), path, threshold=0.5, **QUIET)
    back = pd.read_csv(found.to_csv(tmp_path / "t.csv"))
    np.testing.assert_allclose(back["safety_probability"], found.table["safety_probability"])
    assert back.columns.tolist() == found.table.columns.tolist() and len(back) == 11
