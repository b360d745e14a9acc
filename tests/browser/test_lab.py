"""The dashboards in JupyterLab, used as a person would: by menus, clicks and keys, with what changes on screen."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import REPO, Visit
from tests.browser.stage import ACTIONS, notebook, table
from tests.training.conftest import tiny_checkpoint as tiny_checkpoint
from tests.training.conftest import tiny_table as tiny_table
from tests.views.conftest import make_table
from workbench.data.tables import ClipTable
from workbench.training.launch import find_jobs

pytest.importorskip("pytest_playwright", reason="pytest-playwright is not installed")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ERRORS = """
from tests.browser.stage import predictions
from workbench.views.error_view import ErrorView
ErrorView(predictions("full", 1, 0.8), root={root!r}, page_size=4, marks={marks!r})
"""
COMPARE = """
from tests.browser.stage import predictions
from workbench.views.comparison_view import ComparisonView
ComparisonView([predictions("linear", 2, 0.6), predictions("full", 1, 0.8)])
"""
LAUNCH = """
from workbench.data.tables import ClipTable
from workbench.training.setup import Setup
from workbench.views.launch_panel import LaunchPanel
LaunchPanel(
    ClipTable.load({table!r}, allow_outside_root=True), runs_dir={runs!r}, device="cpu", workers=1, poll_seconds=1.0,
    base=Setup(strategy="full", backbone={backbone!r}, tasks=("direction",), batch_size=8, epochs=5000),
)
"""
# A cell of a heat map, in pixels of the page.
CELL = """([column, row]) => {
  const plot = document.querySelector('.wb-view .js-plotly-plot'), box = plot.getBoundingClientRect();
  const {xaxis, yaxis} = plot._fullLayout;
  return [box.left + xaxis._offset + xaxis.d2p(column), box.top + yaxis._offset + yaxis.d2p(row)];
}"""

# What the notebook's cells raised.
FAILED = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code')
  .flatMap(c => c.model.outputs.toJSON()).filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`)"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_table(tmp_path_factory.mktemp("clips"))


def run_all(visit: Visit, lab: str, name: str, selector: str = ".wb-view") -> Any:
    """Open a notebook in JupyterLab, run all its cells, wait for ``selector``; the page."""
    page = visit.page
    page.goto(f"{lab}/tree/{name}?reset", wait_until="domcontentloaded")
    page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.sessionContext?.session")
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")  # until they have run
    assert page.evaluate(FAILED) == []
    page.locator(selector).first.wait_for()
    return page


def shown_ids(page: Any) -> list[str]:
    """The clips of the gallery's page, from their titles on screen."""
    return [text.strip() for text in page.locator(".wb-gallery figure > div:first-child").all_inner_texts()]


def test_error_view_shows_exactly_the_clips_of_the_cell_clicked_marks_and_pages(
    visit: Visit, lab: str, lab_folder: Path, clips: Any
) -> None:
    marks = lab_folder / "marks.csv"
    notebook(lab_folder / "errors.ipynb", ERRORS.format(root=str(clips.root), marks=str(marks)))
    page = run_all(visit, lab, "errors.ipynb", ".wb-view .js-plotly-plot .xtick")
    page.locator(".wb-gallery figure").first.wait_for()
    rows = table(1, 0.8)
    wanted = rows[(rows.target == 1) & (rows.prediction == 2)]  # truth right, predicted up
    page.mouse.click(*page.evaluate(CELL, [2, 1]))
    page.get_by_text(re.compile(rf"{len(wanted)} clip\(s\), page 1 of")).first.wait_for()
    assert page.get_by_label("Truth").locator("option:checked").inner_text().startswith(ACTIONS[1])
    seen = shown_ids(page)
    for number in range(2, -(-len(wanted) // 4) + 1):
        page.get_by_role("button", name="Next page").click()
        page.get_by_text(re.compile(rf"page {number} of")).first.wait_for()
        seen += shown_ids(page)
    assert sorted(seen) == sorted(wanted.clip_id)
    page.get_by_label("Truth").select_option(index=0)  # any
    clip = page.get_by_label("Clip number")
    before = clip.input_value()
    page.get_by_role("button", name="Next clip").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("v => document.querySelector('.wb-detail input').value !== v", arg=before)
    page.get_by_role("button", name="Label error").first.click()
    page.wait_for_timeout(500)
    assert "label error" in marks.read_text() and len(marks.read_text().splitlines()) == 2
    visit.shot("error_view")
    assert page.evaluate("() => [...document.querySelectorAll('.wb-view')].every(v => v.scrollWidth <= v.clientWidth)")
    assert visit.serious() == []
    assert visit.trouble == []


def test_comparison_view_follows_its_controls(visit: Visit, lab: str, lab_folder: Path) -> None:
    notebook(lab_folder / "compare.ipynb", COMPARE)
    page = run_all(visit, lab, "compare.ipynb", ".wb-view .js-plotly-plot .ytick")
    ticks = page.locator(".wb-view .js-plotly-plot .ytick:visible")
    assert {"linear", "full"} <= set(map(str.strip, ticks.all_text_contents()))
    page.get_by_label("Runs", exact=True).select_option(["full"])  # the other leaves the plots
    page.wait_for_function(
        "() => ![...document.querySelectorAll('.wb-view .js-plotly-plot')].filter(p => p.offsetParent)"
        ".some(p => p.textContent.includes('linear'))"
    )
    page.get_by_label("Runs", exact=True).select_option(["full", "linear"])
    page.get_by_role("button", name="Pairs").click()
    page.locator(".wb-view .js-plotly-plot .heatmaplayer image").locator("visible=true").first.wait_for()
    visit.shot("comparison_view")
    assert visit.serious() == []
    assert visit.trouble == []


@pytest.mark.slow  # thousands of short epochs keep redrawing the curves: too much for a loaded machine
def test_launch_panel_starts_and_stops_while_other_cells_run(
    visit: Visit, lab: str, lab_folder: Path, tiny_checkpoint: str, tiny_table: ClipTable
) -> None:
    where = tiny_table.save(lab_folder / "table")
    cell = LAUNCH.format(table=str(where), runs=str(lab_folder / "runs"), backbone=tiny_checkpoint)
    notebook(lab_folder / "launch.ipynb", cell, "import time\nprint('the time', 40 + 2)")
    page = run_all(visit, lab, "launch.ipynb", ".wb-view button")
    # The icon before the word counts as part of a button's name.
    start, stop = (page.locator(".wb-view button", has_text=re.compile(rf"{name}$")) for name in ("Start", "Stop"))
    assert stop.is_disabled() and start.is_enabled()
    start.click()
    page.locator(".wb-view .js-plotly-plot .trace").first.wait_for()  # an epoch has ended
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")  # the kernel is free meanwhile
    page.get_by_text("the time 42").wait_for()
    visit.shot("launch_panel")
    # Made anew by the second pass, the panel has taken over the training that the first one started.
    stop.last.click()
    page.get_by_text("Resume goes on from the checkpoint").last.wait_for()
    assert start.last.is_enabled() and stop.last.is_disabled()
    (job,) = find_jobs(lab_folder / "runs")
    assert job.state == "stopped" and not job.alive and len(job.history()) >= 1
    assert visit.serious() == []
    assert visit.trouble == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["09_compare_setups", "10_error_analysis"])
def test_notebook_runs_in_the_browser(visit: Visit, lab: str, lab_folder: Path, name: str) -> None:
    shutil.copy(REPO / "notebooks" / f"{name}.ipynb", lab_folder)
    visit.page.set_default_timeout(400_000)
    page = run_all(visit, lab, f"{name}.ipynb")
    page.locator(".wb-view").last.scroll_into_view_if_needed()
    visit.shot(name)
    assert visit.serious() == []
    assert visit.trouble == []
