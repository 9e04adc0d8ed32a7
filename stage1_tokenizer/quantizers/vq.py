"""Vector quantization with a learned codebook.

Sources: van den Oord, Vinyals and Kavukcuoglu 2017, arXiv:1711.00937, section 3 and appendix A.1 (nearest code,
straight-through gradient, codebook and commitment losses, averages); unit-length codes: Yu et al. 2021,
arXiv:2110.04627, section 3.2; k-means initialisation: Zeghidour et al. 2021, arXiv:2107.03312, section III-C; revival
of unused codes: Dhariwal et al. 2020, arXiv:2005.00341, section 3; one linear map of a frozen codebook: Zhu et al.
2024, arXiv:2411.02038, section 4.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from foundation.training.optim import no_decay
from foundation.training.parallel import all_gather_rows, all_reduce_sum, broadcast
from stage1_tokenizer.quantizers.base import (
    Quantized,
    Quantizer,
    rotate_to,
    straight_through,
    to_code_grid,
    to_grid,
    to_rows,
    without_autocast,
)
from stage1_tokenizer.quantizers.codebook import count_and_sum, draw_vectors, kmeans, nearest_codes
from stage1_tokenizer.quantizers.config import VQConfig
from stage1_tokenizer.quantizers.entropy import entropy_loss

_DUE_USES = 4.0  # a code is judged once its even share would be this many uses: fewer than 2 % get none by chance
_NEWCOMER = 0.25  # running count of a revived code over the mean count: light enough to move to its vectors quickly


class VQ(Quantizer):
    """Nearest-code quantizer with a codebook learned by averages, by gradient, or through one linear map.

    With averages, ``codebook = code_sums / code_counts``; counts and sums are added up over all processes. The first
    codebook and the revived codes are sampled once and shared, so every process holds the same codebook, bit for bit.
    """

    config: VQConfig
    learns_codebook = True
    codebook: torch.Tensor
    code_counts: torch.Tensor
    code_sums: torch.Tensor
    code_uses: torch.Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        start_VD = torch.randn(self.codebook_size, self.width) / self.width**0.5
        if config.initial == "uniform":
            start_VD.uniform_(-1 / self.codebook_size, 1 / self.codebook_size)
        if config.learning == "ema":
            self.register_buffer("codebook", start_VD)
            self.register_buffer("code_counts", torch.ones(self.codebook_size))
            self.register_buffer("code_sums", start_VD.clone())
        elif config.projection:
            self.register_buffer("codebook", start_VD)
            self.projection = nn.Parameter(torch.eye(self.width))
        else:
            self.codebook = no_decay(nn.Parameter(start_VD))
        if config.revive_below > 0:
            self.register_buffer("code_uses", torch.zeros(self.codebook_size))
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._n_missed = 0

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Quantize; in training mode the latents stay in memory for ``update``, until the next call."""
        with without_autocast(latents_BCHW):
            self.catch_up()
            vectors_ND, table_VD = self._normalized(to_rows(latents_BCHW.float())), self.code_vectors()
            codes_N = nearest_codes(vectors_ND.detach(), table_VD.detach())
            self.remember(vectors_ND, codes_N)
            chosen_ND = F.embedding(codes_N, table_VD)
            pass_gradient = rotate_to if self.config.rotation else straight_through
            quantized_ND = pass_gradient(vectors_ND, chosen_ND.detach())
            losses = self._losses(vectors_ND, chosen_ND, table_VD)
            return Quantized(to_grid(quantized_ND, latents_BCHW), to_code_grid(codes_N, latents_BCHW), losses)

    @torch.no_grad()
    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents => (B, H, W) codes."""
        with without_autocast(latents_BCHW):
            vectors_ND = self._normalized(to_rows(latents_BCHW.float()))
            return to_code_grid(nearest_codes(vectors_ND, self.code_vectors()), latents_BCHW)

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """(B, H, W) codes => (B, C, H, W) code vectors."""
        with without_autocast(codes_BHW):
            return F.embedding(codes_BHW, self.code_vectors()).permute(0, 3, 1, 2)

    def code_vectors(self) -> torch.Tensor:
        """Vector of each code, (V, C) float32; gradients reach the codebook or the projection."""
        return self._normalized(self.codebook @ self.projection if self.config.projection else self.codebook)

    @torch.no_grad()
    def initialize(self, latents_BCHW: torch.Tensor, generator: torch.Generator) -> None:
        """Start from the first batch's latents of all processes, if the configuration says so."""
        with without_autocast(latents_BCHW):
            self.initialize_from(to_rows(latents_BCHW.float()), generator)

    @torch.no_grad()
    def initialize_from(self, vectors_ND: torch.Tensor, generator: torch.Generator) -> None:
        """``initialize`` from (N, C) float32 rows."""
        vectors_ND = all_gather_rows(self._normalized(vectors_ND))
        if self.config.initial == "latents":
            centres_VD = kmeans(vectors_ND, self.codebook_size, self.config.kmeans_iterations, generator)
            self.codebook.copy_(self._normalized(centres_VD))
        broadcast(self.codebook.data)
        if self.config.learning == "ema":
            self.code_counts.fill_(len(vectors_ND) / self.codebook_size)
            self.code_sums.copy_(self.codebook * self.code_counts.unsqueeze(1))

    def remember(self, vectors_ND: torch.Tensor, codes_N: torch.Tensor) -> None:
        """Keep what ``update`` needs of a training step, until ``forget`` or the next ``forward``."""
        if self.training and (self.config.learning == "ema" or self.config.revive_below > 0):
            self._seen.append((vectors_ND.detach(), codes_N))

    @torch.no_grad()
    def update(self, step: int, generator: torch.Generator) -> None:
        """Move the averages by what ``forward`` saw since the last call, and now and then revive unused codes."""
        if not self._seen:
            return
        vectors_ND = torch.cat([vectors for vectors, _ in self._seen])
        codes_N = torch.cat([codes for _, codes in self._seen])
        self._seen.clear()
        counts_V, sums_VD = count_and_sum(vectors_ND, codes_N, self.codebook_size)
        all_reduce_sum(counts_V)
        if self.config.learning == "ema":
            keep = self.config.decay
            self.code_counts.mul_(keep).add_(counts_V, alpha=1 - keep)
            self.code_sums.mul_(keep).add_(all_reduce_sum(sums_VD), alpha=1 - keep)
        if self.config.revive_below > 0:
            self.code_uses += counts_V
            if (step + 1) % self.config.revive_every == 0:
                self._revive(vectors_ND, generator)
        if self.config.learning == "ema":
            # An unused code's count and sum shrink alike: it keeps its vector, also when both vanish.
            alive_V1 = (self.code_counts > 1e-12).unsqueeze(1)
            means_VD = self.code_sums / self.code_counts.clamp_min(1e-12).unsqueeze(1)
            self.codebook.copy_(torch.where(alive_V1, self._normalized(means_VD), self.codebook))

    def catch_up(self) -> None:
        """Make up for an ``update`` that a training loop other than ours left out; averages then follow one step late.

        Our loop calls ``update`` or ``forget`` after each step, so that nothing is left to do here.
        """
        if self._seen and self.config.learning == "ema":
            self.update(self._n_missed, torch.Generator().manual_seed(self._n_missed))
            self._n_missed += 1
        self.forget()

    def forget(self) -> None:
        """Drop the latents of a step that was not taken."""
        self._seen.clear()

    def _normalized(self, vectors_ND: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors_ND, dim=1) if self.config.normalize else vectors_ND

    def _losses(
        self, vectors_ND: torch.Tensor, chosen_ND: torch.Tensor, table_VD: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        losses = {"commitment": self.config.commitment * F.mse_loss(vectors_ND, chosen_ND.detach())}
        if self.config.learning == "gradient":
            losses["codebook"] = self.config.codebook_weight * F.mse_loss(chosen_ND, vectors_ND.detach())
        if self.config.entropy_weight > 0:
            entropy = entropy_loss(vectors_ND, table_VD, self.config.entropy_temperature)
            losses["entropy"] = self.config.entropy_weight * entropy
        return losses

    def _revive(self, vectors_ND: torch.Tensor, generator: torch.Generator) -> None:
        """Give each unused code a latent of the batch, with matching averages, so that the next step keeps it.

        Waits, counting uses, until an evenly used code would have had ``_DUE_USES``: with many more codes than latents
        in a batch, a good code may stay unused for many steps.
        """
        even = self.code_uses.mean()
        due = even >= _DUE_USES
        unused_V = due & (self.code_uses < self.config.revive_below * even)
        sampled_VD = broadcast(draw_vectors(all_gather_rows(vectors_ND), self.codebook_size, generator))
        fresh_VD = sampled_VD[(unused_V.cumsum(0) - 1).clamp_min(0)]  # the first samples are without repetition
        unused_V1 = unused_V.unsqueeze(1)
        self.code_uses.mul_(~due)
        if self.config.learning == "ema":
            weight = _NEWCOMER * self.code_counts.mean()
            self.code_counts.copy_(torch.where(unused_V, weight, self.code_counts))
            self.code_sums.copy_(torch.where(unused_V1, fresh_VD * weight, self.code_sums))
        else:
            self.codebook.copy_(torch.where(unused_V1, fresh_VD, self.codebook))
