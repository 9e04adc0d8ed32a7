"""Index backpropagation quantization: the choice of a code is differentiated, so that all codes learn at every step.

Source: Shi et al. 2024 (IBQ), arXiv:2412.02692, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from foundation.training.optim import no_decay
from stage1_tokenizer.quantizers.base import Quantized, Quantizer, to_code_grid, to_grid, to_rows, without_autocast
from stage1_tokenizer.quantizers.codebook import best_codes, rows_per_block
from stage1_tokenizer.quantizers.config import IBQConfig
from stage1_tokenizer.quantizers.entropy import choice_entropies


class _SoftChoice(torch.autograd.Function):
    """Forward: the chosen rows, bit for bit. Backward: as if onehot - sg(p) + p had multiplied the codebook.

    p = softmax(z C^T) is computed again block by block, so that no N x V matrix is held.
    """

    @staticmethod
    def forward(ctx: Any, vectors_ND: torch.Tensor, codebook_VD: torch.Tensor, codes_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(vectors_ND, codebook_VD, codes_N)
        return F.embedding(codes_N, codebook_VD)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        vectors_ND, codebook_VD, codes_N = ctx.saved_tensors
        gradient_ND = gradients[0].contiguous()
        d_codebook_VD = torch.zeros_like(codebook_VD).index_add_(0, codes_N, gradient_ND)
        d_vectors_ND = torch.empty_like(vectors_ND)
        rows = rows_per_block(len(codebook_VD), vectors_ND.device)
        blocks = (each.split(rows) for each in (vectors_ND, gradient_ND, d_vectors_ND))
        for block_ND, d_out_ND, d_block_ND in zip(*blocks, strict=True):
            p_NV = (block_ND @ codebook_VD.T).softmax(1)
            d_p_NV = d_out_ND @ codebook_VD.T
            d_p_NV.sub_((p_NV * d_p_NV).sum(1, keepdim=True)).mul_(p_NV)
            torch.mm(d_p_NV, codebook_VD, out=d_block_ND)
            d_codebook_VD.addmm_(d_p_NV.T, block_ND)
        return d_vectors_ND, d_codebook_VD, None


class IBQ(Quantizer):
    """Chooses the code with the largest inner product.

    A code's own vector chooses that code while all codes have one length, as at the start; training may end that,
    so ``encode(decode(codes))`` is not a promise here.
    """

    config: IBQConfig
    learns_codebook = True

    def __init__(self, config: IBQConfig) -> None:
        super().__init__(config)
        self.codebook = no_decay(nn.Parameter(F.normalize(torch.randn(config.codebook_size, config.width), dim=1)))

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Quantize; the gradient reaches latents and all codes through the softmax."""
        config = self.config
        with without_autocast(latents_BCHW):
            vectors_ND = to_rows(latents_BCHW.float())
            codes_N = best_codes(vectors_ND.detach(), self.codebook.detach())
            soft_ND: torch.Tensor = _SoftChoice.apply(vectors_ND, self.codebook, codes_N)
            chosen_ND = F.embedding(codes_N, self.codebook)
            losses = {
                "double": config.double_weight * F.mse_loss(soft_ND, vectors_ND),
                "commitment": config.commitment * F.mse_loss(vectors_ND, chosen_ND.detach()),
                "codebook": config.codebook_weight * F.mse_loss(chosen_ND, vectors_ND.detach()),
            }
            metrics = {}
            if config.entropy_weight > 0:
                scaled_ND, no_bias_V = vectors_ND / config.entropy_temperature, vectors_ND.new_zeros(self.codebook_size)
                each, mean = choice_entropies(scaled_ND, self.codebook, no_bias_V)
                losses["entropy"] = config.entropy_weight * (each - mean)
                metrics = {"entropy_each": each.detach(), "entropy_mean": mean.detach()}
            quantized_BCHW, codes_BHW = to_grid(soft_ND, latents_BCHW), to_code_grid(codes_N, latents_BCHW)
            return Quantized(quantized_BCHW, codes_BHW, losses, metrics)

    @torch.no_grad()
    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents => (B, H, W) codes."""
        with without_autocast(latents_BCHW):
            return to_code_grid(best_codes(to_rows(latents_BCHW.float()), self.codebook), latents_BCHW)

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """(B, H, W) codes => (B, C, H, W) code vectors."""
        return F.embedding(codes_BHW, self.codebook).permute(0, 3, 1, 2)
