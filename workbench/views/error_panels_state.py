"""What the error view knows and what a person can do in it, in traits: no widget is made here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import traitlets

from workbench.analysis.errors import ErrorTable, errors_of
from workbench.analysis.mistakes.marks import Mark, Marks
from workbench.analysis.mistakes.outcomes import Outcomes, outcomes
from workbench.data.tables import ClipTable
from workbench.views.error_thumbnails import Span
from workbench.views.mailing import MailableBox

if TYPE_CHECKING:
    from workbench.views.error_panels import Look

ANY = "any"
ALL, WRONG, LASSO, AROUND = "all", "wrong", "selected", "around"


class ErrorState(MailableBox):
    """State of :class:`~workbench.views.error_view.ErrorView`: which clips are chosen, which one is open, marks."""

    look = traitlets.Unicode("confusion", help="what clips are chosen by")
    task = traitlets.Unicode(help="the task shown")
    truth = traitlets.Unicode(ANY, help="true class of the clips shown, or 'any'")
    predicted = traitlets.Unicode(ANY, help="predicted class of the clips shown, or 'any'")
    bin = traitlets.Int(-1, help="row of the calibration's bins, or -1 for all")
    slice = traitlets.Int(-1, help="row of the slices' table, or -1 for all clips")
    points = traitlets.Enum((ALL, WRONG, LASSO, AROUND), WRONG, help="which points of the map")
    selected = traitlets.List(traitlets.Unicode(), help="clip ids selected on the map")
    drag = traitlets.Enum(("lasso", "select"), "lasso", help="what dragging over the map does")
    page = traitlets.Int(0, min=0, help="page of clips, from 0")
    position = traitlets.Int(0, min=0, help="the open clip among those chosen, from 0")

    looks: "dict[str, Look]"

    def __init__(
        self, run: Any, clips: ClipTable | None, root: str | Path | None, split: str, page_size: int,
        marks: Marks | str | Path | None,
    ) -> None:  # fmt: skip
        if page_size < 1:
            raise ValueError(f"page_size={page_size} must be at least 1")
        super().__init__()
        self.run, self.split, self.page_size, self.clips = run, split, page_size, clips
        self.marks = Marks(marks) if isinstance(marks, str | Path) else marks
        self._root = _root_of(run, root, clips)
        self._positions = {} if clips is None else {str(c): i for i, c in enumerate(clips.frame.clip_id)}
        columns = ["path", "start_seconds", "end_seconds"]
        self._spans = [] if clips is None else list(clips.frame[columns].itertuples(index=False, name=None))
        self._known: dict[str, ErrorTable] = {}
        self._outcomes: dict[str, Outcomes | None] = {}
        self._ordered: dict[str, pd.DataFrame] = {}
        self._rows: pd.DataFrame | None = None
        self._quiet = 0
        self.looks = {}
        self.tasks = [run.task.name] if isinstance(run, ErrorTable) else [t.name for t in run.tasks]

    @traitlets.validate("task")
    def _known_task(self, proposal: Any) -> str:
        if proposal["value"] not in self.tasks:
            raise traitlets.TraitError(f"no task {proposal['value']!r}; there are {self.tasks}")
        return str(proposal["value"])

    @traitlets.validate("look")
    def _known_look(self, proposal: Any) -> str:
        offered = [one.name for one in self.looks.values() if one.offered()]
        if proposal["value"] not in offered:
            raise traitlets.TraitError(
                f"look={proposal['value']!r} is not offered for this run and task; {offered} are"
            )
        return str(proposal["value"])

    @property
    def table(self) -> ErrorTable:
        """Errors of the task shown."""
        if self.task not in self._known:
            out = self._outcome()
            self._known[self.task] = self.run if out is None else errors_of(self.run, out)
        return self._known[self.task]

    def all_clips(self) -> pd.DataFrame:
        """All clips of the task, in the columns of ``ErrorTable.mistakes``; mistakes first, the surest first."""
        if self.task not in self._ordered:
            mistakes, clips = self.table.mistakes, self.table.clips
            if "residual" not in mistakes and len(clips):
                right = clips.loc[~clips.wrong, list(mistakes.columns)]
                mistakes = pd.concat([mistakes, right], ignore_index=True)
            self._ordered[self.task] = mistakes
        return self._ordered[self.task]

    def _outcome(self) -> Outcomes | None:
        if self.task not in self._outcomes:
            given = isinstance(self.run, ErrorTable)
            self._outcomes[self.task] = None if given else outcomes(self.run, task=self.task, split=self.split)
        return self._outcomes[self.task]

    def has_probabilities(self) -> bool:
        """Whether the task's predictions come with probabilities."""
        out = self._outcome()
        return out is not None and out.rows.probabilities is not None

    def classes(self) -> tuple[str, ...]:
        """Classes of the task shown; empty for a regression."""
        task = self.table.task
        return () if task.kind == "regression" else task.classes or ("0", "1")

    def chances(self, clip_id: str) -> pd.Series | None:
        """Probability of each class for one clip, or None."""
        out = self._outcome()
        if out is None or out.rows.probabilities is None:
            return None
        at = int(np.searchsorted(out.rows.clip_id.astype(str), clip_id))
        if at >= len(out.rows) or str(out.rows.clip_id[at]) != clip_id:
            return None
        return pd.Series(out.rows.probabilities[at], index=list(out.names))

    def rows(self) -> pd.DataFrame:
        """The clips chosen, in the columns of ``ErrorTable.mistakes``."""
        if self._rows is None:
            self._rows = self.looks[self.look].rows()
        return self._rows

    @property
    def num_pages(self) -> int:
        return max(1, -(-len(self.rows()) // self.page_size))

    @property
    def current(self) -> str:
        """Id of the open clip; empty where there is none."""
        return str(self.rows().clip_id.iloc[self.position]) if self.position < len(self.rows()) else ""

    # What a person does

    def turn(self, pages: int) -> None:
        """Go forward or back, stopping at either end."""
        self.page = int(np.clip(self.page + pages, 0, self.num_pages - 1))

    def step(self, clips: int) -> None:
        """Open the next clip (or one before), turning the page where it ends."""
        self.go(self.position + clips)

    def go(self, position: int) -> None:
        """Open the clip at this place among those chosen, stopping at either end."""
        self.position = int(np.clip(position, 0, max(0, len(self.rows()) - 1)))

    def _open(self, place: int) -> None:
        self.go(self.page * self.page_size + place)

    def choose(self, truth: str, predicted: str) -> None:
        """Show one cell of the confusion matrix; an empty cell is left alone."""
        counts = self.cells()
        if truth in counts.index and predicted in counts.columns and counts.loc[truth, predicted] > 0:
            with self._as_one():
                self.look, self.truth, self.predicted = "confusion", truth, predicted

    def select(self, ids: Sequence[str]) -> None:
        """Show these clips of the map, as a lasso does."""
        with self._as_one():
            self.selected, self.points = list(ids), LASSO

    def mark(self, mark: str) -> Mark:
        """Mark the open clip, with the note and the right label that stand beside the buttons; written at once."""
        if self.marks is None or not self.current:
            raise ValueError('nothing to mark: give ErrorView(..., marks="marks.csv") and choose some clips')
        label, words = self.written()
        made = self.marks.set(
            self.current, self.task, mark, label=label if mark == "label error" else "", note=words
        )  # fmt: skip
        self._marked()
        return made

    def unmark(self) -> None:
        """Take the open clip's mark back."""
        if self.marks is not None and self.current:
            self.marks.remove(self.current, self.task)
            self._marked()

    def written(self) -> tuple[str, str]:
        """The right label and the note that stand beside the mark buttons."""
        raise NotImplementedError

    def _marked(self) -> None:
        """Show what has just been marked."""
        raise NotImplementedError

    def _on_choice(self, _: Any = None) -> None:
        """Show the clips chosen."""
        raise NotImplementedError

    def cells(self) -> pd.DataFrame:
        """The confusion matrix; without the right clips when only an ErrorTable is known."""
        counts = self.table.confusion
        if isinstance(self.run, ErrorTable) and not counts.empty:
            return counts.where(~np.eye(len(counts), dtype=bool), 0)
        return counts

    # Where a clip is

    def clip(self, clip_id: str) -> ClipTable:
        """The one-row table of a clip. Raises ValueError where the view has no table or the table lacks it."""
        if self.clips is None or clip_id not in self._positions:
            raise ValueError(f"clip {clip_id!r} is not in the table given; pass clips=, the table predicted on")
        return self.clips[[self._positions[clip_id]]]

    def table_of_clips(self) -> ClipTable:
        """The table given. Raises ValueError where none was."""
        if self.clips is None:
            raise ValueError("there is no table of clips; pass clips=, the table predicted on")
        return self.clips

    def can_encode(self, clip_id: str) -> bool:
        """Whether the run's network can be shown this clip."""
        return clip_id in self._positions and hasattr(self.run, "model")

    def _source(self, line: Any) -> Path | Span:
        clip_id = str(line.clip_id)
        if clip_id not in self._positions:
            return self._root / str(line.path)
        path, start, end = self._spans[self._positions[clip_id]]
        whole = self.table_of_clips().root / str(path)
        # A table of one row takes ten milliseconds to make: only where a clip has to be decoded.
        return whole if pd.isna(start) and pd.isna(end) else Span(whole, start, end, lambda: self.clip(clip_id))

    @contextmanager
    def _as_one(self) -> Iterator[None]:
        """Several traits change, one page is made."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1
        self._on_choice()


def _root_of(run: Any, root: str | Path | None, clips: ClipTable | None) -> Path:
    if root is not None or clips is not None:
        return Path(root if root is not None else clips.root)  # type: ignore[union-attr]
    data = dict(getattr(run, "record", None) or {}).get("data") or {}
    return Path(data.get("root") or ".")
