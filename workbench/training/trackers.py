"""Training shown where people already look: TensorBoard, trackio, MLflow. Our run folder stays the source of truth.

Each goes through Accelerate's tracker of that name and keeps its files in the folder of the runs, offline:

- ``tensorboard``: ``<runs>/tensorboard/<run>``; ``tensorboard --logdir <runs>/tensorboard``
- ``mlflow``: ``<runs>/mlflow.db`` (SQLite); ``mlflow ui --backend-store-uri sqlite:///<runs>/mlflow.db``
- ``trackio``: ``<runs>/trackio``, unless ``TRACKIO_DIR`` is set or trackio was imported before, since it looks only
  then; ``TRACKIO_DIR=<runs>/trackio trackio show --project <name of the folder of runs>``
"""

import importlib.util
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker

from workbench.training.loop import Watcher

TRACKERS = ("tensorboard", "trackio", "mlflow")


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError on an unknown name, ImportError (saying what to install) where a package is missing."""
    if isinstance(names, str):
        raise ValueError(f"trackers={names!r} is one name; give a sequence: ({names!r},)")
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"tracker {name!r} is not known; use one of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"tracker {name!r} needs {name}: pip install 'video-transfer-workbench[trackers]'")


@contextmanager
def tracked(names: Sequence[str], folder: Path, label: str, setup: Mapping[str, Any]) -> Iterator[Watcher | None]:
    """A watcher that hands every epoch of the run in ``folder`` to these trackers; None without any.

    The last row of the history is logged at its epoch number, the setup as the run's configuration. A resumed run goes
    on in the same place. Raises as :func:`check_trackers` does.
    """
    check_trackers(names)
    if not names:
        yield None
        return
    config = {key: value if isinstance(value, int | float | str) else json.dumps(value) for key, value in setup.items()}
    with ExitStack() as stack:
        found = [stack.enter_context(_OPEN[name](folder, label, config)) for name in dict.fromkeys(names)]

        def watch(history: pd.DataFrame) -> None:
            line = {name: float(value) for name, value in history.iloc[-1].items() if math.isfinite(value)}
            epoch = int(line.pop("epoch"))
            for tracker in found:
                tracker.log(line, step=epoch)

        yield watch


@contextmanager
def _tensorboard(folder: Path, label: str, config: Mapping[str, Any]) -> Iterator[Any]:
    tracker = TensorBoardTracker(folder.name, folder.parent / "tensorboard")
    tracker.start()
    # Not as hyperparameters: Accelerate would put those into a run of their own beside this one.
    tracker.tracker.add_text("setup", f"```\n{json.dumps({'name': label, **config}, indent=1)}\n```")
    try:
        yield tracker
    finally:
        tracker.finish()


@contextmanager
def _mlflow(folder: Path, label: str, config: Mapping[str, Any]) -> Iterator[Any]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{(folder.parent / 'mlflow.db').resolve()}")
    try:
        where = {"experiment_name": folder.parent.resolve().name, "run_name": folder.name}
        known = mlflow.search_runs(
            experiment_names=[where["experiment_name"]], filter_string=f"tags.`mlflow.runName` = '{folder.name}'",
            max_results=1, output_format="list",
        )  # fmt: skip
        artifacts = (folder.parent / "mlflow-artifacts").resolve().as_uri()
        tracker = MLflowTracker(run_id=known[0].info.run_id if known else None, logging_dir=artifacts, **where)
        tracker.start()
        if not known:
            tracker.store_init_configuration({"name": label, **config})
        try:
            yield tracker
        finally:
            tracker.finish()
    finally:
        mlflow.set_tracking_uri(before)


@contextmanager
def _trackio(folder: Path, label: str, config: Mapping[str, Any]) -> Iterator[Any]:
    os.environ.setdefault("TRACKIO_DIR", str((folder.parent / "trackio").resolve()))
    tracker = TrackioTracker(
        folder.parent.resolve().name, name=folder.name, resume="allow", config={"name": label, **config}, embed=False,
        auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip
    tracker.start()
    try:
        yield tracker
    finally:
        tracker.finish()


_OPEN = {"tensorboard": _tensorboard, "mlflow": _mlflow, "trackio": _trackio}
