"""The panel that trains another setup: its controls and states, on trainings that are stood in for."""

import asyncio
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import traitlets

from workbench.data.tables import ClipTable
from workbench.training.setup import Setup
from workbench.views import launch_panel
from workbench.views.launch_panel import LaunchPanel


class StandIn:
    """A training whose state a test sets."""

    name, process_id, alive = "full", 1, True

    def __init__(self, setup: Setup | None = None) -> None:
        self.state, self.folder, self.epochs = "starting", Path("job"), 0
        self.run_folder: Path | None = None
        self.setup, self.asked = setup, [""]
        self.job = {"epochs": 4}

    def history(self) -> pd.DataFrame:
        epochs = range(1, self.epochs + 1)
        return pd.DataFrame({"epoch": epochs, "train_loss": [1 / e for e in epochs], "val_score": [0.5] * self.epochs})

    def log(self, lines: int) -> str:
        return "<b>epoch</b>"

    def stop(self) -> str:
        self.state = "stopped"
        return self.state

    def resume(self) -> None:
        self.state = "running"

    def run(self) -> str:
        return "the run"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """The trainings that panels start, in order."""
    found: list[StandIn] = []

    def launch(setup: Setup, clips: Any, **options: Any) -> StandIn:
        found.append(StandIn(setup))
        return found[-1]

    monkeypatch.setattr(launch_panel, "launch", launch)
    return found


def pressable(panel: LaunchPanel) -> set[str]:
    return {name for name, button in panel._buttons.items() if not button.disabled}


def test_launch_panel_trains_what_its_controls_say(clips: ClipTable, tmp_path: Path, started: list[StandIn]) -> None:
    panel = LaunchPanel(clips, runs_dir=tmp_path, base=Setup(strategy="linear", epochs=3, seed=5))
    assert (panel.strategy, panel.lr, panel.epochs) == ("linear", 5e-3, 3)
    assert panel.setup() == Setup(strategy="linear", epochs=3, seed=5)  # the strategy's own rate is left to it
    panel._controls["strategy"].value = "lora:8"
    assert panel.lr == 3e-3  # a strategy brings its rate
    panel._controls["lr"].value, panel._controls["epochs"].value = 0.01, 7
    panel._buttons["start"].click()
    assert started[0].setup == Setup(strategy="lora:8", epochs=7, seed=5, lr=0.01)
    linear = LaunchPanel(clips, runs_dir=tmp_path, base=Setup(strategy="linear", head_lr=0.02))
    assert linear.lr == 0.02 and linear.setup().head_lr == 0.02 and linear.setup().lr is None
    with pytest.raises(traitlets.TraitError, match="'magic' is not known"):
        panel.strategy = "magic"


def test_launch_panel_offers_start_stop_and_resume_when_they_mean_something(
    clips: ClipTable, tmp_path: Path, started: list[StandIn]
) -> None:
    runs: list[Any] = []
    panel = LaunchPanel(clips, runs_dir=tmp_path, on_finished=runs.append)
    assert panel.state == "idle" and pressable(panel) == {"start"}
    panel._buttons["start"].click()
    assert panel.state == "starting" and pressable(panel) == {"stop"} and panel._controls["lr"].disabled
    job = started[0]
    job.state, job.epochs, job.run_folder = "running", 2, tmp_path / "<b>run"
    panel.refresh()
    assert panel.run_folder == str(tmp_path / "<b>run") and list(panel._curves.widget.data[0].x) == [1, 2]
    assert "2 of 4 epochs" in panel._status.value and "<b>" not in panel._status.value + panel._log.value
    panel._buttons["stop"].click()
    assert panel.state == "stopped" and pressable(panel) == {"start", "resume"}
    panel._buttons["resume"].click()
    assert panel.state == "running" and not runs
    job.state = "finished"
    panel.refresh()
    panel.refresh()
    assert runs == ["the run"]  # told once
    frozen = panel.freeze()
    assert frozen.count("<svg ") == 1 and "<script" not in frozen and "<b>run" not in frozen


def test_launch_panel_says_why_a_start_was_refused(clips: ClipTable, tmp_path: Path, monkeypatch) -> None:
    def launch(*_: Any, **__: Any) -> None:
        raise RuntimeError("<i>process 3</i> trains this already")

    monkeypatch.setattr(launch_panel, "launch", launch)
    panel = LaunchPanel(clips, runs_dir=tmp_path)
    panel._buttons["start"].click()
    assert "&lt;i&gt;process 3&lt;/i&gt; trains this already" in panel._trouble.value and panel.state == "idle"


def test_launch_panel_looks_after_a_training_while_other_work_goes_on_and_then_ends(
    clips: ClipTable, tmp_path: Path, started: list[StandIn]
) -> None:
    runs: list[Any] = []

    async def kernel() -> None:
        panel = LaunchPanel(clips, runs_dir=tmp_path, on_finished=runs.append, poll_seconds=0.01)
        panel.start()
        task, other = panel._task, 0
        assert task is not None
        while panel.state != "running":  # another cell
            started[0].state, other = "running", other + 1
            await asyncio.sleep(0.005)
        panel._buttons["stop"].click()  # does not wait
        await asyncio.wait_for(task, 30)
        assert panel.state == "stopped"
        panel._buttons["resume"].click()
        assert panel._task is not None and panel.state == "running"
        started[0].state = "finished"
        await asyncio.wait_for(panel._task, 30)
        assert panel.state == "finished" and runs == ["the run"] and other > 0

    asyncio.run(kernel())


def test_launch_panel_that_is_closed_or_dropped_leaves_no_task(
    clips: ClipTable, tmp_path: Path, started: list[StandIn]
) -> None:
    async def kernel() -> None:
        panel = LaunchPanel(clips, runs_dir=tmp_path, poll_seconds=0.01)
        panel.start()
        task = panel._task
        assert task is not None
        panel.close()
        await asyncio.wait([task], timeout=30)
        assert task.cancelled()

    asyncio.run(kernel())
    assert started[0].state == "starting"  # the training itself goes on


def test_launch_panel_takes_over_a_training_that_still_runs(clips: ClipTable, tmp_path: Path, monkeypatch) -> None:
    job = StandIn()
    job.state = "running"
    monkeypatch.setattr(launch_panel, "find_jobs", lambda runs_dir: [job])
    panel = LaunchPanel(clips, runs_dir=tmp_path)
    assert panel.launched is job and panel.state == "running" and pressable(panel) == {"stop"}
