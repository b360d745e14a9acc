"""The app over a folder of runs: what it offers and shows, without a server."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import traitlets

from tests.training.conftest import tiny_checkpoint as tiny_checkpoint
from tests.training.conftest import tiny_table as tiny_table
from workbench.data.tables import ClipTable
from workbench.training.finetune import fine_tune
from workbench.training.setup import Setup
from workbench.views.app import RunsApp, write_page


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: str, tiny_table: ClipTable) -> Path:
    """Two runs of one task and one of another, and a folder that is no run."""
    folder = tmp_path_factory.mktemp("runs")
    quiet: dict[str, Any] = {"runs_dir": folder, "device": "cpu", "workers": 1, "progress": False}
    for tasks, seed in ((("direction",), 0), (("direction",), 1), (("bright",), 0)):
        setup = Setup(strategy="linear", backbone=tiny_checkpoint, epochs=1, batch_size=8, seed=seed, tasks=tasks)
        fine_tune(setup, tiny_table, **quiet)
    (folder / "half").mkdir()
    return folder


def test_runs_app_offers_together_what_can_be_compared_and_each_run_for_errors(
    runs_dir: Path, tiny_table: ClipTable
) -> None:
    app = RunsApp(runs_dir, tiny_table)
    assert [title for title, _ in app._menu.options] == ["squares: direction; 2 run(s)", "squares: bright; 1 run(s)"]
    assert sorted(set(app.view.comparison.table.run)) == sorted(app._offers["compare"][app.shown])
    app._menu.value = "squares: bright; 1 run(s)"
    assert app.shown == "squares: bright; 1 run(s)" and app.view.comparison.table.task.tolist() == ["bright"]
    app._pages.value = "errors"
    assert app.page == "errors" and len(app._menu.options) == 3
    names = list(app._offers["errors"])
    assert app.shown == names[0] and app.view.run.folder.name == names[0]
    app.shown = names[2]
    assert app._menu.value == names[2] and app.view.tasks == ["bright"]
    assert "Errors of a run" in app.freeze()
    with pytest.raises(traitlets.TraitError, match="nothing is called 'x'"):
        app.shown = "x"


def test_runs_app_shows_runs_of_another_table_without_it(runs_dir: Path, tiny_table: ClipTable) -> None:
    other = tiny_table._with(tiny_table.frame.head(30))
    app = RunsApp(runs_dir, other)
    app.page = "errors"
    assert not app._fits(app.view.run)
    assert RunsApp(runs_dir, tiny_table)._fits(app.view.run)


def test_runs_app_of_an_empty_folder_says_so(tmp_path: Path) -> None:
    app = RunsApp(tmp_path)
    assert "No finished run in" in app.children[0].value and "no finished run" in app.freeze()
    with pytest.raises(FileNotFoundError, match="no folder"):
        RunsApp(tmp_path / "none")


def test_write_page_writes_what_it_was_given_as_literals(tmp_path: Path) -> None:
    odd = tmp_path / "it's \"); import os #"
    odd.mkdir()
    book = json.loads(write_page(odd, tmp_path, None).read_text())
    (cell,) = book["cells"]
    statements = ast.parse(cell["source"]).body
    assert [type(s).__name__ for s in statements] == ["ImportFrom", "Expr"]
    call = statements[1].value
    assert [ast.literal_eval(a) for a in call.args] == [str(odd.resolve()), None]
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_page(tmp_path / "none", tmp_path)
