"""Training in a process of its own that kills itself, as a power cut would."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from workbench.data.tables import ClipTable
from workbench.training.setup import Setup

SCRIPT = """
import json, os, signal, sys
import workbench.training.loop as loop
from workbench.data.tables import ClipTable
from workbench.training.finetune import fine_tune
from workbench.training.setup import Setup

if __name__ == "__main__":
    record, table, runs, die_after = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    seen, original = [0], loop.task_losses
    loop._CHECKPOINT_SECONDS = 0.0  # a checkpoint after every batch

    def counted(*args, **kwargs):
        seen[0] += 1
        if seen[0] == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    loop.task_losses = counted
    fine_tune(Setup.from_json(record), ClipTable.load(table, allow_outside_root=True), runs_dir=runs, device="cpu",
              workers=1, progress=False)
"""


def starter(setup: Setup, table: ClipTable, runs_dir: Path, folder: Path) -> Callable[[int], int]:
    """``start(n)`` trains until the n-th loss and dies there by SIGKILL; it returns the process's exit code."""
    script = folder / "train.py"
    script.write_text(SCRIPT)
    absolute = table.frame.assign(path=[str(p) for p in table.files()])
    table._with(absolute, allow_outside_root=True).save(folder / "table")
    record = json.dumps(setup.to_json())

    def start(die_after: int) -> int:
        command = [sys.executable, str(script), record, str(folder / "table"), str(runs_dir), str(die_after)]
        return subprocess.run(command, timeout=300, check=False).returncode

    return start
