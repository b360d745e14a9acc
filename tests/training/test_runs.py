"""A folder of runs, read and written by many."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from workbench.data.tables import ClipTable
from workbench.training.finetune import fine_tune
from workbench.training.locking import alone_in
from workbench.training.runs import find_runs
from workbench.training.setup import Setup

# Forked after torch was imported, so that eight writers cost the time of one import; all begin at once.
WRITERS = """
import json, multiprocessing, sys
import torch
from workbench.data.tables import ClipTable
from workbench.training.finetune import fine_tune
from workbench.training.setup import Setup

def write(number, barrier, table, record, runs):
    setup = Setup.from_json(record).replace(seed=number // 2)  # two writers of each run
    barrier.wait()
    run = fine_tune(setup, table, runs_dir=runs, device="cpu", workers=1, progress=False)
    assert run.setup.seed == number // 2 and len(run.predictions) and len(run.history) == setup.epochs

if __name__ == "__main__":
    torch.set_num_threads(1)
    table, record, runs = ClipTable.load(sys.argv[1], allow_outside_root=True), json.loads(sys.argv[2]), sys.argv[3]
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(8)
    writers = [fork.Process(target=write, args=(n, barrier, table, record, runs)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    sys.exit(max(abs(writer.exitcode) for writer in writers))
"""


def test_eight_writers_into_one_folder_lose_no_run(tiny_checkpoint: str, tiny_table: ClipTable, tmp_path: Path) -> None:
    setup = Setup(strategy="full", backbone=tiny_checkpoint, epochs=1, batch_size=6, precision="fp32")
    table = tiny_table.with_tasks("direction")
    table.save(tmp_path / "table")
    # The clips are decoded once, so that the writers meet where they write.
    alone = fine_tune(setup, table, runs_dir=tmp_path / "alone", device="cpu", workers=1, progress=False)
    command = [sys.executable, "-c", WRITERS, str(tmp_path / "table"), json.dumps(setup.to_json()), str(tmp_path / "r")]
    done = subprocess.run(command, timeout=280, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = find_runs(tmp_path / "r")
    assert sorted(run.setup.seed for run in runs.values()) == [0, 1, 2, 3]
    for run in runs.values():
        assert {p.name for p in run.folder.iterdir()} == {p.name for p in alone.folder.iterdir()}
        assert run.model().tasks == alone.tasks  # its weights are whole
    mine = next(run for run in runs.values() if run.setup.seed == 0)
    pd.testing.assert_frame_equal(mine.predictions, alone.predictions)
    assert done.stderr.count("waiting for it to end") <= 4


def test_alone_in_says_who_is_there_and_waits(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from workbench.training.locking import alone_in\n"
        "with alone_in(pathlib.Path(sys.argv[1])): print('in', flush=True)"
    )
    with alone_in(tmp_path / "run"):
        other = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert other.stderr is not None
        said = other.stderr.readline()
        assert other.poll() is None  # it waits
    out, _ = other.communicate(timeout=60)
    assert out == "in\n" and "waiting for it to end" in said


def test_find_runs_leaves_out_what_has_not_finished_or_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_runs(tmp_path / "none")
    for name, text in (("half", None), ("broken", "{"), ("other", "{}")):
        (tmp_path / name).mkdir()
        if text:
            (tmp_path / name / "run.json").write_text(text)
    assert find_runs(tmp_path) == {}
    assert [word in caplog.text for word in ("broken", "other", "half")] == [True, True, False]
