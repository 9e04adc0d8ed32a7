"""Vector quantization with a codebook learned by exponential moving averages.

Sources: van den Oord, Vinyals and Kavukcuoglu 2017, arXiv:1711.00937, section 3 and appendix A.1 (nearest code,
straight-through gradient, commitment, averages); revival of unused codes: Dhariwal et al. 2020, arXiv:2005.00341,
section 3; k-means initialisation: Zeghidour et al. 2021, arXiv:2107.03312, section III-C.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from stage1_tokenizer.quantizers.base import Quantized, Quantizer, straight_through, without_autocast
from stage1_tokenizer.quantizers.config import EMAVQConfig
from stage1_tokenizer.quantizers.distributed import gathered, same_everywhere, summed
from stage1_tokenizer.quantizers.kmeans import count_and_sum, draw_vectors, kmeans
from stage1_tokenizer.quantizers.nearest import nearest_codes


class EMAVQ(Quantizer):
    """Nearest-code quantizer; ``codebook = code_sums / code_counts``, both running averages.

    Counts and sums are added up over all processes; k-means and revival are drawn once and shared, so that every
    process holds the same codebook to the last bit.
    """

    codebook: torch.Tensor
    code_counts: torch.Tensor
    code_sums: torch.Tensor

    def __init__(self, config: EMAVQConfig) -> None:
        super().__init__()
        self.config = config
        self.width, self.codebook_size = config.width, config.codebook_size
        self.register_buffer("codebook", torch.randn(self.codebook_size, self.width) / self.width**0.5)
        self.register_buffer("code_counts", torch.ones(self.codebook_size))
        self.register_buffer("code_sums", self.codebook.clone())
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Quantize; in training mode the latents are remembered for ``update``."""
        with without_autocast(latents_BCHW):
            latents_BCHW = latents_BCHW.float()
            codes_BHW = self.encode(latents_BCHW)
            quantized = self.decode(codes_BHW)
            if self.training:
                self._seen.append((_rows(latents_BCHW.detach()), codes_BHW.flatten()))
            commitment = self.config.commitment * F.mse_loss(latents_BCHW, quantized)
            return Quantized(straight_through(latents_BCHW, quantized), codes_BHW, {"commitment": commitment})

    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents => (B, H, W) codes."""
        with without_autocast(latents_BCHW):
            batch, _, height, width = latents_BCHW.shape
            codes = nearest_codes(_rows(latents_BCHW.detach().float()), self.codebook)
            return codes.view(batch, height, width)

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """(B, H, W) codes => (B, C, H, W) code vectors."""
        return self.codebook[codes_BHW].permute(0, 3, 1, 2)

    @torch.no_grad()
    def initialize(self, latents_BCHW: torch.Tensor, generator: torch.Generator) -> None:
        """k-means over the first batch's latents of all processes."""
        with without_autocast(latents_BCHW):
            vectors = gathered(_rows(latents_BCHW.detach().float()))
            centres = kmeans(vectors, self.codebook_size, self.config.kmeans_iterations, generator)
        self.codebook.copy_(same_everywhere(centres))
        self.code_sums.copy_(self.codebook)
        self.code_counts.fill_(1.0)

    @torch.no_grad()
    def update(self, step: int, generator: torch.Generator) -> None:
        """Move the averages by what ``forward`` saw since the last call, then revive unused codes."""
        vectors_ND = torch.cat([vectors for vectors, _ in self._seen])
        codes_N = torch.cat([codes for _, codes in self._seen])
        self._seen.clear()
        counts_V, sums_VD = count_and_sum(vectors_ND, codes_N, self.codebook_size)
        keep = self.config.decay
        self.code_counts.mul_(keep).add_(summed(counts_V), alpha=1 - keep)
        self.code_sums.mul_(keep).add_(summed(sums_VD), alpha=1 - keep)
        if self.config.revive_below > 0 and (step + 1) % self.config.revive_every == 0:
            self._revive(vectors_ND, generator)
        # A code that nothing chooses has count and sum shrinking alike: it stays where it is, also when both vanish.
        alive_V1 = (self.code_counts > 1e-12).unsqueeze(1)
        means_VD = self.code_sums / self.code_counts.clamp_min(1e-12).unsqueeze(1)
        self.codebook.copy_(torch.where(alive_V1, means_VD, self.codebook))

    def forget(self) -> None:
        """Drop the latents of a step that was not taken."""
        self._seen.clear()

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"codebook_size={self.codebook_size}, width={self.width}, decay={self.config.decay}"

    def _revive(self, vectors_ND: torch.Tensor, generator: torch.Generator) -> None:
        """Give unused codes a latent of the batch, and the averages that belong to it (or the next step undoes it)."""
        uniform = self.code_counts.sum() / self.codebook_size
        unused_V = self.code_counts < self.config.revive_below * uniform
        fresh_VD = same_everywhere(draw_vectors(gathered(vectors_ND), self.codebook_size, generator))
        self.code_counts.copy_(torch.where(unused_V, uniform, self.code_counts))
        self.code_sums.copy_(torch.where(unused_V.unsqueeze(1), fresh_VD * uniform, self.code_sums))


def _rows(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) => (B*H*W, C)."""
    return latents_BCHW.permute(0, 2, 3, 1).reshape(-1, latents_BCHW.shape[1])
