"""Nearest code of each vector, without ever holding the whole N x V matrix of scores."""

from __future__ import annotations

import torch

CPU_BLOCK = 1 << 20
"""Scores computed at a time on a CPU: 4 MiB of float32 stay in its cache."""
GPU_BLOCK = 1 << 26
"""Scores computed at a time on a GPU: 256 MiB, enough to keep it busy."""


def rows_per_block(n_columns: int, device: torch.device) -> int:
    """How many rows of ``n_columns`` float32 scores to compute at a time."""
    return max(1, (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK) // n_columns)


@torch.no_grad()
def nearest_codes(vectors_ND: torch.Tensor, codebook_VD: torch.Tensor) -> torch.Tensor:
    """Index of the nearest codebook row by Euclidean distance, the lowest index on ties.

    argmin |x - e|^2 = argmax x.e - |e|^2 / 2, since |x|^2 does not depend on e. The codebook's mean is taken off both
    first: where it is large beside the codes' distances, the two terms would cancel in float32.

    Args:
        vectors_ND: (N, D) float32; N may be 0.
        codebook_VD: (V, D) float32.

    Returns:
        (N,) int64.
    """
    mean_D = codebook_VD.mean(0)
    codes_VD = codebook_VD - mean_D
    return best_codes(vectors_ND - mean_D, codes_VD, codes_VD.square().sum(1).mul_(-0.5))


@torch.no_grad()
def best_codes(vectors_ND: torch.Tensor, codebook_VD: torch.Tensor, bias_V: torch.Tensor | None = None) -> torch.Tensor:
    """Index of the row with the largest score x.e + bias, (N,) int64; the lowest index on ties.

    In a graph that ``torch.export`` records, N is not known, and so not how many blocks there are: there is one.
    """
    if torch.compiler.is_exporting():
        scores_NV = vectors_ND @ codebook_VD.T
        return (scores_NV if bias_V is None else scores_NV + bias_V).argmax(1)
    codes_N = torch.empty(len(vectors_ND), dtype=torch.int64, device=vectors_ND.device)
    rows = rows_per_block(len(codebook_VD), vectors_ND.device)
    scores = torch.empty(min(rows, len(vectors_ND)), len(codebook_VD), device=vectors_ND.device)
    for block_ND, block_N in zip(vectors_ND.split(rows), codes_N.split(rows), strict=True):
        block_NV = scores[: len(block_ND)]
        if bias_V is None:
            torch.mm(block_ND, codebook_VD.T, out=block_NV)
        else:
            torch.addmm(bias_V, block_ND, codebook_VD.T, out=block_NV)
        torch.argmax(block_NV, 1, out=block_N)
    return codes_N
