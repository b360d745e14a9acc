"""A hang or a crash costs one item."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from workbench.data.loading import pool as pool_module
from workbench.data.loading.guard import ItemCrashError, ItemTimeoutError, run_guarded
from workbench.data.loading.pool import GuardedPool

ACTS = """
import os, signal, sys, time
import numpy as np

class OddError(Exception):  # cannot be unpickled: its arguments are not the ones it was made with
    def __init__(self, a, b):
        super().__init__(a)

def act(what, load=b""):
    if what == "abort":
        os.abort()
    if what == "hang":
        time.sleep(600)
    if what == "raise":
        raise KeyError("mine")
    if what == "array":
        return np.arange(700_000, dtype=np.int32).reshape(7, 100, -1)[:, ::2]  # not contiguous
    if what == "die in the middle of an answer":
        write = os.write
        def half(file, data):
            write(file, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        os.write = half
        return np.zeros(600_000, np.uint8)
    if what == "unsendable":
        return lambda: None
    if what == "end of file":
        raise EOFError("mine")
    if what == "rest":
        time.sleep(0.3)
    if what == "odd error":
        raise OddError("a", "b")
    if what == "pid":
        return os.getpid()
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
        "from workbench.data.loading.guard import run_guarded\n"
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


def test_run_guarded_carries_arrays_bit_for_bit_and_says_what_it_cannot_carry(acts: ModuleType) -> None:
    names = ["array", "unsendable", "odd error", "one"]
    array, unsendable, odd, one = run_guarded(acts.act, [{"what": n} for n in names], workers=1)
    expected = np.arange(700_000, dtype=np.int32).reshape(7, 100, -1)[:, ::2]
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == np.int32 and array.flags.writeable
    assert isinstance(unsendable, RuntimeError) and "cannot send" in str(unsendable)
    assert isinstance(odd, RuntimeError) and "cannot be read" in str(odd)
    assert one == "one"


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_run_guarded_loses_one_item_to_a_child_killed_in_the_middle_of_an_answer(acts: ModuleType) -> None:
    names = ["die in the middle of an answer", "one", "die in the middle of an answer", "two"]
    first, one, third, two = run_guarded(acts.act, [{"what": n} for n in names], workers=2, time_limit_seconds=60)
    assert (one, two) == ("one", "two")
    for lost in (first, third):
        assert isinstance(lost, ItemCrashError) and lost.exit_code == -signal.SIGKILL


def test_item_crash_error_survives_a_process_boundary() -> None:
    error = copy.copy(ItemCrashError("it died", -11))  # as pickling does
    assert str(error) == "it died" and error.exit_code == -11


def test_guarded_pool_keeps_its_processes_between_items_and_ends_them_on_close(acts: ModuleType) -> None:
    with GuardedPool(workers=1) as pool:
        first = pool.submit(acts.act, {"what": "pid"}).result()
        assert pool.submit(acts.act, {"what": "pid"}).result() == first != os.getpid()
        hanging = pool.submit(acts.act, {"what": "hang"})
    assert "closed" in str(hanging.exception())
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(acts.act, {"what": "one"})
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    pool.close()  # twice is once


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the child in /proc")
def test_guarded_pool_leaves_no_hanging_child_behind_a_killed_parent(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "guarded_acts.py").write_text(ACTS)
    script = (
        f"import sys; sys.path[:0] = [{str(repo)!r}, {str(tmp_path)!r}]\n"
        "import guarded_acts\n"
        "from workbench.data.loading.pool import GuardedPool\n"
        "pool = GuardedPool(1)\n"
        "print(pool.submit(guarded_acts.act, {'what': 'pid'}).result(), flush=True)\n"
        "pool.submit(guarded_acts.act, {'what': 'hang'}).result()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_run_guarded_gives_an_end_of_file_of_the_function_as_its_outcome(acts: ModuleType) -> None:
    ended, one = run_guarded(acts.act, [{"what": "end of file"}, {"what": "one"}], workers=1)
    assert isinstance(ended, EOFError) and str(ended) == "mine" and one == "one"


def test_run_guarded_carries_items_larger_than_a_pipe(acts: ModuleType) -> None:
    # An array on its way back and an item on its way there: neither side would read.
    items = [{"what": "array", "load": bytes(300_000)}] * 4
    assert [type(o) for o in run_guarded(acts.act, items, workers=1, time_limit_seconds=20)] == [np.ndarray] * 4


def test_guarded_pool_gives_up_a_child_whose_array_finds_no_memory(
    acts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scarce:
        """NumPy, out of memory at the first array."""

        refused = False

        def __getattr__(self, name: str) -> object:
            return getattr(np, name)

        def empty(self, *args: object) -> np.ndarray:
            if not self.refused:
                self.refused = True
                raise MemoryError("no memory for this array")
            return np.empty(*args)

    monkeypatch.setattr(pool_module, "np", Scarce())
    first, second = run_guarded(acts.act, [{"what": "array"}] * 2, workers=1, time_limit_seconds=20)
    assert isinstance(first, MemoryError)
    np.testing.assert_array_equal(second, acts.act("array"))


def test_guarded_pool_goes_on_after_a_future_was_cancelled(acts: ModuleType) -> None:
    with GuardedPool(workers=1) as pool:
        futures = [pool.submit(acts.act, {"what": "rest"}) for _ in range(6)]
        assert futures[5].cancel()
        last = pool.submit(acts.act, {"what": "one"})
        assert [f.result() for f in futures[:5]] == ["rest"] * 5 and last.result() == "one"


def test_guarded_pool_says_that_a_process_did_not_start(acts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_serve", sys.exit)  # called with two arguments: the child ends with an error
    (lost,) = run_guarded(acts.act, [{"what": "one"}], workers=1)
    assert isinstance(lost, ItemCrashError) and lost.exit_code is None and "did not start (exit code 1)" in str(lost)


def test_guarded_pool_ends_quietly_with_a_script_that_left_it_busy(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "guarded_acts.py").write_text(ACTS)
    script = (
        f"import sys; sys.path[:0] = [{str(repo)!r}, {str(tmp_path)!r}]\n"
        "import guarded_acts\n"
        "from workbench.data.loading.guard import run_guarded\n"
        "outcomes = run_guarded(guarded_acts.act, [{'what': 'rest'}] * 40)\n"
        "print(next(outcomes))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("rest\n", "", 0)
