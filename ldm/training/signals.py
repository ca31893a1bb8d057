"""Ctrl-C and SIGTERM: as a request that a loop answers when it is ready to, or as the end of a script."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ECHO = 10.0  # seconds; a scheduler asks every process to stop, and so does torchrun, whom it asks too


class Terminated(BaseException):
    """SIGTERM, as Python tells Ctrl-C by KeyboardInterrupt: on its way out everything half-done is cleaned up."""

    unanswered = 0  # the signal's number while it is on its way out, and for good where a bare ``except`` swallowed it


class Signals:
    """Within its ``with`` block the first Ctrl-C or SIGTERM is only noted in ``caught``; a second one acts at once.

    But a SIGTERM within ``ECHO`` of another is the same request. A SIGTERM from before counts, which ``terminating``
    raised and a library that was being imported swallowed.
    """

    def __init__(self) -> None:
        self.caught = Terminated.unanswered
        self._droppable = False
        self._former: dict[int, Any] = {}
        self._since = time.monotonic()

    def __enter__(self) -> "Signals":
        self._former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def unless_caught(self, call: Callable[[], object]) -> None:
        """``call``, broken off by a signal: for what takes long and changes nothing, such as drawing samples."""
        try:
            self._droppable = True
            if not self.caught:
                call()
        except _Dropped:
            pass
        finally:
            self._droppable = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.caught == number == signal.SIGTERM and time.monotonic() - self._since < ECHO:
            return
        if self.caught:
            self.__exit__()
            signal.raise_signal(number)
            return
        self.caught, self._since = number, time.monotonic()
        if self._droppable:
            raise _Dropped


class _Dropped(BaseException):
    pass


@contextmanager
def terminating() -> Iterator[None]:
    """Within the block SIGTERM raises ``Terminated``."""

    def terminate(number: int, frame: FrameType | None) -> None:
        Terminated.unanswered = number
        raise Terminated

    former = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        Terminated.unanswered = 0
        signal.signal(signal.SIGTERM, former)
