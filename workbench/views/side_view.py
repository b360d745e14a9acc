"""Up to four maps of one clip beside each other, a frame at a time: methods, runs, tasks or classes on one scale."""

import functools
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from workbench.analysis.map_comparison import MapComparison
from workbench.data.synthetic.flash import flash_report
from workbench.views.attention_view import map_caption, named_maps
from workbench.views.mailing import MailableBox
from workbench.views.map_plots import curve_svg, slice_svg
from workbench.views.map_strip import MapStrip
from workbench.views.parts import dropdown, frozen, note, row
from workbench.views.picture import Picture, still_picture
from workbench.views.players import DEFAULT_FPS, ClipPlayer
from workbench.views.style import VIEW_CSS, Html, escape, shorten, table_html
from workbench.views.trust_plots import evidence_html

PANEL_PX = 224


class SideBySideView(MailableBox):
    """Scrub through one clip under up to four maps; curve and x-t slices move along.

    ``maps``: ``Maps`` of the same clips (one, a list, or {name: maps}; the names tell runs or classes apart), or a
    :class:`~workbench.analysis.map_comparison.MapComparison`, which brings a difference map and its table.
    ``unit``: ``raw`` or ``share`` (each map's positive part sums to 1 over a clip); None is raw where the maps have a
    common unit. One scale for all panels, clips and frames. ``report``: an ``ExplanationReport``, shown beside.
    """

    clip = traitlets.Int(0, help="position of the clip shown")
    frame = traitlets.Int(0, help="frame shown, from 0")
    opacity = traitlets.Float(0.7, min=0.0, max=1.0)

    def __init__(self, maps: Any, *, unit: str | None = None, report: Any = None) -> None:
        self.comparison = maps if isinstance(maps, MapComparison) else None
        self.maps: dict[str, Any] = {} if self.comparison is not None else named_maps(maps)
        self.strip, self.report = MapStrip(self.comparison or self.maps, unit=unit), report
        self._flashes = functools.lru_cache(maxsize=None)(self._make_flashes)
        frames, panels = self.strip.frames.shape[1], len(self.strip.names) + 1
        names = [(f"{i + 1}: {shorten(c, 50)}", i) for i, c in enumerate(self.strip.clip_ids)]
        self._pick_clip = dropdown("Clip", names)
        self._opacity = ipywidgets.FloatSlider(
            description="Opacity", min=0, max=1, step=0.05, readout_format=".2f", continuous_update=False
        )
        self._slider = ipywidgets.IntSlider(
            description="Frame", min=0, max=frames - 1, layout=ipywidgets.Layout(width="420px", max_width="100%")
        )
        self._play = ipywidgets.Play(min=0, max=frames - 1, interval=round(1000 / DEFAULT_FPS), repeat=True)
        ipywidgets.jslink((self._play, "value"), (self._slider, "value"))
        self._picture = Picture(
            clickable=False, width_px=panels * PANEL_PX, label="the clip, then the clip under each map"
        )
        self._about, self._curve, self._notes = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        super().__init__([
            ipywidgets.HTML(VIEW_CSS), row(self._pick_clip, self._opacity), row(self._play, self._slider),
            ipywidgets.HTML(self._heads()), self._picture, self._curve, self._about, self._notes,
        ])  # fmt: skip
        self.add_class("wb-view")
        for trait, control in (("clip", self._pick_clip), ("frame", self._slider), ("opacity", self._opacity)):
            traitlets.link((self, trait), (control, "value"))
        self.observe(self._on_change, ["clip", "frame", "opacity"])
        self._refresh()
        self._about_clip()

    @traitlets.validate("clip", "frame")
    def _there(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, int(proposal["value"])
        count = len(self.strip.clip_ids) if name == "clip" else self.strip.frames.shape[1]
        if not 0 <= value < count:
            raise traitlets.TraitError(f"{name}={value} is not one of the {count} there are, from 0")
        return value

    def _make_flashes(self, clip: int) -> bool:
        frames = self.strip.frames[clip]
        return bool(flash_report(np.concatenate([frames, frames]), DEFAULT_FPS).unsafe)

    def _heads(self) -> str:
        names = ("the clip as the model saw it", *self.strip.names)
        cells = "".join(f"<span>{escape(name)}</span>" for name in names)
        return (
            f'<div style="display:grid;grid-template-columns:repeat({len(names)},minmax(0,1fr));gap:4px;'
            f'font-size:12px;line-height:1.35;overflow-wrap:anywhere;width:{len(names) * PANEL_PX}px;max-width:100%">'
            f"{cells}</div>"
        )

    def _on_change(self, change: Any) -> None:
        self._refresh()
        if change["name"] == "clip":
            self._about_clip()

    def _refresh(self) -> None:
        """What moves with the frame: the picture, and the marks on curve and slices."""
        self._picture.image = self.strip.image(self.clip, self.frame, self.opacity)
        self._curve.value = self._plots(self.frame)

    def _plots(self, frame: int) -> str:
        curves = self.strip.curves(self.clip)
        unit = " of a clip's sum" if self.strip.unit == "share" else ""
        slices = self.strip.slices(self.clip)
        steps = {name: self.strip.step_of(frame, name) for name in slices}  # grids may differ
        return curve_svg(curves, frame, label="share of a map's positive part") + slice_svg(
            slices, self.strip.slice_scale, signed=self.strip.signed, steps=steps, unit=unit
        )

    def _about_clip(self) -> None:
        self._about.value = self._captions()
        self._notes.value = self._evidence()

    def _captions(self) -> str:
        lines = [note(f"{name}: {map_caption(one, self.clip)}") for name, one in self.maps.items()]
        flash = [note("This clip flashes more than WCAG 2.3.1 allows: playing it may be unpleasant.")]
        return "".join([note(self.strip.legend()), *lines, *(flash if self._flashes(self.clip) else [])])

    def _evidence(self) -> str:
        if self.comparison is not None:
            low = f"Means over {len(self.comparison.first)} clips; low, high: 95 % interval of the difference."
            return table_html(self.comparison.summary) + note(low)
        if self.report is None:
            return evidence_html(None, "", None)
        return "".join(
            f'<div style="font-size:12px;font-weight:600">{escape(name)}</div>' + evidence_html(self.report, name, one)
            for name, one in self.maps.items()
        )

    def freeze(self, *, max_clips: int = 4) -> Html:
        """Static HTML: up to ``max_clips`` clips from the one shown on, playing (flashing ones wait for a click); then
        its curves, slices and notes."""
        panels, width = ("the clip as the model saw it", *self.strip.names), (len(self.strip.names) + 1) * 200
        players = [
            ClipPlayer(
                self.strip.clip_frames(i, self.opacity), title=str(self.strip.clip_ids[i]), width_px=width,
                panels=panels, autoplay=False if self._flashes(i) else None,
            ).html() for i in range(self.clip, min(self.clip + max_clips, len(self.strip.clip_ids)))
        ]  # fmt: skip
        poster = still_picture(
            self.strip.image(self.clip, self.frame, self.opacity), f"frame {self.frame} of the clip and its maps", width
        )
        where = note(f"Frame {self.frame} of {self.strip.clip_ids[self.clip]}, and where in time:")
        shown = "".join(f'<div style="margin:0 0 12px">{player}</div>' for player in players)
        return frozen(
            "Maps side by side", shown, where, poster, self._plots(self.frame), self._captions(), self._evidence()
        )
