"""Training a prior: what ``foundation.fit`` calls once per step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from foundation.learner import Learner
from foundation.token_dataset import TokenDataset
from stage2_prior.config import PriorTraining
from stage2_prior.evaluate import score_prior
from stage2_prior.prior import PriorModel

if TYPE_CHECKING:
    from accelerate import Accelerator


class PriorTask:
    """A prior in training, with the average of its weights.

    Args:
        model: freshly built.
        training: how to train.
        held_out: codes for ``evaluate``; None where nothing is evaluated.
        accelerator: devices and processes.
    """

    def __init__(
        self, model: PriorModel, training: PriorTraining, held_out: TokenDataset | None, accelerator: Accelerator
    ) -> None:
        self.model, self.held_out = model, held_out
        self.learner = Learner(
            model,
            training.optim,
            training.fit.steps,
            average_decay=training.average_decay,
            precision=training.precision,
            accelerator=accelerator,
        )

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor | float]:
        """One optimizer step on (B, T) tokens and (B,) labels."""
        self.learner.wrapped.train()
        tokens = batch["tokens"]
        with self.learner.autocast():
            logits = self.learner.wrapped(tokens, batch["labels"])
        update = self.learner.apply(F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten()), step)
        if update.taken:
            self.learner.average.update(self.model, step)
        return update.metrics

    def evaluate(self) -> dict[str, float]:
        """Held-out likelihood of the averaged weights."""
        assert self.held_out is not None, "built without codes to evaluate on"
        return score_prior(self.exported(), self.held_out).metrics()

    def exported(self) -> PriorModel:
        """The model with averaged weights."""
        model = self.learner.average.model
        assert isinstance(model, PriorModel)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to continue."""
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.learner.load_state_dict(state)
