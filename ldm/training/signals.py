"""Ctrl-C and SIGTERM as a request that a loop answers when it is ready to."""

import signal
from types import FrameType


class Signals:
    """Within its ``with`` block the first Ctrl-C or SIGTERM is only noted in ``caught``; a second one acts at once."""

    def __init__(self) -> None:
        self.caught = 0
        self._former: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        self._former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        self.caught = number
        self.__exit__()
