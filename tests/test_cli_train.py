"""``workbench train`` as a launched training calls it, and as a person who has a setup in a file."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.training.conftest import tiny_checkpoint as tiny_checkpoint
from tests.training.conftest import tiny_table as tiny_table
from workbench.cli import main
from workbench.data.tables import ClipTable
from workbench.training.runs import load_run
from workbench.training.setup import Setup


@pytest.fixture
def table(tiny_table: ClipTable, tmp_path: Path) -> str:
    return str(tiny_table.save(tmp_path / "table"))


def train(table: str, runs: Path, *more: str) -> int:
    quiet = ["--allow-outside-root", "--device", "cpu", "--workers", "1", "--runs", str(runs)]
    return main(["train", table, *quiet, *more])


def test_train_takes_a_setup_from_a_file_and_options_have_the_last_word(
    table: str, tiny_checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = Setup(
        strategy="linear", backbone=tiny_checkpoint, epochs=9, batch_size=8, class_weights={"bright": "balanced"}
    )
    file, job = tmp_path / "setup.json", tmp_path / "job"
    file.write_text(json.dumps(setup.to_json()))
    job.mkdir()
    asked = ["--setup", str(file), "--epochs", "1", "--tracker", "tensorboard", "--job", str(job)]
    assert train(table, tmp_path / "runs", *asked) == 0
    run = load_run(capsys.readouterr().out.split("run folder:")[1].strip())
    assert (run.setup.epochs, run.setup.batch_size, run.setup.weights_by_task) == (1, 8, {"bright": "balanced"})
    assert (job / "run_folder.txt").read_text() == str(run.folder) and '"code": 0' in (job / "ended.json").read_text()
    assert list((tmp_path / "runs" / "tensorboard" / run.folder.name).glob("events*"))
    assert train(table, tmp_path / "runs", "--setup", str(file), "--recipe", "linear") == 2
    assert "are both whole setups; leave one" in capsys.readouterr().err


def test_train_without_the_trackers_package_says_what_to_install(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.training.trackers.importlib.util.find_spec", lambda name: None)
    assert train(table, tmp_path / "runs", "--tracker", "mlflow") == 2
    assert "pip install 'video-transfer-workbench[trackers]'" in capsys.readouterr().err


def test_train_asked_to_end_leaves_a_checkpoint_and_code_130(
    table: str,
    tiny_checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from workbench.training import loop

    steps, original = [0], loop.task_losses

    def asked(*args: object, **options: object) -> object:
        steps[0] += 1
        if steps[0] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(loop, "task_losses", asked)
    before = signal.getsignal(signal.SIGTERM)
    job = tmp_path / "job"
    job.mkdir()
    options = ["--strategy", "full", "--backbone", tiny_checkpoint, "--batch-size", "8", "--epochs", "4"]
    assert train(table, tmp_path / "runs", *options, "--job", str(job)) == 130
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err
    assert '"code": 130' in (job / "ended.json").read_text() and signal.getsignal(signal.SIGTERM) == before
    assert (Path((job / "run_folder.txt").read_text()) / "checkpoint" / "state.pt").exists()


def test_app_of_a_missing_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", str(tmp_path / "none")]) == 2
    assert "no folder" in capsys.readouterr().err
