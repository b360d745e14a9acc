"""A page of clips, each with a button that opens it; what is not encoded yet is filled in behind."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import ipywidgets

from workbench.views.error_thumbnails import Source, Thumbnails, waiting
from workbench.views.style import escape, shorten

Line = tuple[str, str, Source]
"""Title, caption and source of one clip."""


class Gallery:
    """Cards in a grid. ``on_open`` is called with a card's place on the page when its button is pressed,
    ``on_ready`` when its clip has been encoded behind.

    ``behind``: encode in a thread, so that a click never waits for a video; else before :meth:`show` returns.
    """

    def __init__(
        self, size: int, on_open: Callable[[int], None], *, store: Thumbnails, behind: bool,
        on_ready: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.store, self._on_ready = store, on_ready
        self._behind = ThreadPoolExecutor(1, thread_name_prefix="thumbnails") if behind else None
        self._pages, self._jobs = 0, list[Future[None]]()
        self._cards = [ipywidgets.HTML() for _ in range(size)]
        self._buttons = [ipywidgets.Button(description="Open", layout={"width": "auto"}) for _ in range(size)]
        for i, button in enumerate(self._buttons):
            button.on_click(lambda _, place=i: on_open(place))
        self._slots = [ipywidgets.VBox([c, b]) for c, b in zip(self._cards, self._buttons, strict=True)]
        self._empty = ipywidgets.HTML()
        self.box = ipywidgets.GridBox(
            layout=ipywidgets.Layout(
                grid_template_columns="repeat(auto-fill, minmax(224px, 1fr))", grid_gap="16px", width="100%"
            )
        )
        self.box.add_class("wb-gallery")

    @property
    def value(self) -> str:
        """The HTML of what is shown."""
        return "".join(c.value for c in self._cards[: self._shown]) if self._shown else self._empty.value

    _shown = 0

    def show(self, lines: Sequence[Line], ahead: Sequence[Line] = (), *, empty: str = "No clips to show.") -> None:
        """Show these clips. ``ahead``: what will probably be shown next; encoded behind, where there is a behind."""
        self._pages += 1
        for job in self._jobs:
            job.cancel()
        self._jobs.clear()
        self._shown = len(lines)
        for place, (title, caption, source) in enumerate(lines):
            player = self.store.get(source, title=title, caption=caption)
            if player is None and self._behind is None:
                player = self.store.make(source, title=title, caption=caption)
            if player is None:
                self._later(place, (title, caption, source))
            self._cards[place].value = waiting(title, caption) if player is None else str(player.html())
            self._buttons[place].description = f"Open {shorten(title, 24)}"
            self._buttons[place].tooltip = f"Open {title}"
        self._empty.value = "" if lines else f'<p class="wb-note">{escape(empty)}</p>'
        slots = tuple(self._slots[: len(lines)]) or (self._empty,)
        if self.box.children != slots:
            self.box.children = slots
        for line in ahead if self._behind is not None else ():
            self._later(None, line)

    def _later(self, place: int | None, line: Line) -> None:
        assert self._behind is not None
        self._jobs.append(self._behind.submit(self._make, self._pages, place, line))

    def _make(self, page: int, place: int | None, line: Line) -> None:
        if page != self._pages:
            return
        title, caption, source = line
        player = self.store.make(source, title=title, caption=caption)
        if page == self._pages and place is not None:
            self._cards[place].value = str(player.html())
            if self._on_ready is not None:
                self._on_ready(place)

    def recaption(self, place: int, line: Line) -> None:
        """One card again, such as after a mark."""
        player = self.store.get(line[2], title=line[0], caption=line[1])
        if player is not None:
            self._cards[place].value = str(player.html())

    def join(self) -> None:
        """Wait until all that was asked for is encoded; raises what a job raised."""
        for job in list(self._jobs):
            if not job.cancelled():
                job.result()

    def close(self) -> None:
        """End the thread."""
        self._pages += 1
        if self._behind is not None:
            self._behind.shutdown(wait=False, cancel_futures=True)
