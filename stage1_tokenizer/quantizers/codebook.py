"""Codebook search in blocks, without the N x V matrix of scores; k-means (Lloyd 1982) and sampling to place codes."""

from __future__ import annotations

import torch

from foundation.hardware import send

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


@torch.no_grad()
def kmeans(vectors_ND: torch.Tensor, n_codes: int, iterations: int, generator: torch.Generator) -> torch.Tensor:
    """Cluster centres of the vectors.

    Args:
        vectors_ND: (N, D) float32 on the CPU or a GPU.
        n_codes: number of centres. With fewer vectors, some are used several times with a little noise.
        iterations: Lloyd iterations; 0 returns randomly chosen vectors.
        generator: of the initial choice; a CPU generator.

    Returns:
        (n_codes, D) float32. A centre that loses all its vectors keeps its place.
    """
    centres_VD = draw_vectors(vectors_ND, n_codes, generator)
    for _ in range(iterations):
        codes_N = nearest_codes(vectors_ND, centres_VD)
        counts_V, sums_VD = count_and_sum(vectors_ND, codes_N, n_codes)
        means_VD = sums_VD / counts_V.clamp_min(1).unsqueeze(1)
        centres_VD = torch.where(counts_V.unsqueeze(1) > 0, means_VD, centres_VD)
    return centres_VD


def draw_vectors(vectors_ND: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """``n`` of the vectors, without repetition while there are enough, (n, D).

    Beyond that each repetition gets a little noise: of two equal codes the second would never be chosen.
    """
    picks = [torch.randperm(len(vectors_ND), generator=generator) for _ in range(-(-n // len(vectors_ND)))]
    chosen_ND = vectors_ND[send(torch.cat(picks)[:n], vectors_ND.device)]
    if n > len(vectors_ND):
        repeated_ND = chosen_ND[len(vectors_ND) :]
        noise = send(torch.randn(repeated_ND.shape, generator=generator), chosen_ND.device)
        repeated_ND += 0.01 * vectors_ND.std(0, correction=0).clamp_min(1e-6) * noise
    return chosen_ND


def count_and_sum(vectors_ND: torch.Tensor, codes_N: torch.Tensor, n_codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many vectors each code has, (V,) float32, and their sum, (V, D)."""
    zeros_V = torch.zeros(n_codes, dtype=torch.int64, device=codes_N.device)
    counts_V = zeros_V.index_add_(0, codes_N, torch.ones_like(codes_N)).to(vectors_ND.dtype)  # bincount waits on a GPU
    sums_VD = torch.zeros(n_codes, vectors_ND.shape[1], dtype=vectors_ND.dtype, device=vectors_ND.device)
    return counts_V, sums_VD.index_add_(0, codes_N, vectors_ND)
