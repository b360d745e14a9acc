"""Attention of every layer and head at a glance: a grid of thumbnails, and the one clicked, playing."""

import functools
from typing import Any

import ipywidgets
import numpy as np
import traitlets
from PIL import Image, ImageDraw

from workbench.analysis.maps import Maps, upsample
from workbench.views.attention_view import CAUTION, map_player
from workbench.views.mailing import MailableBox
from workbench.views.parts import dropdown, frozen, note, row
from workbench.views.picture import Picture, jpeg, still_picture
from workbench.views.players import BEYOND, heat_scale, overlay, robust_scale, scale_note
from workbench.views.style import VIEW_CSS, Html, shorten

THUMB_PX, WIDEST_PX = 72, 960


def grid_picture(maps: Any, clip: int, frame: int, *, shared_scale: bool = True) -> np.ndarray:
    """uint8 (L * thumb, A * thumb, 3): one frame of a clip under each layer's (down) and head's (across) attention.

    ``shared_scale``: one colour scale for all; else each thumbnail has its own, which shows where, not how much.
    Raises ValueError for maps without layers and heads.
    """
    layers, heads = _counts(maps)
    size = max(24, min(THUMB_PX, WIDEST_PX // heads))
    small = np.asarray(Image.fromarray(maps.frames[clip, frame]).resize((size, size), Image.Resampling.LANCZOS))
    step = frame * maps.grid[0] // maps.frames.shape[1]
    at_step = maps.values[clip][:, :, step]  # (L, A, H', W')
    everything = robust_scale([at_step], signed=False)
    canvas = np.full((layers * size, heads * size, 3), 128, np.uint8)
    for layer in range(layers):
        for head in range(heads):
            values = at_step[layer, head]
            heat = upsample(values[None], (1, size, size))
            scale = everything if shared_scale else heat_scale([values], signed=False)
            tile = overlay(small[None], heat, signed=False, opacity=0.85, scale=scale)[0].copy()
            tile[-2:], tile[:, -2:] = 128, 128
            canvas[layer * size : (layer + 1) * size, head * size : (head + 1) * size] = tile
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for layer in range(layers):
        for head in range(heads):
            at = (head * size + 3, layer * size + 1)
            pen.text(at, f"{layer}.{head}", fill="white", stroke_fill="black", stroke_width=1)
    return np.asarray(picture)


def _counts(maps: Any) -> tuple[int, int]:
    if not isinstance(maps, Maps):
        raise ValueError(f"the heads of one Maps are shown, not of a {type(maps).__name__}; give one of them")
    layers, heads = maps.num_layers, maps.num_heads
    if layers is None or heads is None:
        raise ValueError(
            f"maps by {maps.method!r} have no layers and heads; use method='attention' or 'task_attention', without "
            "layer= and head="
        )
    return layers, heads


class HeadGridView(MailableBox):
    """Thumbnails of all layers (down) and heads (across) of one frame; a click opens that head's map, playing.

    ``maps`` by ``attention`` or ``task_attention``. The first number on a thumbnail is its layer, the second its head.
    """

    clip = traitlets.Int(0, help="position of the clip shown")
    frame = traitlets.Int(0, help="frame shown in the thumbnails, from 0")
    layer = traitlets.Int(0, help="layer opened, from 0")
    head = traitlets.Int(0, help="head opened, from 0")
    shared_scale = traitlets.Bool(True, help="one colour scale for all thumbnails")

    def __init__(self, maps: Any) -> None:
        layers, heads = _counts(maps)
        self.maps = maps
        self._player = functools.lru_cache(maxsize=64)(self._make_player)
        self._pick_clip = dropdown(
            "Clip", [(f"{i + 1}: {shorten(str(c), 50)}", i) for i, c in enumerate(maps.clip_ids)]
        )
        self._slider = ipywidgets.IntSlider(
            description="Frame", min=0, max=maps.frames.shape[1] - 1, continuous_update=False
        )
        self._shared = ipywidgets.Checkbox(description="Same colour scale for all heads", indent=False)
        self._grid = Picture(
            rows=layers, columns=heads, label=f"{layers} layers by {heads} heads; click one to open it",
            width_px=min(WIDEST_PX, heads * THUMB_PX),
        )  # fmt: skip
        self._legend, self._detail = ipywidgets.HTML(), ipywidgets.HTML()
        super().__init__([
            ipywidgets.HTML(VIEW_CSS), row(self._pick_clip, self._slider, self._shared),
            row(ipywidgets.VBox([self._grid, self._legend]), self._detail),
        ])  # fmt: skip
        self.add_class("wb-view")
        for trait, control in (("clip", self._pick_clip), ("frame", self._slider), ("shared_scale", self._shared)):
            traitlets.link((self, trait), (control, "value"))
        self.layer, self.frame = layers - 1, maps.frames.shape[1] // 2
        self._grid.picked = [self.layer, self.head]
        self._grid.observe(self._on_click, "picked")
        self.observe(self._on_change, ["clip", "frame", "layer", "head", "shared_scale"])
        self._refresh_grid()
        self._refresh_detail()

    @traitlets.validate("clip", "frame", "layer", "head")
    def _there(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, int(proposal["value"])
        count = {
            "clip": len(self.maps), "frame": self.maps.frames.shape[1], "layer": self.maps.num_layers,
            "head": self.maps.num_heads,
        }[name]  # fmt: skip
        if not 0 <= value < count:
            raise traitlets.TraitError(f"{name}={value} is not one of the {count} there are, from 0")
        return value

    def _on_click(self, change: Any) -> None:
        with self.hold_trait_notifications():
            self.layer, self.head = change["new"]

    def _on_change(self, change: Any) -> None:
        if change["name"] in ("layer", "head"):
            self._grid.picked = [self.layer, self.head]
        else:
            self._refresh_grid()
        if change["name"] != "frame":
            self._refresh_detail()

    def _picture(self) -> bytes:
        return jpeg(grid_picture(self.maps, self.clip, self.frame, shared_scale=self.shared_scale))

    def _words(self) -> str:
        share = int(np.prod(self.maps.grid))
        step = self.frame * self.maps.grid[0] // self.maps.frames.shape[1]
        low, high = robust_scale([self.maps.values[self.clip][:, :, step]], signed=False)
        if not self.shared_scale:
            return "each thumbnail has a colour scale of its own: it shows where, not how much"
        among = f"the same scale for every head of this frame; {BEYOND}"
        return scale_note((low * share, high * share), signed=False, unit=" x an even share", among=among)

    def _refresh_grid(self) -> None:
        self._grid.image = self._picture()
        self._legend.value = note(f"Layers down, heads across, frame {self.frame}. Colours: {self._words()}.")

    def _make_player(self, clip: int, layer: int, head: int) -> str:
        player = map_player(self.maps, clip, layer=layer, head=head, width_px=420)
        return str(player.html())

    def _refresh_detail(self) -> None:
        title = note(f"Layer {self.layer}, head {self.head}")
        self._detail.value = title + self._player(self.clip, self.layer, self.head) + note(CAUTION[True])

    def freeze(self) -> Html:
        """Static HTML: the grid as it is now, and the head that is open."""
        grid = still_picture(self._picture(), "attention of every layer and head", self._grid.width_px)
        return frozen(
            f"Attention of {self.maps.num_layers} layers and {self.maps.num_heads} heads: "
            f"{self.maps.clip_ids[self.clip]}", grid, self._legend.value, self._detail.value,
        )  # fmt: skip
