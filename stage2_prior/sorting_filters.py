"""top-k and top-p by selecting and sorting, which a CPU does faster than anything else."""

from __future__ import annotations

import numpy as np
import torch

from stage2_prior.filters import BELOW_ONE, ROUNDING, Filters

_BLOCK = 128  # numbers whose sum is taken first


class SortingFilters(Filters):
    """On a CPU, where numpy selects and sorts 16,384 numbers in 10 and 25 microseconds.

    Args:
        n_rows: most B.
        n_codes: most V.
    """

    def __init__(self, n_rows: int, n_codes: int) -> None:
        self._room = torch.empty(n_rows, n_codes + _BLOCK)

    def _least_of_top_k(self, chances_BV: torch.Tensor, k: int) -> torch.Tensor:
        from_end = chances_BV.shape[1] - k
        return torch.from_numpy(np.partition(chances_BV.detach().numpy(), from_end, axis=1)[:, from_end : from_end + 1])

    def _least_of_top_p(self, chances_BV: torch.Tensor, p: float) -> torch.Tensor:
        n_rows, n_codes = chances_BV.shape
        n_zeros = -n_codes % _BLOCK  # which sort to the beginning, below everything
        ordered = self._room[:n_rows, : n_zeros + n_codes]
        ordered[:, :n_zeros] = 0.0
        ordered[:, n_zeros:].copy_(chances_BV.detach())
        ordered.numpy().sort(axis=1)
        blocks_BNK = ordered.unflatten(1, (-1, _BLOCK))
        mass_BN = blocks_BNK.sum(2, dtype=torch.float64)
        ends_BN = mass_BN.cumsum(1)
        spare_B1 = ends_BN[:, -1:] * min(1 - p * ROUNDING, BELOW_ONE)  # the least likely codes may go up to this sum
        block_B1 = torch.searchsorted(ends_BN, spare_B1, right=True)
        spare_B1 = spare_B1 - (ends_BN - mass_BN).gather(1, block_B1)
        block_BK = blocks_BNK.gather(1, block_B1.unsqueeze(2).expand(-1, 1, _BLOCK)).squeeze(1)
        place_B1 = torch.searchsorted(block_BK.cumsum(1, dtype=torch.float64), spare_B1, right=True)
        return block_BK.gather(1, place_B1.clamp_max_(_BLOCK - 1))
