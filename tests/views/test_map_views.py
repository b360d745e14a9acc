"""Maps side by side, the grid of heads, tokens to click on, and what they leave as files: state without a browser."""

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import traitlets
from PIL import Image

from tests.views.conftest import HOSTILE, make_maps, moving_square
from workbench.analysis.explaining.influence import Influence
from workbench.analysis.map_comparison import compare_maps
from workbench.data.clips import read_clip
from workbench.data.tables import ClipTable
from workbench.views.attention_view import AttentionView, map_player, taught_gallery
from workbench.views.head_grid import HeadGridView, grid_picture
from workbench.views.map_export import export_maps
from workbench.views.map_plots import curve_svg, slice_svg
from workbench.views.map_strip import MapStrip
from workbench.views.picture import Picture
from workbench.views.side_view import SideBySideView
from workbench.views.token_view import TokenView, marked


def opened(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


class Looking:
    """Stands in for a TokenAttention on the grid (4, 8, 8): a token looks at itself and at the first token."""

    grid, num_layers, num_heads = (4, 8, 8), 2, 3

    def __init__(self) -> None:
        self.frames, self.clip_ids = make_maps("rollout").frames, ("clip 0", HOSTILE, "clip 2")

    def __len__(self) -> int:
        return 3

    def look(self, clip: int, token: tuple[int, int, int], *, layer: int, head: int | None) -> np.ndarray:
        found = np.zeros(self.grid, np.float32)
        found[token] += 0.5 + 0.1 * layer
        found[0, 0, 0] += 0.4 if head is None else 0.1 * head
        return found


def test_map_strip_draws_the_clip_and_every_map_on_one_scale() -> None:
    weak = make_maps("attnlrp")
    strong = dataclasses.replace(weak, values=3 * weak.values)
    strip = MapStrip({"weak": weak, "strong": strong})
    frame = strip.frame(1, 5, 1.0).astype(int)
    assert frame.shape == (64, 3 * 64 + 2 * 2, 3)
    np.testing.assert_array_equal(frame[:, :64], weak.frames[1, 5])
    change = [np.abs(frame[:, 66 * i : 66 * i + 64] - weak.frames[1, 5]).sum() for i in (1, 2)]
    assert change[1] > 1.5 * change[0]  # a scale of its own would make them equal
    assert strip.scale[1] == pytest.approx(np.percentile([weak.values, strong.values], 99), rel=1e-5)


def test_map_strip_tints_a_frame_by_its_own_time_step() -> None:
    maps = make_maps("rollout")
    values = np.zeros_like(maps.values)
    values[:, 1, 3, 3] = 1
    strip = MapStrip({"m": dataclasses.replace(maps, values=values)})
    np.testing.assert_array_equal(strip.frame(0, 15)[:, 66:], maps.frames[0, 15])
    np.testing.assert_array_equal(strip.clip_frames(0)[6], strip.frame(0, 6))
    change = strip.frame(0, 6)[:, 66:].astype(int) - maps.frames[0, 6]
    assert np.abs(change[24:32, 24:32]).max() > 50 and not change[:8].any()


def test_map_strip_compares_methods_without_a_common_unit_in_shares_only() -> None:
    maps = {"ig": make_maps("integrated_gradients"), "rollout": make_maps("rollout")}
    strip = MapStrip(maps)
    assert strip.unit == "share" and not strip.signed
    np.testing.assert_allclose(strip.values["ig"].sum((1, 2, 3)), 1)
    with pytest.raises(ValueError, match="no common unit; use unit='share'"):
        MapStrip(maps, unit="raw")
    assert MapStrip({"a": make_maps("rollout"), "b": make_maps("attention")}).unit == "raw"  # both sum to 1
    assert MapStrip({"ig": maps["ig"]}).signed
    assert "left out" in strip.legend() and "left out" not in MapStrip({"ig": maps["ig"]}).legend()
    coarse = dataclasses.replace(maps["rollout"], values=maps["rollout"].values[:, ::2])
    assert MapStrip({"a": maps["rollout"], "b": coarse}).unit == "share"  # a token of the one is two of the other
    with pytest.raises(ValueError, match=r"grid \(2, 8, 8\)"):
        MapStrip({"a": maps["rollout"], "b": coarse}, unit="raw")


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({str(i): make_maps("rollout") for i in range(5)}, "room for 1 to 4"),
        ({"a": make_maps("rollout"), "b": make_maps("rollout", clips=2)}, "of other clips"),
    ],
)
def test_map_strip_refuses_what_it_cannot_compare(maps: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MapStrip(maps)


def test_map_strip_of_a_comparison_shows_the_difference_signed() -> None:
    first, second = make_maps("rollout"), make_maps("rollout", seed=1)
    strip = MapStrip(compare_maps(first, second, names=("before", "after"), resamples=20))
    assert strip.names == ("before", "after", "after - before")
    np.testing.assert_array_equal(strip.values["after - before"], strip.values["after"] - strip.values["before"])
    assert strip.difference_scale[0] == -strip.difference_scale[1] and not strip.signed
    assert list(strip.curves(0)) == list(strip.slices(0)) == ["before", "after"]
    same = MapStrip(compare_maps(first, first, resamples=20)).frame(0, 3)
    np.testing.assert_array_equal(same[:, 198:262], first.frames[0, 3])  # no change, no tint


def test_map_strip_tells_when_and_where_as_the_maps_do() -> None:
    maps = make_maps("rollout")
    strip = MapStrip({"m": maps})
    np.testing.assert_allclose(strip.curves(2)["m"], maps.temporal_curve(2), rtol=1e-5)
    np.testing.assert_allclose(strip.slices(2)["m"] * 8, maps.slice_xt(2), rtol=1e-5)
    assert [strip.step_of(t, "m") for t in (0, 3, 4, 15)] == [0, 0, 1, 3]


def test_side_by_side_view_moves_picture_and_marks_with_the_frame() -> None:
    view = SideBySideView([make_maps("rollout"), make_maps("attnlrp")])
    before, curve = view._picture.image, view._curve.value
    view._slider.value = 9
    assert view.frame == 9 and view._picture.image != before and view._curve.value != curve
    assert opened(view._picture.image).shape == (64, 3 * 64 + 4, 3)
    assert view._picture.image is view.strip.image(0, 9, 0.7)  # kept, not drawn again
    view.clip = 2
    assert view._picture.image is view.strip.image(2, 9, 0.7)
    assert f"“{view.maps['AttnLRP · action'].target[2]}”" in view._about.value
    for trait, odd in (("clip", 3), ("frame", 16), ("frame", -1)):
        with pytest.raises(traitlets.TraitError, match="from 0"):
            setattr(view, trait, odd)


def test_side_by_side_view_never_shows_a_map_without_its_evidence() -> None:
    view = SideBySideView({"fast": make_maps("attnlrp")})
    assert "Evidence: none given" in view._notes.value
    summary = pd.DataFrame([
        {"method": m, "metric": "deletion_blur", "value": v, "low": v - 0.1, "high": v + 0.1, "better": "lower"}
        for m, v in (("attnlrp", 0.25), ("motion", 0.5))
    ])  # fmt: skip
    report = SimpleNamespace(
        verdicts={"attnlrp": "better than random"}, task="action", summary=summary,
        scores=pd.DataFrame({"clip_id": ["a", "b"]}),
    )  # fmt: skip
    told = SideBySideView({"fast": make_maps("attnlrp")}, report=report)._notes.value
    assert "2 clips: better than random" in told and "deletion, blurred 0.25 [0.15, 0.35]" in told
    assert "motion map 0.50" in told
    report.task = "another"
    assert "none given" in SideBySideView({"fast": make_maps("attnlrp")}, report=report)._notes.value


def test_side_by_side_view_of_a_comparison_shows_its_table() -> None:
    first, second = make_maps("rollout"), make_maps("rollout", seed=1)
    view = SideBySideView(compare_maps(first, second, names=(HOSTILE, "after"), resamples=20))
    frozen = view.freeze()
    assert "entropy" in view._notes.value and frozen.count("<video ") == 3
    assert HOSTILE not in frozen and "&lt;img src=x" in frozen and "<script" not in frozen


def test_side_by_side_view_warns_before_a_flashing_clip_and_never_starts_it() -> None:
    maps = make_maps("rollout", clips=1)
    flashing = np.zeros_like(maps.frames)
    flashing[:, ::2] = 255
    view = SideBySideView(dataclasses.replace(maps, frames=flashing))
    assert "flashes more than WCAG" in view._about.value
    assert "autoplay" not in view.freeze()
    assert "autoplay" in SideBySideView(maps).freeze()


def test_head_grid_shows_each_layer_and_head_where_it_belongs() -> None:
    maps = make_maps("attention")
    values = np.zeros_like(maps.values)
    values[:, 1, 2, 2, 6, 6] = 1  # time step 2 of 4: frames 8 to 11 of 16
    maps = dataclasses.replace(maps, values=values)
    tiles = grid_picture(maps, 0, 8).astype(int).reshape(2, 72, 3, 72, 3).swapaxes(1, 2)  # layer, head, y, x, colour
    bright = tiles[:, :, 54:63, 54:63].mean((2, 3, 4))
    assert np.unravel_index(bright.argmax(), bright.shape) == (1, 2)
    assert bright[1, 2] > bright[0, 0] + 25
    with pytest.raises(ValueError, match="use method='attention'"):
        HeadGridView(make_maps("rollout"))
    with pytest.raises(ValueError, match="not of a list"):
        HeadGridView([maps])


def test_a_head_that_stares_at_one_token_still_shows_the_rest() -> None:
    maps = make_maps("attention", clips=1)
    values = np.zeros_like(maps.values)
    values[..., 4:8] = 1 / 128  # half of each frame, evenly
    values[:, :, :, 0, 0, 0] = 1  # one of 256 tokens, a hundred times as much
    player = map_player(dataclasses.replace(maps, values=values), 0, layer=0, head=0)
    change = np.abs(player.frames[:, :, 66:].astype(int) - maps.frames[0]).mean((0, 1, 3))
    assert change[48:].min() > 20 > change[8:24].max()
    assert "one token in a hundred is beyond" in player.caption
    assert "beyond" not in map_player(make_maps("integrated_gradients"), 0).caption


def test_head_grid_opens_the_head_that_is_clicked() -> None:
    view = HeadGridView(make_maps("attention"))
    assert (view.layer, view.head) == (1, 0)
    view._grid.picked = [0, 2]
    assert (view.layer, view.head) == (0, 2) and "Layer 0, head 2" in view._detail.value
    view.layer = 1
    assert view._grid.picked == [1, 2]
    before = view._grid.image
    view.shared_scale = False
    assert view._grid.image != before and "where, not how much" in view._legend.value
    frozen = view.freeze()
    assert "data:image/jpeg" in frozen and frozen.count("<video ") == 1 and "Attention is not an explanation" in frozen


def test_token_view_follows_clicks_menus_and_traits() -> None:
    view = TokenView(Looking())
    assert (view.step, view.row, view.column, view.layer) == (2, 4, 4, 1)
    view._picker.picked = [1, 6]
    assert (view.row, view.column) == (1, 6) and view.seen()[2, 1, 6] == pytest.approx(0.6)
    assert "It gives 60 % to itself" in view._words.value
    view.head, view.layer, view.step = 2, 0, 3
    assert view.seen()[3, 1, 6] == pytest.approx(0.5) and view.seen()[0, 0, 0] == pytest.approx(0.2)
    view.row = 7
    assert view._picker.picked == [7, 6]
    strip = opened(view._strip.image).astype(int)
    assert strip.shape == (128, 4 * 128, 3)
    border = [strip[112:128, at + 96 : at + 112].min() for at in (0, 128, 256, 384)]  # row 7, column 6 of each step
    assert border[3] + 20 < min(border[:3])  # a black border about the token, in its own time step
    with pytest.raises(traitlets.TraitError, match="head=3"):
        view.head = 3
    view.clip = 1
    assert HOSTILE not in view.freeze() and "&lt;img" in view.freeze()


def test_marked_draws_the_border_of_one_token_only() -> None:
    frame = moving_square(0)[0]
    changed = (marked(frame, (2, 5), (8, 8)) != frame).any(-1)
    assert changed[16:24, 40:48].any()
    changed[16:24, 40:48] = False
    assert not changed.any()


def test_picture_takes_only_cells_that_it_has() -> None:
    picture = Picture(rows=2, columns=3)
    picture.picked = [1, 2]
    for odd in ([2, 0], [0, 3], [-1, 0]):
        with pytest.raises(traitlets.TraitError, match="one of 2 x 3 cells"):
            picture.picked = odd


def test_curve_svg_draws_a_line_per_name_and_marks_the_frame() -> None:
    svg = curve_svg({HOSTILE: np.array([0.0, 1.0]), "b": np.array([1.0, 0.0])}, 1, label="share")
    assert svg.count("<polyline ") == 2 and svg.count('class="wb-now"') == 1 and "<img" not in svg
    assert 'points="211.0,108.0 545.0,8.0"' in svg  # (0 at the bottom, 1 at the top), frames in the middle of halves
    with pytest.raises(ValueError, match="lengths"):
        curve_svg({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(ValueError, match="not finite"):
        curve_svg({"a": np.array([0.0, np.nan])})


def test_curve_svg_draws_negative_values_below_zero() -> None:
    svg = curve_svg({"lost": np.array([1.0, -1.0])})
    assert 'points="211.0,8.0 545.0,108.0"' in svg and ">-1</text>" in svg and ">0</text>" in svg
    assert 'y1="58.0" y2="58.0"' in svg  # the line at zero, in the middle
    assert 'points="211.0,8.0 545.0,108.0"' in curve_svg({"lost": np.array([0.0, -3.0])})
    assert 'points="378.0,108.0"' in curve_svg({"nothing": np.zeros(1)})


def test_slice_svg_has_a_cell_per_token_in_the_colours_of_the_scale() -> None:
    values = np.array([[0.0, 1.0, 2.0]])
    svg = slice_svg({"m": values, "other": values}, (0.0, 1.0), steps={"m": 0})
    cells = [part.split('fill="')[1][:7] for part in svg.split("<rect ")[1:4]]
    assert cells[0] == "#000004" and cells[1] == cells[2] != cells[0]  # beyond the scale stays at its end
    assert svg.count('class="wb-now"') == 1


def test_side_by_side_view_marks_each_slice_at_its_own_time_step() -> None:
    fine, coarse = make_maps("rollout"), make_maps("attnlrp")
    coarse = dataclasses.replace(coarse, values=coarse.values[:, ::2])  # (2, 8, 8) beside (4, 8, 8)
    view = SideBySideView({"fine": fine, "coarse": coarse})
    view.frame = 8
    marks = [part.split('y="')[1].split('"')[0] for part in view._curve.value.split('class="wb-now"')[2:]]
    assert marks == ["21", "11"]  # step 2 of 4, step 1 of 2


@pytest.mark.parametrize("ending", ["mp4", "gif", "png", "html"])
def test_export_maps_writes_clip_and_maps(tmp_path: Path, ending: str) -> None:
    maps = {"a": make_maps("rollout"), HOSTILE: make_maps("attnlrp")}
    path = export_maps(maps, tmp_path / "new" / f"maps.{ending}", clip=1)
    if ending == "mp4":
        assert read_clip(path, num_frames=16).shape == (16, 220, 672, 3)
    elif ending == "gif":
        with Image.open(path) as gif:
            assert getattr(gif, "n_frames", 1) == 16 and gif.size == (672, 220)
    elif ending == "png":
        with Image.open(path) as png:
            assert png.size == (8 * 66, 3 * 66)
    else:
        text = path.read_text()
        assert (
            text.count("<video ") == 2
            and ">clip 0<" not in text
            and ">clip 2<" in text
            and HOSTILE not in text
            and 'src="http' not in text
        )
        assert "Evidence: none given" in text
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    (path.parent / "plain").touch()
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode  # as readable as any other file


@pytest.mark.parametrize("odd", [{"fps": 0.0}, {"fps": float("inf")}, {"opacity": 1.5}, {"panel_px": 4}])
@pytest.mark.parametrize("ending", ["gif", "html"])
def test_export_maps_refuses_numbers_out_of_range_for_every_ending(tmp_path: Path, ending: str, odd: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(odd))):
        export_maps(make_maps("rollout"), tmp_path / f"x.{ending}", **odd)
    assert not list(tmp_path.iterdir())


def test_export_maps_refuses_a_flashing_gif_and_what_it_does_not_know(tmp_path: Path) -> None:
    maps = make_maps("rollout", clips=1)
    flashing = np.zeros_like(maps.frames)
    flashing[:, ::2] = 255
    odd = dataclasses.replace(maps, frames=flashing)
    with pytest.raises(ValueError, match="plays by itself"):
        export_maps(odd, tmp_path / "x.gif")
    assert export_maps(odd, tmp_path / "x.gif", allow_flashing=True).exists()
    with pytest.raises(ValueError, match="ends in '.webm'"):
        export_maps(maps, tmp_path / "x.webm")
    with pytest.raises(ValueError, match="clip=1"):
        export_maps(maps, tmp_path / "x.png", clip=1)


def test_attention_view_shows_the_training_clips_that_helped_strongest_first(clips: ClipTable) -> None:
    scores = np.array([[0.1, 3.0, -1.0, 2.0], [1.0, 0.0, 0.0, 0.0]])
    ids = tuple(f"clip {i}" for i in (4, 5, 6, 7))
    found = Influence("action", "prediction", scores, np.ones(4), ids, ("clip 0", "clip 1"), np.arange(4), 1)
    view = AttentionView(make_maps("rollout", clips=2), influence=found, train_clips=clips)
    assert view._taught.value == ""
    view._teach.value = True
    shown = view._taught.value
    places = [shown.index(f">{name}<") for name in ("clip 5", "clip 7", "clip 4")]
    assert places == sorted(places) and ">clip 6<" not in shown and "labelled right" in shown
    view.clip = 1
    assert ">clip 4<" in view._taught.value and ">clip 5<" not in view._taught.value
    with pytest.raises(ValueError, match="not taken on"):
        taught_gallery(found, "other", clips)
    with pytest.raises(ValueError, match=r"lacks the clips \['clip 7'\]"):
        taught_gallery(found, "clip 0", clips[list(range(7))])
    with pytest.raises(ValueError, match="has no labels of 'mood'"):
        taught_gallery(dataclasses.replace(found, task="mood"), "clip 0", clips)
    more = AttentionView(make_maps("rollout", clips=3), influence=found, train_clips=clips)
    more._teach.value = True
    more.clip = 2  # shown, but not asked about
    assert "not taken on this clip" in more._taught.value and "<video" not in more._taught.value
    with pytest.raises(ValueError, match="belong together"):
        AttentionView(make_maps("rollout"), influence=found)
    with pytest.raises(ValueError, match="no influence to show"):
        AttentionView(make_maps("rollout")).taught()
