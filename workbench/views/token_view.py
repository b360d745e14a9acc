"""Click a token of a frame and see where it looks, over the whole clip."""

import functools
import math
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from workbench.analysis.maps import upsample
from workbench.views.attention_view import CAUTION
from workbench.views.mailing import MailableBox
from workbench.views.map_plots import curve_svg
from workbench.views.parts import dropdown, frozen, note, row
from workbench.views.picture import Picture, jpeg, still_picture
from workbench.views.players import BEYOND, overlay, resize, robust_scale, scale_note
from workbench.views.style import VIEW_CSS, Html, shorten

PICKER_PX, STEP_PX = 320, 128
MEAN = "mean"


def marked(frame: np.ndarray, token: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """A frame uint8 (H, W, 3) with the border of one token (y, x) of ``grid`` (H', W') drawn in."""
    out = frame.copy()
    (top, bottom), (left, right) = (
        (round(at * size / count), round((at + 1) * size / count))
        for at, size, count in zip(token, out.shape, grid, strict=False)
    )
    thick = max(1, min(bottom - top, right - left) // 10)
    for colour, inset in (((0, 0, 0), 0), ((86, 180, 233), thick)):
        y0, y1, x0, x1 = top + inset, bottom - inset, left + inset, right - inset
        for part in (np.s_[y0 : y0 + thick, x0:x1], np.s_[y1 - thick : y1, x0:x1],
                     np.s_[y0:y1, x0 : x0 + thick], np.s_[y0:y1, x1 - thick : x1]):  # fmt: skip
            out[part] = colour
    return out


class TokenView(MailableBox):
    """Click on a frame; every time step of the clip is shown under the attention of the token clicked.

    ``attention``: a :class:`~workbench.analysis.explaining.looking.TokenAttention`, made by
    :func:`workbench.token_attention`. One colour scale over all time steps, none over tokens: what a token spreads over
    a thousand others would vanish beside one that looks at itself.
    """

    clip = traitlets.Int(0, help="position of the clip shown")
    step = traitlets.Int(0, help="time step of the token, from 0")
    row = traitlets.Int(0, help="row of the token on the grid, from 0")
    column = traitlets.Int(0, help="column of the token on the grid, from 0")
    layer = traitlets.Int(0, help="layer, from 0")
    head = traitlets.Any(MEAN, help="head from 0, or 'mean'")

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        self._tiles = functools.lru_cache(maxsize=8)(self._make_tiles)
        steps, rows, columns = attention.grid
        self._pick_clip = dropdown(
            "Clip", [(f"{i + 1}: {shorten(str(c), 50)}", i) for i, c in enumerate(attention.clip_ids)]
        )
        self._pick_layer = dropdown("Layer", [(str(i), i) for i in range(attention.num_layers)])
        heads = [("mean of all", MEAN), *((str(i), i) for i in range(attention.num_heads))]
        self._pick_head = dropdown("Head", heads)
        self._pick_step = ipywidgets.IntSlider(description="Time step", min=0, max=steps - 1)
        self._picker = Picture(rows=rows, columns=columns, width_px=PICKER_PX, label="click a token of this frame")
        self._strip = Picture(clickable=False, width_px=min(steps, 8) * STEP_PX, label="where the token looks")
        self._words, self._curve = ipywidgets.HTML(), ipywidgets.HTML()
        menus = row(self._pick_clip, self._pick_step, self._pick_layer, self._pick_head)
        shown = ipywidgets.VBox([self._strip, self._words, self._curve])
        super().__init__([ipywidgets.HTML(VIEW_CSS), menus, row(self._picker, shown)])
        self.add_class("wb-view")
        self.layer, self.step, self.row, self.column = attention.num_layers - 1, steps // 2, rows // 2, columns // 2
        for trait, control in (
            ("clip", self._pick_clip), ("step", self._pick_step), ("layer", self._pick_layer), ("head", self._pick_head)
        ):  # fmt: skip
            traitlets.link((self, trait), (control, "value"))
        self._picker.picked = [self.row, self.column]
        self._picker.observe(self._on_click, "picked")
        self.observe(self._on_change, ["clip", "step", "row", "column", "layer", "head"])
        self._refresh()

    @traitlets.validate("clip", "step", "row", "column", "layer", "head")
    def _there(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        look = self.attention
        counts = dict(zip(("step", "row", "column"), look.grid, strict=True))
        counts |= {"clip": len(look), "layer": look.num_layers, "head": look.num_heads}
        if name == "head" and value == MEAN:
            return value
        if not (isinstance(value, int) and 0 <= value < counts[name]):
            raise traitlets.TraitError(f"{name}={value!r} is not one of the {counts[name]} there are, from 0")
        return value

    def _on_click(self, change: Any) -> None:
        with self.hold_trait_notifications():
            self.row, self.column = change["new"]

    def _on_change(self, change: Any) -> None:
        if change["name"] in ("row", "column"):
            self._picker.picked = [self.row, self.column]
        self._refresh()

    def seen(self) -> np.ndarray:
        """float32 (T', H', W'): where the token chosen looks."""
        head = None if self.head == MEAN else int(self.head)
        found: np.ndarray = self.attention.look(
            self.clip, (self.step, self.row, self.column), layer=self.layer, head=head
        )
        return found

    def _frames_per_step(self) -> int:
        return int(self.attention.frames.shape[1]) // int(self.attention.grid[0])

    def picker_frame(self) -> np.ndarray:
        """uint8 (H, W, 3): the frame that is clicked on, with the token chosen marked."""
        frame = self.attention.frames[self.clip, self.step * self._frames_per_step()]
        big = resize(frame[None], PICKER_PX)[0]
        return marked(big, (self.row, self.column), self.attention.grid[1:])

    def strip_frame(self, seen: np.ndarray) -> np.ndarray:
        """uint8 picture: the first frame of each time step under the attention of the token, eight to a row."""
        tiles = self._tiles(self.clip)  # (T', h, w, 3)
        heat = np.concatenate([upsample(one[None], (1, *tiles.shape[1:3])) for one in seen])
        tiles = overlay(tiles, heat, signed=False, opacity=0.85, scale=robust_scale([seen], signed=False))
        tiles[self.step] = marked(tiles[self.step], (self.row, self.column), self.attention.grid[1:])
        across = min(len(tiles), 8)
        blank = np.full((-len(tiles) % across, *tiles.shape[1:]), 128, np.uint8)
        rows = np.concatenate([tiles, blank]).reshape(-1, across, *tiles.shape[1:])
        return np.concatenate([np.concatenate(list(one), 1) for one in rows])

    def _make_tiles(self, clip: int) -> np.ndarray:
        """The first frame of each time step, as large as it is shown."""
        return resize(self.attention.frames[clip, :: self._frames_per_step()], STEP_PX)

    def _refresh(self) -> None:
        seen = self.seen()
        self._picker.image = jpeg(self.picker_frame())
        self._strip.image = jpeg(self.strip_frame(seen))
        self._words.value, self._curve.value = self._about(seen), self._time_curve(seen)

    def _time_curve(self, seen: np.ndarray) -> str:
        return curve_svg(
            {"attention": seen.sum((1, 2))}, self.step, label="share of the token's attention", axis="time step"
        )

    def _about(self, seen: np.ndarray) -> str:
        low, high = (v * math.prod(self.attention.grid) for v in robust_scale([seen], signed=False))
        among = f"scale of this token alone; {BEYOND}"
        words = scale_note((low, high), signed=False, unit=" x an even share", among=among)
        head = "mean over heads" if self.head == MEAN else f"head {self.head}"
        own = float(seen[self.step, self.row, self.column])
        return note(
            f"Token at time step {self.step}, row {self.row}, column {self.column}; layer {self.layer}, {head}. It "
            f"gives {100 * own:.2g} % to itself. Colours: {words}. {CAUTION[True]}"
        )

    def freeze(self) -> Html:
        """Static HTML: the frame with the token chosen, and where it looks."""
        seen = self.seen()
        pick = still_picture(jpeg(self.picker_frame()), "the token chosen", PICKER_PX)
        strip = still_picture(jpeg(self.strip_frame(seen)), "where the token looks", self._strip.width_px)
        title = f"Where one token looks: {self.attention.clip_ids[self.clip]}"
        return frozen(title, pick, strip, self._about(seen), self._time_curve(seen))
