"""Exactly the requested frames: every policy and decoder on generated videos whose frame i carries the number i.

The tolerance is none: frames are told apart by a barcode of 8-pixel columns, black or white, which no codec here blurs.
Pixels of two decoders are compared in ``test_decoders.py``.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from workbench.data import clips, decoders, seeking
from workbench.data.clips import ClipDecodeError, probe, read_clip, read_views
from workbench.data.frames import Sampling

BITS = 8
HEIGHT, WIDTH = 64, 96


def barcode(n: int) -> np.ndarray:
    """(n, 64, 96, 3): the bits of the frame's number as black and white columns, the lowest first."""
    bits = (np.arange(n)[:, None] >> np.arange(BITS)) & 1
    columns = np.repeat(bits * 255, WIDTH // BITS, axis=1).astype(np.uint8)
    return np.broadcast_to(columns[:, None, :, None], (n, HEIGHT, WIDTH, 3)).copy()


def numbers(frames: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) -> (...): the numbers that :func:`barcode` wrote."""
    width = frames.shape[-2] // BITS
    bits = frames.reshape(*frames.shape[:-2], BITS, width, 3).mean((-4, -2, -1)) > 127
    return (bits * (1 << np.arange(BITS))).sum(-1)


def write(
    path: Path,
    ticks: list[int],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    shift: int = 0,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
) -> None:
    """Numbered frames shown at ``ticks`` hundredths of a second, all timestamps moved by ``shift`` after encoding."""
    base = Fraction(1, 100)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream: Any = container.add_stream(
            codec, rate=25, options={"preset": "veryfast", "threads": "1"} | (options or {})
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)

        def mux(packets: list[Any]) -> None:
            for packet in packets:
                moved = int(shift * base / packet.time_base)
                packet.pts, packet.dts = packet.pts + moved, packet.dts + moved
                container.mux(packet)

        for tick, pixels in zip(ticks, barcode(len(ticks)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, base
            mux(stream.encode(frame))
        mux(stream.encode(None))


EVERY_4 = list(range(0, 240, 4))  # 60 frames, 25 a second
STEPS = np.tile([4, 4, 1, 12, 4, 30, 2, 4], 8)[:59]
IRREGULAR = [0, *np.cumsum(STEPS).tolist()]
NEGATIVE_OFFSETS = {"movflags": "negative_cts_offsets"}
NEGATIVE_START = {"avoid_negative_ts": "disabled", "mpegts_copyts": "1"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "cfr": ("mp4", {"ticks": EVERY_4}),
    "vfr": ("mp4", {"ticks": IRREGULAR}),
    "vfr-matroska": ("mkv", {"ticks": IRREGULAR}),
    "no-bframes": ("mp4", {"ticks": EVERY_4, "options": {"x264-params": "bframes=0:keyint=10"}}),
    "bframes": ("mp4", {"ticks": EVERY_4, "options": {"x264-params": "bframes=6:b-adapt=0:b-pyramid=normal:ref=4"}}),
    "open-gop": (
        "mkv",
        {"ticks": EVERY_4, "options": {"x264-params": "open-gop=1:keyint=15:min-keyint=15:bframes=3:b-adapt=0"}},
    ),
    "short-gop": ("mp4", {"ticks": EVERY_4, "options": {"x264-params": "keyint=14:min-keyint=14:bframes=2:b-adapt=0"}}),
    "intra-refresh": ("mp4", {"ticks": EVERY_4, "options": {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}}),
    "hevc": (
        "mp4",
        {"ticks": EVERY_4, "codec": "libx265", "options": {"x265-params": "bframes=4:keyint=20:log-level=none"}},
    ),
    "mpeg4-avi": ("avi", {"ticks": EVERY_4, "codec": "mpeg4", "options": {"qscale": "3"}}),
    "negative-offsets": (
        "mp4",
        {"ticks": EVERY_4, "options": {"x264-params": "bframes=3:b-adapt=0"}, "container_options": NEGATIVE_OFFSETS},
    ),
    "negative-start": ("ts", {"ticks": EVERY_4, "shift": -40, "container_options": NEGATIVE_START}),
    "late-start": ("mkv", {"ticks": EVERY_4, "shift": 500}),
    "edit-list": ("mp4", {"ticks": EVERY_4, "options": {"x264-params": "bframes=0"}, "shift": -40}),
    "1-frame": ("mp4", {"ticks": [0]}),
    "2-frames": ("mp4", {"ticks": [0, 4]}),
    "3-frames": ("mp4", {"ticks": [0, 4, 8]}),
}  # fmt: skip
HIDDEN = {"edit-list": 10}
"""Frames before the first one shown: an edit list begins 40 hundredths in."""
REFUSED = {
    ("edit-list", "decord"): "counts 60 frames where 50 are shown",  # decord ignores edit lists
    ("negative-start", "decord"): "begin below 0",  # it drops frames below 0 and repeats the last one
    ("negative-start", "torchcodec"): "torchcodec",  # it seeks to a negative time and finds nothing
    ("mpeg4-avi", "torchcodec"): "no timestamps",  # AVI has none, torchcodec needs them
}
SOMETIMES_REFUSED = {
    # torchcodec begins at a hidden, half-refreshed or too late key frame: right, or found out by its timestamp.
    ("edit-list", "torchcodec"),
    ("open-gop", "torchcodec"),
    ("intra-refresh", "torchcodec"),
}
POLICIES: dict[str, dict[str, Any]] = {
    "uniform": {"num_frames": 7},
    "uniform-more-than-there-are": {"num_frames": 70},
    "uniform-3-clips": {"num_frames": 4, "num_clips": 3},
    "uniform-random": {"num_frames": 8, "start": "random", "seed": 3},
    "dense": {"num_frames": 8, "sampling": "dense", "sampling_rate": 3},
    "dense-3-clips": {"num_frames": 5, "sampling": "dense", "sampling_rate": 2, "num_clips": 3},
    "dense-random": {"num_frames": 6, "sampling": "dense", "sampling_rate": 4, "start": "random", "seed": 1},
    "dense-wrap": {"num_frames": 16, "sampling": "dense", "sampling_rate": 5, "short": "wrap"},
    "fps": {"num_frames": 6, "sampling": "fps", "fps": 7.0},
    "fps-2-clips": {"num_frames": 4, "sampling": "fps", "fps": 10.0, "num_clips": 2},
    "single": {"num_frames": 4, "sampling": "single"},
}


def loads(decoder: str) -> bool:
    return decoder == "pyav" or (decoders._has_decord() if decoder == "decord" else not decoders._torchcodec_problem())


EACH_DECODER = pytest.mark.parametrize(
    "decoder",
    [
        pytest.param(name, marks=pytest.mark.skipif(not loads(name), reason=f"{name} does not load here"))
        for name in ("decord", "pyav", "torchcodec")
    ],
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The video of a kind, written on first use."""
    folder = tmp_path_factory.mktemp("truth")

    def video(kind: str) -> Path:
        suffix, how = KINDS[kind]
        path = folder / f"{kind}.{suffix}"
        if not path.exists():
            write(path, **how)
        return path

    return video


def truth(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the shown frames, and seconds after the first of them."""
    shown = np.arange(len(KINDS[kind][1]["ticks"]))[HIDDEN.get(kind, 0) :]
    ticks = np.array(KINDS[kind][1]["ticks"])[shown]
    return shown, (ticks - ticks[0]) / 100


def test_numbers_reads_what_barcode_wrote() -> None:
    assert numbers(barcode(200)).tolist() == list(range(200))


@EACH_DECODER
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_read_views_returns_the_policy_s_frames(
    videos: Callable[[str], Path], kind: str, policy: str, decoder: str
) -> None:
    how, (shown, times) = POLICIES[policy], truth(kind)
    if message := REFUSED.get((kind, decoder)):
        with pytest.raises(ClipDecodeError, match=message):
            read_views(videos(kind), decoder=decoder, **how)
        return
    expected = shown[Sampling(**how).indices(times)]
    try:
        views = read_views(videos(kind), decoder=decoder, **how)
    except ClipDecodeError:
        if (kind, decoder) in SOMETIMES_REFUSED:
            return
        raise
    assert numbers(views).tolist() == expected.tolist()


@EACH_DECODER
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "frame" not in kind or kind.endswith("bframes")])
def test_read_clip_late_clips_are_exact(videos: Callable[[str], Path], kind: str, decoder: str) -> None:
    shown, times = truth(kind)
    if (kind, decoder) in SOMETIMES_REFUSED | REFUSED.keys():
        pytest.skip(f"{decoder} refuses this kind; see REFUSED")
    for first, last in ((len(times) - 5, len(times)), (31, 34), (44, 45)):
        end = None if last == len(times) else (times[last] + times[last - 1]) / 2
        start = (times[first] + times[first - 1]) / 2
        got = read_clip(videos(kind), num_frames=last - first, start_seconds=start, end_seconds=end, decoder=decoder)
        assert numbers(got).tolist() == shown[first:last].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_probe_knows_how_many_frames_are_shown_and_when(videos: Callable[[str], Path], kind: str) -> None:
    shown, times = truth(kind)
    info = probe(videos(kind), "pyav")
    assert (info.num_frames, info.width, info.height) == (len(shown), WIDTH, HEIGHT)
    assert info.variable_rate == kind.startswith("vfr")
    with decoders.opened(videos(kind), "pyav") as video:
        # 0.6 ms: Matroska rounds to whole milliseconds
        assert np.abs(video.scan.times - times).max() <= 6e-4


@EACH_DECODER
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_read_clip_turns_frames_as_the_file_says(tmp_path: Path, rotation: int, decoder: str) -> None:
    write(tmp_path / "turned.mp4", [0, 4, 8, 12], rotation=rotation)
    frames = read_clip(tmp_path / "turned.mp4", num_frames=4, decoder=decoder)
    upright = np.stack([np.rot90(frame, -(rotation // 90)) for frame in frames])
    assert frames.shape[1:3] == ((HEIGHT, WIDTH) if rotation == 180 else (WIDTH, HEIGHT))
    assert numbers(upright).tolist() == [0, 1, 2, 3]


def decoded_frames(monkeypatch: pytest.MonkeyPatch, path: Path, **how: Any) -> list[int]:
    """How many frames come out of the decoder, per run of the fast way."""
    runs: list[int] = []
    original = seeking._decoded

    def counted(*args: Any) -> Any:
        runs.append(0)
        for frame in original(*args):
            runs[-1] += 1
            yield frame

    monkeypatch.setattr(seeking, "_decoded", counted)
    read_views(path, decoder="pyav", **how)
    return runs


def test_pyav_starts_a_late_clip_at_the_key_frame_before_it(
    videos: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Key frames at 0, 14, 28, 42, 56; frame 44 is the second after one.
    (run,) = decoded_frames(monkeypatch, videos("short-gop"), num_frames=1, start_seconds=1.755, end_seconds=1.765)
    assert run <= 6


def test_pyav_leaves_out_h264_frames_that_nothing_refers_to(
    videos: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 6 B-frames in a row, one of them referred to by the others: 5 of 7 frames are left out unless wanted.
    assert sum(decoded_frames(monkeypatch, videos("bframes"), num_frames=2, start_seconds=0)) < 30


def test_pyav_jumps_from_window_to_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "long.mp4", list(range(0, 1000, 4)), options={"x264-params": "keyint=20:min-keyint=20"})
    how = {"num_frames": 2, "sampling": "dense", "num_clips": 3}
    runs = decoded_frames(monkeypatch, tmp_path / "long.mp4", **how)
    assert len(runs) == 3 and sum(runs) < 45
    assert numbers(read_views(tmp_path / "long.mp4", decoder="pyav", **how)).tolist() == [
        [0, 1],
        [124, 125],
        [248, 249],
    ]


def test_clips_module_reads_through_one_opening(videos: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = av.open

    def counted(path: str, **options: Any) -> Any:
        opened.append(path)
        return original(path, **options)

    monkeypatch.setattr(av, "open", counted)
    decoders._scans.clear()
    clips.read_clip(videos("cfr"), num_frames=4, decoder="pyav")
    assert len(opened) == 1
