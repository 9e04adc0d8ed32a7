"""Adversarial losses as pure functions of logits. All in float32, averaged over every image and patch.

Arguments are keywords only: nothing else would notice real and reconstructed logits in the wrong order.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from foundation.errors import DataError

MAX_ADAPTIVE_WEIGHT = 1e4


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
        if mean.ndim != 0:
            raise DataError("is not a scalar", field=name, found=tuple(mean.shape), expected="shape ()")
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
    reconstruction, adversarial = _matched(grad_reconstruction, grad_adversarial)
    weight = torch.linalg.vector_norm(reconstruction.detach()) / (torch.linalg.vector_norm(adversarial.detach()) + 1e-4)
    return weight.clamp(max=max_weight)


def ramp(step: int, start_step: int, ramp_steps: int) -> float:
    """0 before ``start_step``, then linear to 1 in ``ramp_steps`` steps (1 at once if 0). Steps count from 0."""
    if step < start_step:
        return 0.0
    return min(1.0, (step - start_step + 1) / max(1, ramp_steps))


def _matched(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float32; broadcasting (N, 1) against (N,) would give N x N differences and a plausible number."""
    if one.shape != other.shape:
        raise DataError(
            "two tensors that belong together have different shapes",
            found=f"{tuple(one.shape)} and {tuple(other.shape)}",
        )
    if one.numel() == 0:
        raise DataError("there is nothing to average", found=tuple(one.shape), expected="at least one value")
    return one.float(), other.float()
