"""Three decoders, one answer. Where one of them is known to differ, the test says so."""

import logging
import os
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from workbench.data import decoders
from workbench.data.clips import ClipDecodeError, read_clip, write_clip

LOADS = {
    "decord": decoders._has_decord(),
    "pyav": True,
    "torchcodec": not decoders._torchcodec_problem(),
}
EACH = pytest.mark.parametrize(
    "decoder",
    [
        pytest.param(name, marks=pytest.mark.skipif(not loads, reason=f"{name} does not load here"))
        for name, loads in LOADS.items()
    ],
)
OTHERS = pytest.mark.parametrize(
    "decoder",
    [
        pytest.param(name, marks=pytest.mark.skipif(not LOADS[name], reason=f"{name} does not load here"))
        for name in ("decord", "torchcodec")
    ],
)


def scene(n: int = 40, height: int = 96, width: int = 128) -> np.ndarray:
    """Coloured blobs that move, uint8 (n, H, W, 3)."""
    y, x = np.mgrid[:height, :width]
    moves = np.arange(n)[:, None, None]
    waves = [np.sin((x + speed * moves) / period) * np.cos(y / period) for speed, period in ((2, 9), (-1, 13), (3, 21))]
    return (127 + 110 * np.stack(waves, -1)).astype(np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("decoders") / "scene.mp4", scene(), 20, gop=12)


@OTHERS
@pytest.mark.parametrize("size_px", [None, 40])
def test_decoders_return_equal_pixels(video: Path, decoder: str, size_px: int | None) -> None:
    # No tolerance: 8-bit 4:2:0 is decoded exactly by standard, and all three convert it by swscale without scaling.
    options: dict[str, Any] = {"num_frames": 9, "size_px": size_px, "start_seconds": 0.5}
    assert np.array_equal(read_clip(video, decoder=decoder, **options), read_clip(video, decoder="pyav", **options))


def test_pyav_frames_are_the_plain_loop_s(video: Path) -> None:
    with av.open(str(video)) as container:
        plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(read_clip(video, num_frames=40, decoder="pyav"), plain)
    assert np.array_equal(read_clip(video, num_frames=3, decoder="pyav"), plain[[6, 20, 33]])


@EACH
def test_opened_reads_members_of_a_tar(video: Path, tmp_path: Path, decoder: str) -> None:
    with tarfile.open(tmp_path / "corpus, part:1.tar", "w") as archive:
        archive.add(__file__, "notes/first.txt")
        archive.add(video, "clips/scene.mp4")
        archive.add(__file__, "clips/last.txt")
    member = tmp_path / "corpus, part:1.tar" / "clips" / "scene.mp4"
    expected = read_clip(video, num_frames=5, size_px=32, decoder=decoder)
    assert np.array_equal(read_clip(member, num_frames=5, size_px=32, decoder=decoder), expected)
    with pytest.raises(ClipDecodeError, match=r"no file 'clips/none\.mp4'"):
        read_clip(member.with_name("none.mp4"), num_frames=5, decoder=decoder)
    with pytest.raises(ClipDecodeError, match="a text file"):
        read_clip(member.with_name("last.txt"), num_frames=5, decoder=decoder)


@EACH
def test_opened_scans_again_when_the_file_has_changed(tmp_path: Path, decoder: str) -> None:
    path = write_clip(tmp_path / "a.mp4", scene(40), 20)
    assert len(np.unique(read_clip(path, num_frames=40, decoder=decoder).reshape(40, -1), axis=0)) == 40
    write_clip(path, scene(10), 20)
    assert len(np.unique(read_clip(path, num_frames=40, decoder=decoder).reshape(40, -1), axis=0)) == 10


def test_opened_scans_a_long_video_once(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[str] = []
    original = decoders._scanned

    def counted(path: str, container: Any) -> decoders.Scan:
        scans.append(path)
        return original(path, container)

    monkeypatch.setattr(decoders, "_scanned", counted)
    decoders._scans.clear()
    for start in (0, 0.5, 1.0):
        read_clip(video, num_frames=2, start_seconds=start, decoder="pyav")
    assert scans == [str(video)]


def test_available_decoders_are_those_that_read(video: Path) -> None:
    found = decoders.available_decoders()
    assert "pyav" in found
    for name in ("decord", "pyav", "torchcodec"):
        if name in found:
            assert read_clip(video, num_frames=2, decoder=name).shape[0] == 2
        else:
            with pytest.raises(ValueError, match=name):
                read_clip(video, num_frames=2, decoder=name)


@pytest.mark.skipif(not LOADS["decord"], reason="decord does not load here")
@pytest.mark.parametrize("width", [16, 24, 48, 72])
def test_decord_refuses_the_widths_that_it_garbles(width: int, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, width, 3)).astype(np.uint8)
    path = write_clip(tmp_path / "narrow.mp4", frames, 10)
    assert read_clip(path, num_frames=4, decoder="pyav").shape == (4, 32, width, 3)
    with pytest.raises(ClipDecodeError, match=f"for one of {width}x32.*pyav"):
        read_clip(path, num_frames=4, decoder="decord")


@pytest.mark.skipif(not LOADS["decord"], reason="decord does not load here")
def test_decord_refuses_what_it_would_pad_with_repeats(video: Path) -> None:
    with decoders.opened(video, "pyav") as opened:
        full = opened.scan
    short = decoders.Scan(full.times[:30], full.fps, None, full.keys, full.size, full.codec)
    with pytest.raises(ClipDecodeError, match="decord counts 40 frames where 30 are shown"):
        decoders.Video(str(video), None, short).frames(np.array([1]), "decord")


def test_decoder_auto_falls_back_to_pyav_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decoders.importlib.util, "find_spec", lambda name: None)
    decoders._has_decord.cache_clear()
    try:
        assert [decoders.decoder_name(), decoders.decoder_name()] == ["pyav", "pyav"]
        with pytest.raises(ValueError, match="not installed"):
            decoders.decoder_name("decord")
    finally:
        decoders._has_decord.cache_clear()
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_decoder_name_refuses_an_unknown_one() -> None:
    with pytest.raises(ValueError, match="decoder='cv2' is not one of auto, decord, pyav, torchcodec"):
        decoders.decoder_name("cv2")


@pytest.fixture
def no_torchcodec(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forget what is known about torchcodec, before and after."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    decoders._torchcodec_problem.cache_clear()
    yield monkeypatch
    decoders._torchcodec_problem.cache_clear()


def test_decoder_name_says_that_torchcodec_is_missing(no_torchcodec: pytest.MonkeyPatch) -> None:
    no_torchcodec.setattr(decoders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="torchcodec is not installed here; pip install torchcodec"):
        decoders.decoder_name("torchcodec")


def test_decoder_name_says_why_torchcodec_does_not_load(no_torchcodec: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "torchcodec"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libnvrtc.so.13: cannot open shared object file')")
    no_torchcodec.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"does not load here \(libnvrtc.so.13: cannot open.*decoder='pyav'"):
        decoders.decoder_name("torchcodec")


class FakeVideoDecoder:
    """torchcodec's interface over a list of frames; ``late`` moves its timestamps, ``more`` its count."""

    frames = scene()
    late, more = 0.0, 0

    def __init__(self, source: Any, *, dimension_order: str, num_ffmpeg_threads: int, seek_mode: str) -> None:
        assert (dimension_order, num_ffmpeg_threads, seek_mode) == ("NHWC", 1, "exact")
        self.metadata = SimpleNamespace(num_frames=len(self.frames) + self.more, begin_stream_seconds=0.0)

    def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
        shown = torch.tensor(indices, dtype=torch.float64) / 20 + self.late
        return SimpleNamespace(data=torch.from_numpy(self.frames[indices]), pts_seconds=shown)


@pytest.fixture
def fake_torchcodec(no_torchcodec: pytest.MonkeyPatch) -> Any:
    package, module = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    package.__path__ = []
    fake = type("Fake", (FakeVideoDecoder,), {})
    module.VideoDecoder = fake  # type: ignore[attr-defined]
    no_torchcodec.setitem(sys.modules, "torchcodec", package)
    no_torchcodec.setitem(sys.modules, "torchcodec.decoders", module)
    no_torchcodec.setattr(decoders.importlib.util, "find_spec", lambda name: object())
    return fake


def test_torchcodec_frames_are_taken_by_position(fake_torchcodec: Any, video: Path) -> None:
    got = read_clip(video, num_frames=4, decoder="torchcodec")
    assert np.array_equal(got, FakeVideoDecoder.frames[[5, 15, 25, 35]])


def test_torchcodec_must_count_and_time_the_same_frames(fake_torchcodec: Any, video: Path) -> None:
    fake_torchcodec.late = 0.1
    with pytest.raises(ClipDecodeError, match=r"0\.100 s from where they should be"):
        read_clip(video, num_frames=4, decoder="torchcodec")
    fake_torchcodec.late, fake_torchcodec.more = 0.0, 3
    with pytest.raises(ClipDecodeError, match="torchcodec counts 43 frames where 40 are shown"):
        read_clip(video, num_frames=4, decoder="torchcodec")


def test_pyav_reads_in_order_when_a_frame_is_not_found(
    video: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = read_clip(video, num_frames=6, decoder="pyav")

    def doubtful(*_: Any) -> None:
        raise decoders.DoubtError("3 of 6 frames found")

    monkeypatch.setattr(decoders, "by_time", doubtful)
    with caplog.at_level(logging.DEBUG, "workbench.data.decoders"):
        assert np.array_equal(read_clip(video, num_frames=6, decoder="pyav"), expected)
    assert "3 of 6 frames found; reading from the first frame" in caplog.text


@EACH
def test_opened_refuses_the_network(tmp_path: Path, decoder: str) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_bytes(b"#EXTM3U\n#EXTINF:1,\nhttp://localhost:9/a.ts\n\xff\n")
    with pytest.raises(ClipDecodeError):
        read_clip(playlist, num_frames=2, decoder=decoder)


# Files on which decoders are known to differ from PyAV, and how much (largest, mean absolute difference of 0..255).
KNOWN_DIFFERENCES = {
    # 10 bit to 8: FFmpeg 4 and 5 dither otherwise than FFmpeg 8
    "tenbit_hdr_chroma/fate__amve.mp4": (24, 0.4),
    # chroma of an odd width: the last column
    "odd_size/exo__bear-vp9-odd-dimensions.webm": (24, 0.5),
    # 4:1:0 chroma is scaled up by another filter
    "codecs/fate__ct_ending_cut.mp4": (40, 0.2),
}


@pytest.mark.realdata
@OTHERS
@pytest.mark.parametrize(
    "name",
    [
        "codecs/torchcodec__h265_video.mp4",  # decord's random access returns other frames here
        "codecs/exo__bear-vp9.webm",
        "rotation/exo__video_1.mp4",
        "codecs/exo__sample.flv",
        *KNOWN_DIFFERENCES,
    ],
)
def test_decoders_agree_on_odd_files(clips_root: Path, name: str, decoder: str) -> None:
    path = clips_root / "trouble" / name
    a, b = (read_clip(path, num_frames=8, decoder=d).astype(int) for d in (decoder, "pyav"))
    largest, mean = KNOWN_DIFFERENCES.get(name, (0, 0.0))
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= largest and np.abs(a - b).mean() <= mean


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "decoder", "reason"),
    [
        ("start_offset_editlist/fate__mov_stream_shorter_than_movie.mp4", "decord", "counts 48 frames where 24"),
        ("derived/derived__negative_start.ts", "decord", "begin below 0"),
        ("codecs/exo__sample_av1.mp4", "decord", "no video stream in a format it knows"),
        ("codecs/fate__pcitva15.avi", "torchcodec", "no timestamps"),
        ("start_offset_editlist/fate__loewe.mp4", "torchcodec", "from where they should be"),
    ],
)
def test_decoders_refuse_what_they_would_show_wrong(clips_root: Path, name: str, decoder: str, reason: str) -> None:
    if not LOADS[decoder]:
        pytest.skip(f"{decoder} does not load here")
    assert len(read_clip(clips_root / "trouble" / name, num_frames=8, size_px=32, decoder="pyav")) == 8
    with pytest.raises(ClipDecodeError, match=reason):
        read_clip(clips_root / "trouble" / name, num_frames=8, size_px=32, decoder=decoder)


def test_opened_says_that_a_file_went_away_or_changed_while_it_was_read(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(video, "a.mp4")
    read, scanned = decoders.read_span, decoders._scanned

    def cut_short(span: Any) -> bytes:
        os.truncate(span.file, span.offset + 100)
        return read(span)

    monkeypatch.setattr(decoders, "read_span", cut_short)
    with pytest.raises(ClipDecodeError, match="ends within a member"):
        read_clip(tmp_path / "x.tar/a.mp4", num_frames=2, decoder="decord")

    copy = tmp_path / "copy.mp4"
    copy.write_bytes(video.read_bytes())

    def gone(path: str, container: Any) -> Any:
        found = scanned(path, container)
        copy.unlink()
        return found

    monkeypatch.setattr(decoders, "_scanned", gone)
    with pytest.raises(ClipDecodeError, match="decord"):
        read_clip(copy, num_frames=2, decoder="decord")
    monkeypatch.setattr(decoders, "_scanned", scanned)
    copy.write_bytes(video.read_bytes())
    check = os.path.isfile

    def gone_once_found(path: Any) -> bool:
        found = check(path)
        copy.unlink()
        return found

    monkeypatch.setattr(os.path, "isfile", gone_once_found)
    with pytest.raises(ClipDecodeError, match="cannot be read"):
        read_clip(copy, num_frames=2)
