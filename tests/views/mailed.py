"""A notebook as it is mailed: executed with views frozen, exported by nbconvert, opened without kernel and network."""

import re
import shutil
from pathlib import Path
from typing import Any

import nbformat

from workbench.views.mailing import FREEZE

LARGEST_BYTES = 5_000_000
WIDGET, PLOTLY = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"
PROGRESS = re.compile(r"\d+%\|.*\|.*\[.*\]")  # tqdm's bar, whose text says as much as its widget
STATIC = ("text/html", "image/svg+xml", "image/png", "image/jpeg")

# What a reader would miss: pictures and players that hold nothing, and drawings of no size.
_BROKEN = """() => {
  const wrong = [];
  for (const e of document.querySelectorAll('img'))
    if (!e.complete || !e.naturalWidth) wrong.push('img ' + (e.alt || e.src.slice(0, 40)));
  for (const e of document.querySelectorAll('video'))
    if (e.error || e.readyState < 2 || !e.videoWidth) wrong.push('video ' + e.getAttribute('aria-label'));
  for (const e of document.querySelectorAll('.jp-OutputArea-output svg')) {
    const box = e.getBoundingClientRect();
    if (e.closest('details:not([open])')) continue;
    if (!box.width || !box.height || !e.childElementCount) wrong.push('svg ' + e.getAttribute('aria-label'));
  }
  return wrong;
}"""


def execute(book: nbformat.NotebookNode, folder: Path, monkeypatch: Any) -> nbformat.NotebookNode:
    """``book`` run in ``folder`` as `make book` runs it."""
    from nbconvert.preprocessors import ExecutePreprocessor

    monkeypatch.setenv(FREEZE, "1")
    runner = ExecutePreprocessor(timeout=1800, kernel_name="python3", store_widget_state=False)
    runner.preprocess(book, {"metadata": {"path": str(folder)}})
    return book


def export(book: nbformat.NotebookNode, path: Path) -> Path:
    """The HTML page of an executed notebook."""
    from nbconvert import HTMLExporter

    path.write_text(HTMLExporter().from_notebook_node(book)[0], encoding="utf-8")
    return path


def unseen_outputs(book: nbformat.NotebookNode) -> list[str]:
    """Outputs that only a kernel or a script could show: live widgets and plotly figures without a static form."""
    found = []
    for number, cell in enumerate(book.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            live = [kind for kind in (WIDGET, PLOTLY) if kind in data]
            # Plotly's own HTML is a script that wants plotly.js; so is anything that comes with a plotly output.
            if PROGRESS.search(data.get("text/plain", "")):
                continue
            if live and (PLOTLY in data or not any(kind in data for kind in STATIC)):
                found.append(f"cell {number}: {data.get('text/plain', live[0])[:60]}")
    return found


def shown(path: Path, chromium: Any) -> tuple[dict[str, int], list[str]]:
    """The page opened with the network blocked: how many pictures it has of each kind, and what is wrong with it."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000}, offline=True)
    page = context.new_page()
    page.set_default_timeout(130_000)
    page.goto(path.as_uri(), wait_until="load")
    page.wait_for_function(
        "() => [...document.querySelectorAll('video')].every(v => v.error || v.readyState >= 2)", timeout=60_000
    )
    wrong = page.evaluate(_BROKEN)
    kinds = ("img", "video", ".jp-OutputArea-output svg", ".wb-plot svg")
    counts = {kind: page.locator(kind).count() for kind in kinds}
    counts["widgets"] = page.locator(f'script[type="{WIDGET}"], .plotly-graph-div').count()
    context.close()
    return counts, wrong


def clean_copy(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook, and ``folder`` to run it in."""
    folder.mkdir(parents=True, exist_ok=True)
    return nbformat.read(shutil.copy(notebook, folder), as_version=4)
