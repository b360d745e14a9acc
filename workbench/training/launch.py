"""``launch``: a training in a process of its own, which a notebook starts, looks at, stops and goes on with.

The process outlives the kernel. All that ties the two together is a *job folder*, ``<runs_dir>/.jobs/<name>``:

- ``job.json``: the command, the process (its id and when it began) and whether a stop was asked for;
- ``table/`` and ``setup.json``: what is trained; ``log.txt``: what the process says;
- ``run_folder.txt``: where the run lies, once the process knows; ``ended.json``: how it ended, where it could say so.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from workbench.data.layouts import open_clips
from workbench.data.tables import ClipTable
from workbench.training.finetune import setup_label
from workbench.training.locking import alone_in
from workbench.training.runs import Run, load_run, write_atomically
from workbench.training.setup import Setup
from workbench.training.trackers import check_trackers

STATES = ("starting", "running", "stopped", "failed", "finished")
STOPPED = 130
"""Exit code of a training that was asked to stop and left a checkpoint."""
JOBS = ".jobs"

# Processes that this interpreter started: it must ask after them, or they stay zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


def launch(
    setup: Setup | str,
    clips: ClipTable | str | Path,
    *,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    workers: int = 2,
    trackers: tuple[str, ...] = (),
) -> "Launched":
    """Train one setup on a table in a process of its own; returns at once.

    It makes the run that ``fine_tune(setup, clips, runs_dir=runs_dir)`` would, in the same folder, and goes on when the
    kernel is restarted or dies. The process is ``python -m workbench train ...``: its Accelerator is set up as under
    ``accelerate launch``, which with one process only puts a second interpreter in between.

    Raises RuntimeError while a process is at the same setup and table already, saying how to get hold of it.
    """
    setup = Setup(strategy=setup) if isinstance(setup, str) else setup
    table = clips if isinstance(clips, ClipTable) else open_clips(clips)
    check_trackers(trackers)
    runs = Path(runs_dir).resolve()
    folder = runs / JOBS / _job_name(setup, table)
    command = [
        sys.executable, "-m", "workbench", "train", str(folder / "table"), "--allow-outside-root", "--allow-leak",
        "--setup", str(folder / "setup.json"), "--runs", str(runs), "--device", device, "--workers", str(workers),
        "--job", str(folder), *(part for name in trackers for part in ("--tracker", name)),
    ]  # fmt: skip
    job = {"command": command, "name": setup_label(setup), "table": table.info.name}
    with alone_in(folder):
        if (folder / "job.json").exists() and (known := Launched(folder)).alive:
            raise RuntimeError(
                f"process {known.process_id} trains this setup on this table already; Launched.attach({str(folder)!r}) "
                "gets hold of it, and its stop() ends it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        table.save(folder / "table")
        _write_json(folder / "setup.json", setup.to_json())
        _write_json(folder / "job.json", job | {"epochs": setup.epochs})
        launched = Launched(folder)
        launched._start()
    return launched


class Launched:
    """A training that :func:`launch` started, as seen from here: everything is read anew from its job folder.

    ``Launched.attach(folder)`` gets hold of one that another kernel started.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        if not (self.folder / "job.json").exists():
            raise FileNotFoundError(
                f"{str(folder)!r} is no job folder: it has no job.json; find_jobs(runs_dir) lists those there are"
            )

    @classmethod
    def attach(cls, folder: str | Path) -> "Launched":
        """The training of this job folder. Raises FileNotFoundError where it is none."""
        return cls(folder)

    @property
    def job(self) -> dict[str, Any]:
        """What ``job.json`` says."""
        record: dict[str, Any] = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
        return record

    @property
    def name(self) -> str:
        """Of the run."""
        return str(self.job["name"])

    @property
    def setup(self) -> Setup:
        """The setup that is trained, as it was asked for."""
        return Setup.from_json(json.loads((self.folder / "setup.json").read_text(encoding="utf-8")))

    @property
    def process_id(self) -> int | None:
        """Of the process started last, whether or not it still runs."""
        return self.job.get("pid")

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process() is not None

    @property
    def run_folder(self) -> Path | None:
        """The run's folder; None until the process has named it."""
        file = self.folder / "run_folder.txt"
        return Path(file.read_text(encoding="utf-8")) if file.exists() else None

    @property
    def state(self) -> str:
        """``starting`` (until the process has named the run's folder), ``running``, ``finished``, ``stopped`` (by
        :meth:`stop`, or by an interrupt) or ``failed`` (the log says why); the last two can be resumed."""
        alive, run = self.alive, self.run_folder  # alive first: a process that ends in between has written the rest
        if run is not None and (run / "run.json").exists():
            return "finished"
        if alive:
            return "starting" if run is None else "running"
        ended = self.folder / "ended.json"
        code = json.loads(ended.read_text(encoding="utf-8"))["code"] if ended.exists() else None
        return "stopped" if code == STOPPED or self.job.get("stop") else "failed"

    def history(self) -> pd.DataFrame:
        """One row per epoch so far, as in :attr:`Run.history`; empty before the first has ended."""
        run = self.run_folder
        for file in (run / "history.parquet", run / "checkpoint" / "history.parquet") if run else ():
            try:
                return pd.read_parquet(file)
            except FileNotFoundError:  # not there yet, or just now moved to the finished run
                continue
        return pd.DataFrame({"epoch": pd.Series(dtype="int64")})

    def log(self, lines: int = 20) -> str:
        """The last ``lines`` of what the process said; of a progress bar its last state."""
        if lines < 1:
            raise ValueError(f"lines={lines} must be at least 1")
        file = self.folder / "log.txt"
        if not file.exists():
            return ""
        with open(file, "rb") as source:
            source.seek(max(0, file.stat().st_size - 400 * lines - 4000))  # bars redraw themselves: long lines
            text = source.read().decode(errors="replace")
        shown = [line.rstrip().rsplit("\r", 1)[-1] for line in text.split("\n")]
        return "\n".join([line for line in shown if line.strip()][-lines:])

    def run(self) -> Run:
        """The finished run. Raises RuntimeError before that, with the end of the log where it failed."""
        if (state := self.state) != "finished":
            more = f":\n{self.log(5)}" if state == "failed" else ""
            raise RuntimeError(f"the training is {state}, not finished{more}")
        folder = self.run_folder
        assert folder is not None  # finished means that its run.json is there
        return load_run(folder)

    def stop(self, *, grace_seconds: float = 30.0) -> str:
        """End the process so that the training can be resumed; returns the state then.

        It is asked (SIGTERM) to write a checkpoint between two steps; what still runs after ``grace_seconds`` is
        killed, and then goes on from the last checkpoint, of the end of an epoch or at most five minutes ago.
        """
        process = self._process()
        if process is None:
            return self.state
        _write_json(self.folder / "job.json", self.job | {"stop": True})
        # The leader alone: it tells the others, and its decoding processes must not die under it.
        process.terminate()
        until = time.monotonic() + grace_seconds
        while self.alive and time.monotonic() < until:
            time.sleep(0.05)
        if self.alive:
            _kill_group(process.pid)
            while self.alive:
                time.sleep(0.05)
        return self.state

    def resume(self) -> None:
        """Start the process (again): it goes on from the last checkpoint. Nothing happens to a finished training, nor
        to one that runs."""
        with alone_in(self.folder):
            if self.state not in ("finished", "starting", "running"):
                self._start()

    def _start(self) -> None:
        (self.folder / "ended.json").unlink(missing_ok=True)
        job = {key: value for key, value in self.job.items() if key not in ("stop", "pid", "began")}
        with open(self.folder / "log.txt", "ab") as log:
            process = subprocess.Popen(
                job["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, cwd=self.folder, env=_environment(),
            )  # fmt: skip
        _children[process.pid] = process
        began = psutil.Process(process.pid).create_time()
        _write_json(self.folder / "job.json", job | {"pid": process.pid, "began": began})

    def wait(self, *, timeout_seconds: float | None = None) -> str:
        """Block until the process has ended; the state then. Raises TimeoutError after ``timeout_seconds``."""
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self.alive:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"the training is still {self.state} after {timeout_seconds} s")
            time.sleep(0.2)
        return self.state

    def _process(self) -> psutil.Process | None:
        """The process, if it runs and is the one that was started: ids are used again."""
        job = self.job
        if "pid" not in job:
            return None
        if child := _children.get(job["pid"]):
            child.poll()
        try:
            process = psutil.Process(job["pid"])
            same = abs(process.create_time() - job["began"]) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def __repr__(self) -> str:
        history = self.history()
        done = int(history.epoch.iloc[-1]) if len(history) else 0
        return f"Launched {self.name!r} on {self.job['table']!r}: {self.state}, epoch {done} of {self.job['epochs']}"


def find_jobs(runs_dir: str | Path = "runs") -> list[Launched]:
    """What was ever launched into this folder, the last started first."""
    folders = [file.parent for file in (Path(runs_dir) / JOBS).glob("*/job.json")]
    return sorted(map(Launched, folders), key=lambda one: one.job.get("began", 0.0), reverse=True)


@contextmanager
def reporting(folder: str | Path | None) -> Iterator[Callable[[Path], None] | None]:
    """Round the work of a job's own process: gives what is to be told the run's folder, and notes how the work ended.

    Nothing without a folder.
    """
    if folder is None:
        yield None
        return
    place, code = Path(folder), 1

    def started(run: Path) -> None:
        write_atomically(place / "run_folder.txt", lambda file: file.write_text(str(run.resolve()), encoding="utf-8"))

    try:
        yield started
        code = 0
    except KeyboardInterrupt:
        code = STOPPED
        raise
    finally:
        _write_json(place / "ended.json", {"code": code})


def _job_name(setup: Setup, table: ClipTable) -> str:
    identity = f"{setup.fingerprint()} {table.fingerprint()} {table.root.resolve()}"
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{table.info.name}-{setup_label(setup)}")
    return f"{safe}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _write_json(path: Path, record: dict[str, Any]) -> None:
    write_atomically(path, lambda file: file.write_text(json.dumps(record, indent=1), encoding="utf-8"))


def _environment() -> dict[str, str]:
    """The caller's, with this package found wherever the process runs, and a log that is written line by line."""
    package = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([*filter(None, known), *([] if package in known else [package])])
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended by itself just now
        return
