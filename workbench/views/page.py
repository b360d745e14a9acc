"""The frame of a report: its style sheet, its few lines of script, sections and definition lists."""

import os
import uuid
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from workbench.views.still import still
from workbench.views.style import VIEW_CSS, Html, escape, max_width

PAGE_CSS = """
:root{color-scheme:light dark;--bg:#fbfaf8;--fg:#1d1f22;--soft:#5b616a;--line:#e2dfd9;--card:#fff;--accent:#0b5f94}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--fg:#e8e6e1;--soft:#a3a9b2;--line:#2e3238;--card:#1c1f23;
--accent:#6bbcf0}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main,header{max-width:1040px;margin:0 auto;padding:0 24px}
header{padding-top:56px}
h1{font-size:clamp(28px,5vw,40px);line-height:1.15;letter-spacing:-.02em;margin:0 0 12px}
h2{font-size:24px;line-height:1.25;letter-spacing:-.01em;margin:0 0 8px}
h3{font-size:17px;margin:28px 0 6px}
p{max-width:70ch;margin:0 0 12px}
.lead{font-size:19px;line-height:1.5;color:var(--soft)}
section.page{border-top:1px solid var(--line);padding:32px 0 12px;margin-top:32px;min-width:0}
nav ul{display:flex;flex-wrap:wrap;gap:4px 20px;list-style:none;padding:0;margin:20px 0 0;font-size:14px}
a{color:var(--accent)}
a:focus-visible,button:focus-visible,video:focus-visible,.wb-table:focus-visible{outline:2px solid var(--accent);
outline-offset:2px}
button{font:inherit;font-size:14px;padding:5px 14px;border:1px solid var(--line);border-radius:999px;
background:var(--card);color:var(--fg);cursor:pointer}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:14px}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 16px;overflow-x:auto}
dl{display:grid;grid-template-columns:minmax(120px,max-content) minmax(0,1fr);gap:4px 20px;font-size:14px;margin:12px 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.wb-gallery{margin:16px 0}
.wb-table{margin:12px 0}
.wb-note{opacity:1;color:var(--soft)}
.plot{margin:12px 0;min-width:0}
.js-plotly-plot .main-svg :is(.xtick,.ytick,.infolayer,.xaxislayer-above,.yaxislayer-above) text{
fill:var(--fg)!important}
footer{max-width:1040px;margin:32px auto 0;padding:16px 24px 48px;font-size:13px;color:var(--soft)}
@media(max-width:600px){header,main,footer{padding-left:16px;padding-right:16px}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}}
"""

# Clips pause as one, and start paused for readers who asked their system for less motion.
PAGE_JS = """
(function(){var b=document.getElementById('pause'),v=document.querySelectorAll('video[autoplay]'),on=true;
function set(p){on=p;v.forEach(function(x){if(p){x.play()}else{x.removeAttribute('autoplay');x.pause()}});
b.textContent=p?'Pause all clips':'Play all clips'}
b.hidden=!v.length;b.onclick=function(){set(!on)};
if(matchMedia('(prefers-reduced-motion: reduce)').matches)set(false)})();
"""


def section(title: str, *parts: str) -> Html:
    """A part of the page with a heading of its own; nothing when all ``parts`` are empty."""
    body = "".join(parts)
    if not body:
        return Html("")
    return Html(f'<section class="page" id="{_anchor(title)}"><h2>{escape(title)}</h2>{body}</section>')


def _anchor(title: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{escape(text)}</p>" if text else ""


def subheading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def facts(pairs: Mapping[str, object]) -> str:
    """Names and values as a definition list."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items()) + "</dl>"


def plot(fig: go.Figure, label: str, *, interactive: bool) -> str:
    """A figure: plotly with values on hover, or inline SVG (see :func:`page`)."""
    if not interactive:
        return f'<div class="plot">{still(fig, label=label)}</div>'
    config = {"displayModeBar": False, "responsive": True}
    drawn = fig.to_html(full_html=False, include_plotlyjs=False, config=config)
    widest = f"max-width:{max_width(fig)}px" if max_width(fig) else ""
    return f'<div class="plot" role="figure" aria-label="{escape(label)}" style="{widest}">{drawn}</div>'


def page(title: str, lead: str, sections: Iterable[tuple[str, str]], footer: str, *, interactive: bool) -> str:
    """A whole HTML document from ``(title, html)`` sections; loads nothing from anywhere.

    ``interactive`` inlines plotly.js once (5 MB), which the plots of the sections then need.
    """
    shown = [(name, body) for name, body in sections if body]
    links = "".join(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name, _ in shown)
    script = f"<script>{get_plotlyjs()}</script>" if interactive else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title>{VIEW_CSS}<style>{PAGE_CSS}</style>{script}</head><body>"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        f'<button id="pause" type="button">Pause all clips</button><nav aria-label="Sections"><ul>{links}</ul></nav>'
        f"</header><main>{''.join(body for _, body in shown)}</main><footer>{escape(footer)}</footer>"
        f"<script>{PAGE_JS}</script></body></html>"
    )


def write_page(path: Path, text: str) -> Path:
    """Write ``text`` as UTF-8, like :func:`write_whole`."""
    return write_whole(path, text.encode())


def write_whole(path: Path, data: bytes) -> Path:
    """Write ``data`` so that a reader meets the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def versions(names: Iterable[str]) -> list[str]:
    """``name version`` of each package that is installed."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
