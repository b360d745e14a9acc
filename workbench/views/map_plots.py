"""Maps over time as small inline SVG: the curve that a scrubber moves along, and the x-t slice. No script, no library.

They are drawn anew at every step of a scrubber, so they are text put together by hand.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from workbench.views.players import scale_note
from workbench.views.style import Html, escape, line_styles, shorten

_DASH = {"solid": "", "dash": "6 4", "dot": "2 3", "dashdot": "6 3 2 3"}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 130, 44, 22


def curve_svg(
    curves: Mapping[str, np.ndarray], frame: int | None = None, *, label: str = "share", axis: str = "frame"
) -> Html:
    """Each name's value per frame, float (T,), as a line; a bar marks ``frame``. One scale for all, zero on it.

    ``label`` and ``axis``: what is drawn, over what.

    Raises ValueError where lengths differ or there is nothing to draw.
    """
    lengths = {len(curve) for curve in curves.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"curves of lengths {sorted(lengths)}; give at least one, all over the same frames")
    values = np.stack([np.asarray(curve, float) for curve in curves.values()])
    if not np.isfinite(values).all():
        raise ValueError(f"the curves {list(curves)} hold values that are not finite; leave those clips out")
    count, low, top = lengths.pop(), min(0.0, float(values.min())), max(0.0, float(values.max()))
    top = top if top > low else 1.0
    wide, high = _WIDTH - _LEFT - 8, _HEIGHT - _BOTTOM - 8

    def x(t: float) -> float:
        return _LEFT + wide * (t + 0.5) / count

    def y(value: float) -> float:
        return 8 + high * (top - value) / (top - low)

    parts = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#888" stroke-opacity=".3"/>'
        f'<text x="{_LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.2g}</text>'
        for v in {0.0, *(end for end in (low, top) if abs(y(end) - y(0)) > 12)}  # else the numbers overlap
    ]
    if frame is not None:
        parts.append(
            f'<rect class="wb-now" x="{_LEFT + wide * frame / count:.1f}" y="8" width="{wide / count:.1f}" '
            f'height="{high}" fill="#888" fill-opacity=".25"/>'
        )
    for name, style in line_styles(curves).items():
        points = " ".join(f"{x(t):.1f},{y(float(v)):.1f}" for t, v in enumerate(curves[name]))
        dash = f' stroke-dasharray="{_DASH[style.dash]}"' if _DASH[style.dash] else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{style.colour}" stroke-width="2"{dash}/>')
    ticks = range(0, count, max(1, count // 8))
    parts += [f'<text x="{x(t):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{t}</text>' for t in ticks]
    return Html(
        f'<figure style="margin:4px 0;max-width:{_WIDTH}px"><figcaption style="font-size:12px;opacity:.85">'
        f"{escape(label)} by {escape(axis)} {_legend(curves)}</figcaption>"
        f"{_svg(parts, _WIDTH, _HEIGHT, label)}</figure>"
    )


def _legend(curves: Mapping[str, np.ndarray]) -> str:
    if len(curves) < 2:
        return ""
    marks = [
        f'<span style="white-space:nowrap"><b style="color:{style.colour}">—</b> {escape(shorten(name, 40))}</span>'
        for name, style in line_styles(curves).items()
    ]
    return "&ensp;" + "&ensp;".join(marks)


def slice_svg(
    slices: Mapping[str, np.ndarray], scale: tuple[float, float], *, signed: bool = False,
    steps: Mapping[str, int] | None = None, unit: str = "",
) -> Html:  # fmt: skip
    """x-t slices float (T', W') side by side on one scale: time runs down, a thing that moves draws a slanted line.

    ``steps``: each slice's time step to mark. ``unit``: what follows the numbers of the legend.
    """
    drawn = "".join(
        f'<div style="flex:0 1 150px;min-width:0"><div style="font-size:12px;overflow-wrap:anywhere">'
        f"{escape(shorten(name, 40))}</div>{_slice(values, scale, signed, (steps or {}).get(name), name)}</div>"
        for name, values in slices.items()
    )
    words = "x-t slice: the frame's width across, time down; " + scale_note(
        scale, signed=signed, shared=True, unit=unit
    )
    return Html(
        f'<figure style="margin:8px 0"><div style="display:flex;flex-wrap:wrap;gap:12px">{drawn}</div>'
        f'<figcaption style="font-size:12px;opacity:.85">{escape(words)}</figcaption></figure>'
    )


def _slice(values: np.ndarray, scale: tuple[float, float], signed: bool, step: int | None, name: str) -> str:
    rows, columns = values.shape
    low, high = scale
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(values.shape, 0.5 * signed)
    colours = (matplotlib.colormaps["RdBu_r" if signed else "inferno"](share)[..., :3] * 255).round().astype(int)
    size = 10
    cells = [
        f'<rect x="{c * size}" y="{r * size}" width="{size}" height="{size}" fill="#{_hex(colours[r, c])}"/>'
        for r in range(rows) for c in range(columns)
    ]  # fmt: skip
    if step is not None:
        cells.append(
            f'<rect class="wb-now" x="1" y="{step * size + 1}" width="{columns * size - 2}" height="{size - 2}" '
            'fill="none" stroke="#56B4E9" stroke-width="2"/>'
        )
    return _svg(cells, columns * size, rows * size, f"x-t slice of {name}", crisp=True)


def _hex(colour: Sequence[int]) -> str:
    return "".join(f"{int(part):02x}" for part in colour)


def _svg(parts: Sequence[str], width: int, height: int, label: str, *, crisp: bool = False) -> str:
    edges = ' shape-rendering="crispEdges"' if crisp else ""
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}"{edges} '
        'style="width:100%;height:auto;font:11px system-ui,sans-serif;fill:currentColor;display:block">'
        f"{''.join(parts)}</svg>"
    )
