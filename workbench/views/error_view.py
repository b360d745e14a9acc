"""Where a run fails: the confusion matrix, and the clips of any of its cells, playing."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets

from workbench.analysis.errors import ErrorTable, errors
from workbench.analysis.predictions import task_rows
from workbench.data.tables import ClipTable
from workbench.views.parts import FigureBox, dropdown, frozen, heading, note, row
from workbench.views.players import ClipPlayer, gallery
from workbench.views.plots import confusion_plot, residual_plot
from workbench.views.still import still
from workbench.views.style import VIEW_CSS, Html, number, shorten

ANY = "any"
KEPT_PLAYERS = 200


def right_clips(run: Any, table: ErrorTable) -> pd.DataFrame:
    """The clips the run got right on the table's task, in the columns of ``table.mistakes``."""
    if table.task.kind == "regression":
        return table.mistakes.head(0)
    rows = task_rows(run, table.task, table.protocol.split)
    names = np.array(table.task.classes or ("0", "1"), dtype=object)
    right = rows.target == rows.prediction
    said = rows.prediction[right].astype(int)
    sure = np.full(len(said), np.nan) if rows.probabilities is None else rows.probabilities[right, said]
    return pd.DataFrame(
        {
            "clip_id": rows.clip_id[right], "path": rows.path[right], "truth": names[said], "predicted": names[said],
            "confidence": sure,
        }
    )  # fmt: skip


class ErrorView(ipywidgets.VBox):
    """Page through the errors of a run, or of one :class:`~workbench.analysis.errors.ErrorTable`.

    Args:
        run: a Run, ``Predictions`` or ``ErrorTable`` (which holds the mistakes of one task only).
        clips: the table the predictions were made on; gives the files, and start and end of clips within a file.
        root: folder that the predictions' paths are relative to; default: that of ``clips``, else of the run's record.
        task: the task shown first. page_size: clips per page.

    ``truth`` and ``predicted`` choose a cell of the confusion matrix; ``any`` and ``any`` are all mistakes, the most
    confident first. A click on a cell of the plot chooses it too.
    """

    task = traitlets.Unicode(help="the task shown")
    truth = traitlets.Unicode(ANY, help="true class of the clips shown, or 'any'")
    predicted = traitlets.Unicode(ANY, help="predicted class of the clips shown, or 'any'")
    page = traitlets.Int(0, min=0, help="page of clips, from 0")

    def __init__(
        self,
        run: Any,
        *,
        clips: ClipTable | None = None,
        root: str | Path | None = None,
        task: str | None = None,
        split: str = "test",
        page_size: int = 8,
    ) -> None:
        if page_size < 1:
            raise ValueError(f"page_size={page_size} must be at least 1")
        self.run, self.split, self.page_size = run, split, page_size
        self._clips, self._root = clips, _root_of(run, root, clips)
        self._positions = {} if clips is None else {str(c): i for i, c in enumerate(clips.frame.clip_id)}
        self._known: dict[str, tuple[ErrorTable, pd.DataFrame]] = {}
        self._players: OrderedDict[str, ClipPlayer] = OrderedDict()
        self.tasks = [run.task.name] if isinstance(run, ErrorTable) else [t.name for t in run.tasks]
        self._build()
        self.task = task or self.tasks[0]
        self._offer_truth()
        for trait in ("task", "truth", "predicted"):
            traitlets.link((self, trait), (self._menus[trait], "value"))
        self.observe(self._on_task, "task")
        self.observe(self._on_truth, "truth")
        self.observe(self._on_cell, "predicted")
        self.observe(lambda _: self._show_page(), "page")
        self._show_plot()
        self._show_page()

    def _build(self) -> None:
        self._menus = {
            "task": dropdown("Task", self.tasks),
            "truth": dropdown("Truth", [ANY]),
            "predicted": dropdown("Predicted", [ANY]),
        }
        self._plot, self._gallery, self._where = FigureBox(), ipywidgets.HTML(), ipywidgets.HTML()
        self._back = ipywidgets.Button(description="Previous page", icon="chevron-left")
        self._next = ipywidgets.Button(description="Next page", icon="chevron-right")
        self._back.on_click(lambda _: self.turn(-1))
        self._next.on_click(lambda _: self.turn(1))
        self._caption = ipywidgets.HTML()
        super().__init__(
            [
                ipywidgets.HTML(VIEW_CSS), row(self._menus["task"]), self._plot.box, self._caption,
                row(self._menus["truth"], self._menus["predicted"], self._back, self._next, self._where), self._gallery,
            ]
        )  # fmt: skip
        self.add_class("wb-view")

    @traitlets.validate("task")
    def _known_task(self, proposal: Any) -> str:
        if proposal["value"] not in self.tasks:
            raise traitlets.TraitError(f"no task {proposal['value']!r}; there are {self.tasks}")
        return str(proposal["value"])

    @property
    def table(self) -> ErrorTable:
        """Errors of the task shown."""
        return self._of_task()[0]

    def _of_task(self) -> tuple[ErrorTable, pd.DataFrame]:
        if self.task not in self._known:
            if isinstance(self.run, ErrorTable):
                self._known[self.task] = (self.run, self.run.mistakes.head(0))
            else:
                table = errors(self.run, task=self.task, split=self.split)
                self._known[self.task] = (table, right_clips(self.run, table))
        return self._known[self.task]

    def rows(self) -> pd.DataFrame:
        """The clips of the chosen cell, in the columns of ``ErrorTable.mistakes``."""
        table, right = self._of_task()
        if self.truth == ANY and self.predicted == ANY:
            return table.mistakes
        rows = pd.concat([table.mistakes, right], ignore_index=True) if len(right) else table.mistakes
        if self.truth != ANY:
            rows = rows[rows["truth"] == self.truth]
        if self.predicted != ANY:
            return rows[rows["predicted"] == self.predicted]
        return rows[rows["truth"] != rows["predicted"]]

    @property
    def num_pages(self) -> int:
        return max(1, -(-len(self.rows()) // self.page_size))

    def turn(self, pages: int) -> None:
        """Go forward or back, stopping at either end."""
        self.page = int(np.clip(self.page + pages, 0, self.num_pages - 1))

    def _counts(self) -> pd.DataFrame:
        """The confusion matrix; without the right clips when only an ErrorTable is known."""
        counts = self.table.confusion
        if isinstance(self.run, ErrorTable) and not counts.empty:
            off = ~np.eye(len(counts), dtype=bool)
            return counts.where(off, 0)
        return counts

    def _offer_truth(self) -> None:
        counts = self._counts()
        options = [("any (all mistakes)", ANY)]
        options += [(f"{shorten(str(c), 40)} ({int(n)})", str(c)) for c, n in counts.sum(axis=1).items() if n]
        self._fill("truth", options)
        self._offer_predicted()

    def _offer_predicted(self) -> None:
        counts = self._counts()
        if self.truth != ANY:
            counts = counts.loc[[self.truth]]
        options = [("any wrong class", ANY)]
        options += [(f"{shorten(str(c), 40)} ({int(n)})", str(c)) for c, n in counts.sum(axis=0).items() if n]
        self._fill("predicted", options)

    def _fill(self, trait: str, options: list[tuple[str, str]]) -> None:
        menu, kept = self._menus[trait], getattr(self, trait)
        chosen = kept if kept in [v for _, v in options] else ANY
        menu.options, menu.disabled = options, len(options) == 1
        setattr(self, trait, chosen)
        menu.value = chosen

    def _on_task(self, _: Any) -> None:
        self.truth = self.predicted = ANY
        self._offer_truth()
        self._show_plot()
        self._on_cell()

    def _on_truth(self, _: Any) -> None:
        self._offer_predicted()
        self._on_cell()

    def _on_cell(self, _: Any = None) -> None:
        self.page = 0
        self._show_page()

    def choose(self, truth: str, predicted: str) -> None:
        """Show one cell of the confusion matrix; an empty cell is left alone."""
        counts = self._counts()
        if truth in counts.index and predicted in counts.columns and counts.loc[truth, predicted] > 0:
            self.truth, self.predicted = truth, predicted

    def _figure(self) -> go.Figure:
        return residual_plot(self.table) if self.table.confusion.empty else confusion_plot(self.table)

    def _show_plot(self) -> None:
        self._plot.show(self._figure())
        self._caption.value = note(self.table.caption)
        if not self.table.confusion.empty:
            self._plot.widget.data[0].on_click(self._on_click)

    def _on_click(self, _trace: Any, points: Any, _state: Any) -> None:
        if points.xs:
            classes = self.table.confusion.index
            self.choose(str(classes[int(points.ys[0])]), str(classes[int(points.xs[0])]))

    def _player(self, line: Any) -> ClipPlayer:
        key = f"{self.task} {line.clip_id}"
        if key not in self._players:
            self._players[key] = error_player(line, self._source(line))
            if len(self._players) > KEPT_PLAYERS:
                self._players.popitem(last=False)
        self._players.move_to_end(key)
        return self._players[key]

    def _source(self, line: Any) -> Path | ClipTable:
        if self._clips is not None and str(line.clip_id) in self._positions:
            return self._clips[[self._positions[str(line.clip_id)]]]
        return self._root / str(line.path)

    def _page_html(self) -> str:
        start = self.page * self.page_size
        lines = self.rows().iloc[start : start + self.page_size]
        return gallery((self._player(line) for line in lines.itertuples()), empty="No clips in this cell.")

    def _show_page(self) -> None:
        self._gallery.value = self._page_html()
        count = len(self.rows())
        self._where.value = note(f"{count} clip(s), page {self.page + 1} of {self.num_pages}")
        self._back.disabled, self._next.disabled = self.page == 0, self.page >= self.num_pages - 1

    def freeze(self) -> Html:
        """Static HTML: the plot as SVG, and the clips of the page shown, playing."""
        cell = f"truth {self.truth}, predicted {self.predicted}: {len(self.rows())} clip(s), page {self.page + 1}"
        plot = still(self._figure(), label=f"errors on {self.task}")
        return frozen(f"Errors: {self.task}", plot, note(self.table.caption), heading(cell), self._page_html())


def _root_of(run: Any, root: str | Path | None, clips: ClipTable | None) -> Path:
    if root is not None or clips is not None:
        return Path(root if root is not None else clips.root)  # type: ignore[union-attr]
    data = dict(getattr(run, "record", None) or {}).get("data") or {}
    return Path(data.get("root") or ".")


def error_player(line: Any, source: Path | ClipTable | np.ndarray) -> ClipPlayer:
    """One row of ``ErrorTable.mistakes`` (a named tuple) as a player captioned by truth and prediction."""
    caption = f"truth: {number(line.truth)}\npredicted: {number(line.predicted)}"
    residual, confidence = getattr(line, "residual", None), getattr(line, "confidence", None)
    if residual is not None:
        caption += f"\nresidual: {residual:+.3f}"
    elif confidence is not None and not pd.isna(confidence):
        caption += f" (confidence {confidence:.0%})"
    return ClipPlayer(source, title=str(line.clip_id), caption=caption)
