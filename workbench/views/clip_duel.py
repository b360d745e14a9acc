"""Two runs on the same clips: those that only one of them got right, playing, with the attention of both on demand."""

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from workbench.data.tables import ClipTable
from workbench.views.error_panels_gallery import Gallery, Line
from workbench.views.error_thumbnails import Thumbnails
from workbench.views.parts import dropdown, heading, note, row
from workbench.views.players import gallery
from workbench.views.style import number, shorten

ANY = "any"
KEPT_TABLES = 40
_WORDS = {"first": "A right, B wrong", "second": "A wrong, B right", "both": "both right", "neither": "both wrong"}
_NEARER = {"first": "A nearer", "second": "B nearer", "both": "equally near"}


class ClipDuel(ipywidgets.VBox):
    """Choose runs A and B and an outcome, see the clips.

    ``clips``: the table the predictions were made on: files, and start and end of clips within one; without it paths
    are taken from the root in the run's record. ``page_size``: clips per page.
    """

    first = traitlets.Unicode(help="run A")
    second = traitlets.Unicode(help="run B")
    outcome = traitlets.Unicode("first", help="which of the two was right: first, second, both or neither")
    truth = traitlets.Unicode(ANY, help="true class of the clips shown, or 'any'")
    page = traitlets.Int(0, min=0, help="page of clips, from 0")
    clip = traitlets.Unicode(help="id of the clip opened: its attention can be shown")

    def __init__(self, *, clips: ClipTable | None = None, page_size: int = 4) -> None:
        if page_size < 1:
            raise ValueError(f"page_size={page_size} must be at least 1")
        self.page_size, self._clips = page_size, clips
        self._places = {} if clips is None else {str(c): i for i, c in enumerate(clips.frame.clip_id)}
        self._tables: OrderedDict[tuple[Any, ...], pd.DataFrame] = OrderedDict()
        self.comparison: Any = None
        self.task = ""
        self._ready = False
        self._build()
        for trait in ("first", "second", "outcome", "truth"):
            traitlets.link((self, trait), (self._menus[trait], "value"))
            self.observe(self._changed, trait)
        self.observe(lambda _: self._show(), "page")

    def _build(self) -> None:
        self._menus = {
            "first": dropdown("Run A", [("–", "")]), "second": dropdown("Run B", [("–", "")]),
            "outcome": dropdown("Clips", [(text, key) for key, text in _WORDS.items()]),
            "truth": dropdown("Truth", [ANY]),
        }  # fmt: skip
        self._back = ipywidgets.Button(description="Previous clips", icon="chevron-left")
        self._next = ipywidgets.Button(description="Next clips", icon="chevron-right")
        self._back.on_click(lambda _: self.turn(-1))
        self._next.on_click(lambda _: self.turn(1))
        self._head, self._where, self._opened = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self._gallery = Gallery(self.page_size, self.pick, store=Thumbnails(), behind=_in_kernel())
        self._explain = ipywidgets.Button(description="Show attention of A and B", layout={"width": "auto"})
        self._explain.on_click(lambda _: self.attend())
        self._words, self._maps = ipywidgets.HTML(), ipywidgets.VBox()
        super().__init__(
            [
                self._head, row(self._menus["first"], self._menus["second"]),
                row(self._menus["outcome"], self._menus["truth"], self._back, self._next, self._where),
                self._gallery.box,
                row(self._explain, self._opened), self._words, self._maps,
            ]
        )  # fmt: skip

    def show(self, comparison: Any, task: str, runs: list[str]) -> None:
        """Take these runs of a comparison on a task; what was chosen stays where it still can."""
        self.comparison, self.task, self._ready = comparison, task, False
        self._maps.children, self._words.value = (), ""
        self.layout.display = None if len(runs) > 1 and comparison.evidence else "none"
        if self.layout.display == "none":
            return
        for trait, usual in (("first", runs[-1]), ("second", runs[0])):
            kept = getattr(self, trait)
            self._fill(trait, [(shorten(name, 60), name) for name in runs], kept if kept in runs else usual)
        if self.first == self.second:
            self._fill("second", list(self._menus["second"].options), next(r for r in runs if r != self.first))
        self._offer()

    def choose(self, first: str, second: str | None = None) -> None:
        """Set run A, and B where given; a run is never set against itself."""
        runs = [name for _, name in self._menus["first"].options]
        other = self.second if second is None else second
        if first not in runs or other not in runs:
            return
        if other == first:
            other = next((name for name in (self.first, *runs) if name != first), "")
        self._ready = False
        self.first, self.second = first, other
        self._offer()

    def _fill(self, trait: str, options: list[tuple[str, str]], value: str) -> None:
        """Set a menu's options and value at once, the trait with it."""
        self._menus[trait].options = options
        self._menus[trait].value = value
        setattr(self, trait, value)

    def _changed(self, change: Any) -> None:
        if not self._ready:
            return
        self._ready = False
        if change["name"] in ("first", "second") and self.first == self.second:
            other = "second" if change["name"] == "first" else "first"
            setattr(self, other, change["old"])
        self._offer()

    def _offer(self) -> None:
        """Fill the menus of outcomes and classes with what there is, and show the page."""
        try:
            table = self.table()
        except ValueError as error:  # multilabel: a clip is neither right nor wrong
            self._gallery.show([], empty=str(error))
            self._head.value, self._explain.disabled = heading("Clip by clip"), True
            return
        words = _NEARER if self.comparison.evidence[self.task].task.kind == "regression" else _WORDS
        counts = table["outcome"].value_counts()
        self._fill(
            "outcome", [(f"{text} ({int(counts.get(key, 0))})", key) for key, text in words.items()],
            self.outcome if self.outcome in words else "first",
        )  # fmt: skip
        part = table[table["outcome"] == self.outcome]
        by_class = part["truth"].value_counts() if words is _WORDS else pd.Series(dtype=int)
        options = [("any class", ANY), *((f"{shorten(str(c), 40)} ({n})", str(c)) for c, n in by_class.items())]
        self._fill("truth", options, self.truth if self.truth in [v for _, v in options] else ANY)
        self._menus["truth"].disabled = len(options) == 1
        self.set_trait("page", 0)
        self._ready = True
        self._show()

    def table(self) -> pd.DataFrame:
        """All clips of the two runs, with their outcome (:func:`~workbench.analysis.comparing.clips.clips_of`)."""
        key = (id(self.comparison), self.task, self.first, self.second)
        if key not in self._tables:
            self._tables[key] = self.comparison.clips(self.first, self.second, self.task)
            if len(self._tables) > KEPT_TABLES:
                self._tables.popitem(last=False)
        return self._tables[key]

    def rows(self) -> pd.DataFrame:
        """The clips of the chosen outcome and class, the surest first."""
        table = self.table()
        part = table[table["outcome"] == self.outcome]
        return part if self.truth == ANY else part[part["truth"] == self.truth]

    @property
    def num_pages(self) -> int:
        return max(1, -(-len(self.rows()) // self.page_size))

    def turn(self, pages: int) -> None:
        """Go forward or back, stopping at either end."""
        self.page = int(np.clip(self.page + pages, 0, self.num_pages - 1))

    def _show(self) -> None:
        if not self._ready:
            return
        rows = self.rows()
        self._head.value = heading(f"A: {self.first} · B: {self.second} · {self.task}")
        self._gallery.show(self._page(self.page), self._page(self.page + 1), empty="No clips with this outcome.")
        self._where.value = note(f"{len(rows)} clip(s), page {self.page + 1} of {self.num_pages}")
        self._back.disabled, self._next.disabled = self.page == 0, self.page >= self.num_pages - 1
        self._maps.children = ()
        self.pick(0)

    def pick(self, place: int) -> None:
        """Choose a clip of the page by its place; attention is shown of this one."""
        start = self.page * self.page_size + place
        line = next(self.rows().iloc[start : start + 1].itertuples(), None)
        self.clip = "" if line is None else str(line.clip_id)
        self._opened.value = "" if line is None else note(f"Clip {line.clip_id}, group {line.group}, {line.path}")
        why = self._why_not()
        self._explain.disabled, self._words.value = bool(why), note(why) if why else ""
        self._explain.tooltip = why or "computes a map for either run, which takes some seconds"

    def _why_not(self) -> str:
        """Why there can be no maps of the clips shown; empty where there can."""
        if self._clips is None:
            return "Attention needs the clips: give clips=, the table the runs were trained on."
        if not all(hasattr(self.comparison.sources[name], "model") for name in (self.first, self.second)):
            return "Attention needs runs with weights; these are predictions alone."
        return "" if self.clip in self._places else "No clip here to explain."

    def _page(self, page: int) -> list[Line]:
        """Title, caption and source of the clips of a page."""
        lines = self.rows().iloc[page * self.page_size : (page + 1) * self.page_size]
        return [(str(line.clip_id), _caption(line), self._source(line)) for line in lines.itertuples()]

    def frozen_html(self) -> str:
        """Head and page as static HTML, the clips playing."""
        if not self._ready:
            return f"{self._head.value}{self._gallery.value}"
        words = {key: text for text, key in self._menus["outcome"].options}[self.outcome]
        made = [self._gallery.store.make(source, title=t, caption=c) for t, c, source in self._page(self.page)]
        clips = gallery(made, empty="No clips with this outcome.")
        return f"{self._head.value}{note(f'{words}; truth: {self.truth}')}{clips}"

    def _source(self, line: Any) -> Path | ClipTable:
        if self._clips is not None and str(line.clip_id) in self._places:
            return self._clips[[self._places[str(line.clip_id)]]]
        data = dict(getattr(self.comparison.sources[self.first], "record", None) or {}).get("data") or {}
        root = self._clips.root if self._clips is not None else Path(data.get("root") or ".")
        return root / str(line.path)

    def attend(self) -> None:
        """Attention rollout of both runs for the clip chosen, side by side; what cannot be mapped is said."""
        from workbench.analysis.explain import explain
        from workbench.views.side_view import SideBySideView

        if self._why_not() or self._clips is None:
            return
        one = self._clips[[self._places[self.clip]]]
        self._words.value = note("Computing ...")
        try:
            maps = {
                f"{side}: {name}": explain(
                    self.comparison.sources[name], one, method="rollout", task=self.task, progress=False
                )
                for side, name in (("A", self.first), ("B", self.second))
            }
            self._maps.children = (SideBySideView(maps),)
            self._words.value = note("Attention rollout: where each run looked, not why it answered.")
        except (ValueError, OSError, RuntimeError) as error:  # another grid, a lost file, a model without attention
            self._maps.children, self._words.value = (), note(f"No maps: {error}")


def _in_kernel() -> bool:
    """Whether cells run in an event loop, as in Jupyter: then clips may be encoded behind."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _caption(line: Any) -> str:
    parts = [f"truth: {number(line.truth)}"]
    for side, said, sure in (("A", line.first, line.first_confidence), ("B", line.second, line.second_confidence)):
        parts.append(f"{side}: {number(said)}" + ("" if pd.isna(sure) else f" ({sure:.0%})"))
    return "\n".join(parts)
