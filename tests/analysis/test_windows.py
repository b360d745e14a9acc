"""Which frames a window needs, and that no more are kept than those to come still need."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.analysis.screened import grey_video
from tests.data.videos import encode, moving
from workbench.analysis.windows import WindowReader, plan_windows, windows_of
from workbench.data.clips import read_clip
from workbench.data.protocol import Protocol
from workbench.data.streaming import Squares, VideoStream

PROTOCOLS = [
    Protocol(num_frames=4, size_px=16),
    Protocol(num_frames=3, size_px=16, sampling="dense", sampling_rate=2),
    Protocol(num_frames=5, size_px=16, sampling="fps", fps=6.0),
    Protocol(num_frames=2, size_px=16, sampling="single"),
]


def collected(path: Path, protocol: Protocol, window: float, stride: float, batch: int = 3) -> tuple[Any, list[Any]]:
    """The reader after the whole video, and the frames that each window was given."""
    given: list[Any] = []

    def score(frames: np.ndarray) -> list[dict[str, Any]]:
        given.extend(frames)
        return [{"flag": False} for _ in frames]

    with VideoStream(path) as stream:
        plan = plan_windows(protocol, stream.times, stream.fps, window, stride, flash=True)
        reader = WindowReader(plan, stream.times, stream.fps, score, batch)
        squares = Squares(protocol.size_px, num_crops=protocol.num_crops)
        for piece in stream.pieces(plan.wanted, squares, posters=np.unique(plan.poster).tolist(), piece_frames=7):
            reader.take(piece)
        reader.finish()
    return reader, given


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.sampling)
def test_windows_are_read_as_the_stretch_cut_out(tmp_path: Path, protocol: Protocol) -> None:
    path = encode(tmp_path / "a.mp4", moving(1, frames=70, size=32), fps=10, bf="2")
    reader, given = collected(path, protocol, 1.5, 0.6)
    assert len(given) == len(reader.rows) == len(windows_of(7.0, 1.5, 0.6))
    how = {"num_frames": protocol.num_frames, "sampling": protocol.sampling, "fps": protocol.fps,
           "sampling_rate": protocol.sampling_rate}  # fmt: skip
    for (start, end), frames in zip(reader.plan.spans.tolist(), given, strict=True):
        alone = read_clip(path, size_px=16, start_seconds=start, end_seconds=end, decoder="pyav", **how)
        np.testing.assert_array_equal(frames[0], alone)


def test_windows_of_a_variable_rate_see_what_is_on_the_screen(tmp_path: Path) -> None:
    """Frames at 0, 0.1, 0.2, then one that stands until 2.0: a window in the pause sees that one."""
    frames = np.repeat(np.array([10, 60, 110, 220], np.uint8), 32 * 32 * 3).reshape(4, 32, 32, 3)
    path = encode(tmp_path / "a.mp4", frames, times=[0, 1, 2, 20], fps=10)
    _, given = collected(path, Protocol(num_frames=2, size_px=16), 0.5, 0.5)
    assert given[2][0].mean() == pytest.approx(110, abs=3)


@pytest.mark.parametrize(("window", "stride"), [(2.0, 1.0), (1.0, 1.0), (0.5, 0.4), (4.0, 0.25), (0.2, 0.2)])
def test_any_second_is_judged_whole_by_one_window(window: float, stride: float) -> None:
    times = np.arange(240) / 24
    plan = plan_windows(PROTOCOLS[0], times, 24.0, window, stride, flash=True)
    for first in range(0, 240 - 24):
        assert ((plan.judged[:, 0] <= first) & (plan.judged[:, 1] >= first + 24)).any(), first
    assert (plan.judged[:, 0] <= plan.indices.min(1)).all()


def test_windows_of_cover_the_video_and_end_with_it() -> None:
    for duration, window, stride in (
        (10.0, 2.0, 1.0),
        (9.7, 2.0, 1.5),
        (0.8, 2.0, 1.0),
        (7.0, 7.0, 3.0),
        (6.0, 2.0, 0.1),
    ):
        spans = windows_of(duration, window, stride)
        assert spans[0, 0] == 0 and spans[-1, 1] == pytest.approx(duration)
        assert (spans[1:, 0] <= spans[:-1, 1] + 1e-9).all() and (np.diff(spans[:, 0]) > 0).all()
        np.testing.assert_allclose(np.diff(spans), min(window, duration))


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """Held at once: a window's frames and those of a piece, whether the video has 60 frames or 600."""
    held, left = [], []
    for frames in (60, 600):
        path = grey_video(tmp_path / f"{frames}.mp4", [100.0] * frames)
        reader, _ = collected(path, PROTOCOLS[0], 2.0, 1.0)
        held.append(reader.frames_held)
        left.append((len(reader._small), len(reader._squares)))
        assert len(reader._pictures) <= 3  # of the last batch
    assert held[0] == held[1] <= 4 * 3 + 7
    assert left == [(0, 0), (0, 0)]


def test_posters_are_kept_of_flagged_windows_and_evenly(tmp_path: Path) -> None:
    path = grey_video(tmp_path / "a.mp4", [100.0] * 1000)

    def score(frames: np.ndarray) -> list[dict[str, Any]]:
        return [{"flag": False} for _ in frames]

    with VideoStream(path) as stream:
        plan = plan_windows(PROTOCOLS[0], stream.times, stream.fps, 1.0, 0.5, flash=False)
        reader = WindowReader(plan, stream.times, stream.fps, score, 4)
        for piece in stream.pieces(plan.wanted, Squares(16), posters=np.unique(plan.poster).tolist(), small=False):
            reader.take(piece)
        reader.finish()
    assert len(reader.rows) == 199 and sorted(reader.posters) == list(range(0, 199, 5))
    assert reader.rows[0]["rule_unsafe"] is None
