"""A player shows the frames it was given, at their speed, in a file a page can carry."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from tests.views.conftest import HOSTILE, moving_square
from workbench.data.clips import probe, read_clip, write_clip
from workbench.data.tables import ClipTable
from workbench.views.players import (
    MAX_BYTES,
    ClipPlayer,
    gallery,
    heat_scale,
    overlay,
    resize,
    side_by_side,
    table_players,
)


def video_of(player: ClipPlayer, folder: Path) -> Path:
    """The video inside the player's HTML, as a file."""
    found = re.search(r'src="data:video/mp4;base64,([^"]+)"', player.html())
    assert found, "no inline video"
    path = folder / "shown.mp4"
    path.write_bytes(base64.b64decode(found[1]))
    return path


def test_player_holds_the_frames_it_was_given(tmp_path: Path) -> None:
    levels = np.linspace(20, 230, 16).astype(np.uint8)  # frame i is grey level i
    frames = np.broadcast_to(levels[:, None, None, None], (16, 64, 64, 3)).copy()
    path = video_of(ClipPlayer(frames, fps=8), tmp_path)
    info = probe(path)
    shown = read_clip(path, num_frames=16)
    assert (info.num_frames, round(info.fps, 3)) == (16, 8.0)
    assert info.width == info.height >= 224
    assert np.abs(shown.mean((1, 2, 3)) - levels).max() < 4  # lossy, but the order and the levels are these


def test_player_of_a_file_plays_in_real_time(tmp_path: Path) -> None:
    write_clip(tmp_path / "long.mp4", np.repeat(moving_square(0), 12, 0), 24.0)  # 192 frames, 8 s
    player = ClipPlayer(tmp_path / "long.mp4")
    assert len(player.frames) == 48
    assert len(player.frames) / player.fps == pytest.approx(8.0)


def test_player_of_a_row_reads_only_its_stretch(tmp_path: Path, clips: ClipTable) -> None:
    levels = np.repeat(np.array([40, 200], np.uint8), 16)  # two seconds dark, then two bright
    write_clip(tmp_path / "c0.mp4", np.broadcast_to(levels[:, None, None, None], (32, 64, 64, 3)).copy(), 8.0)
    frame = clips.frame.head(1).assign(start_seconds=2.0, end_seconds=4.0)
    player = ClipPlayer(ClipTable(frame, clips.tasks, root=tmp_path))
    assert len(player.frames) == 16
    assert player.frames.mean() == pytest.approx(200, abs=3)


def test_player_lowers_the_quality_of_noise_until_it_is_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3)).astype(np.uint8)
    player = ClipPlayer(noise, width_px=128)
    write_clip(tmp_path / "best.mp4", resize(noise, 160), 8.0, crf=20)
    assert (tmp_path / "best.mp4").stat().st_size > MAX_BYTES > len(player.mp4)
    assert len(ClipPlayer(moving_square(0)).mp4) < MAX_BYTES / 2


def test_player_escapes_title_caption_and_panels() -> None:
    html = ClipPlayer(moving_square(0), title=HOSTILE, caption=HOSTILE, panels=(HOSTILE, '"')).html()
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") == 4  # title, caption, panel and the aria-label


def test_player_waits_for_a_click_only_when_the_clip_flashes() -> None:
    flashing = np.zeros((16, 64, 64, 3), np.uint8)
    flashing[::2] = 255  # 4 flashes per second at 8 fps: over the limit of three
    html = ClipPlayer(flashing).html()
    assert " autoplay" not in html
    assert "Flashing clip" in html
    assert " autoplay " in ClipPlayer(flashing, autoplay=True).html()
    assert "<video autoplay loop muted playsinline controls" in ClipPlayer(moving_square(0)).html()


def test_player_of_a_broken_file_says_why(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("not a video")
    player = ClipPlayer(tmp_path / "notes.mp4")
    assert "text file" in player.error
    assert "text file" in player.html()
    assert "<video" not in player.html()


@pytest.mark.parametrize(
    "frames", [np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8, 3)), np.zeros((0, 8, 8, 3), "u1")]
)
def test_player_refuses_what_is_no_clip(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        ClipPlayer(frames)


def test_player_refuses_a_table_of_many(clips: ClipTable) -> None:
    with pytest.raises(ValueError, match="this table has 12"):
        ClipPlayer(clips)


def test_table_players_caption_labels_by_name(clips: ClipTable) -> None:
    first, second = table_players(clips.head(2))
    assert (first.title, first.caption) == ("clip 0", "action: left\nsafety: safe\nquality: 0")
    assert second.caption.splitlines()[:2] == ["action: right", "safety: flashing"]


def test_gallery_holds_every_player_in_order_and_says_when_empty(clips: ClipTable) -> None:
    html = gallery(table_players(clips.head(3)), columns=2)
    assert re.findall(r">(clip \d)<", html) == ["clip 0", "clip 1", "clip 2"]
    assert "max-width:min(464px,100%)" in html  # two of 224 and one gap of 16: fits any page
    assert "nothing &lt;" in gallery([], empty="nothing <")


def test_resize_keeps_proportions_even() -> None:
    assert resize(np.zeros((2, 33, 65, 3), np.uint8), 280).shape == (2, 142, 280, 3)
    same = moving_square(0)
    assert resize(same, 64) is same


def test_overlay_leaves_cold_pixels_and_colours_hot_ones() -> None:
    frames = np.full((2, 4, 4, 3), 100, np.uint8)
    heat = np.zeros((2, 4, 4), np.float32)
    heat[0, 0, 0] = 1
    tinted = overlay(frames, heat, signed=False, opacity=1)
    assert (tinted[1] == 100).all()
    assert tinted[0, 0, 0].tolist() == [252, 255, 164]  # the last colour of inferno
    assert (frames == 100).all()


def test_overlay_signed_is_red_for_and_blue_against() -> None:
    frames = np.full((1, 1, 3, 3), 100, np.uint8)
    tinted = overlay(frames, np.array([[[-1, 0, 1]]], np.float32), signed=True, opacity=1)[0, 0].astype(int)
    assert tinted[1].tolist() == [100, 100, 100]
    assert tinted[0, 2] > tinted[0, 0] + 50
    assert tinted[2, 0] > tinted[2, 2] + 50


def test_overlay_shared_scale_keeps_a_weak_clip_weak() -> None:
    frames = np.full((1, 1, 2, 3), 0, np.uint8)
    strong, weak = np.array([[[0, 10]]], np.float32), np.array([[[0, 1]]], np.float32)
    scale = heat_scale([strong, weak], signed=False)
    assert scale == (0, 10)
    alone, shared = (overlay(frames, weak, signed=False, scale=s).sum() for s in (None, scale))
    assert alone > 5 * shared


def test_overlay_refuses_another_shape_or_opacity() -> None:
    frames = moving_square(0)
    with pytest.raises(ValueError, match="heat is"):
        overlay(frames, np.zeros((4, 8, 8)), signed=False)
    with pytest.raises(ValueError, match="opacity=2"):
        overlay(frames, np.zeros((16, 64, 64)), signed=False, opacity=2)


def test_side_by_side_keeps_both_in_step() -> None:
    left, right = moving_square(0), moving_square(1)
    both = side_by_side(left, right, gap_px=2)
    assert both.shape == (16, 64, 130, 3)
    assert (both[:, :, :64] == left).all()
    assert (both[:, :, 66:] == right).all()
