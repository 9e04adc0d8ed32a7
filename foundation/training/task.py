"""Interfaces of the training loop: examples and tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from PIL import Image


class Examples(Protocol):
    """Training data that can be read at any position.

    It may also have ``order(seed, batch_size) -> Order``, instead of a ``DataOrder`` of all examples;
    ``decodes: bool``, whether ``batch`` takes so long that worker processes pay; and ``take_failures() -> list`` and
    ``add_failures(list)``: the first hands over what could not be read since its last call, in the process that read,
    the second records it in the process that trains. All of it is pickled where worker processes do not start by fork.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """The examples ``indices``, each in its pass ``epochs`` over the data; called in a thread or a worker
        process.
        """
        ...


class Task(Protocol):
    """A stage in training, as ``fit`` sees it."""

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor | float]:
        """Forward, backward, every optimizer, averages of weights; returns scalars to log.

        The batch is this process's share of the global one, with ``positions`` (B,) int64 on the CPU beside the
        examples: the index of each in the endless sequence of samples, independent of the number of processes.
        """
        ...

    def settle(self, metrics: Mapping[str, float]) -> None:
        """Count the steps whose outcome waited on the device; called at log lines with the metrics of the step.

        Raises:
            TrainingError: too many of them were not finite.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Metrics over the validation set; every process calls it and gets the same ones."""
        ...

    def preview(self, n_images: int) -> Image.Image | None:
        """A picture of what the model does now, of at most ``n_images`` images: the same for equal weights.

        Every process calls it; the main process's result counts, and others may return None. It changes no random state
        that training uses.
        """
        ...

    def is_sound(self, metrics: Mapping[str, float]) -> bool:
        """Whether finite metrics of ``evaluate`` come from a model that works at all, however badly."""
        ...

    def headline(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """For the progress bar: the metric of ``evaluate`` that matters, beside what is normal."""
        ...

    def exported(self) -> nn.Module:
        """The model that users load, normally with averaged weights; every process calls it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state for resuming; every process calls it, and the main process's result is complete."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        ...
