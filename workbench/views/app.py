"""The dashboards as an app: pages over a folder of runs, served by Voila to this machine's browser."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ipywidgets
import psutil
import traitlets

from workbench.data.layouts import open_clips
from workbench.data.tables import ClipTable
from workbench.training.runs import Run, find_runs
from workbench.views.comparison_view import ComparisonView
from workbench.views.error_view import ErrorView
from workbench.views.mailing import MailableBox
from workbench.views.parts import dropdown, frozen, note, row
from workbench.views.style import VIEW_CSS, Html, shorten

log = logging.getLogger(__name__)

PAGES = {"compare": "Compare runs", "errors": "Errors of a run"}


def comparable(runs: dict[str, Run]) -> dict[str, dict[str, Run]]:
    """Runs that were made on the same clips and scored alike, together: ``{what they share: {name: run}}``."""
    found: dict[tuple[Any, ...], dict[str, Run]] = {}
    for name, run in runs.items():
        data = run.record["data"]
        found.setdefault((data["name"], data["fingerprint"], run.protocol), {})[name] = run
    titles = [
        f"{key[0]}: {', '.join(task.name for task in next(iter(members.values())).tasks)}; {len(members)} run(s)"
        for key, members in found.items()
    ]
    return {
        title if titles.count(title) == 1 else f"{title} ({number})": members
        for number, (title, members) in enumerate(zip(titles, found.values(), strict=True), 1)
    }


class RunsApp(MailableBox):
    """The dashboards over a folder of runs: two pages, each with a menu of what can be looked at.

    Args:
        runs_dir: the folder of runs; those that have finished are shown.
        clips: the table they were trained on; runs of another table are shown without what needs it.

    Marks of the error page go to ``marks-<table's fingerprint>.csv`` in ``runs_dir``. Raises FileNotFoundError where
    there is no such folder.
    """

    page = traitlets.Enum(list(PAGES), "compare", help="the page shown")
    shown = traitlets.Unicode("", help="what it shows: a set of runs, or a run")

    def __init__(self, runs_dir: str | Path, clips: ClipTable | str | Path | None = None) -> None:
        self.runs_dir = Path(runs_dir)
        self.clips = clips if clips is None or isinstance(clips, ClipTable) else open_clips(clips, allow_leak=True)
        runs = find_runs(self.runs_dir)
        self._offers: dict[str, dict[str, Any]] = {"compare": comparable(runs), "errors": dict(runs)}
        self._pages = ipywidgets.ToggleButtons(
            options=[(title, page) for page, title in PAGES.items()], description="Page",
            style={"button_width": "auto", "description_width": "initial"},
        )  # fmt: skip
        self._menu = dropdown("Runs", [])
        self.view: Any = None
        super().__init__([ipywidgets.HTML(VIEW_CSS), row(self._pages, self._menu)])
        self.add_class("wb-view")
        if not runs:
            self.children = [ipywidgets.HTML(VIEW_CSS + note(f"No finished run in {self.runs_dir}."))]
            return
        traitlets.link((self, "page"), (self._pages, "value"))
        self.observe(lambda _: self._offer(), "page")
        self.observe(lambda _: self._show(), "shown")
        self._menu.observe(self._on_menu, "value")
        self._offer()

    @traitlets.validate("shown")
    def _known(self, proposal: Any) -> str:
        if proposal["value"] not in self._offers[self.page]:
            raise traitlets.TraitError(
                f"nothing is called {proposal['value']!r}; there are {list(self._offers[self.page])}"
            )
        return str(proposal["value"])

    def _offer(self) -> None:
        names = list(self._offers[self.page])
        self._filling = True  # which chooses nothing
        self._menu.options = [(shorten(name, 70), name) for name in names]
        self._filling = False
        if self.shown == names[0]:
            self._show()
        self.shown = names[0]

    def _on_menu(self, change: Any) -> None:
        if not self._filling:
            self.shown = change["new"]

    def _show(self) -> None:
        chosen = self._offers[self.page][self.shown]
        self._menu.value = self.shown
        some = next(iter(chosen.values())) if self.page == "compare" else chosen
        clips = self.clips if self.clips is not None and self._fits(some) else None
        split = "test" if some.record["data"]["clips"]["test"] else "val"
        if self.view is not None:
            self.view.close()
        if self.page == "compare":
            self.view = ComparisonView(chosen, clips=clips, split=split)
        else:
            marks = self.runs_dir / f"marks-{some.record['data']['fingerprint']}.csv"
            self.view = ErrorView(chosen, clips=clips, split=split, marks=marks)
        self.children = [*self.children[:2], self.view]

    def _fits(self, run: Run) -> bool:
        """Whether the run was made on the table that was given: with these tasks it has the same fingerprint."""
        assert self.clips is not None
        names = [task.name for task in run.tasks]
        known = {task.name for task in self.clips.tasks}
        same = set(names) <= known and self.clips.with_tasks(names).fingerprint() == run.record["data"]["fingerprint"]
        if not same:
            log.warning("%s was trained on other clips than %s; shown without them", run.name, self.clips.info.name)
        return same

    def freeze(self) -> Html:
        """The page shown as static HTML."""
        return frozen(PAGES[self.page], self.view.freeze() if self.view is not None else note("no finished run"))


def write_page(runs_dir: str | Path, folder: str | Path, clips: str | Path | None = None) -> Path:
    """Write the app as a notebook of one cell into ``folder``; what it takes is written as Python literals."""
    runs = Path(runs_dir).resolve()
    if not runs.is_dir():
        raise FileNotFoundError(f"no folder {str(runs_dir)!r} with runs")
    table = None if clips is None else str(Path(clips).resolve() if Path(clips).exists() else clips)
    code = f"from workbench.views.app import RunsApp\n\nRunsApp({str(runs)!r}, {table!r})"
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "app",
        "metadata": {},
        "source": code,
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    file = Path(folder) / "workbench.ipynb"
    file.write_text(json.dumps(book), encoding="utf-8")
    return file


def serve(runs_dir: str | Path, *, clips: str | Path | None = None, port: int = 8866, browser: bool = True) -> int:
    """Serve the app until interrupted; the exit code of Voila.

    Voila listens on 127.0.0.1 only and asks for a token, which is in the address it prints; it runs the notebook's one
    cell and no code that a visitor sends. Voila's page asks a public server for a style sheet of icons, and does
    without where there is no network.
    """
    with tempfile.TemporaryDirectory(prefix="workbench-app-") as folder:
        page = write_page(runs_dir, folder, clips)
        command = [
            sys.executable, "-m", "voila", str(page), f"--port={port}", "--Voila.ip=127.0.0.1", "--token",
            "--VoilaConfiguration.strip_sources=True", *([] if browser else ["--no-browser"]),
        ]  # fmt: skip
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        with _ended_by_sigterm():
            server = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})
            try:
                return server.wait()
            except KeyboardInterrupt:  # it got the signal too, and asks nobody: ours was to stop
                return 0
            finally:
                _end(server)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM as an interrupt, so that what was started is ended as well; not outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End Voila and its kernels, which it leaves behind where it is asked to end while one starts."""
    try:
        kernels = psutil.Process(server.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        kernels = []
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    for left in kernels:
        with suppress(psutil.NoSuchProcess):
            left.terminate()
