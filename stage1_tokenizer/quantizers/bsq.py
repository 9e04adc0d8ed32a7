"""Binary spherical quantization: each channel of a unit-length latent is one bit.

Source: Zhao, Xiong and Kraehenbuehl 2024, arXiv:2406.07548, section 4.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from stage1_tokenizer.quantizers.base import Quantized, Quantizer, straight_through, to_rows, without_autocast
from stage1_tokenizer.quantizers.config import BSQConfig
from stage1_tokenizer.quantizers.fsq import whitening
from stage1_tokenizer.quantizers.lfq import bit_entropies, codes_of_signs, signs_of_codes


class BSQ(Quantizer):
    """Latents u of length 1; channel c becomes +-1 / sqrt(width) and is bit c of the code; 0 and below give minus.

    The code vectors have length 1 too, so that the quantization error is bounded without a commitment loss. Entropies
    are of p = softmax(u.e / temperature) over all 2^width codes e, a product of one probability for each bit:
    E[H(p)] is exact, H(E[p]) is the sum over bits, as if bits were independent, an upper bound.

    Attributes:
        length: of each channel of a code vector, 1 / sqrt(width).
    """

    config: BSQConfig

    def __init__(self, config: BSQConfig) -> None:
        super().__init__(config)
        self.length = self.width**-0.5

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Quantize; straight-through from the sphere, exact through the projection to it."""
        with without_autocast(latents_BCHW):
            units_BCHW = F.normalize(latents_BCHW.float(), dim=1)
            codes_BHW = self.encode(latents_BCHW)
            losses, metrics = {}, {}
            if self.config.entropy_weight > 0:
                logits_NC = to_rows(units_BCHW) * (2 * self.length / self.config.entropy_temperature)
                each, mean = bit_entropies(logits_NC, group_bits=1)
                losses = {"entropy": self.config.entropy_weight * (each - mean)}
                metrics = {"entropy_each": each.detach(), "entropy_mean": mean.detach()}
            return Quantized(straight_through(units_BCHW, self.decode(codes_BHW)), codes_BHW, losses, metrics)

    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents of any length => (B, H, W) codes."""
        return codes_of_signs(latents_BCHW)

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """(B, H, W) codes => (B, C, H, W) vectors of length 1."""
        return self.length * signs_of_codes(codes_BHW, self.width)

    def projection_start(self, latents_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Uncorrelated channels: the entropy term takes bits as independent, and cannot part equal ones."""
        if self.config.initial == "random":
            return None
        with without_autocast(latents_BCHW):
            return whitening(to_rows(latents_BCHW.float()), 1.0)
