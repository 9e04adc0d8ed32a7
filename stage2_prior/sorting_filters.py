"""top-k and top-p by selecting and sorting, which a CPU does faster than anything else."""

from __future__ import annotations

import numpy as np
import torch

from stage2_prior.filters import ROUNDING, Filters

_BLOCK = 128  # numbers whose sum is taken first


class SortingFilters(Filters):
    """On a CPU, where numpy selects and sorts 16,384 numbers in 10 and 25 microseconds.

    Args:
        n_rows: most B.
        n_codes: most V.
    """

    def __init__(self, n_rows: int, n_codes: int) -> None:
        self._room = np.empty((n_rows, n_codes + _BLOCK), np.float32)

    def _least_of_top_k(self, chances_BV: torch.Tensor, k: int) -> torch.Tensor:
        from_end = chances_BV.shape[1] - k
        return torch.from_numpy(np.partition(chances_BV.detach().numpy(), from_end, axis=1)[:, from_end : from_end + 1])

    def _least_of_top_p(self, chances_BV: torch.Tensor, p: float) -> torch.Tensor:
        n_rows, n_codes = chances_BV.shape
        n_zeros = -n_codes % _BLOCK  # which sort to the beginning, below everything
        ordered = self._room[:n_rows, : n_zeros + n_codes]
        ordered[:, :n_zeros] = 0.0
        ordered[:, n_zeros:] = chances_BV.detach().numpy()
        ordered.sort(axis=1)
        blocks = ordered.reshape(n_rows, -1, _BLOCK)
        sums = torch.from_numpy(blocks).sum(2, dtype=torch.float64).numpy()  # by all threads
        mass = sums[:, ::-1].cumsum(1)  # of the likeliest blocks
        wanted = p * ROUNDING * mass[:, -1:]
        n_whole = (mass < wanted).sum(1).clip(max=mass.shape[1] - 1)
        rows = np.arange(n_rows)
        missing = wanted[:, 0] - np.where(n_whole > 0, mass[rows, n_whole - 1], 0.0)
        block = blocks[rows, mass.shape[1] - 1 - n_whole, ::-1]
        place = (block.cumsum(1, dtype=np.float64) < missing[:, None]).sum(1).clip(max=_BLOCK - 1)
        return torch.from_numpy(block[rows, place][:, None])
