"""Lookup-free quantization: each channel is one bit.

Source: Yu et al. 2023 (MAGVIT-v2), arXiv:2310.05737, section 3.1, equations 3 to 5.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from foundation.training.parallel import global_mean
from stage1_tokenizer.quantizers.base import Quantized, Quantizer, straight_through, to_rows, without_autocast
from stage1_tokenizer.quantizers.config import LFQConfig

_GROUP_BITS = 18  # 2^18 means: 1 MiB
_TINY = torch.finfo(torch.float32).tiny


class LFQ(Quantizer):
    """Channel c becomes +1 or -1 and is bit c of the code: channel 0 is the least significant; 0 and below give -1.

    Entropies are of p = softmax(-|z - e|^2 / temperature) over all 2^width codes, which factorises into one
    probability for each bit.
    """

    config: LFQConfig

    def __init__(self, config: LFQConfig) -> None:
        super().__init__(config)
        self.schedule(0)

    def schedule(self, step: int) -> None:
        """The entropy's weight falls linearly from its boost."""
        left = 1 - min(1.0, step / self.config.boost_steps) if self.config.boost_steps else 0.0
        self.entropy_weight = self.config.entropy_weight * (1 + (self.config.entropy_boost - 1) * left)

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Quantize, straight-through."""
        with without_autocast(latents_BCHW):
            latents_BCHW = latents_BCHW.float()
            codes_BHW = self.encode(latents_BCHW)
            signs_BCHW = self.decode(codes_BHW)
            losses = {"commitment": self.config.commitment * F.mse_loss(latents_BCHW, signs_BCHW)}
            metrics = {}
            if self.config.entropy_weight > 0:
                each, mean = bit_entropies(to_rows(latents_BCHW) * (4 / self.config.entropy_temperature))
                losses["entropy"] = self.entropy_weight * (each - mean)
                metrics = {"entropy_each": each.detach(), "entropy_mean": mean.detach()}
            return Quantized(straight_through(latents_BCHW, signs_BCHW), codes_BHW, losses, metrics)

    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents => (B, H, W) codes."""
        return codes_of_signs(latents_BCHW)

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """(B, H, W) codes => (B, C, H, W) of +1 and -1."""
        return signs_of_codes(codes_BHW, self.width)


def codes_of_signs(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) => (B, H, W) int64: bit c says whether channel c is above 0."""
    return ((latents_BCHW.detach() > 0).to(torch.int64) << _bits(latents_BCHW.shape[1], latents_BCHW)).sum(1)


def signs_of_codes(codes_BHW: torch.Tensor, width: int) -> torch.Tensor:
    """(B, H, W) => (B, width, H, W) float32 of +1 and -1, the inverse of ``codes_of_signs``."""
    bits_BCHW = (codes_BHW.to(torch.int64).unsqueeze(1) >> _bits(width, codes_BHW)) & 1
    return (2 * bits_BCHW - 1).to(torch.float32)


def _bits(width: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(width, device=like.device).view(-1, 1, 1)


def bit_entropies(logits_NC: torch.Tensor, group_bits: int = _GROUP_BITS) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropies of independent bits with P(bit = 1) = sigmoid(logit), as one code.

    Args:
        logits_NC: (N, C) float32, N above 0.
        group_bits: how many bits the second entropy takes together.

    Returns:
        E[H(p)] and H(E[p]), scalars in nats, the second in training over the rows of all processes. The first is exact:
        the sum over bits. The second is exact up to ``group_bits``: the mean of a product of two halves is one matrix
        product, so that no N x V matrix is held. More bits are taken in groups, whose entropies are added: an upper
        bound that ignores dependence between groups.
    """
    ones_NC = logits_NC.sigmoid()
    each = (F.softplus(logits_NC) - logits_NC * ones_NC).sum(1).mean()
    zeros_NC = (-logits_NC).sigmoid()
    groups = zip(ones_NC.split(group_bits, 1), zeros_NC.split(group_bits, 1), strict=True)
    return each, torch.stack([_entropy_of_mean(ones, zeros) for ones, zeros in groups]).sum()


def _entropy_of_mean(ones_NC: torch.Tensor, zeros_NC: torch.Tensor) -> torch.Tensor:
    low = ones_NC.shape[1] // 2
    left_NL = _products(ones_NC[:, :low], zeros_NC[:, :low])
    right_NR = _products(ones_NC[:, low:], zeros_NC[:, low:])
    mean_RL = global_mean(right_NR.T @ left_NL / len(ones_NC))
    return -(mean_RL * mean_RL.clamp_min(_TINY).log()).sum()


def _products(ones_NC: torch.Tensor, zeros_NC: torch.Tensor) -> torch.Tensor:
    """Probability of each pattern of the bits, (N, 2^C); the first channel is the least significant bit."""
    p = ones_NC.new_ones(len(ones_NC), 1)
    for one, zero in zip(ones_NC.unbind(1), zeros_NC.unbind(1), strict=True):
        p = torch.cat([p * zero.unsqueeze(1), p * one.unsqueeze(1)], 1)
    return p
