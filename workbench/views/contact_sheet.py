"""A screening on one page for a reviewer: what needs eyes first, in stills; nothing on it plays by itself."""

import base64
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench import __version__
from workbench.analysis.screening import REVIEW, Screening, point_words
from workbench.analysis.timeline import Timeline
from workbench.analysis.windows import STRIP
from workbench.data.tables import ClipTable
from workbench.views.page import facts, page, paragraph, section, write_page
from workbench.views.parts import frozen, heading, note
from workbench.views.picture import jpeg
from workbench.views.players import ClipPlayer, heat_scale, overlay
from workbench.views.screening_plots import REVIEW_COLOURS, agreement_plot, timeline_plot
from workbench.views.still import still
from workbench.views.style import Html, escape, number, table_html

_CARD_PX = 224
_STRIP_PX = 68
_WARNING = "Nothing on this page plays by itself. Some of it may flash: press play only if that is safe for you."
_DISAGREE = (
    "The flash rule (WCAG 2.3.1) needs no model and judges every frame. Where it and the model disagree, one of them "
    "is wrong, or the model was trained to find something else than flashes."
)


class ContactSheet:
    """A :class:`~workbench.analysis.screening.Screening` or :class:`~workbench.analysis.timeline.Timeline` as stills.

    ``limit``: clips or events shown, those that need eyes first; the rest is in the tables of the result. Of a
    screening the clips that are shown are read from their files again. All names, classes and reasons are escaped.
    The value of a notebook cell; :meth:`write` makes a page that loads nothing from anywhere.
    """

    def __init__(self, result: Screening | Timeline, *, limit: int = 24, title: str = "") -> None:
        if limit < 1:
            raise ValueError(f"limit={limit} must be at least 1")
        self.result, self.limit = result, limit
        what = Path(result.path).name if isinstance(result, Timeline) else result.root.resolve().name
        self.title = title or f"Screening of {what}"

    def sections(self) -> list[tuple[str, str]]:
        """``(title, html)``, empty where there is nothing to say."""
        return _of_timeline(self.result, self.limit) if isinstance(self.result, Timeline) else _of_clips(
            self.result, self.limit
        )  # fmt: skip

    def freeze(self) -> Html:
        """Static HTML for a notebook; nothing in it needs a kernel, a script or the network."""
        parts = [heading(title) + body for title, body in self.sections() if body]
        return frozen(self.title, note(_WARNING), *parts)

    def _repr_html_(self) -> str:
        return self.freeze()

    def write(self, path: str | Path) -> Path:
        """One self-contained HTML file, written atomically."""
        sections = [(title, section(title, body)) for title, body in self.sections() if body]
        footer = f"Made by workbench {__version__} on {datetime.now():%Y-%m-%d %H:%M}. This file loads nothing."
        return write_page(Path(path), page(self.title, _WARNING, sections, footer, interactive=False))


def _of_clips(found: Screening, limit: int) -> list[tuple[str, str]]:
    eyes = found.table[found.table["review"] != REVIEW[3]]
    rest = found.table[found.table["review"] == REVIEW[3]].head(limit)
    counted = {f"Clips: {name}": n for name, n in found.counts().items()}
    unknown = found.table["rule_note"].astype(bool)  # clear by the model alone must not pass for clear
    counted |= {"Not judged by the flash rule": int(unknown.sum())} if unknown.any() else {}
    about = facts(counted | {"Operating point": point_words(found.operating_point), "Run": found.run})
    plot = still(agreement_plot(found), label="model against rule") if found.table["rule_unsafe"].notna().any() else ""
    more = f"{len(eyes) - limit} more are in the table." if len(eyes) > limit else ""
    cards = [_clip_card(found, row) for row in eyes.head(limit).to_dict("records")]
    columns = ["path", *found.roles.columns(), *(["rule_note"] if rest["rule_note"].any() else [])]
    return [
        ("What was found", about + plot + paragraph(_DISAGREE if plot else "")),
        ("For a reviewer", _grid(cards, "Nothing was flagged.") + paragraph(more)),
        ("Clear, the nearest to the threshold first", table_html(rest[columns]) if len(rest) else ""),
        ("Not readable", table_html(found.quarantine[["path", "reason"]]) if len(found.quarantine) else ""),
    ]


def _clip_card(found: Screening, row: dict[Any, Any]) -> str:
    player = ClipPlayer(_source(found, row), width_px=_CARD_PX, autoplay=False)
    return _card(row, found, str(row["path"]), player.html(), _drivers(found, str(row["clip_id"]), row))


def _source(found: Screening, row: dict[Any, Any]) -> Path | ClipTable:
    if found.table_of_clips is not None:
        return found.table_of_clips[(found.table_of_clips.frame.clip_id.astype(str) == row["clip_id"]).to_numpy()]
    return found.root / str(row["path"])


def _drivers(found: Screening, clip_id: str, row: dict[Any, Any]) -> str:
    """The frames that the flag rests on, tinted by the map, in the order of the file."""
    maps = found.maps
    if maps is None or clip_id not in maps.clip_ids:
        return ""
    clip, seconds = maps.clip_ids.index(clip_id), found.frame_seconds[clip_id]
    scale = heat_scale([maps.map(i) for i in range(len(maps))], signed=maps.signed)
    tinted = overlay(maps.frames[clip], maps.upsampled(clip), signed=maps.signed, scale=scale)
    shown = [int(np.argmin(np.abs(seconds - at))) for at in row["driving_seconds"]]
    stills = [_picture(jpeg(tinted[i]), f"{seconds[i]:.2f} s", _STRIP_PX) for i in shown]
    return f'<div style="display:flex;gap:6px">{"".join(stills)}</div>{note("the frames the flag rests on")}'


def _of_timeline(found: Timeline, limit: int) -> list[tuple[str, str]]:
    about = facts(
        {
            "File": Path(found.path).name, "Run": found.run, "Length": clock(found.duration_seconds),
            "Windows": f"{len(found.table)} of {found.window_seconds:g} s, one every {found.stride_seconds:g} s",
            "Events": len(found.events), "Operating point": point_words(found.operating_point),
        }
        | ({"Stopped early": found.error} if found.error else {})
        | ({"Damaged frames": found.damaged} if found.damaged else {})
    )  # fmt: skip
    events = found.events.sort_values("peak", ascending=False).head(limit).sort_values("start_seconds")
    cards = [_event_card(found, row) for row in events.to_dict("records")]
    more = f"{len(found.events) - limit} more are in the table of events." if len(found.events) > limit else ""
    strip = _strip(found)
    return [
        ("What was found", about + still(timeline_plot(found), label="timeline")),
        ("Events", _grid(cards, "Nothing was flagged.") + paragraph(more)),
        ("The whole video", strip),
    ]


def _event_card(found: Timeline, row: dict[Any, Any]) -> str:
    span = f"{clock(row['start_seconds'])} – {clock(row['end_seconds'])}"
    said = found.table.iloc[int(row["peak_window"])].to_dict() | {
        "review": row["review"], "general_flashes": row["general_flashes"], "red_flashes": row["red_flashes"],
        found.safety_column: row["peak"],
    }  # fmt: skip
    peak = int(row["peak_window"])
    # Smoothing can raise a window above neighbours that were flagged, and that have posters.
    near = min(found.posters, key=lambda window: abs(window - peak), default=None)
    if near is None or abs(near - peak) > found.smoothing:
        return _card(said, found, span, "", "")
    middle = found.table[["start_seconds", "end_seconds"]].iloc[near].mean()
    return _card(said, found, span, _picture(found.posters[near], f"about {clock(middle)}", _CARD_PX), "")


def _strip(found: Timeline) -> str:
    start, review = found.table["start_seconds"].to_numpy(float), found.table["review"].tolist()
    # Evenly over what was read: of a video that broke off, posters were meant to last to its end.
    places = np.linspace(0, len(start) - 1, min(STRIP, len(start)))
    shown = sorted({min(found.posters, key=lambda window: abs(window - at)) for at in places} if found.posters else ())
    stills = [_picture(found.posters[w], clock(float(start[w])), 96, review[w]) for w in shown]
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(stills)}</div>'


def _card(row: dict[Any, Any], found: Screening | Timeline, title: str, picture: str, below: str) -> str:
    roles, review = found.roles, str(row["review"])
    lines = [f"{roles.safety.name}: probability {number(float(row[f'{roles.safety.name}_probability']))}"]
    if roles.action:
        sure = number(float(row[f"{roles.action.name}_probability"]))
        lines.append(f"{roles.action.name}: {row[roles.action.name]} ({sure})")
    if roles.quality:
        lines.append(f"{roles.quality.name}: {number(float(row[roles.quality.name]))}")
    if not pd.isna(row["general_flashes"]):
        lines.append(f"flashes in a second: {int(row['general_flashes'])}, red {int(row['red_flashes'])}")
    if row.get("rule_note"):
        lines.append(f"flash rule: {row['rule_note']}")
    text = "".join(f"<div>{escape(line)}</div>" for line in lines)
    badge = f"border-left:6px solid {REVIEW_COLOURS[review]};padding-left:6px;font-weight:600"
    wrap = "display:flex;flex-direction:column;gap:6px;overflow-wrap:anywhere;font-size:13px;line-height:1.45"
    return (
        f'<article style="{wrap}"><div style="{badge}">{escape(review)}</div>'
        f'<div style="font-weight:600">{escape(title)}</div>{picture}<div>{text}</div>{below}</article>'
    )


def _grid(cards: Sequence[str], empty: str) -> str:
    if not cards:
        return paragraph(empty)
    return (
        '<div style="display:grid;gap:24px 20px;margin:16px 0;align-items:start;'
        f'grid-template-columns:repeat(auto-fill,minmax(min({_CARD_PX}px,100%),1fr))">{"".join(cards)}</div>'
    )


def _picture(jpeg: bytes, caption: str, width_px: int, review: str = REVIEW[3]) -> str:
    edge = "" if review == REVIEW[3] else f"outline:3px solid {REVIEW_COLOURS[review]};"
    source = base64.b64encode(jpeg).decode()
    said = caption if review == REVIEW[3] else f"{caption}, {review}"
    return (
        f'<figure style="margin:0;width:{width_px}px;max-width:100%"><img alt="{escape("frame " + said)}" '
        f'style="width:100%;height:auto;display:block;border-radius:4px;{edge}" src="data:image/jpeg;base64,{source}">'
        f'<figcaption style="font-size:12px">{escape(said)}</figcaption></figure>'
    )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(83.46), clock(3723.0)
    ('1:23.5', '1:02:03.0')
    """
    tenths = round(seconds * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
