"""A training that is asked to end (SIGTERM) ends between two steps, with a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether the process was asked to end: ``fine_tune(should_stop=...)`` calls it between steps.

    Before the first step there is nothing to save, and a request raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self._training = False

    def __call__(self) -> bool:
        self._training = True
        return self.asked

    def receive(self, _signal: int, _frame: FrameType | None) -> None:
        """The signal's handler."""
        self.asked = True
        if not self._training:
            raise KeyboardInterrupt("asked to end before the first step")


@contextmanager
def stop_on_sigterm() -> Iterator[StopRequest]:
    """Take SIGTERM as a request to stop while this is open. In the main thread only, as Python's signals are."""
    request = StopRequest()
    before = signal.signal(signal.SIGTERM, request.receive)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
