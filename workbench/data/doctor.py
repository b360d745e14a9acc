"""Look at every clip before training on it: what cannot be decoded, what leaks, what gives the label away."""

import html
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.data.cache import reason_of
from workbench.data.checks.duplicates import find_duplicates, overlapping
from workbench.data.checks.label_checks import class_counts, flip_checks, flip_warnings, label_warnings, some
from workbench.data.checks.probing import inspect_file, read_both
from workbench.data.checks.shortcuts import shortcut_alarms
from workbench.data.checks.survey import Survey
from workbench.data.checks.verdicts import OTHER_FRAMES, VERDICTS, clip_reasons, file_reasons
from workbench.data.clips import ClipDecodeError, decoder_name
from workbench.data.loading.guard import ItemCrashError, ItemTimeoutError, run_guarded
from workbench.data.sources.folders import unlabelled_frame
from workbench.data.splits import groups_across_splits
from workbench.data.tables import SPLITS, ClipTable

log = logging.getLogger(__name__)

_BUDGET = 0.8
"""Share of the time limit after which a long file's decoding stops by itself: long is not the same as hung."""


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    """``table`` to train on, ``files`` with a verdict each, and what is wrong with the table as a whole, in words."""

    table: ClipTable
    """Without what is quarantined; its column ``decoder`` says ``pyav`` where the usual decoder cannot be trusted."""
    files: pd.DataFrame
    """A row per clip (and per file that is no clip): ``path, verdict, reason, clip_id``, then what was measured."""
    warnings: list[str]
    notes: list[str]
    """What is worth knowing and not wrong, such as flips that must stay off."""
    duplicates: pd.DataFrame
    """Pairs of copies; see :func:`workbench.data.checks.duplicates.find_duplicates`."""
    leaks: pd.DataFrame
    """Groups in more than one split: ``group, splits, clips``."""
    classes: pd.DataFrame
    """``task, class, train, val, test``: numbers of clips left."""
    shortcuts: pd.DataFrame
    """See :func:`workbench.data.checks.shortcuts.shortcut_alarms`."""

    def counts(self) -> dict[str, int]:
        return {v: int((self.files.verdict == v).sum()) for v in VERDICTS}

    def headline(self) -> str:
        numbers = ", ".join(f"{n} {verdict}" for verdict, n in self.counts().items())
        return f"{self.table.info.name}: {len(self.files)} clips examined, {numbers}"

    def write_json(self, path: str | Path) -> Path:
        """One object per row of ``files`` and per clip quarantined before: path, verdict, reason and facts."""
        before = self.table.quarantine[["path", "reason", "clip_id"]].assign(verdict="quarantined")
        files = pd.concat([self.files, before[~before.clip_id.isin(self.files.clip_id)]], ignore_index=True)
        rows = files.astype(object).where(files.notna(), None).to_dict("records")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False, default=_plain), encoding="utf-8"
        )
        return path

    def __str__(self) -> str:
        odd = self.files[self.files.verdict != "ok"]
        lines = [self.headline()]
        lines += [f"  {row.verdict}: {row.path}: {row.reason}" for row in odd.itertuples()]
        lines += [f"  ! {warning}" for warning in self.warnings] + [f"  - {note}" for note in self.notes]
        return "\n".join(line.replace("\n", "\\n") for line in lines)  # a file's name may hold a line break

    def _repr_html_(self) -> str:
        odd = self.files.loc[self.files.verdict != "ok", ["verdict", "path", "reason"]]
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in odd.itertuples(index=False)
        )
        table = f"<table><tr><th>verdict</th><th>file</th><th>reason</th></tr>{rows}</table>" if rows else ""
        notes = "".join(f"<li>{html.escape(text)}</li>" for text in (*self.warnings, *self.notes))
        return f"<p><b>{html.escape(self.headline())}</b></p>{f'<ul>{notes}</ul>' if notes else ''}{table}"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def examine(
    table: ClipTable,
    *,
    num_frames: int = 16,
    decoder: str = "auto",
    cross_check: bool = True,
    workers: int = 2,
    time_limit_seconds: float = 60.0,
    memory_gib: float | None = 8.0,
    also: Sequence[str | Path] = (),
    progress: bool = True,
) -> DoctorReport:
    """Decode every frame of every file, then read every clip as training will; judge the files, then the table.

    All in child processes: a file that hangs for ``time_limit_seconds``, crashes its process or asks for more than
    ``memory_gib`` of address space (None: no cap) is quarantined, and nothing else is lost. Quarantined is also what
    is no video, cut short, or has a packet that does not decode. A ``warning`` can be trained on; its reason says what
    is odd. Where ``decoder`` fails or shows other frames than PyAV (``cross_check``), the clip's ``decoder`` in the
    report's table becomes ``pyav``. A cover picture is a warning, and is left out of the table. ``also`` names further
    files, relative to the table's root, that get a verdict without being clips. Train on the report's ``table``.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames} must be at least 1")
    if memory_gib is not None and not memory_gib > 0:
        raise ValueError(f"memory_gib={memory_gib} must be above 0, or None for no cap")
    names = _decoders(table, decoder)
    surveys, contents, failures = _survey(table, also, workers, time_limit_seconds, memory_gib, progress)
    readings = _read(table, surveys, names, num_frames, cross_check, workers, time_limit_seconds, memory_gib, progress)
    frame = table.frame
    rows: list[dict[str, Any]] = []
    signatures: dict[str, np.ndarray] = {}
    for row, (path, clip_id) in enumerate(zip(frame.path, frame.clip_id, strict=True)):
        survey = surveys.get(path)
        judged = _judge(survey, failures.get(path), readings.get(row), num_frames, names[row])
        rows.append({"path": path, **judged, "clip_id": clip_id, "content": contents.get(path)})
        if survey is not None and judged["verdict"] != "quarantined":
            signatures[path] = survey.signature
    for path in map(str, also):
        rows.append({"path": path, **_judge(surveys.get(path), failures.get(path), None, 1, decoder), "clip_id": None})
    columns = ["path", "verdict", "reason", "clip_id", "content"]
    files = pd.DataFrame(rows, columns=None if rows else columns)
    return _report(table, files, signatures)


def other_files(table: ClipTable, folder: str | Path) -> list[str]:
    """Files of ``folder``, the table's root, that are no clips of it and no text: a verdict for each all the same."""
    if Path(folder) != table.root or not table.root.is_dir() or (table.root / "clips.parquet").is_file():
        return []
    known = set(table.frame.path)
    if any(".tar/" in path for path in known):
        return []
    try:
        everything = unlabelled_frame(table.root).path
    except ValueError:  # nothing but text
        return []
    return [path for path in everything if path not in known]


def _survey(
    table: ClipTable, also: Sequence[str | Path], workers: int, limit: float, memory_gib: float | None, progress: bool
) -> tuple[dict[str, Survey], dict[str, str], dict[str, str]]:
    """By path: the facts of each file that decodes, the id of its bytes, and why the others do not."""
    paths = list(dict.fromkeys([*table.frame.path, *map(str, also)]))
    shared = {"budget_seconds": _BUDGET * limit, "memory_gib": memory_gib}
    items = [{"path": str(table.root / path), **shared} for path in paths]
    outcomes = run_guarded(
        inspect_file, items, workers=workers, time_limit_seconds=limit, progress="decoding files" if progress else None
    )
    surveys, contents, failures = {}, {}, {}
    for path, outcome in zip(paths, outcomes, strict=True):
        if isinstance(outcome, Exception):
            failures[path] = _why(outcome, memory_gib)
        else:
            surveys[path], contents[path] = outcome
    return surveys, contents, failures


def _why(error: Exception, memory_gib: float | None) -> str:
    if isinstance(error, MemoryError):
        return f"decoding needs more than {memory_gib} GiB of memory; if that is meant to be, raise memory_gib"
    if isinstance(error, ImportError):  # no fault of the file
        raise ValueError(f"a decoder cannot be loaded, with memory_gib={memory_gib}: {error}") from error
    try:
        return reason_of(error)
    except Exception as unforeseen:
        log.warning("a decoder raised what it should not: %r", unforeseen)
        return f"not decodable: {type(unforeseen).__name__}: {unforeseen}"


def _read(
    table: ClipTable, surveys: dict[str, Survey], names: list[str], num_frames: int, cross_check: bool, workers: int,
    limit: float, memory_gib: float | None, progress: bool,
) -> dict[int, Any]:  # fmt: skip
    """By row: what :func:`read_both` found, or the exception that it cost; only of files that decode as a whole."""
    frame = table.frame
    rows = [i for i, path in enumerate(frame.path) if path in surveys and not surveys[path].cover]

    def run(rows: list[int], names: list[str]) -> dict[int, Any]:
        items = [
            {
                "path": str(table.root / frame.path[i]), "start_seconds": float(frame.start_seconds[i]),
                "end_seconds": float(frame.end_seconds[i]), "num_frames": num_frames, "decoder": names[i],
                "cross_check": cross_check, "memory_gib": memory_gib,
            }
            for i in rows
        ]  # fmt: skip
        title = "reading clips" if progress else None
        outcomes = run_guarded(read_both, items, workers=workers, time_limit_seconds=limit, progress=title)
        return dict(zip(rows, outcomes, strict=True))

    found = run(rows, names)
    fatal = (ItemTimeoutError, ItemCrashError, MemoryError)
    lost = {i: outcome for i, outcome in found.items() if isinstance(outcome, fatal) and names[i] != "pyav"}
    if lost:  # what hung or crashed may have been the decoder: PyAV alone decides
        for i, outcome in run(list(lost), ["pyav"] * len(names)).items():
            problem = f"{names[i]} hangs or crashes on it ({_why(lost[i], memory_gib)})"
            found[i] = outcome if isinstance(outcome, Exception) else outcome | {"problem": problem}
    for i, outcome in found.items():
        if isinstance(outcome, Exception):
            found[i] = ClipDecodeError(frame.path[i], _why(outcome, memory_gib))
        else:
            outcome["seconds"] = _shown(surveys[frame.path[i]], frame.start_seconds[i], frame.end_seconds[i])
    return found


def _decoders(table: ClipTable, decoder: str) -> list[str]:
    """By row: what will read it, the table's own choice first. Raises ValueError for a decoder that is not there."""
    usual = decoder_name(decoder)
    if "decoder" not in table.frame:
        return [usual] * len(table)
    given = {str(d): usual if d == "auto" else decoder_name(d) for d in table.frame.decoder.dropna().unique()}
    return [usual if pd.isna(own) else given[own] for own in table.frame.decoder]


def _shown(survey: Survey, start: float, end: float) -> float:
    length = survey.seconds
    first = 0.0 if math.isnan(start) else max(0.0, start)
    return max(0.0, (length if math.isnan(end) else min(length, end)) - first)


def _judge(survey: Survey | None, failure: str | None, reading: Any, num_frames: int, decoder: str) -> dict[str, Any]:
    """Verdict, reason and facts of one row; ``decoder`` in the result is the one to use instead, or None."""
    if survey is None:
        return {"verdict": "quarantined", "reason": failure}
    facts = {k: v for k, v in asdict(survey).items() if k != "signature"}
    if isinstance(reading, ClipDecodeError):
        return {"verdict": "quarantined", "reason": reading.reason, **facts}
    reasons, instead = file_reasons(survey), None
    if reading is not None:
        reasons = clip_reasons(reading, survey, num_frames, decoder) + reasons
        instead = "pyav" if reading["problem"] or reading["difference"] > OTHER_FRAMES else None
        facts |= {"seconds": reading["seconds"], "difference": reading["difference"]}
    elif not survey.cover and survey.num_frames < 2:
        reasons.insert(0, "very short: one frame")
    verdict = "warning" if reasons else "ok"
    return {"verdict": verdict, "reason": "; ".join(reasons), **facts, "decoder": instead}


def _report(table: ClipTable, files: pd.DataFrame, signatures: dict[str, np.ndarray]) -> DoctorReport:
    clips = files.iloc[: len(table)].reset_index(drop=True)
    cover = clips.cover.eq(True) if "cover" in clips else pd.Series(False, clips.index)
    out = clips[(clips.verdict == "quarantined") | cover]
    for path, reason in zip(out.path, out.reason, strict=True):
        log.debug("left out %s: %s", path, reason)  # the report says it
    cleaned = table.with_quarantine(out) if len(out) else table
    kept = clips[~clips.index.isin(out.index)].reset_index(drop=True)
    if "decoder" in kept and kept.decoder.notna().any():
        given = (
            cleaned.frame.decoder if "decoder" in cleaned.frame else pd.Series(None, cleaned.frame.index, dtype=object)
        )
        cleaned = cleaned._with(cleaned.frame.assign(decoder=kept.decoder.combine_first(given)))
    duplicates = find_duplicates(table, clips, signatures)
    shortcuts = shortcut_alarms(cleaned, kept)
    seen = np.array([signatures[path] for path in kept.path])
    flips, notes = flip_warnings(cleaned, flip_checks(cleaned, seen) if len(seen) else [])
    if len(table.quarantine):
        notes.append(f"{len(table.quarantine)} clip(s) were quarantined before and are not counted above")
    inside = int((~duplicates.splits.str.contains("/")).sum())
    if inside:
        notes.append(f"{inside} pair(s) of copies or near-copies lie within one split")
    leaks = _leaks(table)
    warnings = [*_leak_warnings(table, leaks, duplicates), *_split_warnings(table, cleaned)]
    for task in cleaned.tasks:
        warnings += label_warnings(cleaned, task.name)
    warnings += [*_alarms(shortcuts), *flips]
    return DoctorReport(
        table=cleaned, files=files, warnings=warnings, notes=notes, duplicates=duplicates, leaks=leaks,
        classes=class_counts(cleaned), shortcuts=shortcuts,
    )  # fmt: skip


def _leaks(table: ClipTable) -> pd.DataFrame:
    names = groups_across_splits(table)
    spread = table.frame[table.frame.group.astype(str).isin(names)].groupby("group")
    rows = [
        (str(group), "/".join(s for s in SPLITS if s in set(part.split)), int(part.split.notna().sum()))
        for group, part in spread
    ]
    return pd.DataFrame(rows, columns=["group", "splits", "clips"])


def _leak_warnings(table: ClipTable, leaks: pd.DataFrame, duplicates: pd.DataFrame) -> list[str]:
    warnings = []
    if len(leaks):
        warnings.append(
            f"{len(leaks)} group(s) with {leaks.clips.sum()} clips lie in more than one split "
            f"({some(leaks.group.tolist())}): scores will be too good; split_by_group keeps them together"
        )
    across = duplicates[duplicates.splits.str.contains("/")]
    for kind, text in (
        ("exact", "have an exact copy in another split"),
        ("near", "show the same as one in another split"),
    ):
        pairs = across[across.kind == kind]
        if len(pairs):
            named = [f"{a} = {b}" for a, b in zip(pairs["first"], pairs["second"], strict=True)]
            warnings.append(f"{len(pairs)} file(s) {text} ({some(named)})")
    for task in table.tasks:
        clash = duplicates[[task.name in names.split(", ") for names in duplicates.labels_differ]]
        if len(clash):
            named = [f"{a} = {b}" for a, b in zip(clash["first"], clash["second"], strict=True)]
            warnings.append(
                f"{len(clash)} pair(s) of copies have two different labels of {task.name!r} ({some(named)})"
            )
    overlaps = overlapping(table)
    if overlaps:
        warnings.append(f"{len(overlaps)} file(s) have overlapping clips in two splits ({some(overlaps)})")
    return warnings


def _split_warnings(table: ClipTable, cleaned: ClipTable) -> list[str]:
    if table.frame.split.isna().all():
        return []
    had, has = ({s: bool((t.frame.split == s).any()) for s in SPLITS} for t in (table, cleaned))
    return [f"no clip in split {s!r}" + (" that decodes" if had[s] else "") for s in SPLITS if not has[s]]


def _alarms(shortcuts: pd.DataFrame) -> list[str]:
    warnings = []
    for row in shortcuts[shortcuts.alarm != ""].itertuples():
        score = f"{row.metric} {row.held_out:.2f} [{row.low:.2f}, {row.high:.2f}] with groups held out"
        if row.alarm == "in sample":
            score = (
                f"{row.metric} {row.in_sample:.2f} in sample only ({score}): a split that cuts groups would reward it"
            )
        warnings.append(f"shortcut: {row.fact} predicts {row.task!r}: {score}; chance is {row.chance:.2f}")
    return warnings
