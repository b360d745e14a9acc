"""Up to four maps of the same clips beside each other, frame by frame, on one scale: what scrubbing looks up."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.analysis.map_comparison import MapComparison, shares_of
from workbench.analysis.maps import upsample
from workbench.views.attention_view import ATTENTION
from workbench.views.picture import jpeg
from workbench.views.players import BEYOND, overlay, robust_scale, scale_note, side_by_side

MOST = 4
UNITS = ("raw", "share")


class MapStrip:
    """Frames of a clip, and of the same clip under each of up to four maps, with what they share.

    ``maps`` {name: Maps} of the same clips on any grids; or a
    :class:`~workbench.analysis.map_comparison.MapComparison`, whose difference becomes a third, signed panel.
    ``unit``: ``raw`` shows numbers as they are, which only one method from one baseline (or attention, whose maps sum
    to 1) on one grid allows; ``share`` each map's positive part, made to sum to 1 over the clip; None takes raw where
    it may.
    Colours stand for the same numbers in every panel, clip and frame; full colour is the 99th percentile.
    Raises ValueError where clips differ or there are more than four maps.
    """

    def __init__(self, maps: Mapping[str, Any] | MapComparison, *, unit: str | None = None) -> None:
        self.differences: tuple[str, ...] = ()
        self.hidden = False
        if isinstance(maps, MapComparison):
            self._from_comparison(maps, unit)
        else:
            self._from_maps(dict(maps), unit)
        names = [name for name in self.values if name not in self.differences]
        self.signed = self.unit == "raw" and any(float(self.values[n].min()) < 0 for n in names)
        self.scale = robust_scale([self.values[name] for name in names], signed=self.signed)
        self.difference_scale = (
            robust_scale([self.values[n] for n in self.differences], signed=True) if self.differences else (0.0, 0.0)
        )
        self._heat = functools.lru_cache(maxsize=2 * MOST)(self._make_heat)  # 3 MB each at 16 frames of 224 px
        self.image = functools.lru_cache(maxsize=512)(self._make_image)

    def _from_comparison(self, both: MapComparison, unit: str | None) -> None:
        if unit not in (None, both.unit):
            raise ValueError(f"unit={unit!r}, but the comparison was made in {both.unit!r}; compare again")
        change = f"{both.names[1]} - {both.names[0]}"
        self.unit, self.frames, self.differences = both.unit, both.frames, (change,)
        self.clip_ids = tuple(dict.fromkeys(both.clips.clip_id.astype(str)))
        self.values = {both.names[0]: both.first, both.names[1]: both.second, change: both.difference}

    def _from_maps(self, maps: dict[str, Any], unit: str | None) -> None:
        if not 1 <= len(maps) <= MOST:
            raise ValueError(f"{len(maps)} maps {list(maps)}; side by side there is room for 1 to {MOST}")
        first = next(iter(maps.values()))
        for name, one in maps.items():
            if not np.array_equal(one.frames, first.frames):
                raise ValueError(f"the maps {name!r} are of other clips than the first's; explain the same frames")
        same = len({(m.method, m.baseline) for m in maps.values()}) == 1
        attention = all(m.method in ATTENTION for m in maps.values())  # sums to 1 over a clip: already shares
        comparable = (same or attention) and len({m.grid for m in maps.values()}) == 1  # one size of token
        self.unit = unit or ("raw" if comparable else "share")
        if self.unit not in UNITS:
            raise ValueError(f"unit={unit!r} is not one of {', '.join(UNITS)}")
        if self.unit == "raw" and not comparable:
            found = ", ".join(f"{name} ({m.method} from {m.baseline}, grid {m.grid})" for name, m in maps.items())
            raise ValueError(f"{found} have no common unit; use unit='share'")
        self.frames, self.clip_ids = first.frames, first.clip_ids
        self.values = {name: np.stack([m.map(i) for i in range(len(m))]) for name, m in maps.items()}
        if self.unit == "share":
            self.hidden = any(float(v.min()) < 0 for v in self.values.values())
            self.values = {name: shares_of(v.astype(np.float64)) for name, v in self.values.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    def legend(self) -> str:
        """What the colours stand for, in words."""
        unit = " of a clip's sum" if self.unit == "share" else ""
        words = f"Colours: {scale_note(self.scale, signed=self.signed, shared=True, unit=unit)}; {BEYOND}."
        if self.hidden:
            words += " What speaks against the target is left out of a share."
        if self.differences:
            words += f" Last panel, red: more in the second; full colour at ±{self.difference_scale[1]:.2g}{unit}."
        return words

    def step_of(self, frame: int, name: str) -> int:
        """The time step t' of a map that covers ``frame``."""
        return frame * self.values[name].shape[1] // self.frames.shape[1]

    def curves(self, clip: int) -> dict[str, np.ndarray]:
        """Each map's share of positive mass per frame, (T,), sums to 1. A difference has none."""
        count, found = self.frames.shape[1], {}
        for name in self.names:
            if name not in self.differences:
                steps = shares_of(self.values[name][clip : clip + 1].astype(np.float64))[0].sum((1, 2))
                found[name] = np.repeat(steps, count // len(steps)) / (count // len(steps))
        return found

    def slices(self, clip: int) -> dict[str, np.ndarray]:
        """Each map's x-t slice (T', W'): the mean over rows. A difference has none."""
        return {name: values[clip].mean(1) for name, values in self.values.items() if name not in self.differences}

    @property
    def slice_scale(self) -> tuple[float, float]:
        """The ends of the slices' colours, over all maps and clips."""
        shown = [values for name, values in self.values.items() if name not in self.differences]
        top = max(float(np.abs(values.mean(2)).max()) for values in shown)
        return (-top if self.signed else 0.0), top

    def _make_heat(self, name: str, clip: int) -> np.ndarray:
        return upsample(self.values[name][clip], self.frames.shape[1:4])

    def _make_image(self, clip: int, frame: int, opacity: float) -> bytes:
        return jpeg(self.frame(clip, frame, opacity))

    def frame(self, clip: int, frame: int, opacity: float = 0.7) -> np.ndarray:
        """uint8 (H, W', 3): the clip's frame and, to its right, the same under each map. :meth:`image` is the same as
        JPEG, kept once made."""
        one = self.frames[clip, frame : frame + 1]
        panels = [one]
        for name in self.names:
            odd = name in self.differences
            panels.append(overlay(
                one, self._heat(name, clip)[frame : frame + 1], signed=odd or self.signed, opacity=opacity,
                scale=self.difference_scale if odd else self.scale,
            ))  # fmt: skip
        return side_by_side(*panels)[0]

    def clip_frames(self, clip: int, opacity: float = 0.7) -> np.ndarray:
        """uint8 (T, H, W', 3): all frames, for an export."""
        return np.stack([self.frame(clip, t, opacity) for t in range(self.frames.shape[1])])
