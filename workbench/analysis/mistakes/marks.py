"""What a person said of clips: a CSV that is whole after every mark, and the table of clips it corrects."""

import csv
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from workbench.data.tables import ClipTable

MARKS = ("label error", "ambiguous", "model error")
COLUMNS = ("clip_id", "task", "mark", "label", "note", "when")
_WAIT_SECONDS, _STALE_SECONDS = 10.0, 30.0


@dataclass(frozen=True)
class Mark:
    """One person's word on one clip and task: ``label`` is the right class where the given one is wrong, or empty."""

    clip_id: str
    task: str
    mark: str
    label: str = ""
    note: str = ""
    when: str = ""
    """UTC, ISO 8601."""


class Marks:
    """Marks on clips, kept in a CSV file: one row per clip and task, the latest word.

    Written whole on every change, beside the file and moved into its place, so that it survives a kernel that dies;
    each change starts from what is in the file, so that two views (or kernels) on one file keep each other's marks.
    The file opens in any spreadsheet. A missing file is an empty one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"{str(self.path)!r} is a folder; name the CSV file that marks go to, such as marks.csv")
        self._read()

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        counts = self.frame.mark.value_counts()
        said = ", ".join(f"{int(counts.get(m, 0))} {m}" for m in MARKS)
        return f"Marks in {self.path}: {said}"

    @property
    def frame(self) -> pd.DataFrame:
        """What the file holds now: ``clip_id, task, mark, label, note, when``, all text."""
        return pd.DataFrame([vars(m) for m in self._read().values()], columns=list(COLUMNS), dtype=object)

    def get(self, clip_id: str, task: str) -> Mark | None:
        """The mark of a clip on a task, or None."""
        return self._read().get((str(clip_id), task))

    def set(self, clip_id: str, task: str, mark: str, *, label: str = "", note: str = "") -> Mark:
        """Mark a clip, in place of what was said of it before. Raises ValueError on a mark that is not one of
        :data:`MARKS`, or a ``label`` with a mark that is no label error."""
        if mark not in MARKS:
            raise ValueError(f"mark={mark!r} is not one of {', '.join(MARKS)}")
        if label and mark != "label error":
            raise ValueError(f"label={label!r} with mark={mark!r}: only a label error has another right label")
        if not str(clip_id) or not task:
            raise ValueError("a mark needs a clip_id and a task")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = Mark(str(clip_id), task, mark, label, _plain(note), now)
        with self._changing() as marks:
            marks[made.clip_id, made.task] = made
        return made

    def remove(self, clip_id: str, task: str) -> None:
        """Take a mark back; one that is not there is none to take back."""
        with self._changing() as marks:
            marks.pop((str(clip_id), task), None)

    def corrected(self, clips: ClipTable, *, unknown: str = "mask", ambiguous: str = "keep") -> ClipTable:
        """``clips`` with marked label errors relabelled, ready for ``fine_tune``.

        A label error without a right label, by ``unknown``: ``mask`` (that task's label is missing) or ``drop`` (the
        clip goes). Ambiguous clips, by ``ambiguous``: ``keep``, ``mask`` or ``drop``. A model error changes nothing.
        Marks on clips or tasks that the table lacks are left out. Raises ValueError on a label the task does not know.
        """
        for name, value, allowed in (
            ("unknown", unknown, ("mask", "drop")), ("ambiguous", ambiguous, ("keep", "mask", "drop")),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        frame = clips.frame.copy()
        tasks = {t.name: t for t in clips.tasks}
        for name in tasks:
            frame[name] = frame[name].astype(object)
        rows = {str(c): i for i, c in enumerate(frame.clip_id)}
        dropped: set[int] = set()
        for mark in self._read().values():
            if mark.clip_id not in rows or mark.task not in tasks or mark.mark == "model error":
                continue
            row, column = rows[mark.clip_id], frame.columns.get_loc(mark.task)
            what = "relabel" if mark.label else unknown if mark.mark == "label error" else ambiguous
            if what == "relabel":
                task = tasks[mark.task]
                if task.kind in ("multiclass", "binary") and mark.label not in (task.classes or ("0", "1")):
                    raise ValueError(f"clip {mark.clip_id!r} is marked {mark.label!r}, which task {task.name!r} does "
                                     f"not know; it knows {task.classes or ('0', '1')}")  # fmt: skip
                frame.iloc[row, column] = _typed(clips, mark)
            elif what == "mask":
                frame.iloc[row, column] = None
            elif what == "drop":
                dropped.add(row)
        for name in tasks:
            before = clips.frame[name]
            numeric = pd.api.types.is_numeric_dtype(before)
            frame[name] = pd.to_numeric(frame[name]) if numeric else frame[name].astype(before.dtype)
        kept = frame.drop(index=sorted(dropped))
        return ClipTable(
            kept, clips.tasks, root=clips.root, info=clips.info, quarantine=clips.quarantine,
            allow_outside_root=clips.allow_outside_root,
        )  # fmt: skip

    @contextmanager
    def _changing(self) -> Iterator[dict[tuple[str, str], Mark]]:
        """What the file holds, to be changed; written when the block ends well, while no other writer may."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.path.with_name(f".{self.path.name}.lock")):
            marks = self._read()
            yield marks
            text = io.StringIO(newline="")
            writer = csv.writer(text)
            writer.writerow(COLUMNS)
            writer.writerows([getattr(m, c) for c in COLUMNS] for m in marks.values())
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
            os.replace(temporary, self.path)

    def _read(self) -> dict[tuple[str, str], Mark]:
        try:
            text = self.path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
        except FileNotFoundError:
            return {}
        reader = csv.DictReader(io.StringIO(text, newline=""))
        absent = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
        if absent and text.strip():
            raise ValueError(f"{str(self.path)!r} is no file of marks: it lacks the column(s) {absent}")
        marks = (Mark(**{c: row[c] or "" for c in COLUMNS}) for row in reader)
        return {(m.clip_id, m.task): m for m in marks}


def _typed(clips: ClipTable, mark: Mark) -> object:
    """The right label as the table's column holds labels."""
    task = clips.task(mark.task)
    if not pd.api.types.is_numeric_dtype(clips.frame[mark.task]):
        return mark.label
    if task.kind == "regression":
        return float(mark.label)
    return float((task.classes or ("0", "1")).index(mark.label))


def _plain(note: str) -> str:
    """One line: a note never breaks the file's rows for a reader that does not know quoted line breaks."""
    return " ".join(note.split())


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock file; one older than :data:`_STALE_SECONDS` was left by a process that died."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            try:
                if time.time() - lock.stat().st_mtime > _STALE_SECONDS:
                    lock.unlink(missing_ok=True)
                    continue
            except FileNotFoundError:  # released meanwhile
                continue
            if time.monotonic() > deadline:
                raise TimeoutError(f"{str(lock)!r} is held by another process; remove it if none is running") from None
            time.sleep(0.01)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
