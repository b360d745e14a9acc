"""Does a clip flash more than photosensitive viewers may be shown? WCAG 2.3.1 and ITU-R BT.1702, by the rule itself.

Definitions, with their sources:

- *transition*: the change of a location between adjacent peaks and valleys of its curve over time, however many frames
  it takes; a *flash* is two opposing transitions (WCAG 2.2, note to "general flash and red flash thresholds").
- *general*: relative luminance changes by 10 % or more of the maximum and the darker state is below 0.80 (WCAG 2.2).
- *red*: one state has R / (R + G + B) >= 0.8 and the states differ by more than 0.2 in the CIE 1976 u'v' diagram (WCAG
  2.2's working definition, from ISO 9241-391; R, G, B linear). It replaced "(R - G - B) x 320 changes by more than 20"
  (Harding and Binnie 2002), which the IRIS analyser still uses.
- *rate*: more than three flashes within any one second. As in IRIS (``config/appsettings.json``: MaxTransitions 6) a
  seventh transition is too many: three and a half flashes are more than three.
- *area*: flashes that occur concurrently cover more than 25 % of the screen, ITU-R BT.1702's rule. WCAG's own limit,
  25 % of any 10 degree field, needs the size on screen and the viewing distance, which a clip does not know. The clip
  is taken to fill the screen.

IRIS (github.com/electronicarts/IRIS, ``src/Flash.cpp``) compares the mean of the whole frame, so a bright quarter of
the screen dilutes to a fourth of its contrast, and halves that flash in turn cancel. Here each location is followed.
"""

import math
from dataclasses import dataclass

import numpy as np

MAX_TRANSITIONS = 6
"""Allowed in any one second: three flashes."""

_LUMINANCE_STEP, _DARKER_LIMIT = 0.1, 0.8
_RED_SHARE, _RED_STEP = 0.8, 0.2
_CELLS = 48  # cells per side at most: finer than any area limit needs, and it averages codec noise
_PATCHES = 8  # patches per side in which opposite changes cancel
_TICKS = 120  # time grid per second; divides by 24, 30 and 60
_CONCURRENT_TICKS = 4  # changes within 1/30 s are seen as one

_x = np.arange(256) / 255
# sRGB to linear (IEC 61966-2-1); WCAG prints the older limit 0.03928, which no 8-bit value tells apart from 0.04045.
_LINEAR = np.where(_x <= 0.04045, _x / 12.92, ((_x + 0.055) / 1.055) ** 2.4).astype(np.float32)
_RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
# Light of the room on a black screen, so that black has a colour (white's) and near-black noise has no saturation. The
# amount makes red against black count from R = 20 / 320, where the older definition puts it.
_FLARE = 0.0035 * _RGB_TO_XYZ.sum(1)


@dataclass(frozen=True)
class FlashReport:
    """What :func:`flash_report` found."""

    general_flashes: int
    """Most complete general flashes in any one second (of the whole clip where it is shorter)."""
    red_flashes: int
    """Most complete red flashes in any one second."""
    unsafe: bool
    """More than three flashes of one kind within one second, that is more than six transitions."""
    general_transitions: int
    """Most general transitions in any one second; two make a flash."""
    red_transitions: int
    """Most red transitions in any one second."""


@dataclass(frozen=True)
class _Transitions:
    """One entry per transition of one cell; ``tick`` counts from the middle of the clip."""

    cell: np.ndarray
    tick: np.ndarray
    rising: np.ndarray

    def where(self, keep: np.ndarray) -> "_Transitions":
        return _Transitions(self.cell[keep], self.tick[keep], self.rising[keep])


def flash_report(frames: np.ndarray, fps: float, *, area_fraction: float = 0.25) -> FlashReport:
    """Count general and red flashes per second where more than ``area_fraction`` of the screen flashes together.

    The screen is averaged (in linear light) to at most 48 x 48 cells. Each cell's luminance is split at its peaks and
    valleys into transitions, each dated by its centre of change. Transitions of one direction count where, within
    1/30 s, they cover more than the area; inside a patch of 1/8 of the side, cells that go the other way at the same
    time are subtracted, so a moving texture, whose brightening and darkening balance, is no flash. The counts are those
    that more than the area shares: flashes here and, later, flashes there are not added up.

    Not found: stripes and other still patterns (a separate rule), and patterns finer than a patch that reverse their
    contrast. A looped clip also changes from its last frame to its first: repeat the frames to judge that.

    Args:
        frames: uint8 (T, H, W, 3), sRGB.
        fps: frames per second at which they are shown.
        area_fraction: part of the screen, in [0, 1), that must be exceeded.

    Raises:
        ValueError: another dtype or shape, no frame or pixel, or ``fps`` or ``area_fraction`` out of range.

    Example:
        >>> frames = np.zeros((24, 8, 8, 3), np.uint8)
        >>> frames[1::4] = frames[2::4] = 255  # a square wave of 6 Hz at 24 frames per second
        >>> report = flash_report(frames, fps=24)
        >>> report.general_flashes, report.red_flashes, report.unsafe
        (6, 0, True)
    """
    _check(frames, fps, area_fraction)
    rgb = _linear_cells(frames)
    rows, cols = rgb.shape[2:]
    patch = ((np.arange(rows) * _PATCHES // rows)[:, None] * _PATCHES + np.arange(cols) * _PATCHES // cols).ravel()
    over = area_fraction * rows * cols + 1e-9  # cells; more than this many flash together
    planes = rgb.reshape(3, len(frames), rows * cols)
    general, red = (
        _most_per_second(_concurrent(found, patch, over, fps), over)
        for found in (_general_transitions(planes, fps, over), _red_transitions(planes, fps, over))
    )
    return FlashReport(
        general_flashes=general // 2,
        red_flashes=red // 2,
        unsafe=max(general, red) > MAX_TRANSITIONS,
        general_transitions=general,
        red_transitions=red,
    )


def _check(frames: np.ndarray, fps: float, area_fraction: float) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        kind = frames.dtype if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ValueError(f"frames are {kind}, not a uint8 array; pass sRGB values 0 to 255 as numpy.uint8")
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames have shape {frames.shape}, not (T, H, W, 3) with at least one frame and pixel")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps={fps} is not a positive number of frames per second")
    if not 0 <= area_fraction < 1:
        raise ValueError(f"area_fraction={area_fraction} is not in [0, 1); ITU-R BT.1702 has 0.25")


def _linear_cells(frames: np.ndarray) -> np.ndarray:
    """Mean linear R, G, B of equal cells: float32 (3, T, rows, cols)."""
    _, H, W, _ = frames.shape
    down, across = _pooling(H), _pooling(W).T
    linear = np.take(_LINEAR, frames, mode="clip")  # "clip" skips a bounds check; uint8 is never out of bounds
    return np.stack([down @ np.ascontiguousarray(linear[..., c]) @ across for c in range(3)])


def _pooling(size_px: int) -> np.ndarray:
    """Weights (cells, size_px) that average a side into equal cells; a pixel on an edge is shared by its coverage."""
    cells = min(size_px, _CELLS)
    edge = np.arange(cells + 1) * (size_px / cells)
    pixel = np.arange(size_px)
    overlap = np.minimum(edge[1:, None], pixel + 1) - np.maximum(edge[:-1, None], pixel)
    return (np.maximum(overlap, 0) * (cells / size_px)).astype(np.float32)


def _general_transitions(rgb: np.ndarray, fps: float, over: float) -> _Transitions:
    """``rgb`` linear (3, T, cells)."""
    luminance = np.tensordot(_RGB_TO_XYZ[1], rgb, 1)
    cell, start, end = _legs(luminance, _LUMINANCE_STEP, over)
    dark = np.minimum(luminance[start, cell], luminance[end, cell]) < _DARKER_LIMIT
    return _dated(luminance, cell[dark], start[dark], end[dark], fps)


def _red_transitions(rgb: np.ndarray, fps: float, over: float) -> _Transitions:
    """``rgb`` linear (3, T, cells). Peaks and valleys are those of the distance to the display's red in u'v'."""
    saturated = (rgb[0] >= _RED_SHARE * rgb.sum(0)) & (rgb[0] > 0)
    cells = np.flatnonzero(saturated.any(0))
    if len(cells) <= over:
        return _NONE
    color = _chromaticity(rgb[:, :, cells])
    saturated = saturated[:, cells]
    distance = np.hypot(*(color - _chromaticity(np.array([1.0, 0.0, 0.0], np.float32))[:, None, None]))
    # Half the step here, then the exact distance between the two states: not every saturated red is the display's red.
    cell, start, end = _legs(distance, _RED_STEP / 2, over)
    apart = np.hypot(*(color[:, start, cell] - color[:, end, cell])) > _RED_STEP
    red = apart & (saturated[start, cell] | saturated[end, cell])
    found = _dated(distance, cell[red], start[red], end[red], fps)
    return _Transitions(cells[found.cell], found.tick, found.rising)


def _chromaticity(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 u', v' (2, ...) of linear ``rgb`` (3, ...) seen with a little flare."""
    x, y, z = np.tensordot(_RGB_TO_XYZ, rgb, 1) + _FLARE.reshape(3, *[1] * (rgb.ndim - 1))
    total = x + 15 * y + 3 * z
    return np.stack([4 * x / total, 9 * y / total])


def _legs(signal: np.ndarray, step: float, over: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where ``signal`` (T, cells) runs from one peak or valley to the next, at least ``step`` apart.

    A turn is believed once the signal has come back by ``step``, so smaller wiggles do not split a leg. Returns cell,
    first and last frame of every leg; nothing when no more than ``over`` cells have one.
    """
    moving = np.flatnonzero(signal.max(0) - signal.min(0) >= step - 1e-6)
    if len(moving) <= over:
        return (np.zeros(0, int),) * 3
    signal = signal[:, moving]
    T, N = signal.shape
    # Extremes since the last turn: while rising, `low` is the valley left behind and `high` the peak so far.
    high, low = signal[0].copy(), signal[0].copy()
    high_at, low_at, heading = np.zeros(N, int), np.zeros(N, int), np.zeros(N, np.int8)
    found = []
    for t in range(1, T):
        now = signal[t]
        falls = (heading >= 0) & (high - now >= step - 1e-6)
        rises = (heading <= 0) & (now - low >= step - 1e-6)
        turns = np.flatnonzero((falls | rises) & (heading != 0))
        if len(turns):
            found.append(_ended(turns, heading, low_at, high_at))
        heading[falls], heading[rises] = -1, 1
        peak = rises | ((heading >= 0) & (now > high))
        valley = falls | ((heading <= 0) & (now < low))
        high[peak], high_at[peak] = now[peak], t
        low[valley], low_at[valley] = now[valley], t
    found.append(_ended(np.flatnonzero(heading), heading, low_at, high_at))
    cell, start, end = (np.concatenate(part) for part in zip(*found, strict=True))
    return moving[cell], start, end


def _ended(
    cell: np.ndarray, heading: np.ndarray, low_at: np.ndarray, high_at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell, first and last frame of the legs that ``cell`` have just ended."""
    up, low, high = heading[cell] > 0, low_at[cell], high_at[cell]
    return cell, np.where(up, low, high), np.where(up, high, low)


def _dated(signal: np.ndarray, cell: np.ndarray, start: np.ndarray, end: np.ndarray, fps: float) -> _Transitions:
    """Legs with their moment: the mean time of the change weighted by its size, so waiting at either end is ignored."""
    # Summed by parts: sum of (s[k+1] - s[k]) (k + 1/2) is end s[end] - start s[start] less the trapezoids between.
    first, last = signal[start, cell].astype(np.float64), signal[end, cell].astype(np.float64)
    total = np.cumsum(signal, axis=0, dtype=np.float64)
    between = total[end, cell] - total[start, cell] + (first - last) / 2
    moment = (end * last - start * first - between) / (last - first) - (len(signal) - 1) / 2  # from the clip's middle
    size = last - first
    return _Transitions(cell, np.rint(moment * (_TICKS / fps)).astype(int), size > 0)


_NONE = _Transitions(np.zeros(0, int), np.zeros(0, int), np.zeros(0, bool))


def _concurrent(found: _Transitions, patch: np.ndarray, over: float, fps: float) -> _Transitions:
    """The transitions that happen together with others of their direction on more than ``over`` cells."""
    if len(found.cell) <= over:
        return _NONE
    tick = found.tick - found.tick.min()
    ticks = int(tick.max()) + 1
    where = (tick + _CONCURRENT_TICKS) * _PATCHES**2 + patch[found.cell]
    width = ticks + 2 * _CONCURRENT_TICKS
    size = width * _PATCHES**2
    net = 2 * np.bincount(where[found.rising], minlength=size) - np.bincount(where, minlength=size)
    total = np.zeros((width + 1, _PATCHES**2), np.int32)
    np.cumsum(net.reshape(width, -1), axis=0, out=total[1:])
    keep = np.zeros(len(tick), bool)
    # A second, shorter window: a flash of one frame at 60 per second would cancel itself within 1/30 s.
    for window in {_CONCURRENT_TICKS, min(_CONCURRENT_TICKS, math.ceil(_TICKS / fps / 2))}:
        inside = total[window:] - total[:-window]  # (windows, patches), window w holds the ticks w to w + window - 1
        for rising, sign in ((True, 1), (False, -1)):
            more = np.maximum(sign * inside, 0)
            over_limit = more.sum(1) > over
            if not over_limit.any():
                continue
            lit = np.zeros((len(more) + 1, _PATCHES**2), np.int32)
            np.cumsum((more > 0) & over_limit[:, None], axis=0, out=lit[1:])
            last = tick + _CONCURRENT_TICKS  # windows that hold a tick begin up to window - 1 earlier
            held = lit[last + 1, patch[found.cell]] - lit[last - window + 1, patch[found.cell]]
            keep |= (held > 0) & (found.rising == rising)
    return found.where(keep)


def _most_per_second(found: _Transitions, over: float) -> int:
    """The most transitions within any one second that more than ``over`` cells share."""
    if len(found.cell) <= over:
        return 0
    ticks, columns = found.tick - found.tick.min(), int(found.cell.max()) + 1
    moments = np.flatnonzero(np.bincount(ticks))
    place = np.searchsorted(moments, ticks) * columns + found.cell
    happened = np.zeros((len(moments) + 1, columns), np.int32)
    np.cumsum(np.bincount(place, minlength=len(moments) * columns).reshape(-1, columns), axis=0, out=happened[1:])
    # Half open, [t, t + 1 s): three evenly spaced flashes per second are three in each second, not three and a half.
    ends = np.searchsorted(moments, moments + _TICKS, side="left")
    counts = happened[ends] - happened[:-1]  # (seconds, cells)
    shared = columns - 1 - math.floor(over)  # from here to the last are just enough cells to exceed `over`
    return int(np.partition(counts, shared, axis=1)[:, shared].max()) if shared >= 0 else 0
