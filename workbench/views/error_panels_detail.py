"""The clip that is open: playing, with its probabilities; marks and a note; why, and what it was taught by."""

import logging
from typing import TYPE_CHECKING, Any

import ipywidgets
import pandas as pd

from workbench.analysis.explain import explain
from workbench.analysis.mistakes.embedding import neighbours
from workbench.analysis.mistakes.marks import MARKS
from workbench.views.attention_view import AttentionView
from workbench.views.parts import dropdown, heading, note, row
from workbench.views.players import gallery
from workbench.views.style import Html, shorten, table_html

if TYPE_CHECKING:
    from workbench.views.error_view import ErrorView

log = logging.getLogger(__name__)

TOP = 5
NEIGHBOURS = 4
_NO_MARKS = 'Marks are off: give ErrorView(..., marks="marks.csv").'
_ICONS = {"label error": "tag", "ambiguous": "question", "model error": "times"}


class Detail(ipywidgets.VBox):
    """Beside the gallery of an error view: one clip, and what a person or a method says of it."""

    def __init__(self, view: "ErrorView") -> None:
        self._view, self._filling = view, False
        self._line: Any = None
        self._back = ipywidgets.Button(description="Previous clip", icon="arrow-left")
        self._next = ipywidgets.Button(description="Next clip", icon="arrow-right")
        self._back.on_click(lambda _: view.step(-1))
        self._next.on_click(lambda _: view.step(1))
        self._number = ipywidgets.BoundedIntText(
            description="Clip number", min=1, max=1, value=1, style={"description_width": "initial"},
            layout={"width": "160px"}, tooltip="arrow keys up and down go from clip to clip",
        )  # fmt: skip
        self._number.observe(self._typed, "value")
        self._picture, self._said = ipywidgets.HTML(), ipywidgets.HTML()
        self._build_marks()
        self._why = ipywidgets.Button(description="Why? (attribution)", icon="search", layout={"width": "auto"})
        self._near = ipywidgets.Button(description="Nearest training clips", icon="clone", layout={"width": "auto"})
        self._why.on_click(lambda _: self.explain())
        self._near.on_click(lambda _: self.show_neighbours())
        self.answer = ipywidgets.VBox()
        super().__init__(
            [
                row(self._back, self._next, self._number), self._picture, self._said, row(*self._marks.values(),
                self._clear), row(self._label, self._note), self._state, row(self._why, self._near), self.answer,
            ],
            layout=ipywidgets.Layout(flex="1 1 360px", min_width="0", max_width="100%"),
        )  # fmt: skip
        self.add_class("wb-detail")

    def _build_marks(self) -> None:
        self._marks = {
            mark: ipywidgets.Button(description=mark.capitalize(), icon=_ICONS[mark], layout={"width": "auto"})
            for mark in MARKS
        }
        for mark, button in self._marks.items():
            button.on_click(lambda _, mark=mark: self._view.mark(mark))
        self._clear = ipywidgets.Button(description="Clear mark", icon="undo", layout={"width": "auto"})
        self._clear.on_click(lambda _: self._view.unmark())
        self._label = dropdown("Right label", [("not known", "")])
        self._note = ipywidgets.Text(
            description="Note", continuous_update=False, placeholder="kept with the mark",
            style={"description_width": "initial"},
        )  # fmt: skip
        self._note.observe(self._reworded, "value")
        self._label.observe(self._reworded, "value")
        self._state = ipywidgets.HTML()

    @property
    def label(self) -> str:
        """The right class chosen, or empty."""
        return str(self._label.value)

    @property
    def note(self) -> str:
        return str(self._note.value)

    def show(self, line: Any, place: int, count: int) -> None:
        """Open one row of the view's clips (a named tuple), the ``place``-th of ``count``; None: there is no clip."""
        self._filling = True
        self._line = line
        self._back.disabled, self._next.disabled = place <= 0, place >= count - 1
        self._number.max, self._number.value = max(1, count), place + 1 if line is not None else 1
        self._number.disabled = count < 2
        self._label.options = [("not known", ""), *((shorten(c, 40), c) for c in self._view.classes())]
        self.answer.children = ()
        can = line is not None and self._view.can_encode(str(line.clip_id))
        self._why.disabled = self._near.disabled = not can
        self._filling = False
        self.refresh()

    def refresh(self) -> None:
        """Show what is known of the open clip now."""
        if self._line is None:
            self._picture.value, self._said.value, self._state.value = note("No clip is open."), "", ""
        else:
            self._picture.value = self._view.picture(self._line)
            self._said.value = self._probabilities()
        self._show_mark()

    def _probabilities(self) -> str:
        chances = self._view.chances(self._id())
        if chances is None:
            return ""
        top = chances.sort_values(ascending=False, kind="stable").head(TOP)
        table = pd.DataFrame({"class": [shorten(str(c), 40) for c in top.index], "probability": top.to_numpy(float)})
        return str(table_html(table))

    def _show_mark(self) -> None:
        marks, off = self._view.marks, self._line is None
        found = None if marks is None or off else marks.get(self._id(), self._view.task)
        for button in (*self._marks.values(), self._clear, self._label, self._note):
            button.disabled = marks is None or off
        for mark, button in self._marks.items():
            button.button_style = "primary" if found is not None and found.mark == mark else ""
        self._clear.disabled = found is None
        self._filling = True
        labels = [value for _, value in self._label.options]
        self._label.value = found.label if found is not None and found.label in labels else ""
        self._note.value = found.note if found is not None else ""
        self._filling = False
        if marks is None:
            self._state.value = note(_NO_MARKS)
        elif not off:
            said = "not marked" if found is None else f"marked: {found.mark}, {found.when}"
            right = f"; right label {found.label}" if found is not None and found.label else ""
            self._state.value = note(said + right)

    def _id(self) -> str:
        return str(self._line.clip_id)

    def _typed(self, change: Any) -> None:
        if not self._filling:
            self._view.go(int(change["new"]) - 1)

    def _reworded(self, _: Any) -> None:
        """A note or label that is changed after the mark goes to the file at once; before it, with the mark."""
        marks = self._view.marks
        if self._filling or marks is None or self._line is None:
            return
        found = marks.get(self._id(), self._view.task)
        if found is not None:
            self._view.mark(found.mark)

    def explain(self) -> None:
        """Attribution of the open clip, by the run's weights."""
        if self._line is None:
            return
        clip = self._view.clip(self._id())
        try:
            maps = explain(self._view.run, clip, task=self._view.task, progress=False)
        except ValueError as error:
            log.warning("no attribution: %s", error)
            self.answer.children = (ipywidgets.HTML(note(f"No attribution: {error}")),)
            return
        self.answer.children = (AttentionView(maps),)

    def show_neighbours(self) -> None:
        """The training clips most like the open one to the run's encoder."""
        if self._line is None:
            return
        view, clip_id = self._view, self._id()
        try:
            found = neighbours(view.run, view.table_of_clips(), clip_id, k=NEIGHBOURS, task=view.task, progress=False)
        except ValueError as error:
            log.warning("no neighbours: %s", error)
            self.answer.children = (ipywidgets.HTML(note(f"No neighbours: {error}")),)
            return
        players = [
            view.thumbnails.make(
                view.clip(r.neighbour), title=r.neighbour, caption=f"label: {r.label}\nsimilarity {r.similarity:.2f}"
            )
            for r in found.itertuples()
        ]
        title = heading("Training clips most like it to the encoder")
        self.answer.children = (ipywidgets.HTML(title + gallery(players, columns=2)),)

    def freeze(self) -> Html:
        """The open clip's words; its video is in the page of clips."""
        return Html(self._said.value + self._state.value)
