"""Nearest code of each vector, without ever holding the whole N x V matrix of distances."""

from __future__ import annotations

import torch

_BLOCK_ELEMENTS = 1 << 20  # 4 MiB of float32 scores: stays in a CPU's cache, keeps a GPU busy enough


@torch.no_grad()
def nearest_codes(vectors_ND: torch.Tensor, codebook_VD: torch.Tensor) -> torch.Tensor:
    """Index of the nearest codebook row by Euclidean distance, the lowest index on ties.

    Args:
        vectors_ND: (N, D) float32.
        codebook_VD: (V, D) float32.

    Returns:
        (N,) int64. argmin |x - e|^2 = argmax x.e - |e|^2 / 2, since |x|^2 does not depend on e.
    """
    half_norms_V = codebook_VD.square().sum(1).mul_(-0.5)
    rows = max(1, _BLOCK_ELEMENTS // len(codebook_VD))
    codes = [torch.addmm(half_norms_V, block, codebook_VD.T).argmax(1) for block in vectors_ND.split(rows)]
    return torch.cat(codes)
