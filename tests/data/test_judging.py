"""The flash rule over files, block by block, and the reading that a screening shares with ``read_views``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.videos import encode, moving
from workbench.data import judging, streaming
from workbench.data.clips import ClipDecodeError, read_views, write_clip
from workbench.data.judging import flash_rule, read_judged, steady, worst
from workbench.data.synthetic.flash import FlashReport, flash_report

HOW = {
    "num_frames": 4, "sampling": "uniform", "sampling_rate": 1, "fps": None, "num_clips": 1, "num_crops": 1,
    "short": "repeat_last", "size_px": 32, "decoder": "pyav",
}  # fmt: skip


def flicker(seconds: float, begin: float, end: float, hertz: float = 6.0, fps: int = 24, size: int = 64) -> np.ndarray:
    """Grey, but black and white by turns from ``begin`` to ``end``."""
    times = np.arange(round(seconds * fps)) / fps
    lit = (np.floor(times * 2 * hertz).astype(int) % 2 * 235 + 10).astype(np.uint8)
    levels = np.where((times >= begin) & (times < end), lit, 90).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (len(levels), size, size, 3)).copy()


@pytest.mark.parametrize(("begin", "end"), [(0.0, 1.0), (7.6, 8.6), (12.0, 13.0)])
def test_flash_rule_finds_one_second_wherever_blocks_are_cut(tmp_path: Path, begin: float, end: float) -> None:
    frames = flicker(20, begin, end)
    path = write_clip(tmp_path / "a.mp4", frames, fps=24, crf=12)
    whole, found = flash_report(frames, 24), flash_rule(str(path))
    assert whole.unsafe and found.unsafe and found.general_flashes == whole.general_flashes


def test_flash_rule_cuts_blocks_by_time_where_the_rate_varies(tmp_path: Path) -> None:
    """A still picture a second, but for a second of flashes where the first piece of 48 frames ends: by the mean rate a
    second and a half would be two frames."""
    times = [*range(0, 24 * 42, 24), *range(24 * 42, 24 * 43, 2), *range(24 * 43, 24 * 60, 24)]
    lit = [(245 if i % 2 else 10) if 42 <= i < 54 else 90 for i in range(len(times))]
    frames = np.repeat(np.array(lit, np.uint8), 64 * 64 * 3).reshape(-1, 64, 64, 3)
    path = encode(tmp_path / "a.mp4", frames, times=times, fps=24)
    seconds = np.array(times) / 24
    whole = flash_report(*steady(frames, seconds, (len(times) - 1) / (seconds[-1] - seconds[0])))
    found = flash_rule(str(path))
    assert whole.unsafe and found == whole


def test_flash_rule_of_a_slide_show_looks_at_each_picture_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture every five seconds: less than one of them fits into what two blocks share."""
    seen: list[int] = []
    judge = judging.flash_report

    def counted(frames: Any, fps: float) -> Any:
        seen.append(len(frames))
        return judge(frames, fps)

    monkeypatch.setattr(judging, "flash_report", counted)
    frames = np.full((120, 16, 16, 3), 90, np.uint8)
    path = encode(tmp_path / "a.mp4", frames, times=[5 * i for i in range(120)], fps=1)
    assert not flash_rule(str(path)).unsafe
    assert len(seen) == 3 and max(seen) < 49 * 1.5 * 2


def test_flash_rule_of_a_file_that_breaks_off_keeps_what_is_over_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_clip(tmp_path / "a.mp4", flicker(6, 0.5, 1.5), fps=24, crf=12))
    read = judging.read_piece

    def breaks(ticket: str, first: int, *rest: Any, **more: Any) -> Any:
        piece = read(ticket, first, *rest, **more)
        return replace(piece, error="the file is damaged") if first >= 48 else piece

    monkeypatch.setattr(judging, "read_piece", breaks)
    assert flash_rule(path).unsafe
    assert not streaming._readers  # nothing is left open
    with pytest.raises(ClipDecodeError, match="the file is damaged"):
        flash_rule(path, 60)


def test_flash_rule_passes_what_is_steady_and_looks_at_its_span_only(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", flicker(6, 1.0, 2.0), fps=24, crf=12)
    assert flash_rule(str(path), 0, 48).unsafe
    assert flash_rule(str(path), 60, None) == FlashReport(0, 0, False, 0, 0)
    assert not flash_rule(str(write_clip(tmp_path / "b.mp4", moving(1), fps=24))).unsafe


def test_steady_holds_each_frame_as_long_as_it_is_shown() -> None:
    frames = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1).repeat(3, -1)
    held, rate = steady(frames, np.array([0.0, 0.1, 0.4, 0.5]), 6.0)
    assert rate == pytest.approx(10)
    assert held[:6, 0, 0, 0].tolist() == [0, 1, 1, 1, 2, 3]
    same, rate = steady(frames, np.arange(4) / 8, 8.0)
    assert same is frames and rate == 8.0


def test_steady_does_not_fill_memory_in_a_long_pause() -> None:
    frames = np.zeros((3, 1, 1, 3), np.uint8)
    held, rate = steady(frames, np.array([0.0, 0.01, 5000.0]), 0.0006)
    assert len(held) < 2500 * rate


def test_flash_rule_counts_by_time_where_the_rate_varies(tmp_path: Path) -> None:
    """Black and white every 1/12 s, told by half as many packets where nothing changes in between."""
    frames = flicker(2, 0.0, 2.0)[::2]
    path = encode(tmp_path / "a.mp4", frames, times=list(range(0, 48, 2)), fps=24)
    assert flash_rule(str(path)).general_flashes == flash_report(flicker(2, 0.0, 2.0), 24).general_flashes


def test_read_judged_reads_as_read_views_does_and_says_when(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving(2, frames=48), fps=24)
    judged = read_judged(str(path), flash=True, start_seconds=0.5, end_seconds=1.5, **HOW)
    views = read_views(path, num_frames=4, size_px=32, start_seconds=0.5, end_seconds=1.5, decoder="pyav")
    np.testing.assert_array_equal(judged.views, views)
    # 24 frames from the twelfth on, the middles of four stretches of six: 15, 21, 27, 33.
    np.testing.assert_allclose(judged.seconds, np.array([15, 21, 27, 33]) / 24, atol=1e-6)
    assert judged.rule is not None and not judged.rule.unsafe


def test_read_judged_keeps_the_clip_where_the_rule_cannot_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> FlashReport:
        raise ClipDecodeError("a.mp4", "a frame is out of order")

    monkeypatch.setattr(judging, "flash_rule", refuse)
    path = write_clip(tmp_path / "a.mp4", moving(3), fps=24)
    judged = read_judged(str(path), flash=True, **HOW)
    assert judged.rule is None and judged.rule_problem == "a frame is out of order" and len(judged.views) == 1


def test_worst_takes_the_highest_of_each() -> None:
    assert worst([FlashReport(3, 0, False, 6, 1), FlashReport(1, 4, True, 2, 8)]) == FlashReport(3, 4, True, 6, 8)
