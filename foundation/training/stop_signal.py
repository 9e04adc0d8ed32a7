"""Stop signals: SIGTERM and SIGINT, on Windows also Ctrl+Break, take effect at a step boundary.

A training that runs where no signal arrives, as on the workers of a cluster, is stopped by ``request_stop``.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import distributed

from foundation.errors import Interrupted
from foundation.training.heartbeat import process_timeout

if TYPE_CHECKING:
    from accelerate import Accelerator

REPEAT_SECONDS = 2.0
"""later signals within this time are the same request: Ctrl-C comes from the terminal and from the launcher"""
_listening: list[StopSignal] = []
"""of the trainings that this process is in"""


class StopSignal:
    """Remembers a stop signal until the end of the step; one that comes ``REPEAT_SECONDS`` later acts at once.

    Args:
        at_once: raise ``Interrupted`` where the main thread is, for work without steps.

    Attributes:
        number: the signal to stop for, 0 for none.
        told_at: when this process was last told to stop, in seconds of ``time.monotonic``.
    """

    told_at: ClassVar[float] = -math.inf

    def __init__(self, *, at_once: bool = False) -> None:
        self.number, self._at_once = 0, at_once
        self._first_at = 0.0
        self._previous: dict[int, Any] = {}
        self._voters: Any = None
        self._votes: deque[tuple[Any, torch.Tensor]] = deque()

    def __enter__(self) -> StopSignal:
        _listening.append(self)
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
                if (each := getattr(signal, name, None)) is not None:
                    self._previous[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        self._previous.clear()
        if self in _listening:
            _listening.remove(self)

    def _note(self, number: int, _frame: object) -> None:
        if not self.number:
            self._stop_for(number)
            if self._at_once:
                raise Interrupted(number)
        elif time.monotonic() - self._first_at >= REPEAT_SECONDS:
            self.__exit__()
            signal.raise_signal(number)

    def _stop_for(self, number: int) -> None:
        self.number, self._first_at = number, time.monotonic()
        StopSignal.told_at = self._first_at

    def agreed(self, accelerator: Accelerator, *, last: bool = False) -> bool:
        """Whether any process received a signal before the previous call; every process gets the same answer.

        Nobody waits: the numbers are added up over CPUs while the step after computes. One process decides at once.

        Args:
            accelerator: devices and processes.
            last: wait for the answer to this call too; for the last one.
        """
        number = self.number
        if accelerator.num_processes > 1:
            number = self._vote(0 if last else 1)
        if number and not self.number:
            self._stop_for(number)
        return number != 0

    def _vote(self, n_open: int) -> int:
        """Add this process's number; the largest of all votes but the last ``n_open``, 0 for none."""
        if self._voters is None:
            self._voters = distributed.new_group(backend="gloo", timeout=process_timeout())
        mine = torch.tensor(self.number)
        work = distributed.all_reduce(mine, distributed.ReduceOp.MAX, self._voters, async_op=True)
        self._votes.append((work, mine))
        number = 0
        while len(self._votes) > (0 if number else n_open):  # after a signal every process empties the queue
            work, vote = self._votes.popleft()
            work.wait()
            number = max(number, int(vote))
        return number


def request_stop(number: int) -> bool:
    """Stop the training of this process as the signal would, from any thread.

    Args:
        number: of the signal.

    Returns:
        whether there is a training; without one nothing happens.
    """
    for each in list(_listening):
        if not each.number:
            each._stop_for(number)
    return bool(_listening)
