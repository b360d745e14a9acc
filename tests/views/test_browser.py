"""The report in a real browser, without a network: it plays, fits, and runs nothing that came with the data."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.views.conftest import HOSTILE, make_maps, make_run
from workbench.analysis.compare import compare
from workbench.analysis.errors import errors
from workbench.data.tables import ClipTable, Task
from workbench.views.report import quickstart_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, clips: ClipTable) -> Path:
    task = Task("action", "multiclass", (HOSTILE, "b"))
    frame = clips.frame.assign(clip_id=[f"{HOSTILE}{i}" for i in range(len(clips))], action=HOSTILE)
    table = ClipTable(frame, (task,), root=clips.root)
    run = make_run("run", 0.5, tasks=(task,))
    maps = dataclasses.replace(make_maps("rollout", clips=1, ids=(HOSTILE,)), target=(HOSTILE,))
    runs = {HOSTILE: run, "an unusually long name of a setup that does not fit beside a plot on a phone": run}
    return quickstart_report(
        tmp_path_factory.mktemp("report") / "r.html", clips=table, runs=runs, maps=maps, errors=errors(run),
        comparison=compare(runs, resamples=20), chance={"action": 0.5},
    )  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (420, "dark")])
def test_report_in_a_browser_plays_fits_and_stays_offline(report: Path, chromium: Any, width: int, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.set_default_timeout(130_000)
    trouble: list[str] = []
    page.on("console", lambda m: trouble.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: trouble.append(str(e)))

    def refuse(dialog: Any) -> None:
        trouble.append("a script of the data ran")
        dialog.dismiss()

    page.on("dialog", refuse)
    page.on("request", lambda r: trouble.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    page.goto(report.as_uri(), wait_until="domcontentloaded")
    page.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .main-svg').length >= 12")
    page.locator("video").nth(0).scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('video').currentTime > 0")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.locator("img").count() == 0
    ticks = page.locator(".js-plotly-plot .yaxislayer-above text, .js-plotly-plot .ytick text").all_text_contents()
    assert any("<img src=x onerr" in t for t in ticks), ticks  # plotly reads HTML in labels: this one is text
    page.get_by_role("button", name="Pause all clips").click()
    assert page.evaluate("() => [...document.querySelectorAll('video')].every(v => v.paused)")
    assert trouble == []
    context.close()
