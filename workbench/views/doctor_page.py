"""The doctor's report as one HTML page: which files to mend, what leaks, what gives labels away. No scripts needed."""

from datetime import datetime
from pathlib import Path

import pandas as pd

from workbench import __version__
from workbench.data.checks.shortcuts import FACTS
from workbench.data.checks.verdicts import VERDICTS
from workbench.data.doctor import DoctorReport
from workbench.views.page import facts, page, paragraph, section, subheading, write_page
from workbench.views.style import OKABE_ITO, Html, escape, table_html

_SHOWN = 500
"""Rows of any one table; the JSON file has them all."""
_COLOURS = dict(zip(VERDICTS, (OKABE_ITO[2], OKABE_ITO[5], OKABE_ITO[1]), strict=True))
_STYLE = """<style>
.wb-bar{display:flex;height:14px;border-radius:7px;overflow:hidden;margin:16px 0 6px;max-width:720px}
.wb-bar span{min-width:3px}
.wb-key{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:14px;list-style:none;padding:0;margin:0 0 16px}
.wb-key i{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:7px}
.wb-files td{white-space:normal!important;overflow-wrap:anywhere}
.wb-files td:first-child{min-width:22ch;width:38%}
.wb-list{padding-left:20px;max-width:80ch}
.wb-list li{margin:6px 0;overflow-wrap:anywhere}
.wb-dot{width:240px;height:18px;display:block}
</style>"""
_WHAT = {
    "quarantined": "These give no trustworthy frames and are left out of the table.",
    "warning": "Frames can be read from these. The reason says what is odd.",
}


def write_doctor_page(report: DoctorReport, path: str | Path) -> Path:
    """Write the report as one self-contained HTML file, atomically, and return its path. Nothing in it needs a script.

    Everything that comes from the data is escaped, and no frame of a clip is shown.
    """
    sections = [
        ("In short", _short(report)),
        ("Files to mend", _files(report, "quarantined")),
        ("Files to look at", _files(report, "warning")),
        ("What could inflate a score", _leaks(report)),
        ("What gives the label away", _shortcuts(report)),
        ("Labels", _labels(report)),
        ("The files as a whole", _ranges(report)),
    ]
    footer = f"Made by workbench {__version__} on {datetime.now():%Y-%m-%d %H:%M}. This file loads nothing."
    title = f"{report.table.info.name}: the doctor's report"
    lead = "Every frame of every file was decoded. Which files can be trusted, and what would mislead a model?"
    text = page(title, lead, sections, footer, interactive=False)
    return write_page(Path(path), text.replace("</head>", f"{_STYLE}</head>", 1))


def _short(report: DoctorReport) -> str:
    counts = report.counts()
    bar = "".join(f'<span style="flex:{n};background:{_COLOURS[v]}"></span>' for v, n in counts.items() if n)
    key = "".join(f'<li><i style="background:{_COLOURS[v]}"></i>{n:,} {escape(v)}</li>' for v, n in counts.items())
    label = escape(report.headline())
    picture = f'<div class="wb-bar" role="img" aria-label="{label}">{bar}</div><ul class="wb-key">{key}</ul>'
    table = report.table
    about = facts(
        {
            "Clips left to train on": f"{len(table):,} in {table.frame.group.nunique():,} groups",
            "Licence": table.info.licence,
            "Mirroring is label-safe": "yes" if table.info.horizontal_flip else "no, or not known",
            "Playing backwards is label-safe": "yes" if table.info.time_reversal else "no, or not known",
        }
    )
    found = _list(report.warnings) or paragraph("Nothing about the table as a whole needs attention.")
    notes = subheading("Worth knowing") + _list(report.notes) if report.notes else ""
    return section("In short", picture, about, subheading("Warnings"), found, notes)


def _list(texts: list[str]) -> str:
    return f'<ul class="wb-list">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>' if texts else ""


def _files(report: DoctorReport, verdict: str) -> str:
    rows = report.files.loc[report.files.verdict == verdict, ["path", "reason"]]
    if rows.empty:
        return ""
    title = {"quarantined": "Files to mend", "warning": "Files to look at"}[verdict]
    table = _table(rows, {"path": "File", "reason": "Reason"})
    return section(title, paragraph(f"{_WHAT[verdict]} {len(rows):,} in all."), f'<div class="wb-files">{table}</div>')


def _table(rows: pd.DataFrame, names: dict[str, str]) -> str:
    more = len(rows) - _SHOWN
    rest = paragraph(f"… and {more:,} more; the JSON report lists all of them.") if more > 0 else ""
    return table_html(rows.head(_SHOWN), names=names) + rest


def _leaks(report: DoctorReport) -> str:
    parts = []
    if len(report.leaks):
        parts += [
            subheading("Groups on both sides of a split"),
            paragraph("A model can recognise the room, the camera or the person instead of the class."),
            _table(report.leaks, {"group": "Group", "splits": "Splits", "clips": "Clips"}),
        ]
    copies = report.duplicates
    if len(copies):
        inside, across = int((~copies.splits.str.contains("/")).sum()), copies[copies.splits.str.contains("/")]
        parts += [
            subheading("Copies"),
            paragraph(
                f"{len(across):,} pair(s) of copies lie in two splits, {inside:,} in one. Near copies look and move "
                "alike; they are found after another encoding, size or frame rate, not after a crop or a mirror."
            ),
            _table(
                copies.sort_values("splits", key=lambda s: ~s.str.contains("/"), kind="stable"),
                {
                    "first": "File", "second": "Copy", "kind": "Kind", "agreement": "Agreement", "splits": "Splits",
                    "labels_differ": "Labels differ in",
                },
            ),
        ]  # fmt: skip
    return section("What could inflate a score", *parts)


def _shortcuts(report: DoctorReport) -> str:
    rows = report.shortcuts
    if rows.empty:
        return ""
    intro = (
        "A small decision tree guesses the label from facts of the file alone. The bar is the 95 % interval of its "
        "score on groups it never saw; the tick is chance. A bar clear of chance is a shortcut a model can take too."
    )
    parts = [paragraph(intro)]
    for task, part in rows.groupby("task", sort=False):
        metric, chance = part.metric.iloc[0], float(part.chance.iloc[0])
        parts.append(subheading(f"{task}: {metric}, chance {chance:.2f}"))
        body = "".join(_shortcut_row(row, chance) for row in part.itertuples())
        heads = ("Fact", "Held out", "95 % interval", "In sample", "Shuffled as good", "Alarm", "")
        head = "".join(f'<th scope="col">{h}</th>' for h in heads)
        parts.append(
            f'<div class="wb-table" tabindex="0" role="region" aria-label="shortcuts"><table><thead><tr>{head}</tr>'
            f"</thead><tbody>{body}</tbody></table></div>"
        )
    return section("What gives the label away", *parts)


def _shortcut_row(row: object, chance: float) -> str:
    r = row._asdict()  # type: ignore[attr-defined]
    interval = f"{r['low']:.2f} to {r['high']:.2f}"
    shuffled = f"{r['p_shuffled']:.1%}"
    alarm = {"held out": "yes", "in sample": "in sample only", "": "no"}[r["alarm"]]
    told = (r["fact"], f"{r['held_out']:.2f}", interval, f"{r['in_sample']:.2f}", shuffled, alarm)
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in told)
    return f"<tr>{cells}<td>{_interval(r['held_out'], r['low'], r['high'], chance, bool(r['alarm']))}</td></tr>"


def _interval(value: float, low: float, high: float, chance: float, alarm: bool) -> Html:
    """A tiny drawing of an interval on 0..1 (a rank correlation below 0 is cut off there)."""
    x = [8 + 224 * min(1.0, max(0.0, v)) for v in (value, low, high, chance)]
    colour = OKABE_ITO[1] if alarm else OKABE_ITO[0]
    return Html(
        '<svg class="wb-dot" viewBox="0 0 240 18" aria-hidden="true">'
        '<line x1="8" x2="232" y1="9" y2="9" stroke="currentColor" stroke-opacity=".2"/>'
        f'<line x1="{x[3]:.1f}" x2="{x[3]:.1f}" y1="2" y2="16" stroke="currentColor" stroke-opacity=".7"/>'
        f'<line x1="{x[1]:.1f}" x2="{x[2]:.1f}" y1="9" y2="9" stroke="{colour}" stroke-width="4"/>'
        f'<circle cx="{x[0]:.1f}" cy="9" r="5" fill="{colour}"/></svg>'
    )


def _labels(report: DoctorReport) -> str:
    counts = report.classes
    if counts.empty:
        return ""
    names = {"task": "Task", "class": "Class", "train": "Train", "val": "Val", "test": "Test"}
    return section(
        "Labels", paragraph("Clips of each class in each split, without the quarantined."), _table(counts, names)
    )


def _ranges(report: DoctorReport) -> str:
    files = report.files[report.files.verdict != "quarantined"]
    if files.empty or "fps" not in files:
        return ""
    units = {"seconds": "length in s", "file_bytes": "size in bytes", "has_audio": "share with sound"}
    columns = list(dict.fromkeys(["num_frames", *(c for cs in FACTS.values() for c in cs)]))
    values = files[columns].astype(float)
    rows = pd.DataFrame(
        {
            "fact": [units.get(c, c.replace("_", " ")) for c in columns],
            "least": values.min().to_numpy(), "median": values.median().to_numpy(), "mean": values.mean().to_numpy(),
            "most": values.max().to_numpy(),
        }
    )  # fmt: skip
    codecs = ", ".join(f"{name} {n:,}" for name, n in files.codec.value_counts().items())
    names = {"fact": "Fact", "least": "Least", "median": "Median", "mean": "Mean", "most": "Most"}
    return section("The files as a whole", paragraph(f"Codecs: {codecs}."), table_html(rows, names=names))
