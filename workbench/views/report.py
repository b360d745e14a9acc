"""The report of a first run: one HTML file that plays, plots and explains offline."""

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench import __version__
from workbench.data.tables import ClipTable
from workbench.views.attention_view import ATTENTION, CAUTION, METHOD_NAMES, map_caption, map_legend, named_maps
from workbench.views.comparison_view import comparison_table
from workbench.views.error_view import error_player
from workbench.views.page import facts, page, paragraph, plot, section, subheading, versions, write_page
from workbench.views.players import ClipPlayer, gallery, heat_scale, overlay, side_by_side, table_players
from workbench.views.plots import (
    comparison_plot,
    confusion_plot,
    difference_plot,
    learning_curves,
    named_runs,
    residual_plot,
)
from workbench.views.style import escape, line_styles, number, table_html

QUESTION = (
    "Which way of transferring a pretrained video transformer to these clips works, what does the model look at, and "
    "where does it fail?"
)
SHOWN_CLIPS, SHOWN_MAPS, SHOWN_MISTAKES, SHOWN_FILES = 8, 4, 4, 4
PACKAGES = ("torch", "transformers", "captum", "accelerate", "numpy", "pandas", "av", "decord")


def quickstart_report(
    path: str | Path,
    *,
    title: str = "Video transfer quickstart",
    question: str = QUESTION,
    clips: ClipTable | None = None,
    comparison: Any | None = None,
    runs: Mapping[str, Any] | Sequence[Any] | None = None,
    maps: Any | None = None,
    errors: Any | Sequence[Any] | None = None,
    clips_root: str | Path | None = None,
    predictions: pd.DataFrame | None = None,
    timings: Mapping[str, float] | None = None,
    chance: Mapping[str, float] | None = None,
    next_steps: Sequence[str] = (),
    interactive: bool = True,
) -> Path:
    """Write one self-contained HTML file and return its path. A section whose argument is None is left out.

    Args:
        clips: the data; up to eight clips are shown playing, spread over the classes of its first task.
        comparison: a ``Comparison``. runs: the runs it compares (learning curves, versions, seeds).
        maps: one ``Maps``, a list or a mapping; those of the same clips are shown side by side, in one video.
        errors: an ``ErrorTable`` or a list of them. Files are found through ``clips``, else under ``clips_root``.
        predictions: frame of predictions on new files; the files of a column ``path`` are shown playing.
        timings: seconds by step. chance: score of guessing by task. next_steps: commands or files, one line each.
        interactive: True inlines plotly.js (5 MB) for values on hover; False draws the same plots as SVG.

    Written atomically. Everything from the data is escaped.
    """
    named = {} if runs is None else named_runs(runs)
    sections = [
        ("The clips", _data(clips)),
        ("Which setup works", _comparison(comparison, named, chance or {}, interactive)),
        ("What the model looked at", _maps(maps)),
        ("Where it fails", _errors(errors, clips, clips_root, interactive)),
        ("On files it never saw", _predictions(predictions)),
        ("How these numbers were made", _provenance(comparison, named, clips, timings)),
        ("What to open next", _next(next_steps)),
    ]
    footer = f"Made by workbench {__version__} on {datetime.now():%Y-%m-%d %H:%M}. This file loads nothing."
    return write_page(Path(path), page(title, question, sections, footer, interactive=interactive))


def _data(clips: ClipTable | None) -> str:
    if clips is None:
        return ""
    splits = {s: int((clips.frame.split == s).sum()) for s in ("train", "val", "test")}
    about = facts(
        {
            "Data set": clips.info.name,
            "Clips": f"{len(clips)} ({', '.join(f'{n} {s}' for s, n in splits.items())})",
            "Groups": f"{clips.frame.group.nunique()}, each on one side of the splits",
            "Set aside": f"{len(clips.quarantine)} that could not be decoded",
            "Licence": clips.info.licence,
        }
        | {f"Task {t.name}": _task_words(t) for t in clips.tasks}
    )
    players = table_players(_spread(clips, SHOWN_CLIPS))
    return section("The clips", about, gallery(players))


def _task_words(task: Any) -> str:
    if task.kind == "regression":
        return "a number (regression)"
    return f"{task.kind}: {', '.join(task.classes) or '0 or 1'}"


def _spread(clips: ClipTable, count: int) -> ClipTable:
    """``count`` clips, one per class of the first classification task in turn, from all over the table."""
    task = next((t.name for t in clips.tasks if t.kind != "regression"), None)
    order = np.random.default_rng(0).permutation(len(clips))
    if task is not None:
        turn = clips.frame.iloc[order].groupby(task, dropna=False).cumcount().to_numpy()
        order = order[np.argsort(turn, kind="stable")]
    return clips[order[:count]]


def _comparison(comparison: Any | None, runs: Mapping[str, Any], chance: Mapping[str, float], interactive: bool) -> str:
    parts: list[str] = []
    names = list(comparison.table["run"]) if comparison is not None else []
    styles = line_styles([*names, *runs])
    if comparison is not None:
        guess = " The dashed line is guessing." if chance else ""
        scores = comparison_plot(comparison, chance=chance, styles=styles)
        parts += [
            paragraph(f"A dot is a setup's score on the clips held out; the bar is its 95 % interval.{guess}"),
            plot(scores, "score of each setup with interval", interactive=interactive),
        ]
        if comparison.table["difference"].notna().any():
            differences = difference_plot(comparison, styles=styles)
            parts += [
                subheading(f"Difference to {comparison.reference}"),
                paragraph("Paired on the same clips. A bar that crosses 0 shows no clear difference."),
                plot(differences, "difference to the reference", interactive=interactive),
            ]
        parts.append(comparison_table(comparison))
    curves = {k: r for k, r in runs.items() if hasattr(r, "history")}
    if curves:
        drawn = plot(learning_curves(curves, styles=styles), "learning curves", interactive=interactive)
        parts += [subheading("Learning curves"), drawn]
    return section("Which setup works", *parts)


def _maps(maps: Any | None) -> str:
    if maps is None:
        return ""
    named = named_maps(maps)
    groups: dict[tuple[str, ...], list[Any]] = {}
    for one in named.values():
        groups.setdefault(tuple(map(str, one.clip_ids)), []).append(one)
    attention = {m.method in ATTENTION for m in named.values()}
    parts = [paragraph(CAUTION[kind]) for kind in (True, False) if kind in attention]
    for members in groups.values():
        players = [_map_player(members, i) for i in range(min(SHOWN_MAPS, len(members[0].clip_ids)))]
        scales = [f"{_method(m)}: {map_legend(m, _scale(m), shared=True)}." for m in members]
        parts += [
            gallery(players, columns=2 if len(members) == 1 else 1),
            "".join(f'<p class="wb-note">{escape(s)}</p>' for s in scales),
        ]
    return section("What the model looked at", *parts)


def _scale(maps: Any) -> tuple[float, float]:
    return heat_scale([maps.map(i) for i in range(len(maps.clip_ids))], signed=maps.signed)


def _method(maps: Any) -> str:
    return METHOD_NAMES.get(maps.method, maps.method)


def _map_player(members: Sequence[Any], clip: int) -> ClipPlayer:
    """The clip and its map by each method, in step."""
    frames = members[0].frames[clip]
    tinted = [overlay(frames, m.upsampled(clip), signed=m.signed, scale=_scale(m)) for m in members]
    panels = ["the clip", *(_method(m) for m in members)]
    return ClipPlayer(
        side_by_side(frames, *tinted),
        title=str(members[0].clip_ids[clip]),
        caption="\n".join(map_caption(m, clip) for m in members),
        width_px=min(992, 224 * len(panels)),
        panels=panels,
    )


def _errors(tables: Any | None, clips: ClipTable | None, root: str | Path | None, interactive: bool) -> str:
    if tables is None:
        return ""
    parts: list[str] = []
    for table in tables if isinstance(tables, Sequence) else [tables]:
        fig = residual_plot(table) if table.confusion.empty else confusion_plot(table)
        what = "Largest residuals" if table.confusion.empty else "Mistakes it was surest of"
        players = [
            error_player(line, _file(line, clips, root)) for line in table.mistakes[:SHOWN_MISTAKES].itertuples()
        ]
        parts += [
            subheading(f"Task {table.task.name}, run {table.run}"),
            plot(fig, f"errors on {table.task.name}", interactive=interactive),
            f'<p class="wb-note">{escape(table.caption)}</p>',
            subheading(what),
            gallery(players, empty="None: every clip of the split was right."),
        ]
    return section("Where it fails", *parts)


def _file(line: Any, clips: ClipTable | None, root: str | Path | None) -> Path | ClipTable:
    if clips is not None:
        found = np.flatnonzero(clips.frame.clip_id.astype(str) == str(line.clip_id))
        if len(found):
            return clips[found[:1]]
    return Path(root or (clips.root if clips is not None else ".")) / str(line.path)


def _predictions(predictions: pd.DataFrame | None) -> str:
    if predictions is None:
        return ""
    shown = predictions.copy()
    if "reason" in shown and not shown["reason"].astype(str).str.len().any():
        shown = shown.drop(columns="reason")
    players = []
    if "path" in shown:
        files = shown["path"].astype(str)
        shown["path"] = [Path(p).name for p in files]
        first = shown.assign(file=files).drop_duplicates("file").head(SHOWN_FILES)
        players = [ClipPlayer(r["file"], title=r["path"], caption=_said(r)) for r in first.to_dict("records")]
    for column in shown.columns[[pd.api.types.is_object_dtype(d) for d in shown.dtypes]]:
        shown[column] = [_list_words(v) for v in shown[column]]
    return section("On files it never saw", gallery(players) if players else "", table_html(shown))


def _said(row: Mapping[str, Any]) -> str:
    """One row of :func:`workbench.predict` in words: ``action: up (0.91)``, one line per task."""
    lines = []
    for name, value in row.items():
        if name in ("path", "file") or str(name).endswith("_probability"):
            continue
        sure = row.get(f"{name}_probability")
        lines.append(f"{name}: {number(value)}" + (f" (probability {number(sure)})" if sure is not None else ""))
    return "\n".join(lines)


def _list_words(value: object) -> object:
    """A list of probabilities as short numbers; anything else as it is."""
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(number(float(v)) if isinstance(v, float | np.floating) else str(v) for v in value)
    return value


def _provenance(
    comparison: Any | None, runs: Mapping[str, Any], clips: ClipTable | None, timings: Mapping[str, float] | None
) -> str:
    known: dict[str, object] = {}
    if comparison is not None:
        known["Protocol"] = comparison.protocol.describe()
        known["Resamples"] = f"{comparison.resamples} of whole groups"
        for task, part in comparison.table.groupby("task", sort=False):
            known[f"n, {task}"] = f"{int(part['n'].iloc[0])} clips in {int(part['groups'].iloc[0])} groups"
    if clips is not None:
        known["Data fingerprint"] = clips.fingerprint()
    seeds = {str(_setup(r).get("seed")) for r in runs.values() if _setup(r).get("seed") is not None}
    if seeds:
        known["Seeds"] = f"{', '.join(sorted(seeds))} (one per run: intervals do not cover the seed)"
    for step, seconds in (timings or {}).items():
        known[f"Time, {step}"] = f"{seconds:.1f} s"
    known |= {"Python": platform.python_version(), "Versions": ", ".join(versions(PACKAGES))}
    return section("How these numbers were made", facts(known), _setups(runs))


def _setup(run: Any) -> dict[str, Any]:
    return dict((getattr(run, "record", None) or {}).get("setup") or {})


def _setups(runs: Mapping[str, Any]) -> str:
    """What was set, one row per setting and one column per run, only where a run tells."""
    settings = {name: _setup(run) for name, run in runs.items() if _setup(run)}
    if not settings:
        return ""
    keys = list(dict.fromkeys(k for s in settings.values() for k in s))
    rows = [[k, *(_list_words(s.get(k, "–")) for s in settings.values())] for k in keys]
    frame = pd.DataFrame([[_setting(v) for v in row] for row in rows], columns=["setting", *settings])
    return subheading("Setups") + table_html(frame)


def _setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def _next(steps: Sequence[str]) -> str:
    if not steps:
        return ""
    return section("What to open next", f"<pre>{escape(chr(10).join(steps))}</pre>")
