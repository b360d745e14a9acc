"""Frames against hand-made videos: frame i shows the number i in a pattern that compression does not blur."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from workbench.data import clips, decoders
from workbench.data.clips import ClipDecodeError, probe, read_clip, read_views, write_clip
from workbench.data.frames import ShortClipError, views_of

BOTH = pytest.mark.parametrize("decoder", ["decord", "pyav"])
if not decoders._has_decord():
    BOTH = pytest.mark.parametrize("decoder", ["pyav"])
BITS = 8


def barcode(n: int, height: int = 64, width: int = 96) -> np.ndarray:
    """(n, H, W, 3): the bits of the frame's number as black and white columns."""
    bits = (np.arange(n)[:, None] >> np.arange(BITS)) & 1
    columns = np.repeat(bits * 255, width // BITS, axis=1).astype(np.uint8)
    return np.broadcast_to(columns[:, None, :, None], (n, height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """The frame numbers that :func:`barcode` wrote."""
    width = frames.shape[2] // BITS
    bits = frames.reshape(*frames.shape[:2], BITS, width, 3).mean((1, 3, 4)) > 127
    return (bits * (1 << np.arange(BITS))).sum(1).tolist()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 numbered frames at 25 per second, with B-frames and one key frame."""
    return write_clip(tmp_path_factory.mktemp("clips") / "numbers.mp4", barcode(100), 25)


@BOTH
@pytest.mark.parametrize("num_frames", [1, 4, 7, 16, 100, 130])
def test_read_clip_returns_exactly_the_uniform_frames(video: Path, decoder: str, num_frames: int) -> None:
    expected = [int((i + 0.5) * 100 / num_frames) for i in range(num_frames)]
    assert numbers(read_clip(video, num_frames=num_frames, decoder=decoder)) == expected


@BOTH
def test_read_clip_takes_frames_shown_from_start_until_before_end(video: Path, decoder: str) -> None:
    # 25 frames per second: frame 50 is shown at 2.0 s and frame 59 at 2.36 s; 2.4 s itself is outside.
    frames = read_clip(video, num_frames=10, start_seconds=2.0, end_seconds=2.4, decoder=decoder)
    assert numbers(frames) == list(range(50, 60))
    assert numbers(read_clip(video, num_frames=2, start_seconds=3.9, decoder=decoder)) == [98, 99]
    assert numbers(read_clip(video, num_frames=2, start_seconds=float("nan"), end_seconds=0.08, decoder=decoder)) == [
        0,
        1,
    ]


@BOTH
def test_read_clip_single_repeats_the_middle_uniform_frame(video: Path, decoder: str) -> None:
    # uniform of 4: 12, 37, 62, 87
    assert numbers(read_clip(video, num_frames=4, sampling="single", decoder=decoder)) == [62] * 4


@BOTH
def test_read_views_orders_windows_then_crops(tmp_path: Path, decoder: str) -> None:
    # The left third is dark, the middle grey, the right third bright; frame i adds i to all.
    columns = np.repeat(np.array([20, 110, 200], np.uint8), 32)
    frames = (
        np.broadcast_to(columns[None, None, :, None], (40, 32, 96, 3))
        + np.arange(40, dtype=np.uint8)[:, None, None, None]
    )
    path = write_clip(tmp_path / "thirds.mp4", frames, 20, crf=2)
    views = read_views(
        path, num_frames=2, size_px=32, sampling="dense", num_clips=2, num_crops=3, decoder=decoder, fit="crop"
    )
    assert views.shape == (6, 2, 32, 32, 3)
    # The crops' middles, away from what the filter mixes at the edges of the thirds.
    levels = views[:, :, 8:24, 8:24].mean((2, 3, 4))
    expected = [[20, 21], [110, 111], [200, 201], [58, 59], [148, 149], [238, 239]]
    assert np.abs(levels - expected).max() < 2  # limited-range luma


@BOTH
def test_read_views_is_views_of_the_native_frames(video: Path, decoder: str) -> None:
    native = read_views(video, num_frames=3, decoder=decoder)
    assert native.shape == (1, 3, 64, 96, 3)
    small = read_views(video, num_frames=3, size_px=20, resize_px=30, num_crops=3, decoder=decoder)
    expected = [[views_of(frame, 20, "crop", 3, 30)[crop] for frame in native[0]] for crop in range(3)]
    assert np.array_equal(small, expected)


@BOTH
def test_read_views_refuses_a_short_clip_when_told_to(video: Path, decoder: str) -> None:
    how = {"num_frames": 20, "sampling": "dense", "sampling_rate": 6, "decoder": decoder}
    with pytest.raises(ShortClipError, match=r"numbers\.mp4: .*100 frame.* a window of 115"):
        read_views(video, short="error", **how)
    assert numbers(read_views(video, short="wrap", **how)[0]) == [6 * i % 100 for i in range(20)]
    assert numbers(read_views(video, **how)[0]) == [min(6 * i, 99) for i in range(20)]


@BOTH
def test_read_clip_random_starts_are_seeded(video: Path, decoder: str) -> None:
    how = {"num_frames": 4, "sampling": "dense", "sampling_rate": 2, "start": "random", "decoder": decoder}
    draws = [numbers(read_clip(video, seed=seed, **how)) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1] and len({tuple(draw) for draw in draws}) > 2
    assert all(np.diff(draw).tolist() == [2, 2, 2] for draw in draws)


@BOTH
def test_read_clip_is_exact_with_many_key_frames_and_odd_rates(tmp_path: Path, decoder: str) -> None:
    path = write_clip(tmp_path / "short-gop.mp4", barcode(60), 29.97, gop=5)
    assert numbers(read_clip(path, num_frames=60, decoder=decoder)) == list(range(60))


def test_read_clip_frame_i_has_grey_level_i(tmp_path: Path) -> None:
    levels = np.arange(16, 216, 4, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (50, 32, 32, 3))
    got = read_clip(write_clip(tmp_path / "grey.mp4", frames, 10, crf=5), num_frames=50).mean((1, 2, 3))
    # 1.5: limited-range luma has 219 levels for 256, and crf 5 quantises a little
    assert np.abs(got - levels).max() <= 1.5


@BOTH
def test_probe_reports_count_rate_and_size(video: Path, decoder: str) -> None:
    info = probe(video, decoder)
    assert (info.num_frames, info.width, info.height, info.variable_rate) == (100, 96, 64, False)
    assert info.fps == pytest.approx(25) and info.duration_seconds == pytest.approx(4.0)


def test_write_clip_is_byte_identical_and_leaves_one_file(tmp_path: Path) -> None:
    a, b = (write_clip(tmp_path / name, barcode(20), 25) for name in ("a.mp4", "b.mp4"))
    assert a.read_bytes() == b.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_write_clip_puts_the_index_before_the_frames(video: Path) -> None:
    data = video.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_write_clip_higher_crf_gives_a_smaller_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    sizes = [write_clip(tmp_path / f"{crf}.mp4", noise, 25, crf=crf).stat().st_size for crf in (10, 30, 45)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[2]


def test_write_clip_keeps_the_old_file_when_encoding_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", barcode(5), 25)
    before = path.read_bytes()

    def broken(part: Path, *_: object) -> None:
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(clips, "_encode", broken)
    with pytest.raises(OSError, match="disk full"):
        write_clip(path, barcode(9), 25)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [((4, 33, 32, 3), np.uint8, "even"), ((4, 32, 32), np.uint8, "uint8"), ((4, 32, 32, 3), np.float32, "float32")],
)
def test_write_clip_refuses_frames_it_cannot_encode(
    tmp_path: Path, shape: tuple[int, ...], dtype: type, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_clip(tmp_path / "a.mp4", np.zeros(shape, dtype), 25)
    assert not list(tmp_path.iterdir())


def audio_only(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def cut(path: Path, video: Path) -> None:
    """The index is intact (it comes first), half of the frames are gone."""
    data = video.read_bytes()
    start = data.index(b"mdat")
    path.write_bytes(data[: start + (len(data) - start) // 2])


@BOTH
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "does not exist"),
        ("empty", "empty"),
        ("text", "text file"),
        ("garbage", "not decodable"),
        ("folder", "not a file"),
        ("audio", "no video stream"),
        ("cut", "cut short"),
        ("no-index", "index is missing"),
        ("scrambled", "not decodable"),
    ],
)
def test_read_clip_says_why_a_file_is_undecodable(
    tmp_path: Path, video: Path, decoder: str, kind: str, reason: str
) -> None:
    path, data = tmp_path / "bad.mp4", video.read_bytes()
    makers = {
        "missing": lambda: None,
        "empty": path.touch,
        "text": lambda: path.write_text("this is not a video\n" * 40),
        "garbage": lambda: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        "folder": path.mkdir,
        "audio": lambda: audio_only(path),
        "cut": lambda: cut(path, video),
        "no-index": lambda: path.write_bytes(data[:40] + data[data.index(b"mdat") - 4 :]),
        "scrambled": lambda: path.write_bytes(
            data[: data.index(b"mdat") + 4] + bytes(len(data) - data.index(b"mdat") - 4)
        ),
    }
    makers[kind]()
    with pytest.raises(ClipDecodeError, match=reason) as caught:
        read_clip(path, num_frames=8, decoder=decoder)
    assert caught.value.path == str(path) and caught.value.reason and str(path) in str(caught.value)


@BOTH
def test_read_clip_names_an_empty_or_reversed_range(video: Path, decoder: str) -> None:
    with pytest.raises(ClipDecodeError, match="lasts 4.00 s"):
        read_clip(video, num_frames=4, start_seconds=9, decoder=decoder)
    with pytest.raises(ClipDecodeError, match="not before"):
        read_clip(video, num_frames=4, start_seconds=2, end_seconds=1, decoder=decoder)


@pytest.mark.parametrize(
    "wrong", [{"num_frames": 0}, {"fit": "zoom"}, {"sampling": "every"}, {"decoder": "cv2"}, {"size_px": 0}]
)
def test_read_clip_refuses_unknown_options(video: Path, wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        read_clip(video, **({"num_frames": 4} | wrong))


def test_read_clip_closes_the_file(video: Path) -> None:
    fds = Path("/proc/self/fd")
    if not fds.is_dir():
        pytest.skip("no /proc on this system")
    before = len(list(fds.iterdir()))
    for _ in range(5):
        read_clip(video, num_frames=4)
    assert len(list(fds.iterdir())) <= before + 1


def test_clip_decode_error_survives_a_process_boundary() -> None:
    code = (
        "import copy; from workbench.data.clips import ClipDecodeError as E;"
        "e = copy.copy(E('a.mp4', 'broken', 'mend it')); print(e.path, e.reason, e.hint, e, sep='|')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "a.mp4|broken|mend it|a.mp4: broken (mend it)"


@pytest.mark.realdata
@BOTH
def test_read_clip_applies_rotation_flags(clips_root: Path, decoder: str) -> None:
    # 568x320 with a flag of 90 degrees
    frames = read_clip(clips_root / "trouble/rotation/decord__video_270.mov", num_frames=3, decoder=decoder)
    assert frames.shape == (3, 568, 320, 3)


def test_frame_times_are_those_written(tmp_path) -> None:
    path = write_clip(tmp_path / "five.mp4", np.zeros((5, 16, 32, 3), np.uint8), 8)
    assert clips.frame_times(path).tolist() == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    with pytest.raises(ClipDecodeError, match="does not exist"):
        clips.frame_times(tmp_path / "none.mp4")
