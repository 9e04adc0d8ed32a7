"""Gumbel-softmax quantization: the encoder gives a logit for every code.

Sources: Jang, Gu and Poole 2016, arXiv:1611.01144, section 2 (the relaxation; hard variant in 2.2); Ramesh et al. 2021
(the dVAE of DALL-E), arXiv:2102.12092, appendix A.2 (schedules).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from foundation.training.optim import no_decay
from stage1_tokenizer.quantizers.base import Quantized, Quantizer, to_grid, to_rows, without_autocast
from stage1_tokenizer.quantizers.config import GumbelConfig


class Gumbel(Quantizer):
    """In training a random mixture of codes, sharper at lower temperature; otherwise the code of the largest logit."""

    config: GumbelConfig
    learns_codebook = True

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__(config)
        self.codebook = no_decay(nn.Parameter(torch.randn(config.codebook_size, config.width) / config.width**0.5))
        self.to_logits = nn.Conv2d(config.width, config.codebook_size, 1) if config.logit_layer else None
        self.schedule(0)

    def schedule(self, step: int) -> None:
        """Set the temperature and the KL's weight."""
        config = self.config
        self.temperature = temperature_at(config, step)
        warm = min(1.0, step / config.kl_warmup_steps) if config.kl_warmup_steps else 1.0
        self.kl_weight = config.kl_weight * warm

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Mix codes by their logits; ``codes_BHW`` are without the noise, as from ``encode``."""
        with without_autocast(latents_BCHW):
            logits_BVHW = self.logits(latents_BCHW)
            logits_NV = to_rows(logits_BVHW)
            codes_BHW = logits_BVHW.detach().argmax(1)
            losses = {"kl": self.kl_weight * kl_to_uniform(logits_NV)}
            metrics = {"temperature": self.temperature}
            if not self.training:
                return Quantized(self.decode(codes_BHW), codes_BHW, losses, metrics)
            weights_NV = F.gumbel_softmax(logits_NV, self.temperature, self.config.hard, dim=1)
            return Quantized(to_grid(weights_NV @ self.codebook, latents_BCHW), codes_BHW, losses, metrics)

    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, latent_width, H, W) => (B, H, W) codes; the lowest index on ties."""
        with without_autocast(latents_BCHW):
            return self.logits(latents_BCHW.detach()).argmax(1)

    def logits(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, latent_width, H, W) => (B, V, H, W) float32."""
        latents_BCHW = latents_BCHW.float()
        return latents_BCHW if self.to_logits is None else self.to_logits(latents_BCHW)

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """(B, H, W) codes => (B, C, H, W) code vectors."""
        return F.embedding(codes_BHW, self.codebook).permute(0, 3, 1, 2)


def temperature_at(config: GumbelConfig, step: int) -> float:
    """The temperature before optimizer step ``step``, counted from 0; constant after ``temperature_steps``."""
    done = min(1.0, step / config.temperature_steps) if config.temperature_steps else 1.0
    start, end = config.temperature_start, config.temperature_end
    if config.temperature_shape == "exponential":
        return start * (end / start) ** done
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def kl_to_uniform(logits_NV: torch.Tensor) -> torch.Tensor:
    """KL(softmax(logits) || uniform) in nats, averaged over the rows; from 0 to log V."""
    log_p_NV = logits_NV.log_softmax(1)
    return (log_p_NV.exp() * log_p_NV).sum(1).mean() + math.log(logits_NV.shape[1])
