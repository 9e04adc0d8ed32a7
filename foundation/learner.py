"""A model, its optimizer and the average of its weights: the part of a training step that every stage shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from foundation.ema import WeightAverage
from foundation.optim import OptimConfig, StepGuard, adamw, learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator


Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Update:
    """What became of a step.

    Attributes:
        taken: False when the gradient was not finite: then nothing was changed.
        metrics: scalars to log.
    """

    taken: bool
    metrics: dict[str, torch.Tensor | float]


class Learner:
    """Prepares a model for training and applies gradients to it.

    Args:
        model: the plain module; moved to the accelerator's device.
        optim: optimizer and learning rate.
        n_steps: length of the learning-rate schedule.
        average_decay: of the weight average.
        precision: arithmetic of forward passes under ``autocast``.
        accelerator: devices and processes.

    Attributes:
        model: the plain module.
        wrapped: the module to call in training, synchronised over processes.
        average: the average of the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        n_steps: int,
        *,
        average_decay: float,
        precision: Precision,
        accelerator: Accelerator,
    ) -> None:
        self.optim, self.n_steps, self.precision, self.accelerator = optim, n_steps, precision, accelerator
        self.model = model.to(accelerator.device)
        self.average = WeightAverage(self.model, average_decay)
        self.wrapped, self.optimizer = accelerator.prepare(self.model, adamw(self.model, optim))
        self.guard = StepGuard()

    def autocast(self) -> torch.autocast:
        """The context of forward passes: bf16 where it is safe, if the precision says so."""
        lower = self.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=lower)

    def apply(self, loss: torch.Tensor, step: int) -> Update:
        """Backward, clip, and, if the gradient is finite, one optimizer step.

        The caller moves ``average`` after a step that was taken, once everything else of the model is up to date.

        Raises:
            TrainingError: ten steps in a row were not finite.
        """
        rate = learning_rate(self.optim, step, self.n_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.optim.clip_norm)
        taken = self.guard.allows(norm)
        if taken:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        metrics = {
            "loss": loss.detach(),
            "gradient_norm": norm,
            "learning_rate": rate,
            "skipped_steps": self.guard.n_skipped,
        }
        return Update(taken, metrics)

    def state_dict(self) -> dict[str, Any]:
        """Model, average, optimizer and guard."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"])
