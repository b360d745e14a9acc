"""Where a run fails: choose clips by a plot, page through them playing, open one, say what is wrong with it."""

from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from workbench.analysis.mistakes.calibration import Calibration
from workbench.analysis.mistakes.embedding import Embedding
from workbench.analysis.mistakes.label_errors import LabelErrors
from workbench.analysis.mistakes.marks import Marks
from workbench.analysis.mistakes.slices import Slices
from workbench.data.tables import ClipTable
from workbench.views.error_panels import Confusion, Failing, Look, Reliability, Suspects
from workbench.views.error_panels_detail import Detail
from workbench.views.error_panels_gallery import Gallery, Line
from workbench.views.error_panels_map import Map
from workbench.views.error_panels_state import ANY, AROUND, WRONG, ErrorState
from workbench.views.error_thumbnails import Thumbnails, waiting
from workbench.views.parts import FigureBox, dropdown, frozen, heading, note, row
from workbench.views.players import ClipPlayer, gallery
from workbench.views.still import still
from workbench.views.style import VIEW_CSS, Html, number

OPEN_PX = 320  # width of the open clip


class ErrorView(ErrorState):
    """Browse the errors of a run, or of one :class:`~workbench.analysis.errors.ErrorTable`.

    Args:
        run: a Run, ``Predictions`` or ``ErrorTable`` (which holds the mistakes of one task only).
        clips: the table the predictions were made on; gives the files, and start and end of clips within a file, and is
            needed for slices, the map, attribution and neighbours.
        root: folder that the predictions' paths are relative to; default: that of ``clips``, else of the run's record.
        task: the task shown first. page_size: clips per page.
        marks: a :class:`~workbench.analysis.mistakes.marks.Marks` or the path of its CSV; None: no marking.
        calibration, slices, embedding, label_errors: results of those verbs for one task; what is not given is computed
            when it is first looked at (slices then by the table's columns alone).
        thumbnails: folder of the encoded clips. behind: encode in a thread; None: where a notebook kernel runs.

    ``look`` chooses how clips are chosen: ``confusion`` (``truth``, ``predicted``; ``any`` and ``any`` are all
    mistakes, the most confident first), ``calibration`` (``bin``), ``slices`` (``slice``), ``map`` (``points``,
    ``selected``) or ``labels``. A click, or a lasso, in the plot chooses too. ``position`` is the open clip
    among all chosen.
    """

    def __init__(
        self,
        run: Any,
        *,
        clips: ClipTable | None = None,
        root: str | Path | None = None,
        task: str | None = None,
        split: str = "test",
        page_size: int = 8,
        marks: Marks | str | Path | None = None,
        calibration: Calibration | None = None,
        slices: Slices | None = None,
        embedding: Embedding | None = None,
        label_errors: LabelErrors | None = None,
        thumbnails: str | Path | None = None,
        behind: bool | None = None,
    ) -> None:
        super().__init__(run, clips, root, split, page_size, marks)
        self.thumbnails, self._said = Thumbnails(thumbnails), dict[tuple[str, str], str]()
        self._shown: tuple[Any, ...] = ()
        self._build(_in_kernel() if behind is None else behind)
        self.task = task or self.tasks[0]
        self._confusion, self._map = Confusion(self), Map(self, embedding)
        others: tuple[Look, ...] = (Reliability(self, calibration), Failing(self, slices), self._map,
                                    Suspects(self, label_errors))  # fmt: skip
        self.looks = {one.name: one for one in (self._confusion, *others)}
        self._offer_looks()
        for trait in ("task", "look"):
            traitlets.link((self, trait), (self._menus[trait], "value"))
        self.looks[self.look].start()
        self.observe(self._on_task, "task")
        self.observe(self._on_look, "look")
        self.observe(self._on_truth, "truth")
        self.observe(self._on_points, "points")
        self.observe(self._on_choice, [trait for one in self.looks.values() for trait in one.traits])
        self.observe(self._on_page, "page")
        self.observe(self._on_position, "position")
        self._show_look()
        self._show_rows()

    def _build(self, behind: bool) -> None:
        self._menus = {"task": dropdown("Task", self.tasks), "look": dropdown("Look by", [("confusion", "confusion")])}
        self._plot, self._where, self._caption = FigureBox(), ipywidgets.HTML(), ipywidgets.HTML()
        self._controls = row()
        self._back = ipywidgets.Button(description="Previous page", icon="chevron-left")
        self._next = ipywidgets.Button(description="Next page", icon="chevron-right")
        self._back.on_click(lambda _: self.turn(-1))
        self._next.on_click(lambda _: self.turn(1))
        self._gallery = Gallery(self.page_size, self._open, store=self.thumbnails, behind=behind, on_ready=self._ready)
        self._gallery.box.layout.flex = "2 1 500px"
        self.detail = Detail(self)
        below = ipywidgets.HBox(
            [self._gallery.box, self.detail],
            layout=ipywidgets.Layout(flex_flow="row wrap", grid_gap="16px", width="100%"),
        )  # fmt: skip
        self.children = (
            ipywidgets.HTML(VIEW_CSS), row(self._menus["task"], self._menus["look"]), self._plot.box, self._caption,
            self._controls, row(self._back, self._next, self._where), below,
        )  # fmt: skip
        self.add_class("wb-view")

    def _marked(self) -> None:
        self._read_marks()
        self.detail.refresh()
        place = self.position - self.page * self.page_size
        self._gallery.recaption(place, self._line(self._at(self.position)))

    def _offer_looks(self) -> None:
        menu, offered = self._menus["look"], [one for one in self.looks.values() if one.offered()]
        if self.look not in [one.name for one in offered]:
            self.look = "confusion"
        options = tuple((one.words, one.name) for one in offered)
        if tuple(menu.options) != options:
            kept = self.look
            menu.options = options
            self.look = menu.value = kept
        menu.disabled = len(options) == 1

    def _on_task(self, _: Any) -> None:
        with self._as_one():
            self.truth = self.predicted = ANY
            self.bin, self.slice, self.selected, self.points = -1, -1, [], WRONG
            self._offer_looks()
            self.looks[self.look].start()
            self._show_look()

    def _on_look(self, _: Any) -> None:
        with self._as_one():
            self.looks[self.look].start()
            self._show_look()

    def _on_truth(self, _: Any) -> None:
        self._confusion.offer_predicted()

    def _on_points(self, _: Any) -> None:
        if self.points == AROUND and self.current:
            self.selected = self._map.around(self.current)

    def _on_choice(self, _: Any = None) -> None:
        if self._quiet:
            return
        self._rows = None
        self._quiet += 1
        self.page = self.position = 0
        self._quiet -= 1
        self._highlight()
        self._show_rows()

    def _on_page(self, _: Any) -> None:
        if not self._quiet:
            self._quiet += 1
            self.position = min(self.page * self.page_size, max(0, len(self.rows()) - 1))
            self._quiet -= 1
            self._show_rows()

    def _on_position(self, _: Any) -> None:
        if not self._quiet:
            page = self.position // self.page_size
            if page != self.page:
                self._quiet += 1
                self.page = page
                self._quiet -= 1
                self._show_rows()
            else:
                self._show_detail()

    def _show_look(self) -> None:
        look = self.looks[self.look]
        self._controls.children = look.controls
        self._caption.value = note(look.caption())
        self._show_plot()

    def _show_plot(self) -> None:
        if self._shown[:1] != (self.look,):
            self._plot.live = False  # another kind of plot is another widget, not one with its traces exchanged
        self._plot.show(self.looks[self.look].figure())
        self._shown = self._state()
        self.looks[self.look].wire(self._plot.widget)

    def _highlight(self) -> None:
        """Within the figure where the browser has it; before that it would miss the change (see FigureBox)."""
        before, now = self._shown, self._state()
        if before == now or self.look == "confusion":
            return
        if self._plot.live and before[:2] == now[:2]:
            self.looks[self.look].highlight(self._plot.widget)
            self._shown = now
        else:
            self._show_plot()

    def _state(self) -> tuple[Any, ...]:
        """What the plot shows: the look, the task, and what is chosen in it."""
        traits = self.looks[self.look].traits
        return (self.look, self.task, *(repr(getattr(self, trait)) for trait in traits))

    def _on_click(self, trace: Any, points: Any, state: Any) -> None:
        self._confusion.on_click(trace, points, state)

    def _show_rows(self) -> None:
        self._read_marks()
        start = self.page * self.page_size
        lines = [self._line(line) for line in self.rows().iloc[start : start + self.page_size].itertuples()]
        ahead = self.rows().iloc[start + self.page_size : start + 2 * self.page_size].itertuples()
        empty = "No clips in this cell." if self.look == "confusion" else "No clips are chosen."
        self._gallery.show(lines, [self._line(line) for line in ahead], empty=empty)
        self._where.value = note(f"{len(self.rows())} clip(s), page {self.page + 1} of {self.num_pages}")
        self._back.disabled, self._next.disabled = self.page == 0, self.page >= self.num_pages - 1
        self._show_detail()

    def _ready(self, place: int) -> None:
        if self.position == self.page * self.page_size + place:
            self.detail.refresh()

    def _at(self, position: int) -> Any:
        return next(self.rows().iloc[position : position + 1].itertuples(), None)

    def _show_detail(self) -> None:
        self.detail.show(self._at(self.position), self.position, len(self.rows()))

    def _line(self, line: Any) -> Line:
        caption = error_caption(line)
        found = self._said.get((str(line.clip_id), self.task))
        if found is not None:
            caption += f"\nmarked: {found}"
        return str(line.clip_id), caption, self._source(line)

    def _read_marks(self) -> None:
        marks = () if self.marks is None else self.marks.frame.itertuples()
        self._said = {(m.clip_id, m.task): m.mark for m in marks}

    def written(self) -> tuple[str, str]:
        return self.detail.label, self.detail.note

    def picture(self, line: Any) -> str:
        """The open clip, playing, larger than in the gallery."""
        title, caption, source = self._line(line)
        found = self.thumbnails.get(source, title=title, caption=caption, width_px=OPEN_PX)
        return waiting(title, caption, OPEN_PX) if found is None else str(found.html())

    def _page_html(self) -> str:
        """The clips of the page, all of them encoded."""
        start = self.page * self.page_size
        lines = map(self._line, self.rows().iloc[start : start + self.page_size].itertuples())
        empty = "No clips in this cell." if self.look == "confusion" else "No clips are chosen."
        return gallery((self.thumbnails.make(source, title=t, caption=c) for t, c, source in lines), empty=empty)

    def freeze(self) -> Html:
        """Static HTML: the plot as SVG, and the clips of the page shown, playing."""
        look = self.looks[self.look]
        cell = f"{look.chosen()}: {len(self.rows())} clip(s), page {self.page + 1}"
        plot = still(look.still_figure(), label=f"errors on {self.task}: {look.words}")
        return frozen(f"Errors: {self.task}", plot, note(look.caption()), heading(cell), self._page_html())

    def close(self) -> None:
        """Close the widgets and end the encoding thread."""
        if hasattr(self, "_gallery"):  # a view that was refused in its making has none
            self._gallery.close()
        super().close()


def _in_kernel() -> bool:
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def error_caption(line: Any) -> str:
    """Truth and prediction of one row of ``ErrorTable.mistakes`` (a named tuple), in lines."""
    caption = f"truth: {number(line.truth)}\npredicted: {number(line.predicted)}"
    residual, confidence = getattr(line, "residual", None), getattr(line, "confidence", None)
    if residual is not None:
        return f"{caption}\nresidual: {residual:+.3f}"
    return f"{caption} (confidence {confidence:.0%})" if confidence is not None and not pd.isna(confidence) else caption


def error_player(line: Any, source: Path | ClipTable | np.ndarray) -> ClipPlayer:
    """One row of ``ErrorTable.mistakes`` (a named tuple) as a player captioned by truth and prediction."""
    return ClipPlayer(source, title=str(line.clip_id), caption=error_caption(line))
