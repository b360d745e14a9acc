"""A survey states of each file what was made so on purpose."""

import math
import resource
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data.videos import CODECS, encode, moving, song_with_cover
from workbench.data.checks import survey
from workbench.data.checks.survey import Survey, survey_file
from workbench.data.checks.verdicts import file_reasons
from workbench.data.clips import ClipDecodeError, write_clip


@pytest.mark.parametrize("codec", CODECS)
def test_survey_file_counts_every_frame_of_an_ordinary_file(codec: str, tmp_path: Path) -> None:
    path = encode(tmp_path / f"v{CODECS[codec][1]}", moving(0, frames=24), codec=codec)
    found = survey_file(str(path))
    assert (found.num_frames, found.width, found.height, found.sizes) == (24, 64, 64, 1)
    assert found.fps == pytest.approx(25, rel=0.01) and found.seconds == pytest.approx(24 / 25, rel=0.02)
    assert found.header_frames in (0, 24) and found.complete and not found.has_audio
    assert found.file_bytes == path.stat().st_size
    assert file_reasons(found) == [] or codec == "mpeg2"  # a transport stream starts at 1.4 s


def test_survey_file_measures_brightness_motion_and_flatness(tmp_path: Path) -> None:
    ramp = np.repeat(np.array([100, 104, 108, 112], np.uint8), 64 * 64 * 3).reshape(4, 64, 64, 3)
    path = write_clip(tmp_path / "v.mp4", ramp, 25, crf=0)
    found = survey_file(str(path))
    luma = 16 + 219 / 255 * 106  # the mean grey level in limited range, which FFmpeg's "gray" widens again
    assert found.brightness == pytest.approx(106, abs=2) or found.brightness == pytest.approx(luma, abs=2)
    assert found.motion == pytest.approx(4, abs=1) and found.contrast <= 1
    assert any("flat" in r for r in file_reasons(found)) and math.isnan(found.smoothness)


def test_survey_file_tells_a_picture_from_noise(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 128, 128, 3), np.uint8)
    pictures, static = (
        survey_file(str(write_clip(tmp_path / f"{i}.mp4", v, 25))) for i, v in ((0, moving(1)), (1, noise))
    )
    assert pictures.smoothness > 0.9 and pictures.steadiness > 0.9
    assert abs(static.smoothness) < 0.2 and abs(static.steadiness) < 0.2
    assert any("garbage" in r for r in file_reasons(static)) and file_reasons(pictures) == []


def test_survey_file_finds_a_variable_rate_and_a_late_start(tmp_path: Path) -> None:
    times = [*range(50, 60), *range(80, 90)]
    found = survey_file(str(encode(tmp_path / "v.mkv", moving(0, frames=20), times=times)))
    assert found.variable_rate and found.start_seconds == pytest.approx(2.0, abs=0.05)
    assert found.seconds == pytest.approx(39 / 25 + 1 / found.fps, abs=0.01)
    text = " ".join(file_reasons(found))
    assert "VFR" in text and "start offset" in text
    even = survey_file(str(encode(tmp_path / "e.mkv", moving(0, frames=20))))
    assert not even.variable_rate and even.start_seconds == 0


def test_survey_file_finds_a_size_change_and_states_the_first_size(tmp_path: Path) -> None:
    parts = [encode(tmp_path / f"{size}.h264", moving(0, size=size), codec="h264") for size in (64, 96)]
    both = tmp_path / "both.h264"
    both.write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    found = survey_file(str(both))
    assert found.sizes == 2 and found.num_frames == 48 and (found.width, found.height) == (64, 64)
    assert any("size change mid-stream (2 sizes)" in r for r in file_reasons(found))


def test_survey_file_applies_rotation_to_the_size(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.mp4", moving(0, size=64)[:, :48], 25)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    turn = (0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in turn)
    path.write_bytes(bytes(data))
    found = survey_file(str(path))
    assert abs(found.rotation) == 90 and (found.width, found.height) == (48, 64)
    assert any("rotated" in r for r in file_reasons(found))


def test_survey_file_knows_a_cover_picture(tmp_path: Path) -> None:
    song = song_with_cover(tmp_path / "song.mp3")
    found = survey_file(str(song))
    assert found.cover and found.has_audio and "cover picture" in file_reasons(found)[0]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.mp4", b"", "0 bytes"),
        ("text.mp4", b"hello there\n" * 20, "text file"),
        (
            "random.mp4",
            bytes(np.random.default_rng(0).integers(0, 256, 4000, np.uint8)),
            "not decodable|no frame|stream",
        ),
    ],
)
def test_survey_file_refuses_what_is_no_video(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ClipDecodeError, match=reason):
        survey_file(str(tmp_path / name))


def test_survey_file_refuses_missing_and_cut_short_files(tmp_path: Path) -> None:
    with pytest.raises(ClipDecodeError, match="does not exist"):
        survey_file(str(tmp_path / "nothing.mp4"))
    whole = write_clip(tmp_path / "whole.mp4", moving(0, frames=60), 25).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])  # its index comes first and stays
    with pytest.raises(ClipDecodeError, match="damaged|cut short"):
        survey_file(str(tmp_path / "half.mp4"))


def test_check_length_allows_a_tenth_of_the_promised_frames_to_be_missing() -> None:
    survey._check_length("p", 100, survey._Tally(packets=90, frames=90), complete=True)
    survey._check_length("p", 100, survey._Tally(packets=10, frames=10), complete=False)
    with pytest.raises(ClipDecodeError, match="promises 100 frames, it holds 89"):
        survey._check_length("p", 100, survey._Tally(packets=89, frames=89), complete=True)
    with pytest.raises(ClipDecodeError, match="no frame decodes"):
        survey._check_length("p", 0, survey._Tally(packets=5), complete=True)


@pytest.mark.parametrize(
    "error", [IndexError("list index out of range"), UnicodeDecodeError("utf-8", b"x", 0, 1, "no")]
)
def test_survey_file_turns_what_pyav_trips_over_into_one_error(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "v.mp4", moving(0), 25)

    def trip(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(av, "open", trip)
    with pytest.raises(ClipDecodeError, match="not decodable"):
        survey_file(str(path))


def test_survey_file_stops_a_long_video_in_time_and_says_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.mp4", moving(0, frames=50), 25)
    found = survey_file(str(path), budget_seconds=0)
    assert not found.complete and 0 < found.num_frames < 50
    assert "only the first" in file_reasons(found)[0] and not any("header" in r for r in file_reasons(found))


def test_limit_memory_turns_a_large_allocation_into_an_error() -> None:
    code = (
        "from workbench.data.checks.survey import limit_memory\n"
        "import numpy as np\n"
        "limit_memory(4)\n"
        "try:\n    np.ones(2**33, np.uint8)\nexcept MemoryError:\n    raise SystemExit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # only in the child


def test_frames_keeps_evenly_spread_frames_of_any_length() -> None:
    seen = survey._Frames()
    for i in range(1000):
        seen.add(_Fake(i))
    kept = [int(moment) for moment, _, _ in seen.kept]
    assert 64 <= len(kept) <= 128 and kept == list(range(0, 1000, seen.stride))
    assert all(after is not None and after[0, 0] == (int(grey[0, 0]) + 1) % 256 for _, grey, after in seen.kept[:-1])
    signature = seen.statistics()["signature"]
    centres = (np.arange(8) + 0.5) * 1000 / 8
    assert np.abs(signature[:, 0, 0].astype(int) - centres.astype(int) % 256).max() <= seen.stride


class _Fake:
    """A decoded frame that is grey level ``i`` (modulo 256) all over."""

    def __init__(self, i: int) -> None:
        self.time, self.level = float(i), i % 256

    def reformat(self, **_: object) -> "_Fake":
        return self

    def to_ndarray(self) -> np.ndarray:
        return np.full((64, 64), self.level, np.uint8)


def test_timing_by_hand() -> None:
    fps, seconds, odd = survey._timing([5.0, 5.1, 5.2, 5.3], 25)
    assert fps == pytest.approx(10) and seconds == pytest.approx(0.4)
    assert odd == {"start_seconds": 5.0, "variable_rate": False, "disordered": False}
    assert survey._timing([0.0, 0.1, 0.5], 25)[2]["variable_rate"]
    assert survey._timing([0.0, 0.2, 0.1], 25)[2]["disordered"]
    assert survey._timing([math.nan, 0.1], 25) == (25, 2 / 25, {"disordered": True})
    assert survey._timing([0.0], 30)[:2] == (30, 1 / 30)


def test_file_reasons_are_silent_for_an_ordinary_file_and_name_each_oddity() -> None:
    plain = {
        "num_frames": 50, "header_frames": 50, "fps": 25.0, "seconds": 2.0, "width": 64, "height": 48, "codec": "h264",
        "has_audio": False, "file_bytes": 1000, "contrast": 200.0, "motion": 2.0, "steadiness": 0.98, "smoothness": 0.9,
    }  # fmt: skip
    assert file_reasons(Survey(**plain)) == []
    for change, word in (
        ({"header_frames": 60}, "header count wrong: it says 60"), ({"interlaced": 50}, "interlaced"),
        ({"damaged_frames": 3}, "damaged: 3 of 50"), ({"damaged_frames": 30}, "garbage-looking: 30"),
        ({"steadiness": 0.3}, "garbage-looking"), ({"motion": 0.0}, "frozen"), ({"hidden_packets": 4}, "edit list: 4"),
        ({"disordered": True}, "timestamps"), ({"odd_metadata": True}, "UTF-8"), ({"start_seconds": -0.4}, "offset"),
    ):  # fmt: skip
        (reason,) = file_reasons(Survey(**(plain | change)))
        assert word in reason


@pytest.mark.realdata
def test_survey_file_sees_what_the_manifest_says_of_odd_files(clips_root: Path) -> None:
    trouble = clips_root / "trouble"
    assert survey_file(str(trouble / "interlaced/fate__interlaced_crop.mp4")).interlaced == 126
    hidden = survey_file(str(trouble / "start_offset_editlist/fate__mov-3elist-1ctts.mp4"))
    assert (hidden.num_frames, hidden.hidden_packets) == (48, 26)
    assert survey_file(str(trouble / "start_offset_editlist/fate__empty_edit_5s.mp4")).start_seconds == 5.0
    assert survey_file(str(trouble / "size_change/fate__frame_size_change.mp4")).sizes == 9
    assert survey_file(str(trouble / "corrupt_or_undecodable/exo__video_desks.3gp")).odd_metadata
    with pytest.raises(ClipDecodeError, match="encrypted"):
        survey_file(str(trouble / "corrupt_or_undecodable/fate__wmv_drm.wmv"))
