"""Stopping at a step boundary when the process is told to end."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


class StopSignal:
    """Remembers SIGTERM and SIGINT until the step is done; a second one acts at once."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for each in (signal.SIGTERM, signal.SIGINT):
                self._previous[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.number = number
        signal.signal(number, self._previous[number])

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was told to stop; every process gets the same answer."""
        if accelerator.num_processes > 1:
            flag = torch.tensor(self.number, device=accelerator.device)
            self.number = int(accelerator.gather(flag.reshape(1)).max())  # type: ignore[union-attr]
        return self.number != 0
