"""A pool of child processes in which a hang or a crash costs one item.

Each child has a pipe of its own and shares no lock with another: one that is killed at any moment, in the middle of
an answer too, takes nothing but its item with it. Children are spawned, never forked (decord deadlocks after a fork).
"""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import spawn, util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

log = logging.getLogger(__name__)
_START_SECONDS = 120.0
_AHEAD = 2  # items in a child's pipe: one that it works on and the next, so that it need not wait for this process
_PIPE_BYTES = 16384  # more than that may not fit into a pipe that nobody reads: only a child that waits is sent it
_READ_BYTES = 1 << 30  # at a time: macOS refuses 2 GiB
_launching = threading.Lock()


class ItemTimeoutError(TimeoutError):
    """One item took longer than its limit; its process was ended."""


class ItemCrashError(RuntimeError):
    """The process died at one item, for instance by a segmentation fault in a decoder.

    ``exit_code`` is the process's: -11 a segmentation fault; -9 ended from outside, often by the kernel for memory;
    None where the process did not get as far as the item.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message, exit_code)  # both arguments, so that the error survives a process boundary
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])


def check_importable(function: Callable[..., Any]) -> None:
    """Raises ValueError on a function that a child process cannot import."""
    if function.__module__ == "__main__":
        raise ValueError(
            f"{function.__qualname__} lives in the main script; put it in a module that children can import"
        )


class _Process(SpawnProcess):
    """Plain spawn runs the parent's main script again: one without ``if __name__ == "__main__"`` would start itself
    over in each child, and one that imports torch would make each child load it. This process does not."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        original = spawn.get_preparation_data

        def without_main(name: str) -> dict[str, Any]:
            data = original(name)
            return {k: v for k, v in data.items() if k not in ("init_main_from_name", "init_main_from_path")}

        with _launching:
            spawn.get_preparation_data = without_main
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                spawn.get_preparation_data = original


class WithoutMain(SpawnContext):
    """A multiprocessing context whose processes do not run the parent's main script again."""

    Process = _Process


def _serve(items: Connection, answers: Connection) -> None:
    """The child: answer item after item until the parent closes the pipes or goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def end_with_parent() -> None:
        parent = parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)  # the parent was killed: do not stay behind in a decoder that hangs

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        answers.send(("ready", None))
        while True:
            _answer(items, answers)
    except (EOFError, OSError):
        return  # the parent closed the pipes


def _answer(items: Connection, answers: Connection) -> None:
    data = items.recv_bytes()  # apart from the rest: an EOFError or OSError of the function is its outcome
    try:
        function, item = ForkingPickler.loads(data)
        result = function(**item)
    except Exception as error:  # whatever the function raises is its outcome; the caller judges it
        _send(answers, "error", error)
        return
    if isinstance(result, np.ndarray) and result.size and result.dtype != object:
        whole = np.ascontiguousarray(result)
        answers.send(("array", (whole.dtype.str, whole.shape)))
        _send_bytes(answers, whole.reshape(-1).view(np.uint8).data)
    else:
        _send(answers, "value", result)


def _send(pipe: Connection, kind: str, value: Any) -> None:
    try:
        pipe.send((kind, value))
    except (OSError, EOFError):
        raise
    except Exception as error:  # what cannot be pickled says so in many ways
        pipe.send(("error", RuntimeError(f"a child cannot send {value!r}: {error}")))


# An array goes through the pipe as it lies in memory: 0.6 MB took 0.14 ms so, and 0.8 ms by Connection.send_bytes.
def _send_bytes(pipe: Connection, data: memoryview) -> None:
    if os.name == "nt":
        pipe.send_bytes(data)
        return
    done = 0
    while done < len(data):
        done += os.write(pipe.fileno(), data[done:])


def _receive_bytes(pipe: Connection, data: memoryview) -> None:
    if os.name == "nt":
        pipe.recv_bytes_into(data)
        return
    done = 0
    while done < len(data):
        count = os.readv(pipe.fileno(), [data[done : done + _READ_BYTES]])
        if not count:
            raise EOFError
        done += count


@dataclass
class _Task:
    data: bytes  # function and item, pickled
    future: "Future[Any]" = field(default_factory=Future)

    def is_wanted(self) -> bool:
        """False where the future was cancelled; it cannot be from now on."""
        return self.future.running() or self.future.set_running_or_notify_cancel()


@dataclass
class _Child:
    process: Any
    items: Connection
    answers: Connection
    deadline: float
    ready: bool = False
    tasks: deque[_Task] = field(default_factory=deque)
    """In its pipe, oldest first: the first is the one that it works on."""


class GuardedPool:
    """Spawned processes that answer ``function(**item)``; :meth:`submit` gives a future that never hangs.

    The future's result is what the function returned, or its exception: what the function raised,
    :class:`ItemTimeoutError` after ``time_limit_seconds`` (starting a process does not count), or
    :class:`ItemCrashError` when the process died. Processes start when there is work and end with :meth:`close`,
    or with this process. Arrays travel as bytes. The function must live in a module that children can import.
    """

    def __init__(self, workers: int = 2, time_limit_seconds: float = 60.0) -> None:
        if workers < 1 or time_limit_seconds <= 0:
            raise ValueError(
                f"workers={workers} must be at least 1 and time_limit_seconds={time_limit_seconds} above 0"
            )
        self.workers, self.limit = workers, time_limit_seconds
        self._context = WithoutMain()
        self._children: list[_Child] = []
        self._waiting: deque[_Task] = deque()
        self._lock = threading.Lock()
        self._closed = False
        self._bell, self._ring = self._context.Pipe(duplex=False)
        # At exit, before multiprocessing ends its processes one by one and this pool would start others for them.
        self._at_exit = util.Finalize(None, self.close, exitpriority=10)
        self._thread = threading.Thread(target=self._run, name="guarded pool", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[..., Any], item: Mapping[str, Any]) -> "Future[Any]":
        """Queue one item."""
        check_importable(function)
        try:
            task = _Task(bytes(ForkingPickler.dumps((function, dict(item)))))
        except Exception as error:  # what cannot be pickled says so in many ways
            task = _Task(b"")
            task.future.set_exception(TypeError(f"the item {dict(item)!r} cannot be sent to a child: {error}"))
            return task.future
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed; make another")
            self._waiting.append(task)
            self._ring.send_bytes(b".")
        return task.future

    def close(self) -> None:
        """End the processes, busy or not; futures that are not done fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._ring.send_bytes(b".")
        self._thread.join()
        self._at_exit.cancel()

    def __enter__(self) -> "GuardedPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        end = "was closed"
        try:
            while not self._closed:
                self._hand_out()
                self._listen()
        except Exception as error:
            end = f"broke ({error})"
            log.exception("the guarded pool broke")
        finally:
            with self._lock:
                self._closed = True
            for child in self._children:
                self._end(child)
            left = [task for child in self._children for task in child.tasks] + list(self._waiting)
            for task in filter(_Task.is_wanted, left):
                task.future.set_exception(RuntimeError(f"the pool {end} before this item was done"))
            self._children.clear()
            self._ring.close()
            self._bell.close()

    def _hand_out(self) -> None:
        """Give every child its share of what waits, the idle ones first; start one where none is idle."""
        while self._waiting:
            child = min(self._children, key=lambda c: len(c.tasks), default=None)
            if (child is None or child.tasks) and len(self._children) < self.workers:
                child = self._start()
            large = len(self._waiting[0].data) > _PIPE_BYTES
            if child is None or len(child.tasks) >= (1 if large else _AHEAD):
                return
            task = self._waiting.popleft()
            if not task.is_wanted():
                continue
            if not child.tasks and child.ready:
                child.deadline = time.monotonic() + self.limit
            child.tasks.append(task)
            try:
                child.items.send_bytes(task.data)
            except (OSError, EOFError):
                log.debug("a child is gone; its pipe says so when it is read")

    def _start(self) -> _Child:
        their_items, items = self._context.Pipe(duplex=False)
        answers, their_answers = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_serve, args=(their_items, their_answers), daemon=True)
        process.start()
        their_items.close()
        their_answers.close()  # so that the answers end with the child
        child = _Child(process, items, answers, time.monotonic() + _START_SECONDS)
        self._children.append(child)
        return child

    def _listen(self) -> None:
        """Wait for an answer, a new item or a deadline."""
        now = time.monotonic()
        deadlines = [child.deadline for child in self._children if child.tasks]
        timeout = max(0.0, min(deadlines) - now) if deadlines else None
        ready = wait([self._bell, *(child.answers for child in self._children)], timeout)
        if self._bell in ready:
            while self._bell.poll():
                self._bell.recv_bytes()
        for child in [c for c in self._children if c.answers in ready]:
            self._receive(child)
        now = time.monotonic()
        # An answer that came while this thread slept counts: a deadline is held against silent children only.
        for child in [c for c in self._children if c.tasks and now >= c.deadline and not c.answers.poll()]:
            late = ItemTimeoutError(f"took longer than {self.limit:g} s")
            self._lose(child, late if child.ready else ItemCrashError("its process did not start"))

    def _receive(self, child: _Child) -> None:
        try:
            kind, value = child.answers.recv()
            if kind == "array":
                array = np.empty(value[1], np.dtype(value[0]))
                _receive_bytes(child.answers, array.reshape(-1).view(np.uint8).data)
                value = array
        except (EOFError, OSError, MemoryError) as error:  # without memory for it, the array stays in the pipe
            self._lose(child, error if isinstance(error, MemoryError) else _death_of(child))
            return
        except Exception as error:  # an exception class that cannot be put together again says so in its own way
            kind, value = "error", RuntimeError(f"an answer cannot be read: {error!r}")
        child.deadline = time.monotonic() + self.limit
        if kind == "ready":
            child.ready = True
            return
        future = child.tasks.popleft().future
        future.set_exception(value) if kind == "error" else future.set_result(value)

    def _lose(self, child: _Child, error: Exception) -> None:
        """The first of the child's items costs ``error``; the others wait for another child."""
        self._end(child)
        self._children.remove(child)
        if child.tasks:
            first = child.tasks.popleft()
            self._waiting.extendleft(reversed(child.tasks))
            first.future.set_exception(error)

    @staticmethod
    def _end(child: _Child) -> None:
        child.process.kill()
        child.process.join()
        child.items.close()
        child.answers.close()


def _death_of(child: _Child) -> ItemCrashError:
    child.process.join(5)
    code = child.process.exitcode
    if not child.ready:
        return ItemCrashError(f"its process did not start (exit code {code})")
    return ItemCrashError(f"the decoding process died (exit code {code})", code)


def outcome_of(future: "Future[Any]") -> Any:
    """A future's result, or its exception as a value."""
    error = future.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return future.result() if error is None else error
