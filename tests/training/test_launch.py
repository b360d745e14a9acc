"""A training in a process of its own: it goes on without whoever started it, stops, resumes and reports."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from workbench.data.tables import ClipTable
from workbench.training.finetune import fine_tune
from workbench.training.launch import Launched, find_jobs, launch
from workbench.training.setup import Setup

QUIET: dict[str, Any] = {"device": "cpu", "workers": 1}


def setup_for(checkpoint: str, **changes: Any) -> Setup:
    options: dict[str, Any] = {"backbone": checkpoint, "epochs": 3, "batch_size": 6, "precision": "fp32"}
    return Setup(**(options | {"strategy": "full"} | changes))


def long(checkpoint: str) -> Setup:
    """Trains for minutes, so that a test can look on; tests end it."""
    return setup_for(checkpoint, epochs=5000, seed=1)


def until(condition: Any, job: Launched, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert job.alive and time.monotonic() < end, f"{job}: {job.log()}"
        time.sleep(0.1)


@pytest.fixture
def ended() -> Iterator[list[Launched]]:
    """Trainings to end after the test, whatever became of it."""
    jobs: list[Launched] = []
    yield jobs
    for job in jobs:
        job.stop(grace_seconds=0)


def test_launch_makes_the_run_that_fine_tune_makes(tiny_checkpoint, tiny_table: ClipTable, tmp_path: Path) -> None:
    job = launch(setup_for(tiny_checkpoint), tiny_table, runs_dir=tmp_path / "apart", **QUIET)
    here = fine_tune(setup_for(tiny_checkpoint), tiny_table, runs_dir=tmp_path / "here", progress=False, **QUIET)
    assert job.wait(timeout_seconds=200) == "finished", job.log()
    apart = job.run()
    assert apart.folder == tmp_path / "apart" / here.folder.name
    mine, theirs = load_file(here.folder / "weights.safetensors"), load_file(apart.folder / "weights.safetensors")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert list(job.history().epoch) == [1, 2, 3]
    assert f"run folder: {apart.folder}" in job.log()
    assert repr(job) == "Launched 'full' on 'squares': finished, epoch 3 of 3"
    assert [found.folder for found in find_jobs(tmp_path / "apart")] == [job.folder]
    job.resume()  # nothing is left to do
    assert job.state == "finished" and not job.alive


def test_launched_outlives_its_starter_is_refused_twice_stops_and_goes_on(
    tiny_checkpoint, tiny_table: ClipTable, tmp_path: Path, ended: list[Launched]
) -> None:
    setup, runs = long(tiny_checkpoint), tmp_path / "runs"
    tiny_table.save(tmp_path / "table")
    script = (
        "import json, os, signal, sys; from workbench.training.launch import launch; "
        "from workbench.data.tables import ClipTable; from workbench.training.setup import Setup; "
        "launch(Setup.from_json(json.loads(sys.argv[1])), ClipTable.load(sys.argv[2], allow_outside_root=True), "
        "runs_dir=sys.argv[3], device='cpu', workers=1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script, json.dumps(setup.to_json()), str(tmp_path / "table"), str(runs)]
    assert subprocess.run(command, timeout=200, check=False).returncode == -9  # the kernel is killed
    (job,) = find_jobs(runs)
    ended.append(job)
    until(lambda: len(job.history()) >= 2, job)
    assert job.state == "running"
    with pytest.raises(RuntimeError, match="not finished|is running"):
        job.run()
    with pytest.raises(RuntimeError, match=f"process {job.process_id} trains this setup on this table already"):
        launch(setup, ClipTable.load(tmp_path / "table", allow_outside_root=True), runs_dir=runs, **QUIET)
    assert job.stop() == "stopped"
    folder = job.run_folder
    assert folder is not None and "stopped in epoch" in job.log()  # asked, not killed
    state = torch.load(folder / "checkpoint" / "state.pt", weights_only=True)["progress"]
    before = len(job.history())
    assert state["epoch"] == before
    again = Launched.attach(job.folder)
    again.resume()
    until(lambda: len(again.history()) > before, again)
    resumed = again.history()
    assert list(resumed.epoch) == list(range(1, len(resumed) + 1))
    assert (again.folder / "log.txt").read_text().count(f"resuming {folder.name} at epoch {before + 1}") == 1
    assert again.stop(grace_seconds=0) == "stopped"  # killed, and stopped all the same: it was asked for


def test_launched_that_dies_has_failed_and_says_why(tiny_checkpoint, tiny_table: ClipTable, tmp_path: Path) -> None:
    none = tiny_table._with(tiny_table.frame.assign(split="train"))  # nothing to watch the training by
    job = launch(setup_for(tiny_checkpoint), none, runs_dir=tmp_path, **QUIET)
    assert job.wait(timeout_seconds=200) == "failed"
    assert "has no val clips" in job.log()
    with pytest.raises(RuntimeError, match="(?s)failed, not finished:.*no val clips"):
        job.run()


def a_job(folder: Path, **record: Any) -> Launched:
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"command": [], "name": "x", "table": "t", "epochs": 2} | record))
    return Launched(folder)


def test_launched_knows_its_process_from_another_with_the_same_id(tmp_path: Path) -> None:
    assert a_job(tmp_path / "a", pid=os.getpid(), began=0.0).state == "failed"  # this process began later
    assert a_job(tmp_path / "b").state == "failed"
    with pytest.raises(FileNotFoundError, match="no job.json"):
        Launched.attach(tmp_path)


def test_launched_log_shows_the_last_state_of_a_bar_and_only_the_lines_asked_for(tmp_path: Path) -> None:
    job = a_job(tmp_path / "a")
    assert job.log() == "" and list(job.history().columns) == ["epoch"]
    (job.folder / "log.txt").write_text("one\ntwo\n\n" + "".join(f"\rbar {i}" for i in range(5)) + "\nthree\n")
    assert job.log(3) == "two\nbar 4\nthree"
    with pytest.raises(ValueError, match="lines=0"):
        job.log(0)


def test_launch_refuses_unknown_trackers_before_it_writes(tiny_checkpoint, tiny_table: ClipTable, tmp_path) -> None:
    with pytest.raises(ValueError, match="tracker 'wandb' is not known"):
        launch(setup_for(tiny_checkpoint), tiny_table, runs_dir=tmp_path, trackers=("wandb",))
    assert not list(tmp_path.iterdir())
