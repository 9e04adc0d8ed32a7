"""Stop signals: SIGTERM and SIGINT, on Windows also Ctrl+Break, take effect at a step boundary."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from foundation.training.parallel import on_every_process

if TYPE_CHECKING:
    from accelerate import Accelerator

REPEAT_SECONDS = 2.0
"""later signals within this time are the same request: Ctrl-C comes from the terminal and from the launcher"""


class StopSignal:
    """Remembers a stop signal until the end of the step; one that comes ``REPEAT_SECONDS`` later acts at once.

    Attributes:
        number: the signal to stop for, 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._first_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
                if (each := getattr(signal, name, None)) is not None:
                    self._previous[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        self._previous.clear()

    def _note(self, number: int, _frame: object) -> None:
        if not self.number:
            self._stop_for(number)
        elif time.monotonic() - self._first_at >= REPEAT_SECONDS:
            self.__exit__()
            signal.raise_signal(number)

    def _stop_for(self, number: int) -> None:
        self.number, self._first_at = number, time.monotonic()

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process received a signal; every process gets the same answer."""
        number = max(on_every_process(self.number, accelerator))
        if number and not self.number:
            self._stop_for(number)
        return self.number != 0
