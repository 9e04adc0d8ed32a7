"""Training a tokenizer: what ``foundation.fit`` calls once per step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from foundation.image_set import ImageSet
from foundation.learner import Learner
from foundation.randomness import derive_seed
from stage1_tokenizer.config import TokenizerTraining
from stage1_tokenizer.evaluate import score_tokenizer
from stage1_tokenizer.tokenizer import TokenizerModel

if TYPE_CHECKING:
    from accelerate import Accelerator

_PIXEL_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


class TokenizerTask:
    """A tokenizer in training, with the average of its weights.

    Args:
        model: freshly built.
        training: how to train.
        held_out: images for ``evaluate``.
        accelerator: devices and processes.
        seed: of the codebook's initialisation and revival.
    """

    def __init__(
        self,
        model: TokenizerModel,
        training: TokenizerTraining,
        held_out: ImageSet,
        accelerator: Accelerator,
        *,
        seed: int,
    ) -> None:
        self.model, self.held_out, self.seed = model, held_out, seed
        self.pixel_loss = _PIXEL_LOSSES[training.pixel_loss]
        self.learner = Learner(
            model,
            training.optim,
            training.fit.steps,
            average_decay=training.average_decay,
            precision=training.precision,
            accelerator=accelerator,
        )

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor | float]:
        """One optimizer step on (B, C, Y, X) images."""
        images, quantizer = batch["images"], self.model.quantizer
        self.learner.wrapped.train()
        if step == 0:
            with torch.no_grad(), self.learner.autocast():
                quantizer.initialize(self.model.latents(images), self._generator("initialize", step))
        with self.learner.autocast():
            output = self.learner.wrapped(images)
        pixel = self.pixel_loss(output.images_BCYX, images)
        update = self.learner.apply(pixel + sum(output.losses.values()), step)
        if update.taken:
            quantizer.update(step, self._generator("update", step))
            self.learner.average.update(self.model, step)
        else:
            quantizer.forget()
        terms = {f"loss_{name}": value.detach() for name, value in output.losses.items()}
        return {**update.metrics, "loss_pixel": pixel.detach(), **terms}

    def evaluate(self) -> dict[str, float]:
        """PSNR, code usage and perplexity of the averaged weights over the held-out set."""
        return score_tokenizer(self.exported(), self.held_out).metrics()

    def exported(self) -> TokenizerModel:
        """The model with averaged weights."""
        model = self.learner.average.model
        assert isinstance(model, TokenizerModel)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to continue."""
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.learner.load_state_dict(state)

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, "codebook", purpose, step))
