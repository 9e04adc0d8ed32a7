"""k-means (Lloyd 1982) to initialise a codebook, and drawing vectors to revive one."""

from __future__ import annotations

import torch

from stage1_tokenizer.quantizers.nearest import nearest_codes


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

    Beyond that each repetition gets a little noise: two equal codes would share one fate, the second never chosen.
    """
    picks = [torch.randperm(len(vectors_ND), generator=generator) for _ in range(-(-n // len(vectors_ND)))]
    chosen_ND = vectors_ND[torch.cat(picks)[:n].to(vectors_ND.device)]
    if n > len(vectors_ND):
        repeated_ND = chosen_ND[len(vectors_ND) :]
        noise = torch.randn(repeated_ND.shape, generator=generator).to(chosen_ND.device)
        repeated_ND += 0.01 * vectors_ND.std(0, correction=0).clamp_min(1e-6) * noise
    return chosen_ND


def count_and_sum(vectors_ND: torch.Tensor, codes_N: torch.Tensor, n_codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many vectors each code has, (V,) float32, and their sum, (V, D)."""
    counts_V = torch.bincount(codes_N, minlength=n_codes).to(vectors_ND.dtype)
    sums_VD = torch.zeros(n_codes, vectors_ND.shape[1], dtype=vectors_ND.dtype, device=vectors_ND.device)
    return counts_V, sums_VD.index_add_(0, codes_N, vectors_ND)
