"""top-k and top-p: zero the probabilities below the one at which to cut."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

BELOW_ONE = 1 - 2.0**-52  # times any positive float64 it is below that number
ROUNDING = 1 - 2.0**-23  # of float32: a sum that misses p by this much has reached it


class Filters(ABC):
    """Filters (B, V) probabilities; ``sampling.filters_for`` makes the kind that is fast on a device."""

    def keep_top_k(self, chances_BV: torch.Tensor, k: int) -> torch.Tensor:
        """Zero in place what is less likely than the k-th likeliest code of each row; codes tied with it stay.

        Args:
            chances_BV: contiguous float32 probabilities.
            k: 1 or more.
        """
        return chances_BV if k >= chances_BV.shape[1] else self._cut(chances_BV, self._least_of_top_k(chances_BV, k))

    def keep_top_p(self, chances_BV: torch.Tensor, p: float) -> torch.Tensor:
        """Zero in place all but the likeliest codes of each row, up to the one at which their sum reaches p of the
        row's; codes tied with that one stay.

        Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1, where no two codes are tied.

        Args:
            chances_BV: contiguous float32 probabilities, of any sum up to 1.
            p: above 0; 1 or more keeps all.
        """
        return chances_BV if p >= 1.0 else self._cut(chances_BV, self._least_of_top_p(chances_BV, p))

    @abstractmethod
    def _least_of_top_k(self, chances_BV: torch.Tensor, k: int) -> torch.Tensor:
        """(B, 1), the probabilities of the k-th likeliest codes."""

    @abstractmethod
    def _least_of_top_p(self, chances_BV: torch.Tensor, p: float) -> torch.Tensor:
        """(B, 1), the probabilities of the codes at which the sum of the likeliest reaches p of all."""

    def _cut(self, chances_BV: torch.Tensor, least_B1: torch.Tensor) -> torch.Tensor:
        kept = torch.empty_like(chances_BV)  # of the chances' type: from bool, a CPU multiplies five times slower
        return chances_BV.mul_(torch.ge(chances_BV, least_B1, out=kept))
