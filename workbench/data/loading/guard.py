"""Run a function over items in child processes, so that a hang or a crash costs one item and not the session."""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from tqdm.auto import tqdm

from workbench.data.loading.pool import GuardedPool, check_importable, outcome_of
from workbench.data.loading.pool import ItemCrashError as ItemCrashError
from workbench.data.loading.pool import ItemTimeoutError as ItemTimeoutError


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
    check_importable(function)
    if workers < 1 or time_limit_seconds <= 0:
        raise ValueError(f"workers={workers} must be at least 1 and time_limit_seconds={time_limit_seconds} above 0")
    return _outcomes(function, items, min(workers, max(1, len(items))), time_limit_seconds, progress)


def _outcomes(
    function: Callable[..., Any], items: Sequence[Mapping[str, Any]], workers: int, limit: float, progress: str | None
) -> Generator[Any, None, None]:
    pending: deque[Future[Any]] = deque()
    with (
        GuardedPool(workers, limit) as pool,
        tqdm(total=len(items), desc=progress, unit="clip", disable=progress is None, leave=False) as bar,
    ):
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * workers:
                yield outcome_of(pending.popleft())
                bar.update()
        while pending:
            yield outcome_of(pending.popleft())
            bar.update()
