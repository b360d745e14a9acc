"""One process per run folder: a second one that wants to train the same waits, and then reads what the first made."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; waits for whoever holds it, saying so.

    The lock is a file beside the folder, in ``.locks``, and belongs to the open file: the system releases it however
    the process ends, so that nothing is left to clean up after a kill. POSIX only. Raises KeyboardInterrupt when
    interrupted while waiting.
    """
    if fcntl is None:
        yield
        return
    place = folder.parent / ".locks" / f"{folder.name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            log.warning("%s is being trained by process %s; waiting for it to end", folder, file.read() or "unknown")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
