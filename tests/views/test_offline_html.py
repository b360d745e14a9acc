"""A notebook that is mailed: its page, opened in a browser without kernel and network, shows every plot and clip."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import ipywidgets
import nbformat
import pytest

import workbench.views
from tests.views.mailed import LARGEST_BYTES, clean_copy, execute, export, shown, unseen_outputs
from workbench.views.mailing import FREEZE, MailableBox
from workbench.views.style import Html

REPO = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
CHEAP = ("02_load_clips",)
"""What is executed and opened in every run of the suite; the others are marked slow."""
PARTS = {"Detail", "ClipDuel"}
"""Boxes that are only ever part of a view, which freezes them."""

VIEWS_BOOK = """
import sys
sys.path.insert(0, {repo!r})
from pathlib import Path
import tests.views.conftest as made
runs = {{name: made.make_run(name, skill) for name, skill in [("linear", 0.5), (made.HOSTILE, 0.9)]}}
Path("clips").mkdir()
clips = made.make_table(Path("clips"))
import workbench as wb
---
wb.ComparisonView(runs)
---
wb.ErrorView(runs["linear"], clips=clips, task="action")
---
wb.AttentionView([made.make_maps("rollout"), made.make_maps("integrated_gradients")])
---
from workbench.views.side_view import SideBySideView
SideBySideView([made.make_maps("rollout"), made.make_maps("attnlrp")])
---
wb.HeadGridView(made.make_maps("attention"))
---
wb.ClipPlayer(clips.head(1))
"""


@pytest.fixture(scope="module")
def viewer(chromium: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def view_classes() -> list[type]:
    """Every public box in workbench.views: what a notebook may have as a cell's value."""
    found: dict[str, type] = {}
    for module in iter_modules(workbench.views.__path__, "workbench.views."):
        for name, kind in inspect.getmembers(import_module(module.name), inspect.isclass):
            if kind.__module__ == module.name and issubclass(kind, ipywidgets.Box) and not name.startswith("_"):
                found[name] = kind
    return [kind for name, kind in sorted(found.items()) if name not in PARTS and kind is not MailableBox]


@pytest.mark.parametrize("kind", view_classes(), ids=lambda kind: kind.__name__)
def test_every_view_freezes_when_mailed(kind: type) -> None:
    assert issubclass(kind, MailableBox), f"{kind.__name__} is a live widget only; derive it from MailableBox"
    concrete = [k for k in view_classes() if issubclass(k, kind)]
    assert any(k.freeze is not MailableBox.freeze for k in concrete), f"{kind.__name__} has no freeze()"


class _Small(MailableBox):
    def freeze(self) -> Html:
        return Html("<b>still</b>")


def test_mailable_box_adds_its_frozen_form_only_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FREEZE, raising=False)
    assert "text/html" not in _Small()._repr_mimebundle_()
    monkeypatch.setenv(FREEZE, "1")
    assert _Small()._repr_mimebundle_()["text/html"] == "<b>still</b>"
    with pytest.raises(NotImplementedError, match="MailableBox does not say how it is read"):
        MailableBox()._repr_mimebundle_()


def test_unseen_outputs_finds_a_live_widget_and_a_plotly_figure() -> None:
    v4 = nbformat.v4
    live = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "HBox()"}
    bar = live | {"text/plain": "decoding:   0%|          | 0/40 [00:00<?, ?clip/s]"}
    plotly = {"application/vnd.plotly.v1+json": {}, "text/html": "<script src=x></script>"}
    fine = live | {"text/html": "<b>still</b>"}
    cells = [v4.new_code_cell("", outputs=[v4.new_output("display_data", data)]) for data in (live, plotly, fine, bar)]
    assert unseen_outputs(v4.new_notebook(cells=cells)) == [
        "cell 0: HBox()", "cell 1: application/vnd.plotly.v1+json"
    ]  # fmt: skip


@pytest.mark.browser
def test_shown_finds_a_picture_and_a_clip_that_hold_nothing(tmp_path: Path, viewer: Any) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<img alt="far" src="https://example.org/x.png"><img alt="cut" src="data:image/png;base64,AAAA">'
        '<video aria-label="none" src="data:video/mp4;base64,AAAA"></video>'
        '<div class="jp-OutputArea-output"><svg aria-label="flat" width="0" height="0"><g/></svg></div>'
    )
    counts, wrong = shown(page, viewer)
    assert sorted(wrong) == ["img cut", "img far", "svg flat", "video none"]
    assert counts["img"] == 2 and counts["video"] == 1


@pytest.mark.browser
def test_live_views_in_a_notebook_are_read_offline(
    tmp_path: Path, viewer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    v4 = nbformat.v4
    cells = [v4.new_code_cell(part.strip()) for part in VIEWS_BOOK.format(repo=str(REPO)).split("---")]
    book = execute(v4.new_notebook(cells=cells), tmp_path, monkeypatch)
    assert unseen_outputs(book) == []
    page = export(book, tmp_path / "views.html")
    counts, wrong = shown(page, viewer)
    assert wrong == [] and counts["widgets"] == 0
    assert counts["video"] >= 6 and counts[".wb-plot svg"] >= 4 and counts["img"] >= 1
    assert page.stat().st_size <= LARGEST_BYTES


@pytest.mark.browser
@pytest.mark.timeout(1200)  # executing a notebook takes minutes on a busy machine
@pytest.mark.parametrize("path", [
    pytest.param(p, id=p.stem, marks=() if p.stem in CHEAP else pytest.mark.slow) for p in NOTEBOOKS
])  # fmt: skip
def test_notebook_is_read_offline(path: Path, tmp_path: Path, viewer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    book = execute(clean_copy(path, tmp_path / "book"), tmp_path / "book", monkeypatch)
    assert unseen_outputs(book) == []
    page = export(book, tmp_path / f"{path.stem}.html")
    counts, wrong = shown(page, viewer)
    assert wrong == [] and counts["widgets"] == 0
    assert counts["img"] + counts["video"] + counts[".jp-OutputArea-output svg"] > 0
    assert page.stat().st_size <= LARGEST_BYTES
