"""Look at every clip before training on it: what cannot be decoded, what leaks, what is out of balance."""

import html
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.data.cache import content_id, reason_of
from workbench.data.clips import ClipDecodeError, decoder_name, probe, read_clip
from workbench.data.guard import run_guarded
from workbench.data.splits import groups_across_splits
from workbench.data.tables import SPLITS, ClipTable

log = logging.getLogger(__name__)

_COMPARE_PX = 64
# Mean difference of decord's and PyAV's frames in grey levels (0..255), at 64 px. Measured on 56 odd files that both
# decode: conversions of 10-bit and 4:4:4 video differ by up to 3, other frames by 13 and more.
_NOTICEABLE, _OTHER_FRAMES = 1.0, 6.0
_IMBALANCE = 10


@dataclass(frozen=True)
class DoctorReport:
    """``table`` without the clips that cannot be trusted, ``files`` with a verdict per clip, ``warnings`` in words."""

    table: ClipTable
    files: pd.DataFrame
    """``path, verdict`` (``ok``, ``warning``, ``quarantined``), ``reason``, then ``clip_id`` and what was measured."""
    warnings: list[str]

    def counts(self) -> dict[str, int]:
        return {v: int((self.files.verdict == v).sum()) for v in ("ok", "warning", "quarantined")}

    def _headline(self) -> str:
        numbers = ", ".join(f"{n} {verdict}" for verdict, n in self.counts().items())
        return f"{self.table.info.name}: {len(self.files)} clips examined, {numbers}"

    def __str__(self) -> str:
        odd = self.files[self.files.verdict != "ok"]
        lines = [self._headline()]
        lines += [f"  {row.verdict}: {row.path}: {row.reason}" for row in odd.itertuples()]
        return "\n".join([*lines, *(f"  ! {warning}" for warning in self.warnings)])

    def _repr_html_(self) -> str:
        odd = self.files.loc[self.files.verdict != "ok", ["verdict", "path", "reason"]]
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in odd.itertuples(index=False)
        )
        table = f"<table><tr><th>verdict</th><th>file</th><th>reason</th></tr>{rows}</table>" if rows else ""
        notes = "".join(f"<li>{html.escape(warning)}</li>" for warning in self.warnings)
        return f"<p><b>{html.escape(self._headline())}</b></p>{f'<ul>{notes}</ul>' if notes else ''}{table}"


def inspect_file(
    path: str, start_seconds: float, end_seconds: float, num_frames: int, decoder: str, cross_check: bool
) -> dict[str, Any]:
    """Decode one clip as training will, and once more by PyAV when that was decord; runs in a child process."""
    info = probe(path, "pyav")
    options: dict[str, Any] = {"num_frames": num_frames, "size_px": _COMPARE_PX, "fit": "stretch"}
    options |= {"start_seconds": start_seconds, "end_seconds": end_seconds}
    frames = read_clip(path, decoder=decoder, **options)
    difference = 0.0
    if cross_check and decoder != "pyav":
        try:
            other = read_clip(path, decoder="pyav", **options)
        except ClipDecodeError as error:
            raise ClipDecodeError(path, f"damaged: decord shows frames, but PyAV stops ({error.reason})") from error
        difference = float(np.abs(frames.astype(np.int16) - other).mean())
    length = info.duration_seconds
    start = 0.0 if np.isnan(start_seconds) else max(0.0, start_seconds)
    shown = max(0.0, (length if np.isnan(end_seconds) else min(length, end_seconds)) - start)
    return {
        "num_frames": info.num_frames, "fps": info.fps, "seconds": shown, "width": info.width, "height": info.height,
        "variable_rate": info.variable_rate, "flat": bool(np.ptp(frames) == 0), "difference": difference,
        "content": content_id(Path(path)),
    }  # fmt: skip


def examine(
    table: ClipTable,
    *,
    num_frames: int = 16,
    decoder: str = "auto",
    cross_check: bool = True,
    workers: int = 2,
    time_limit_seconds: float = 60.0,
    progress: bool = True,
) -> DoctorReport:
    """Decode every clip in guarded child processes and judge it; then judge the table.

    Quarantined is what does not decode, hangs for ``time_limit_seconds``, crashes, or where decord and PyAV show
    different frames (``cross_check``). A warning is something to look at: fewer frames than ``num_frames`` (some will
    repeat), one flat colour throughout, colours that the decoders render differently. Train on the report's ``table``.
    """
    name, frame = decoder_name(decoder), table.frame
    items = [
        {
            "path": str(path), "start_seconds": float(start), "end_seconds": float(end),
            "num_frames": num_frames, "decoder": name, "cross_check": cross_check,
        }
        for path, start, end in zip(table.files(), frame.start_seconds, frame.end_seconds, strict=True)
    ]  # fmt: skip
    title = "examining" if progress else None
    outcomes = run_guarded(inspect_file, items, workers=workers, time_limit_seconds=time_limit_seconds, progress=title)
    rows = [
        {"path": path, **_verdict(outcome, num_frames), "clip_id": clip_id}
        for path, clip_id, outcome in zip(frame.path, frame.clip_id, outcomes, strict=True)
    ]
    files = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["path", "verdict", "reason", "clip_id"])
    bad = files[files.verdict == "quarantined"]
    for path, reason in zip(bad.path, bad.reason, strict=True):
        log.warning("quarantined %s: %s", path, reason)
    cleaned = table.with_quarantine(bad) if len(bad) else table
    return DoctorReport(cleaned, files, _table_warnings(table, cleaned, files))


def _verdict(outcome: Any, num_frames: int) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return {"verdict": "quarantined", "reason": reason_of(outcome)}
    if outcome["difference"] > _OTHER_FRAMES:
        reason = (
            f"decord and PyAV show different frames (mean difference {outcome['difference']:.0f} of 255); "
            "check the file, then decoder='pyav'"
        )
        return {"verdict": "quarantined", "reason": reason, **outcome}
    reasons = []
    shown = max(1, round(outcome["seconds"] * outcome["fps"]))
    if shown < num_frames:
        reasons.append(f"very short: about {shown} frame(s), so some of {num_frames} repeat")
    if outcome["flat"]:
        reasons.append("every frame is the same flat colour")
    if outcome["difference"] > _NOTICEABLE:
        reasons.append(f"decord and PyAV differ by {outcome['difference']:.1f} grey levels on average")
    return {"verdict": "warning" if reasons else "ok", "reason": "; ".join(reasons), **outcome}


def _table_warnings(table: ClipTable, cleaned: ClipTable, files: pd.DataFrame) -> list[str]:
    warnings = []
    leaks = groups_across_splits(table)
    if leaks:
        warnings.append(f"{len(leaks)} group(s) lie in more than one split ({_some(leaks)}): scores will be too good")
    warnings += _duplicates(table, files)
    for split in SPLITS:
        if not (cleaned.frame.split == split).any():
            warnings.append(
                f"no clip in split {split!r}" + (" that decodes" if (table.frame.split == split).any() else "")
            )
    for task in cleaned.tasks:
        warnings += _label_warnings(cleaned, task.name)
    if "variable_rate" in files and files.variable_rate.eq(True).any():
        count = int(files.variable_rate.eq(True).sum())
        warnings.append(
            f"{count} clip(s) have a variable frame rate: evenly spaced frames are not evenly spaced in time"
        )
    return warnings


def _duplicates(table: ClipTable, files: pd.DataFrame) -> list[str]:
    """Byte-identical files in two splits, or with two labels."""
    if "content" not in files:
        return []
    columns = ["start_seconds", "end_seconds", "split", "path", *(t.name for t in table.tasks)]
    joined = table.frame[columns].assign(content=files.content.to_numpy()).dropna(subset=["content"])
    joined = joined.fillna({"start_seconds": 0.0, "end_seconds": np.inf})
    warnings = []
    across = [g.path.unique() for _, g in joined.groupby("content") if g.split.nunique() > 1 and g.path.nunique() > 1]
    if across:
        pairs = [f"{paths[0]} = {paths[1]}" for paths in across]
        warnings.append(f"{len(across)} file(s) have an exact copy in another split ({_some(pairs)})")
    for task in table.tasks:
        clips = joined.groupby(["content", "start_seconds", "end_seconds"])[task.name]
        clash = int((clips.nunique() > 1).sum())
        if clash:
            warnings.append(f"{clash} clip(s) occur with two different labels of {task.name!r}")
    return warnings


def _label_warnings(table: ClipTable, name: str) -> list[str]:
    task, warnings = table.task(name), []
    targets, split = table.targets(name), table.frame.split.to_numpy(object)
    missing = int(np.isnan(targets).sum())
    if missing:
        warnings.append(f"task {name!r}: {missing} clip(s) have no label and are left out of its loss and metrics")
    if task.kind == "regression":
        return warnings
    classes = task.classes or ("0", "1")
    known = ~np.isnan(targets)
    train, other = (
        np.bincount(targets[known & side].astype(int), minlength=len(classes))
        for side in (split == "train", split != "train")
    )
    absent = [c for c, n in zip(classes, train, strict=True) if n == 0]
    if absent:
        warnings.append(f"task {name!r}: no train clip of {_some(absent)}")
    untested = [c for c, n in zip(classes, other, strict=True) if n == 0]
    if untested:
        warnings.append(f"task {name!r}: no val or test clip of {_some(untested)}")
    if train.min() and train.max() >= _IMBALANCE * train.min():
        large, small = classes[int(train.argmax())], classes[int(train.argmin())]
        warnings.append(
            f"task {name!r}: {large!r} has {train.max()} train clips, {small!r} only {train.min()}; "
            "read balanced metrics, not accuracy alone"
        )
    return warnings


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
