"""Reconstruction loss: pixel, perceptual and adversarial terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from foundation.config import require
from foundation.images.config import Preprocess
from foundation.images.preview import visible
from foundation.training.precision import settled
from stage1_tokenizer.config import TokenizerTraining
from stage1_tokenizer.losses.adversary import Adversary
from stage1_tokenizer.losses.lpips import LPIPS, MIN_SIDE

if TYPE_CHECKING:
    from accelerate import Accelerator

_PIXEL_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}
Metrics = dict[str, torch.Tensor | float]


class Objective:
    """The reconstruction's loss (Esser et al. 2021, arXiv:2012.09841, section 3.1).

    Build it before reading data: it raises what is missing.

    Args:
        training: weights and kinds of the terms.
        preprocess: of the images.
        accelerator: devices and processes.
        seed: of the discriminator's first weights.

    Attributes:
        lpips: the perceptual distance, None when its weight is 0.
        adversary: the discriminator in training, None when its weight is 0.

    Raises:
        ConfigError: VGG16's weights are asked for and not found, or an adversary that cannot work.
    """

    def __init__(
        self, training: TokenizerTraining, preprocess: Preprocess, accelerator: Accelerator, *, seed: int
    ) -> None:
        self.training, self._preprocess = training, preprocess
        self.lpips: LPIPS | None = None
        self.adversary: Adversary | None = None
        if training.perceptual.weight > 0:
            perceptual = training.perceptual
            side = min(preprocess.height, preprocess.width)
            expected = f"0 for images with sides below {MIN_SIDE} pixels; these have {side}"
            require(side >= MIN_SIDE, "perceptual.weight", perceptual.weight, expected)
            precision = settled(perceptual.precision, accelerator.device)
            self.lpips = LPIPS(perceptual.vgg_weights, precision=precision).to(accelerator.device)
        if training.adversarial.weight > 0:
            self.adversary = Adversary(
                training.adversarial,
                image_shape_CYX=(preprocess.n_channels, preprocess.height, preprocess.width),
                n_steps=training.fit.steps,
                precision=training.precision,
                accelerator=accelerator,
                seed=seed,
            )

    def __call__(
        self, images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor, last_layer: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, Metrics]:
        """The weighted sum of the terms, a float32 scalar, and each term for the log.

        Args:
            images_BCYX: in [-1, 1].
            reconstructions_BCYX: with their graph.
            last_layer: the decoder's last kernel, for the adaptive weight.
            step: optimizer step, from 0.
        """
        loss, metrics = self.reconstruction_loss(images_BCYX, reconstructions_BCYX)
        if self.adversary is not None:
            term, more = self.adversary.generator_term(reconstructions_BCYX, loss, last_layer, step)
            loss, metrics = loss + term, {**metrics, **more}
        return loss, metrics

    def reconstruction_loss(
        self, images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        """Pixel and perceptual terms: a mean over images, a float32 scalar; and each term for the log."""
        training = self.training
        pixel = _PIXEL_LOSSES[training.pixel_loss](reconstructions_BCYX, images_BCYX)
        loss = training.pixel_weight * pixel
        metrics: Metrics = {"loss_pixel": pixel.detach()}
        if self.lpips is not None:
            seen = (visible(each, self._preprocess) for each in (images_BCYX, reconstructions_BCYX))
            perceptual = self.lpips(*seen).mean()
            metrics["loss_perceptual"] = perceptual.detach()
            loss = loss + training.perceptual.weight * perceptual
        return loss, metrics

    def adversary_at(self, step: int) -> Adversary | None:
        """The adversary if it takes part in optimizer step ``step``, from 0."""
        return self.adversary if self.adversary is not None and self.adversary.has_started(step) else None

    def train_adversary(
        self,
        images_BCYX: torch.Tensor,
        reconstructions_BCYX: torch.Tensor,
        step: int,
        offered: torch.Tensor | None = None,
    ) -> Metrics:
        """One step of the discriminator, where there is one and the tokenizer's was taken; returns its metrics."""
        if self.adversary is None:
            return {}
        size = self.training.micro_batch_size
        return self.adversary.train_step(images_BCYX, reconstructions_BCYX.detach(), step, size, offered)

    def settle(self, metrics: Mapping[str, float]) -> None:
        """Count the discriminator's steps whose outcome waited on the device; see ``StepGuard``."""
        n_skipped = metrics.get("discriminator_skipped_steps")
        if self.adversary is not None and n_skipped is not None:
            self.adversary.learner.settle(n_skipped)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to continue; empty without an adversary."""
        return {} if self.adversary is None else {"adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
