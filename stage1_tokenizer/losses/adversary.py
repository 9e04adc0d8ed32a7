"""Adversarial training: a discriminator that learns beside the tokenizer, its losses, and its term in the tokenizer's.

Source: Esser et al. 2021, arXiv:2012.09841, section 3.1. In each training step, on every process: ``generator_term``
before the tokenizer's backward, ``train_step`` after it.

The losses are pure functions of logits, in float32, averaged over images and patches. They take keywords only: nothing
else would notice real and reconstructed logits in the wrong order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call
from torch.nn import functional as F

from foundation.config import require
from foundation.errors import DataError
from foundation.randomness import derive_seed
from foundation.training.config import Precision
from foundation.training.learner import Learner, micro_batches
from foundation.training.optim import known_skipped, undone_unless
from foundation.training.parallel import all_reduce_mean
from stage1_tokenizer.losses.config import AdversarialConfig
from stage1_tokenizer.losses.discriminator import PatchDiscriminator, require_patches

if TYPE_CHECKING:
    from accelerate import Accelerator


MAX_ADAPTIVE_WEIGHT = 1e4


class Adversary:
    """A discriminator in training.

    Building it leaves the process's random numbers as they were, and before ``start_step`` nothing of it runs.

    Args:
        config: losses, start and discriminator.
        image_shape_CYX: channels (3 or 1), height and width in pixels of training images.
        n_steps: optimizer steps of the whole training.
        precision: of the discriminator's convolutions; the losses use float32.
        accelerator: devices and processes.
        seed: of the discriminator's first weights.

    Attributes:
        learner: the discriminator, its optimizer and the guard that skips steps that are not finite.
        mean_logits: (2,) float32, running means of the logits of images and of reconstructions, over all processes.

    Raises:
        ConfigError: training ends before the adversary starts, or the images are too small for the discriminator.
    """

    def __init__(
        self,
        config: AdversarialConfig,
        *,
        image_shape_CYX: tuple[int, int, int],
        n_steps: int,
        precision: Precision,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        expected, fix = f"less than the {n_steps} steps of training", "start earlier, or set adversarial.weight to 0"
        starts = config.start_step < n_steps
        require(starts, "adversarial.start_step", config.start_step, expected, fix)
        channels, height, width = image_shape_CYX
        require_patches(config.discriminator, height, width)
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "discriminator"))
            model = PatchDiscriminator(config.discriminator, channels)
        self.learner = Learner(
            model,
            config.optim,
            n_steps - config.start_step,
            average_decay=0.0,
            precision=precision,
            accelerator=accelerator,
        )
        self.mean_logits = torch.zeros(2, device=accelerator.device)

    def generator_term(
        self,
        reconstructions_BCYX: torch.Tensor,
        reconstruction_loss: torch.Tensor,
        last_layer_weight: torch.Tensor,
        step: int,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
        """What to add to the tokenizer's loss; the discriminator gets no gradient from it.

        Args:
            reconstructions_BCYX: of this batch, with their graph.
            reconstruction_loss: scalar, pixel and perceptual terms of this batch, with its graph.
            last_layer_weight: the decoder's last kernel, where the two gradients are compared.
            step: optimizer step, from 0.

        Returns:
            A scalar, already weighted, and metrics. Before ``start_step``: 0 and no metrics.
        """
        if not self.has_started(step):
            return torch.zeros((), device=reconstructions_BCYX.device), {}
        loss = self.generator_loss(reconstructions_BCYX)
        gradients = None
        if self.config.adaptive:
            losses = (reconstruction_loss, loss)
            gradients = torch.stack(
                [torch.autograd.grad(each, last_layer_weight, retain_graph=True)[0].detach() for each in losses]
            )
        factor, metrics = self.factor(step, gradients)
        return factor * loss, {"loss_adversarial": loss.detach(), **metrics}

    def has_started(self, step: int) -> bool:
        """Whether the adversary takes part in optimizer step ``step``, from 0."""
        return step >= self.config.start_step

    def generator_loss(self, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
        """What the decoder minimises, a scalar without weight: the mean over images and patches."""
        return _GENERATOR_LOSSES[self.config.loss](fake_logits=self._frozen_logits(reconstructions_BCYX))

    def factor(
        self, step: int, gradients: torch.Tensor | None
    ) -> tuple[torch.Tensor | float, dict[str, torch.Tensor | float]]:
        """What ``generator_loss`` is multiplied by, and its parts to log; every process calls it.

        Args:
            step: optimizer step, from ``start_step``.
            gradients: (2, ...) at the decoder's last kernel, of the reconstruction loss and of ``generator_loss``, over
                this process's batch; None without the adaptive weight.
        """
        metrics: dict[str, torch.Tensor | float] = {}
        scale: torch.Tensor | float = 1.0
        if gradients is not None:  # the weight that the whole batch gives: averages come before norms
            reconstruction, adversarial = all_reduce_mean(gradients.float())
            scale = adaptive_weight(grad_reconstruction=reconstruction, grad_adversarial=adversarial)
            metrics["adaptive_weight"] = scale
        metrics["gan_ramp"] = grown = ramp(step, self.config.start_step, self.config.ramp_steps)
        return self.config.weight * grown * scale, metrics

    def train_step(
        self,
        images_BCYX: torch.Tensor,
        reconstructions_BCYX: torch.Tensor,
        step: int,
        micro_batch_size: int | None = None,
        offered: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor | float]:
        """One step of the discriminator on (B, C, Y, X) images and their reconstructions, which are detached here.

        The loss is a mean over images, whose logits do not depend on each other: passes of ``micro_batch_size`` images
        and as many reconstructions change it by rounding only. Where ``offered``, a boolean on the device, turns out
        false, nothing changes.

        Returns:
            Metrics; none before ``start_step``.

        Raises:
            DataError: the two differ in shape.
            TrainingError: too many steps were not finite, see ``StepGuard``.
        """
        if not self.has_started(step):
            return {}
        shapes = tuple(images_BCYX.shape), tuple(reconstructions_BCYX.shape)
        DataError.unless(shapes[0] == shapes[1], "images and reconstructions differ in shape", found=shapes)
        self.learner.wrapped.train()
        columns = (micro_batches(each, micro_batch_size) for each in (images_BCYX, reconstructions_BCYX))
        parts, seen = list(zip(*columns, strict=True)), []
        with undone_unless(offered, self.learner.model.buffers()):
            for i, part in enumerate(parts):
                with self.learner.accumulating(last=i == len(parts) - 1):
                    seen.append(self._backward(*part, share=len(part[0]) / len(images_BCYX)))
                self.learner.wrapped.eval()  # spectral normalisation moves once in a step
        real, fake = (torch.cat(each) for each in zip(*seen, strict=True))
        loss, metrics = self._loss(real, fake)
        update = self.learner.take_step(loss, step - self.config.start_step, offered)
        if not known_skipped(update.taken):
            with undone_unless(update.taken, [self.mean_logits]):
                self._follow(real, fake)
        names = ("gradient_norm", "learning_rate", "skipped_steps")
        return {**metrics, **{f"discriminator_{name}": update.metrics[name] for name in names}}

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to continue."""
        state = self.learner.state_dict()
        del state["average"]  # nobody uses an average of discriminators
        return {"discriminator": state, "mean_logits": self.mean_logits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        learner = state["discriminator"]
        self.learner.load_state_dict({**learner, "average": learner["model"]})
        self.mean_logits.copy_(state["mean_logits"])

    def _frozen_logits(self, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
        """Logits whose graph holds no parameter of the discriminator, from the module that DDP does not see."""
        model = self.learner.model.eval()  # spectral normalisation moves in training mode only
        constants = {name: parameter.detach() for name, parameter in model.named_parameters()}
        with self.learner.autocast():
            return functional_call(model, constants, (reconstructions_BCYX.float(),)).float()

    def _backward(
        self, images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor, *, share: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradient of ``share`` times the loss of these images; returns the logits of both, detached."""
        # One forward of both: DDP allows one per backward.
        both = torch.cat([images_BCYX.float(), reconstructions_BCYX.detach().float()])
        with self.learner.autocast():
            logits = self.learner.wrapped(both).float()
        loss, _ = self._loss(*logits.chunk(2))
        (share * loss).backward()
        real, fake = logits.detach().chunk(2)
        return real, fake

    def _loss(self, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
        """The discriminator's loss of these logits, LeCAM included, and what to log."""
        loss = _DISCRIMINATOR_LOSSES[self.config.loss](real_logits=real, fake_logits=fake)
        metrics = {"discriminator_loss": loss.detach(), **_separation(real.detach(), fake.detach())}
        if self.config.lecam_weight > 0:
            ema_real, ema_fake = self.mean_logits.clone()
            lecam_term = lecam(real_logits=real, fake_logits=fake, ema_real=ema_real, ema_fake=ema_fake)
            loss = loss + self.config.lecam_weight * lecam_term
            metrics["lecam"] = lecam_term.detach()
        return loss, {**metrics}

    def _follow(self, real: torch.Tensor, fake: torch.Tensor) -> None:
        means = all_reduce_mean(torch.stack([real.mean(), fake.mean()]))
        self.mean_logits.lerp_(means, 1.0 - self.config.lecam_decay)


def _separation(real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
    """How well logits tell images from reconstructions; an accuracy of 0.5 each is a discriminator that guesses."""
    return {
        "logits_real": real.mean(),
        "logits_fake": fake.mean(),
        "discriminator_accuracy_real": (real > 0).float().mean(),
        "discriminator_accuracy_fake": (fake < 0).float().mean(),
    }


def hinge_discriminator_loss(*, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """mean(relu(1 - real)) / 2 + mean(relu(1 + fake)) / 2.

    Args:
        real_logits: of images, any shape.
        fake_logits: of reconstructions, the same shape.

    Raises:
        DataError: the shapes differ.

    Source: Lim and Ye 2017, arXiv:1705.02894, section 3, halved as in arXiv:2012.09841.
    """
    real, fake = _matched(real_logits, fake_logits)
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def non_saturating_discriminator_loss(*, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """mean(softplus(-real)) / 2 + mean(softplus(fake)) / 2: binary cross-entropy.

    Arguments and errors as for ``hinge_discriminator_loss``. Source: Goodfellow et al. 2014, arXiv:1406.2661, eq. 1.
    """
    real, fake = _matched(real_logits, fake_logits)
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def hinge_generator_loss(*, fake_logits: torch.Tensor) -> torch.Tensor:
    """-mean(fake): what the decoder minimises against a hinge discriminator. Source: arXiv:1705.02894, section 3."""
    return -fake_logits.float().mean()


def non_saturating_generator_loss(*, fake_logits: torch.Tensor) -> torch.Tensor:
    """mean(softplus(-fake)), i.e. -log sigmoid(fake). Source: arXiv:1406.2661, section 3."""
    return F.softplus(-fake_logits.float()).mean()


_DISCRIMINATOR_LOSSES = {"hinge": hinge_discriminator_loss, "non_saturating": non_saturating_discriminator_loss}
_GENERATOR_LOSSES = {"hinge": hinge_generator_loss, "non_saturating": non_saturating_generator_loss}


def lecam(
    *, real_logits: torch.Tensor, fake_logits: torch.Tensor, ema_real: torch.Tensor, ema_fake: torch.Tensor
) -> torch.Tensor:
    """mean(relu(real - ema_fake)^2) + mean(relu(ema_real - fake)^2): keeps a discriminator from running away.

    Each kind of logit is pulled to the other kind's running mean. One-sided, as tokenizers use it: a real logit below
    the mean of the reconstructions is left alone.

    Args:
        real_logits: of images, any shape.
        fake_logits: of reconstructions, the same shape.
        ema_real: scalar tensor, running mean of earlier ``real_logits``.
        ema_fake: scalar tensor, running mean of earlier ``fake_logits``.

    Raises:
        DataError: the logits' shapes differ, or a running mean is no scalar.

    Source: Tseng et al. 2021, arXiv:2104.03310, section 3.2.
    """
    real, fake = _matched(real_logits, fake_logits)
    for name, mean in (("ema_real", ema_real), ("ema_fake", ema_fake)):
        shape = tuple(mean.shape)
        DataError.unless(mean.ndim == 0, "is not a scalar", field=name, found=shape, expected="shape ()")
    return F.relu(real - ema_fake).square().mean() + F.relu(ema_real - fake).square().mean()


def adaptive_weight(
    *,
    grad_reconstruction: torch.Tensor,
    grad_adversarial: torch.Tensor,
    max_weight: float = MAX_ADAPTIVE_WEIGHT,
) -> torch.Tensor:
    """|grad_reconstruction| / (|grad_adversarial| + 1e-4), at most ``max_weight``; a scalar without gradient.

    Args:
        grad_reconstruction: gradient of the reconstruction loss at the decoder's last layer.
        grad_adversarial: gradient of the adversarial loss there, the same shape.
        max_weight: upper limit.

    Raises:
        DataError: the shapes differ.

    Source: Esser et al. 2021, arXiv:2012.09841, eq. 7 (there with 1e-6; 1e-4 in its published models).
    """
    reconstruction, adversary = _matched(grad_reconstruction, grad_adversarial)
    weight = torch.linalg.vector_norm(reconstruction.detach()) / (torch.linalg.vector_norm(adversary.detach()) + 1e-4)
    return weight.clamp(max=max_weight)


def ramp(step: int, start_step: int, ramp_steps: int) -> float:
    """0 before ``start_step``, then linear to 1 in ``ramp_steps`` steps (1 at once if 0). Steps count from 0."""
    if step < start_step:
        return 0.0
    return min(1.0, (step - start_step + 1) / max(1, ramp_steps))


def _matched(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float32; broadcasting (N, 1) against (N,) would give N x N differences and a plausible number."""
    found = f"{tuple(one.shape)} and {tuple(other.shape)}"
    DataError.unless(one.shape == other.shape, "two tensors that belong together have different shapes", found=found)
    expected = "at least one value"
    DataError.unless(one.numel() > 0, "there is nothing to average", found=tuple(one.shape), expected=expected)
    return one.float(), other.float()
