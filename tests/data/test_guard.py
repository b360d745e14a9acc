"""A hang or a crash costs one item."""

import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from workbench.data.guard import ItemCrashError, ItemTimeoutError, run_guarded

ACTS = """
import os, sys, time

def act(what):
    if what == "abort":
        os.abort()
    if what == "hang":
        time.sleep(600)
    if what == "raise":
        raise KeyError("mine")
    if what == "torch":
        return "torch" in sys.modules
    return what
"""


@pytest.fixture
def acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "guarded_acts.py").write_text(ACTS)
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    module = importlib.import_module("guarded_acts")
    monkeypatch.setitem(sys.modules, "guarded_acts", module)
    return module


def test_run_guarded_returns_outcomes_in_order_whatever_dies(acts: ModuleType) -> None:
    names = ["one", "abort", "raise", "hang", "two", "three"]
    began = time.monotonic()
    out = list(run_guarded(acts.act, [{"what": n} for n in names], workers=2, time_limit_seconds=6))
    assert [o for o in out if isinstance(o, str)] == ["one", "two", "three"]
    assert [type(o) for o in out[1:4]] == [ItemCrashError, KeyError, ItemTimeoutError]
    assert out[2].args == ("mine",) and "6 s" in str(out[3])
    assert time.monotonic() - began < 120  # far below the 600 s of the hang


def test_run_guarded_handles_many_more_items_than_workers(acts: ModuleType) -> None:
    assert list(run_guarded(acts.act, [{"what": i} for i in range(50)])) == list(range(50))


def test_run_guarded_children_do_not_import_torch_even_where_a_bare_script_did(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "guarded_acts.py").write_text(ACTS)
    script = tmp_path / "script.py"  # no `if __name__ == "__main__"`: plain spawn would run it again in each child
    script.write_text(
        f"import sys; sys.path[:0] = [{str(repo)!r}, {str(tmp_path)!r}]\n"
        "import torch, guarded_acts\n"
        "from workbench.data.guard import run_guarded\n"
        "print(list(run_guarded(guarded_acts.act, [{'what': 'torch'}] * 2)))\n"
    )
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert out.stdout.splitlines() == ["[False, False]"], out.stderr


def test_run_guarded_refuses_what_children_cannot_import(acts: ModuleType) -> None:
    def local() -> None: ...

    local.__module__ = "__main__"
    with pytest.raises(ValueError, match="main script"):
        run_guarded(local, [{}])
    with pytest.raises(ValueError, match="time_limit_seconds=0"):
        run_guarded(acts.act, [{}], time_limit_seconds=0)


def test_run_guarded_can_be_left_early_without_waiting(acts: ModuleType) -> None:
    began = time.monotonic()
    outcomes = run_guarded(acts.act, [{"what": "one"}, {"what": "hang"}, {"what": "hang"}], time_limit_seconds=300)
    assert next(outcomes) == "one"
    outcomes.close()
    assert time.monotonic() - began < 60
