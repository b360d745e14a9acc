"""The table that travels: one row per clip, one column per task."""

import hashlib
import json
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.data.tasks import KINDS as KINDS
from workbench.data.tasks import REQUIRED as REQUIRED
from workbench.data.tasks import Task as Task

if TYPE_CHECKING:
    from workbench.data.doctor import DoctorReport

SPLITS = ("train", "val", "test")
DECODERS = ("auto", "decord", "pyav", "torchcodec")
_HASHED_ROWS = 50_000
"""Rows turned into text at a time by :meth:`ClipTable.fingerprint`: a few MB, however long the table."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a person must know of a data set before training on it; ``dataset.toml`` beside the table."""

    name: str
    licence: str = "unknown"
    source: str = ""
    horizontal_flip: bool = False
    """Whether mirroring a clip keeps every label true. False by default: a flip turns "left" into "right"."""
    time_reversal: bool = False
    """Whether playing a clip backwards keeps every label true. False by default: it turns "open" into "close"."""


def _relative(root: Path, folder: Path) -> str:
    """``root`` seen from ``folder``, ``/`` separated; absolute where they share no drive."""
    try:
        return Path(os.path.relpath(root, folder)).as_posix()
    except ValueError:
        return root.resolve().as_posix()


def _leaves_root(path: str) -> bool:
    """Whether a relative path could point outside its root, on Windows too (``..\\x``, ``C:x``, ``//host/x``)."""
    pure = PureWindowsPath(path)  # takes both / and \\ for separators
    return bool(pure.drive or pure.root or ".." in pure.parts)


class ClipTable:
    """Clips with labels: a pandas ``frame`` (one row per clip), its ``tasks`` and where its files are.

    Columns of ``frame``: ``clip_id`` (unique), ``path`` (relative to ``root``, ``/`` separated), ``start_seconds`` and
    ``end_seconds`` (NaN: the whole file), ``split`` (``train``, ``val``, ``test``), ``group`` (what must stay on one
    side of a split: source video, camera, person), one column per task, and free metadata columns. A column
    ``decoder`` is optional: where it is not missing, that clip is read with that decoder and no other.
    ``quarantine`` lists what was taken out and why (``clip_id, path, reason``); it is counted in every report.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        tasks: Iterable[Task],
        *,
        root: str | Path = ".",
        info: DatasetInfo | None = None,
        quarantine: pd.DataFrame | None = None,
        allow_outside_root: bool = False,
    ) -> None:
        self.frame = frame.reset_index(drop=True)
        self.tasks = tuple(tasks)
        self.root = Path(root)
        self.info = info or DatasetInfo(name=self.root.resolve().name or "clips")
        self.quarantine = quarantine if quarantine is not None else pd.DataFrame(columns=["clip_id", "path", "reason"])
        self.allow_outside_root = allow_outside_root
        self._check()

    def _check(self) -> None:
        missing = [c for c in (*REQUIRED, *(t.name for t in self.tasks)) if c not in self.frame.columns]
        if missing:
            raise ValueError(f"the clip table lacks the column(s) {missing}; it has {list(self.frame.columns)}")
        for column in ("clip_id", "path"):
            if self.frame[column].isna().any():
                raise ValueError(f"{int(self.frame[column].isna().sum())} row(s) of the clip table have no {column}")
        tasks = [t.name for t in self.tasks]
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"the tasks {tasks} name one twice")
        twice = self.frame.clip_id[self.frame.clip_id.duplicated()].unique()
        if len(twice):
            raise ValueError(
                f"clip_id must be unique; given more than once: {list(twice[:5])}. Without a "
                "column clip_id it is path, start_seconds and end_seconds: remove the repeated rows, or name each"
            )
        for column, allowed in (("split", SPLITS), ("decoder", DECODERS)):
            given = self.frame[column].dropna().unique() if column in self.frame else ()
            odd = sorted({str(v) for v in given} - set(allowed))
            if odd:
                raise ValueError(f"{column} must be one of {allowed} or missing; found {odd[:5]}")
        if not self.allow_outside_root:
            # One vectorised look at all rows; only what could be an escape is parsed.
            suspects = self.frame.path[self.frame.path.astype(str).str.contains(r"^(?:.?:|[/\\])|\.\.", regex=True)]
            for path in suspects:
                if _leaves_root(str(path)):
                    raise ValueError(
                        f"path {path!r} leaves the table's root {str(self.root)!r}; "
                        "pass allow_outside_root=True if that is meant"
                    )

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        sizes = self.frame.split.value_counts()
        splits = ", ".join(f"{s} {sizes.get(s, 0)}" for s in SPLITS) if len(sizes) else "in no split"
        tasks = ", ".join(
            f"{t.name} ({t.kind}{f', {t.num_outputs} classes' if t.kind.startswith('multi') else ''})"
            for t in self.tasks
        )
        gone = f"; {len(self.quarantine)} quarantined" if len(self.quarantine) else ""
        counts = f"{len(self)} clips ({splits}), {self.frame.group.nunique()} groups{gone}"
        return f"ClipTable {self.info.name!r}: {counts}\n  tasks: {tasks or 'none'}"

    def __getitem__(self, rows: Any) -> "ClipTable":
        """A sub-table by boolean mask, positions or slice."""
        if isinstance(rows, int | np.integer | str):
            raise TypeError(
                f"clips[{rows!r}]: give a slice (clips[3:4]), positions or a mask; clips.split takes a split"
            )
        if isinstance(rows, slice):
            return self._with(self.frame.iloc[rows])
        rows = np.asarray(rows) if len(rows) else np.array([], int)
        return self._with(self.frame[rows] if rows.dtype == bool else self.frame.iloc[rows])

    def _with(self, frame: pd.DataFrame, **changes: Any) -> "ClipTable":
        parts: dict[str, Any] = {
            "tasks": self.tasks, "root": self.root, "info": self.info, "quarantine": self.quarantine,
            "allow_outside_root": self.allow_outside_root,
        }  # fmt: skip
        return ClipTable(frame, **(parts | changes))

    def split(self, name: str) -> "ClipTable":
        """The clips of one split; a clear error where there are none."""
        if name not in SPLITS:
            raise ValueError(f"split={name!r} is not one of {SPLITS}")
        return self._with(self.frame[self.frame.split == name])

    @property
    def train(self) -> "ClipTable":
        return self.split("train")

    @property
    def val(self) -> "ClipTable":
        return self.split("val")

    @property
    def test(self) -> "ClipTable":
        return self.split("test")

    def head(self, n: int = 5) -> "ClipTable":
        return self._with(self.frame.head(n))

    def task(self, name: str) -> Task:
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"no task {name!r} in this table; it has {[t.name for t in self.tasks]}")

    def with_tasks(self, names: Iterable[str]) -> "ClipTable":
        """The same clips with only these tasks (or this one), in this order."""
        return self._with(self.frame, tasks=[self.task(n) for n in ([names] if isinstance(names, str) else names)])

    def targets(self, task: str) -> np.ndarray:
        """Encoded labels of one task: float64 (n,), for a multilabel task (n, K); NaN where missing."""
        return self.task(task).encode(self.frame[task])

    def files(self) -> list[Path]:
        """Absolute-able paths of the rows, in order."""
        return [self.root / p for p in self.frame.path]

    def with_quarantine(self, bad: pd.DataFrame) -> "ClipTable":
        """Take out the clips named in ``bad`` (``clip_id, path, reason``) and remember why."""
        rows = bad[["clip_id", "path", "reason"]]
        known = rows if self.quarantine.empty else pd.concat([self.quarantine, rows], ignore_index=True)
        keep = self.frame[~self.frame.clip_id.isin(bad.clip_id)]
        return self._with(keep, quarantine=known.drop_duplicates("clip_id").reset_index(drop=True))

    def doctor(self, **options: Any) -> "DoctorReport":
        """Decode every file in child processes and report; see :func:`workbench.data.doctor.examine`."""
        from workbench.data.doctor import examine

        return examine(self, **options)

    def fingerprint(self) -> str:
        """Sixteen hex digits that change when a clip, a label, a split or a group does."""
        columns = [*REQUIRED, *(t.name for t in self.tasks)]
        if "decoder" in self.frame and self.frame.decoder.notna().any():
            columns.append("decoder")
        order = self.frame.clip_id.sort_values().index.to_numpy()
        digest = hashlib.sha256()
        for start in range(0, max(1, len(order)), _HASHED_ROWS):
            rows = self.frame[columns].iloc[order[start : start + _HASHED_ROWS]]
            digest.update(rows.to_csv(index=False, header=start == 0, float_format="%.9g").encode())
        digest.update(repr([t.to_json() for t in self.tasks]).encode())
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> Path:
        """Write ``clips.parquet`` and ``dataset.toml`` into ``folder``.

        Clips stay where they are; a ``root`` other than ``folder`` is noted relative to it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.frame.to_parquet(folder / "clips.parquet", index=False)
        self.quarantine.to_parquet(folder / "quarantine.parquet", index=False)
        (folder / "dataset.toml").write_text(self._toml(_relative(self.root, folder)), encoding="utf-8")
        return folder

    def _toml(self, root: str) -> str:
        def quote(text: str) -> str:
            # TOML basic strings take JSON's escapes.
            return json.dumps(text, ensure_ascii=False)

        lines = [
            f"name = {quote(self.info.name)}",
            f"licence = {quote(self.info.licence)}",
            f"source = {quote(self.info.source)}",
            *([] if root == "." else [f"root = {quote(root)}"]),
            "",
            "[label_safe]",
            f"horizontal_flip = {str(self.info.horizontal_flip).lower()}",
            f"time_reversal = {str(self.info.time_reversal).lower()}",
        ]
        for task in self.tasks:
            classes = ", ".join(quote(c) for c in task.classes)
            lines += [
                "",
                "[[tasks]]",
                f"name = {quote(task.name)}",
                f"kind = {quote(task.kind)}",
                f"classes = [{classes}]",
            ]
        return "\n".join(lines) + "\n"

    @staticmethod
    def load(folder: str | Path, *, allow_outside_root: bool = False) -> "ClipTable":
        """Read what :meth:`save` wrote; files are looked for under ``folder`` or the ``root`` its card names."""
        folder = Path(folder)
        file = folder / "dataset.toml"
        try:
            card = tomllib.loads(file.read_text(encoding="utf-8"))
            info = DatasetInfo(
                name=card["name"], licence=card["licence"], source=card["source"],
                horizontal_flip=bool(card["label_safe"]["horizontal_flip"]),
                time_reversal=bool(card["label_safe"].get("time_reversal", False)),
            )  # fmt: skip
            tasks = [Task.from_json(t) for t in card.get("tasks", [])]
        except (KeyError, tomllib.TOMLDecodeError) as error:
            raise ValueError(
                f"{str(file)!r} is not the card of a saved table ({error!r}); save the table anew"
            ) from error
        return ClipTable(
            pd.read_parquet(folder / "clips.parquet"),
            tasks,
            root=folder / card["root"] if "root" in card else folder,
            info=info,
            quarantine=pd.read_parquet(folder / "quarantine.parquet"),
            allow_outside_root=allow_outside_root,
        )

    def __add__(self, other: "ClipTable") -> "ClipTable":
        """Both tables as one; see :func:`workbench.data.combine.concat`."""
        from workbench.data.combine import concat

        return concat([self, other]) if isinstance(other, ClipTable) else NotImplemented

    def renamed(self, name: str) -> "ClipTable":
        return self._with(self.frame, info=replace(self.info, name=name))
