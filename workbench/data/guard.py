"""Run a function over items in child processes, so that a hang or a crash costs one item and not the session."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool
from tqdm.auto import tqdm

_launching = threading.Lock()


class ItemTimeoutError(TimeoutError):
    """One item took longer than its limit; its process was ended."""


class ItemCrashError(RuntimeError):
    """The process died at one item, for instance by a segmentation fault in a decoder."""


class _Process(SpawnProcess):
    """A spawned process that does not run the parent's main script again.

    Plain spawn does: a script without ``if __name__ == "__main__"`` would start itself over in each child, and one
    that imports torch would make each child load it.
    """

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


class _Context(SpawnContext):
    Process = _Process


def run_guarded(
    function: Callable[..., Any],
    items: Sequence[Mapping[str, Any]],
    *,
    workers: int = 2,
    time_limit_seconds: float = 60.0,
    progress: str | None = None,
) -> Generator[Any, None, None]:
    """``function(**item)`` for each item in ``workers`` spawned processes; yields one outcome per item, in order.

    An outcome is what the function returned, or the exception that the item cost: what the function raised,
    :class:`ItemTimeoutError` after ``time_limit_seconds`` or :class:`ItemCrashError` when the process died. The
    function must live in an importable module (not in a notebook or script) and should import little: children
    import its module only. At most a few items per worker are in flight, so results do not pile up.
    ``progress`` is the title of a progress bar.
    """
    if function.__module__ == "__main__":
        raise ValueError(
            f"{function.__qualname__} lives in the main script; put it in a module that children can import"
        )
    if workers < 1 or time_limit_seconds <= 0:
        raise ValueError(f"workers={workers} must be at least 1 and time_limit_seconds={time_limit_seconds} above 0")
    return _outcomes(function, items, min(workers, max(1, len(items))), time_limit_seconds, progress)


def _outcomes(
    function: Callable[..., Any], items: Sequence[Mapping[str, Any]], workers: int, limit: float, progress: str | None
) -> Generator[Any, None, None]:
    pending: deque[ProcessFuture] = deque()
    bar = tqdm(total=len(items), desc=progress, unit="clip", disable=progress is None, leave=False)
    pool = ProcessPool(max_workers=workers, context=_Context())
    finished = False
    try:
        for item in items:
            pending.append(pool.schedule(function, kwargs=dict(item), timeout=limit))
            if len(pending) >= 4 * workers:
                yield _outcome(pending.popleft(), limit)
                bar.update()
        while pending:
            yield _outcome(pending.popleft(), limit)
            bar.update()
        finished = True
    finally:
        bar.close()
        pool.close() if finished else pool.stop()
        pool.join()


def _outcome(future: ProcessFuture, limit: float) -> Any:
    try:
        return future.result()
    except ProcessExpired as error:
        return ItemCrashError(f"the decoding process died (exit code {error.exitcode})")
    except (TimeoutError, FutureTimeoutError):
        return ItemTimeoutError(f"took longer than {limit:g} s")
    except Exception as error:  # the function's own: the caller judges it per item
        return error
