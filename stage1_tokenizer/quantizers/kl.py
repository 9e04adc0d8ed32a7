"""Gaussian latents: the continuous family (a variational autoencoder).

Sources: Kingma and Welling 2013, arXiv:1312.6114, section 2.4 and appendix B (sampling and closed-form KL); Burgess et
al. 2018, arXiv:1804.03599 (a weight on the KL); Bowman et al. 2015, arXiv:1511.06349, section 3.1 (annealing); Burda,
Grosse and Salakhutdinov 2015, arXiv:1509.00519, section 5.2 (active dimensions).
"""

from __future__ import annotations

import torch

from stage1_tokenizer.quantizers.base import Quantized, Quantizer, without_autocast
from stage1_tokenizer.quantizers.config import KLConfig

_LOG_VARIANCE = (-30.0, 20.0)  # beyond, exp would vanish or overflow in float32 arithmetic
_ACTIVE_VARIANCE = 0.01


class GaussianLatent(Quantizer):
    """Training samples z = mean + sigma * noise; otherwise z is the mean.

    The loss is ``weight`` times the KL to N(0, 1) averaged over all latent values, beside a reconstruction loss
    averaged over all image values. For a Gaussian decoder of variance s^2, P image values and Z latent values per
    image, the negative ELBO with the KL times beta is proportional to MSE + weight * KL with
    weight = 2 s^2 beta Z / P; beta = 1 is the plain ELBO.
    """

    config: KLConfig

    def __init__(self, config: KLConfig) -> None:
        super().__init__(config)
        self.schedule(0)

    def schedule(self, step: int) -> None:
        """The KL's weight rises linearly from 0."""
        warm = min(1.0, step / self.config.anneal_steps) if self.config.anneal_steps else 1.0
        self.weight = self.config.weight * warm

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Sample from (B, 2C, H, W) parameters, means first; ``codes_BHW`` is the mean."""
        with without_autocast(latents_BCHW):
            mean, logvar = split_moments(latents_BCHW)
            kl_BCHW = gaussian_kl(mean, logvar)
            sigma = (0.5 * logvar).exp()
            sampled = mean + sigma * torch.randn_like(mean) if self.training else mean
            metrics = {
                "kl_nats_per_image": kl_BCHW.detach().sum((1, 2, 3)).mean(),
                "sigma_mean": sigma.detach().mean(),
                "active_channels": (mean.detach().var((0, 2, 3), correction=0) > _ACTIVE_VARIANCE).sum(),
            }
            return Quantized(sampled, mean.detach(), {"kl": self.weight * kl_BCHW.mean()}, metrics)

    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, 2C, H, W) parameters => the mean, (B, C, H, W) float32."""
        return latents_BCHW.detach().float().chunk(2, 1)[0]

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents, as they are, in float32."""
        return codes_BHW.float()


def split_moments(latents_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 2C, H, W) parameters => mean and log-variance, each (B, C, H, W) float32; the second clamped to [-30, 20]."""
    mean, logvar = latents_BCHW.float().chunk(2, 1)
    return mean, logvar.clamp(*_LOG_VARIANCE)


def gaussian_kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each value in nats, in the shape of the arguments; 0 or more."""
    return 0.5 * (mean.square() + torch.expm1(logvar) - logvar)
