"""Where decoding starts, by hand; and the fast way against the slow one on real odd files."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from workbench.data import decoders, seeking
from workbench.data.clips import ClipDecodeError
from workbench.data.seeking import Packet, Scan, Stretch, scan_of, stretches


def stream(codec: str = "h264", rate: int | None = 25) -> SimpleNamespace:
    context = SimpleNamespace(name=codec, width=320, height=240)
    return SimpleNamespace(
        average_rate=rate, guessed_rate=None, time_base=Fraction(1, 100), codec_context=context, frames=0
    )


def scan(ticks: list[int], keys: list[tuple[int, int]]) -> Scan:
    times = (np.array(ticks) - ticks[0]) / 100
    return Scan(times, 25.0, np.array(ticks), np.array(keys), (320, 240), "h264")


def test_scan_of_orders_frames_by_timestamp_and_leaves_out_hidden_ones() -> None:
    # I P B in decoding order; the first frame lies before the edit list's start.
    packets: list[Packet] = [(-4, -8, True, True), (8, -4, False, False), (0, 0, False, False), (12, 4, True, False)]
    found = scan_of(packets, stream(), "mov,mp4")
    assert found.ticks is not None and found.ticks.tolist() == [0, 8, 12]
    assert found.times.tolist() == [0, 0.08, 0.12]
    assert found.keys.tolist() == [[-4, -8], [12, 4]]  # a hidden key frame is a place to start from all the same
    assert found.fps == pytest.approx(2 / 0.12)


def test_scan_of_seeks_matroska_by_timestamp_where_decoding_times_are_missing() -> None:
    packets: list[Packet] = [(0, None, True, False), (80, None, False, False), (40, 0, False, False)]
    assert scan_of(packets, stream(), "matroska,webm").keys.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("packets", "container"),
    [
        ([(0, 0, True, False), (4, 4, False, False)], "avi"),
        ([(0, 0, True, False), (None, 4, False, False)], "mov,mp4"),
        ([(0, 0, True, False), (4, 4, False, False), (4, 8, False, False)], "matroska,webm"),
    ],
    ids=["made-up", "missing", "double"],
)
def test_scan_of_offers_no_keys_when_timestamps_do_not_tell_frames_apart(packets: list[Packet], container: str) -> None:
    found = scan_of(packets, stream(), container)
    assert len(found.keys) == 0 and len(found.times) == len(packets)


def test_scan_of_counts_frames_by_the_rate_when_there_are_no_timestamps() -> None:
    found = scan_of([(None, None, True, False)] * 3, stream(rate=10), "h264")
    assert found.ticks is None and found.times.tolist() == pytest.approx([0, 0.1, 0.2])


def test_scan_of_vp8_counts_shown_frames_only() -> None:
    packets: list[Packet] = [(0, 0, True, False), (42, 42, False, False), (42, 42, False, False)]
    assert scan_of(packets, stream("vp8"), "matroska,webm").times.tolist() == [0, 0.42]


def test_stretches_start_at_the_last_key_frame_before_a_far_frame_only() -> None:
    # 100 frames, key frames at 0, 30, 60, 90; seek targets are 5 ticks before.
    video = scan(list(range(100)), [(0, -5), (30, 25), (60, 55), (90, 85)])

    def runs(*wanted: int) -> list[tuple[int, int, bool, list[int]]]:
        return [(r.start, r.seek, r.at_key, sorted(r.ticks)) for r in stretches(video, np.array(wanted))]

    assert runs(3, 29) == [(0, -5, False, [3, 29])]
    assert runs(30) == [(30, 25, True, [30])]
    assert runs(59, 61) == [(30, 25, True, [59, 61])]  # 60 is just ahead: decoding goes on
    assert runs(3, 45, 95) == [(0, -5, False, [3]), (30, 25, True, [45]), (90, 85, True, [95])]
    assert runs(25, 31) == [(0, -5, False, [25, 31])]


def test_stretches_start_with_the_file_when_the_first_frame_is_no_key_frame() -> None:
    video = scan(list(range(10, 60)), [(14, 8), (40, 38)])
    assert stretches(video, np.array([1])) == [Stretch(14, 8, False, frozenset({11}))]


class Tape:
    """A container of 60 packets, each a frame, every 30th a key frame; ``skips``: what the decoder was told at each."""

    def __init__(self, *, honest: bool = True) -> None:
        self.skips: dict[int, str] = {}
        self.context = SimpleNamespace(is_open=False, skip_frame="", thread_count=0, decode=lambda _: [])
        self.streams = SimpleNamespace(best=lambda _: SimpleNamespace(codec_context=self.context))
        self.start, self.honest = 0, honest

    def seek(self, position: int, **_: object) -> None:
        self.start = position // 30 * 30

    def demux(self, _: object) -> Iterator[SimpleNamespace]:
        for i in range(self.start, 60):
            yield SimpleNamespace(pts=i, dts=i, size=1, decode=lambda i=i: self.decode(i))

    def decode(self, i: int) -> list[SimpleNamespace]:
        self.skips[i] = self.context.skip_frame
        return [SimpleNamespace(pts=i, key_frame=i % 30 == 0 and self.honest, is_corrupt=False, width=320, height=240)]


def test_by_time_doubts_a_run_that_does_not_begin_with_its_key_frame() -> None:
    video = scan(list(range(60)), [(0, 0), (30, 30)])
    assert seeking.by_time(Tape(), video, np.array([40, 42]), lambda frame, size: frame.pts) == [40, 42]
    with pytest.raises(seeking.DoubtError, match="does not begin with the key frame"):
        seeking.by_time(Tape(honest=False), video, np.array([40, 42]), lambda frame, size: frame.pts)


def test_by_time_decodes_unreferenced_frames_only_where_wanted_or_right_after() -> None:
    # Right after a wanted frame may come its second field.
    tape = Tape()
    seeking.by_time(tape, scan(list(range(60)), [(0, 0), (30, 30)]), np.array([33, 36]), lambda frame, size: frame.pts)
    assert [i for i, skip in tape.skips.items() if skip == "DEFAULT"] == [33, 34, 36, 37]
    assert list(tape.skips) == list(range(30, 38)) and tape.skips[35] == "NONREF"


@pytest.mark.realdata
def test_by_time_returns_the_frames_that_reading_in_order_shows(clips_root: Path) -> None:
    """On every odd file: the fast way, whenever it vouches for its frames, against a plain loop over the decoder."""
    rng, compared = np.random.default_rng(0), 0
    for path in sorted((clips_root / "trouble").glob("*/*")):
        try:
            with decoders.opened(path, "pyav") as video:
                count = len(video.scan.times)
                if not len(video.scan.keys) or count > 130 or video.scan.size[0] > 1300:
                    continue
                with av.open(str(path)) as container:
                    plain = {f.pts: _grey(f) for f in container.decode(container.streams.best("video"))}
                wanted = np.unique(rng.integers(0, count, 4))
                assert video.scan.ticks is not None
                found = seeking.by_time(video.container, video.scan, wanted, lambda frame, size: _grey(frame))
        except (ClipDecodeError, seeking.DoubtError, av.error.FFmpegError, UnicodeDecodeError):
            continue  # undecodable, or left to the slow way
        for tick, frame in zip(video.scan.ticks[wanted].tolist(), found, strict=True):
            assert np.array_equal(frame, plain[tick]), path.name
        compared += 1
    assert compared > 20


def _grey(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="gray")
