"""Waits with an end: they say what they wait for, and give up."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from foundation.errors import EngineError
from foundation.training.heartbeat import SAY_SECONDS, VARIABLE, process_timeout


class Patience:
    """How long something has not moved.

    Args:
        what: is waited for, in words; asked for when it is said.
        fix: what to do about a wait that ends in vain.
        field: what messages call the work.
    """

    def __init__(self, what: Callable[[], str], fix: str, field: str) -> None:
        self._what, self._fix, self._field = what, fix, field
        self._limit = process_timeout().total_seconds()
        self.moved()

    def moved(self) -> None:
        """Something has happened: the wait begins again."""
        self.since, self._say_at = time.monotonic(), SAY_SECONDS

    @property
    def seconds(self) -> float:
        """Since something happened."""
        return time.monotonic() - self.since

    def wait(self) -> None:
        """Called again and again while nothing happens.

        Raises:
            EngineError: nothing has happened for ``TESSERA_PROCESS_TIMEOUT`` seconds.
        """
        seconds = self.seconds
        if seconds >= self._limit:
            found = f"no progress for {seconds:.0f} s; {self._what()}"
            expected = f"progress within {self._limit:g} s ({VARIABLE})"
            raise EngineError("waits in vain", field=self._field, found=found, expected=expected, fix=self._fix)
        if seconds >= self._say_at:
            print(f"{self._field}: waiting for {seconds:.0f} s: {self._what()}", file=sys.stderr, flush=True)
            self._say_at *= 2
