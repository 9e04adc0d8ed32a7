"""Residual vector quantization: a position has several codes, whose vectors add up.

Source: Lee et al. 2022 (RQ-VAE), arXiv:2203.01941, section 3.1, equations 1 to 5.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.base import (
    Quantized,
    Quantizer,
    straight_through,
    to_code_grid,
    to_grid,
    to_rows,
    without_autocast,
)
from stage1_tokenizer.quantizers.codebook import nearest_codes
from stage1_tokenizer.quantizers.config import ResidualConfig
from stage1_tokenizer.quantizers.vq import VQ


class ResidualVQ(Quantizer):
    """The code at depth d is nearest to what earlier depths leave; codes are (B, H, W, D), of depth 1 (B, H, W).

    With several depths a decoded sum need not be encoded as the codes that it was made of: others may come as near.
    """

    config: ResidualConfig
    learns_codebook = True

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config)
        self.vectors_per_position = config.depth if config.shared else 1
        self.codebooks = nn.ModuleList(VQ(config.codebook_at(i)) for i in range(1 if config.shared else config.depth))

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Quantize, straight-through; the losses are averages over depths, each of the sum up to that depth."""
        with without_autocast(latents_BCHW):
            vectors_ND = to_rows(latents_BCHW.float())
            left_ND, sum_ND = vectors_ND.detach(), torch.zeros_like(vectors_ND)
            codes, commitments, pulls = [], [], []
            for depth in range(len(self.codebooks)):
                self._codebook(depth).catch_up()
            for depth in range(self.depth):
                vq = self._codebook(depth)
                codes_N = nearest_codes(left_ND, vq.code_vectors().detach())
                vq.remember(left_ND, codes_N)
                chosen_ND = F.embedding(codes_N, vq.code_vectors())
                pulls.append(F.mse_loss(chosen_ND, left_ND))
                sum_ND, left_ND = sum_ND + chosen_ND.detach(), left_ND - chosen_ND.detach()
                commitments.append(F.mse_loss(vectors_ND, sum_ND))
                codes.append(codes_N)
            each = self.config.codebook
            losses = {"commitment": each.commitment * torch.stack(commitments).mean()}
            if each.learning == "gradient":
                losses["codebook"] = each.codebook_weight * torch.stack(pulls).mean()
            quantized_BCHW = to_grid(straight_through(vectors_ND, sum_ND), latents_BCHW)
            return Quantized(quantized_BCHW, self._stacked(codes, latents_BCHW), losses)

    @torch.no_grad()
    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents => (B, H, W, D) codes, (B, H, W) of depth 1."""
        with without_autocast(latents_BCHW):
            left_ND, codes = to_rows(latents_BCHW.float()), []
            for depth in range(self.depth):
                table_VD = self._codebook(depth).code_vectors()
                codes.append(nearest_codes(left_ND, table_VD))
                left_ND = left_ND - F.embedding(codes[-1], table_VD)
            return self._stacked(codes, latents_BCHW)

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """(B, H, W, D) codes, or (B, H, W) of depth 1 => (B, C, H, W), the sum over depths; fewer are a coarser one."""
        by_depth = codes_BHW.unbind(3) if codes_BHW.ndim == 4 else (codes_BHW,)
        parts = [self._codebook(depth).decode(codes) for depth, codes in enumerate(by_depth)]
        total_BCHW = torch.zeros_like(parts[0])
        for part_BCHW in parts:  # in the order of forward: float sums depend on it
            total_BCHW = total_BCHW + part_BCHW
        return total_BCHW

    @torch.no_grad()
    def initialize(self, latents_BCHW: torch.Tensor, generator: torch.Generator) -> None:
        """Depth by depth from what the codes before leave over; a shared codebook from all of these together."""
        with without_autocast(latents_BCHW):
            left_ND, seen = to_rows(latents_BCHW.float()), []
            for depth in range(self.depth):
                vq = self._codebook(depth)
                seen.append(left_ND)
                vq.initialize_from(torch.cat(seen) if self.config.shared else left_ND, generator)
                table_VD = vq.code_vectors()
                left_ND = left_ND - F.embedding(nearest_codes(left_ND, table_VD), table_VD)

    def update(self, step: int, generator: torch.Generator) -> None:
        """Update every codebook; one that is shared sees the vectors of all depths."""
        for depth in range(len(self.codebooks)):
            self._codebook(depth).update(step, generator)

    def forget(self) -> None:
        """Drop the latents of a step that was not taken."""
        for depth in range(len(self.codebooks)):
            self._codebook(depth).forget()

    def _codebook(self, depth: int) -> VQ:
        vq = self.codebooks[0 if self.config.shared else depth]
        assert isinstance(vq, VQ)
        return vq

    @staticmethod
    def _stacked(codes: list[torch.Tensor], like_BCHW: torch.Tensor) -> torch.Tensor:
        return to_code_grid(codes[0] if len(codes) == 1 else torch.stack(codes, 1), like_BCHW)
