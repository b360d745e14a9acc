"""The same dashboards under Voila, as ``workbench app`` serves them."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import Visit, free_port, serving
from tests.training.conftest import tiny_checkpoint as tiny_checkpoint
from tests.training.conftest import tiny_table as tiny_table
from workbench.data.tables import ClipTable
from workbench.training.finetune import fine_tune
from workbench.training.setup import Setup

pytest.importorskip("pytest_playwright", reason="pytest-playwright is not installed")
pytest.importorskip("voila", reason="voila is not installed")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: str, tiny_table: ClipTable) -> Iterator[str]:
    """The address that ``workbench app`` prints, with its token."""
    folder = tmp_path_factory.mktemp("app")
    quiet: dict[str, Any] = {"runs_dir": folder / "runs", "device": "cpu", "workers": 1, "progress": False}
    for strategy in ("linear", "attentive"):
        setup = Setup(strategy=strategy, backbone=tiny_checkpoint, epochs=1, batch_size=8, tasks=("direction",))
        fine_tune(setup, tiny_table, **quiet)
    port = free_port()
    command = [sys.executable, "-m", "workbench", "app", "runs", "--port", str(port), "--no-browser"]
    for url in serving(command, folder, f"http://127.0.0.1:{port}/"):
        found = re.search(r"\?token=\w+", (folder / "server.log").read_text())
        assert found, "no token was asked for"
        yield url + found[0]


def test_app_compares_and_shows_errors_to_who_has_the_token(visit: Visit, app: str) -> None:
    page = visit.page
    refused = page.request.get(app.split("?")[0])
    assert "wb-view" not in refused.text() and "login" in refused.url
    page.goto(app, wait_until="commit")
    page.locator(".wb-view .js-plotly-plot .ytick:visible").first.wait_for()
    labels = " ".join(page.locator(".wb-view .js-plotly-plot .ytick:visible").all_text_contents())
    assert "linear" in labels and "attentive" in labels
    visit.shot("app_compare")
    page.get_by_role("button", name="Errors of a run").click()
    page.get_by_text(re.compile(r"clip\(s\), page 1 of")).first.wait_for()
    page.locator(".wb-gallery figure").first.wait_for()
    visit.shot("app_errors")
    assert visit.serious() == []
    assert visit.trouble == []
