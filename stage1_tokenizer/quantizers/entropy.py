"""Entropies of soft code assignments, in blocks, without the N x V matrix of probabilities.

Minimising E[H(p)] - H(E[p]) makes each assignment certain and the use of codes even. Sources: Chang et al. 2022,
arXiv:2202.04200, and Yu et al. 2023, arXiv:2310.05737, equation 5.
"""

from __future__ import annotations

from typing import Any

import torch

from foundation.training.parallel import all_reduce_mean
from stage1_tokenizer.quantizers.codebook import rows_per_block

_TINY = torch.finfo(torch.float32).tiny


class _ChoiceEntropies(torch.autograd.Function):
    """Both entropies block by block; backward computes each block's probabilities again."""

    @staticmethod
    def forward(
        ctx: Any, vectors_ND: torch.Tensor, codebook_VD: torch.Tensor, bias_V: torch.Tensor, together: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        each = vectors_ND.new_zeros(())
        mean_V = torch.zeros_like(bias_V)
        for block_ND in vectors_ND.split(rows_per_block(len(codebook_VD), vectors_ND.device)):
            log_p_NV = torch.addmm(bias_V, block_ND, codebook_VD.T).log_softmax(1)
            p_NV = log_p_NV.exp()
            mean_V += p_NV.sum(0)
            each -= p_NV.mul_(log_p_NV).sum()
        mean_V = mean_V / len(vectors_ND)
        mean_V = all_reduce_mean(mean_V) if together else mean_V
        ctx.save_for_backward(vectors_ND, codebook_VD, bias_V, mean_V)
        return each / len(vectors_ND), -torch.xlogy(mean_V, mean_V).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        vectors_ND, codebook_VD, bias_V, mean_V = ctx.saved_tensors
        of_each, of_mean = (gradient / len(vectors_ND) for gradient in gradients)
        log_mean_V = mean_V.clamp_min(_TINY).log() * of_mean
        d_vectors_ND, d_codebook_VD = torch.empty_like(vectors_ND), torch.zeros_like(codebook_VD)
        d_bias_V = torch.zeros_like(bias_V)
        rows = rows_per_block(len(codebook_VD), vectors_ND.device)
        for block_ND, d_block_ND in zip(vectors_ND.split(rows), d_vectors_ND.split(rows), strict=True):
            log_p_NV = torch.addmm(bias_V, block_ND, codebook_VD.T).log_softmax(1)
            p_NV = log_p_NV.exp()
            # d/dp of both terms; the constants cancel in the softmax's own backward
            d_p_NV = log_p_NV.mul_(-of_each).sub_(log_mean_V)
            d_p_NV.sub_((p_NV * d_p_NV).sum(1, keepdim=True)).mul_(p_NV)
            torch.mm(d_p_NV, codebook_VD, out=d_block_ND)
            d_codebook_VD.addmm_(d_p_NV.T, block_ND)
            d_bias_V += d_p_NV.sum(0)
        return d_vectors_ND, d_codebook_VD, d_bias_V, None


def choice_entropies(
    vectors_ND: torch.Tensor, codebook_VD: torch.Tensor, bias_V: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropies of p = softmax(vectors @ codebook.T + bias) over the codes.

    Args:
        vectors_ND: (N, D) float32, N above 0.
        codebook_VD: (V, D) float32.
        bias_V: (V,) float32.

    Returns:
        E[H(p)] of this process's vectors and H(E[p]), while gradients are recorded of all processes' vectors: scalars
        in nats. Gradients reach all three arguments; averaged over processes they equal one process's.
    """
    together = torch.is_grad_enabled()
    return _ChoiceEntropies.apply(vectors_ND, codebook_VD, bias_V, together)  # type: ignore[no-any-return]


def entropy_loss(vectors_ND: torch.Tensor, codebook_VD: torch.Tensor, temperature: float) -> torch.Tensor:
    """E[H(p)] - H(E[p]) in nats for p = softmax(-|x - e|^2 / temperature); between -log V and log V."""
    bias_V = codebook_VD.square().sum(1) / -temperature
    each, mean = choice_entropies(vectors_ND * (2 / temperature), codebook_VD, bias_V)
    return each - mean
