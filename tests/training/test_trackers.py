"""What a tracker was told is what the history says; each is skipped where it is not installed."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from workbench.data.tables import ClipTable
from workbench.training import trackers
from workbench.training.finetune import fine_tune, make_accelerator
from workbench.training.setup import Setup
from workbench.training.trackers import tracked

HISTORY = pd.DataFrame(
    {"epoch": [1, 2], "train_loss": [0.7, 0.5], "val_score": [math.nan, 0.25], "seconds": [1.0, 2.0]}
)


@pytest.fixture(autouse=True)
def accelerator() -> Any:
    """Accelerate's trackers ask its state which process they are in."""
    return make_accelerator(Setup(), torch.device("cpu"))


def told(name: str, folder: Path) -> None:
    """Two epochs of a run, the second after an interruption."""
    for rows in (1, 2):
        with tracked((name,), folder, "full", {"lr": 3e-4, "tasks": ["action"], "head": None}) as watch:
            assert watch is not None
            watch(HISTORY.head(rows))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """``{tag: [(step, value)]}`` of a TensorBoard folder."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    read = events.EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_fine_tune_shows_its_history_in_tensorboard(
    tiny_checkpoint: str, tiny_table: ClipTable, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="no tensorboard")
    setup = Setup(strategy="full", backbone=tiny_checkpoint, epochs=2, batch_size=6, precision="fp32")
    quiet: dict[str, Any] = {"device": "cpu", "workers": 1, "progress": False}
    run = fine_tune(setup, tiny_table, runs_dir=tmp_path, trackers=("tensorboard",), **quiet)
    shown = scalars(tmp_path / "tensorboard" / run.folder.name)
    for name in ("train_loss", "val_score", "lr"):
        assert shown[name] == [(e, pytest.approx(v)) for e, v in zip([1, 2], run.history[name], strict=True)]


def test_tensorboard_goes_on_after_an_interruption_and_skips_what_is_unknown(tmp_path: Path) -> None:
    told("tensorboard", tmp_path / "runs" / "a")
    shown = scalars(tmp_path / "runs" / "tensorboard" / "a")
    assert shown["train_loss"] == [(1, pytest.approx(0.7)), (2, pytest.approx(0.5))]
    assert shown["val_score"] == [(2, pytest.approx(0.25))] and "epoch" not in shown


def test_mlflow_keeps_one_run_in_a_local_database(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    before = mlflow.get_tracking_uri()
    told("mlflow", tmp_path / "runs" / "a")
    assert mlflow.get_tracking_uri() == before
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'runs'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "a" and run.info.status == "FINISHED"
    assert run.data.params == {"name": "full", "lr": "0.0003", "tasks": '["action"]', "head": "null"}
    values = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train_loss")]
    assert values == [(1, 0.7), (2, 0.5)]


def test_trackio_keeps_one_run_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("trackio") is None:  # not imported: it would look for its folder too early
        pytest.skip("trackio is not installed")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    told("trackio", tmp_path / "runs" / "a")
    import sqlite3

    (file,) = (tmp_path / "runs" / "trackio").glob("*.db")
    rows = sqlite3.connect(file).execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("a", 1), ("a", 2)]
    assert json.loads(rows[1][2])["train_loss"] == 0.5


def test_tracked_names_what_is_missing_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'video-transfer-workbench\[trackers\]'"):
        trackers.check_trackers(("mlflow",))
    with pytest.raises(ValueError, match="tracker 'wandb' is not known; use one of tensorboard, trackio, mlflow"):
        trackers.check_trackers(("wandb",))
    with pytest.raises(ValueError, match="give a sequence"):
        trackers.check_trackers("mlflow")
    with tracked((), tmp_path, "full", {}) as watch:
        assert watch is None
    assert not list(tmp_path.iterdir())
