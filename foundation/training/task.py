"""What a stage hands to the training loop."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import nn


class Examples(Protocol):
    """Training data that can be read at any position."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """The examples ``indices``, each in its pass ``epochs`` over the data; read in a thread."""
        ...


class Task(Protocol):
    """What a stage hands to ``fit``."""

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor | float]:
        """Forward, backward, every optimizer, averages of weights; returns scalars to log.

        The batch is this process's share of the global one, with ``positions`` (B,) int64 on the CPU beside the
        examples: the place of each in the endless sequence of samples, whatever the number of processes.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Metrics over the whole held-out set."""
        ...

    def exported(self) -> nn.Module:
        """The model that users load, normally with averaged weights; every process calls it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to continue; every process calls it, and the main process's is complete."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        ...
