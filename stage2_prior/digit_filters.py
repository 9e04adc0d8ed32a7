"""top-k and top-p without sorting: the probability at which to cut is found digit by digit among its bits.

The bits of non-negative floating-point numbers, read as whole numbers, stand in the order of the numbers. Three rounds
of summing by ten bits each find the cut exactly, in work that depends on the data in no way and waits for no result.
"""

from __future__ import annotations

import torch

from stage2_prior.filters import ROUNDING, Filters

_BITS_OF_ONE = 0x3F800000  # float32 1.0, the largest probability
_DIGIT = 10  # bits per round
_BINS = 1 << _DIGIT


class DigitFilters(Filters):
    """On a GPU. Holds the memory for B rows, so that no step asks for new.

    Args:
        n_rows: most B.
        n_codes: most V.
        device: of the probabilities.
    """

    def __init__(self, n_rows: int, n_codes: int, device: torch.device) -> None:
        self._ranks = torch.empty(n_rows, n_codes, dtype=torch.int32, device=device)
        self._digits, self._spare = torch.empty_like(self._ranks), torch.empty_like(self._ranks)
        self._bins = torch.empty_like(self._ranks, dtype=torch.int64)
        self._weights = torch.empty_like(self._ranks, dtype=torch.float64)
        self._sums = torch.empty(n_rows, 2 * _BINS, dtype=torch.float64, device=device)
        self._one = torch.tensor(_BITS_OF_ONE, dtype=torch.int32, device=device)

    def _least_of_top_k(self, chances_BV: torch.Tensor, k: int) -> torch.Tensor:
        weights_BV = self._weights[: len(chances_BV), : chances_BV.shape[1]].fill_(1.0)
        return self._least(chances_BV, weights_BV, torch.full_like(self._sums[: len(chances_BV), :1], k))

    def _least_of_top_p(self, chances_BV: torch.Tensor, p: float) -> torch.Tensor:
        weights_BV = self._weights[: len(chances_BV), : chances_BV.shape[1]].copy_(chances_BV)
        return self._least(chances_BV, weights_BV, weights_BV.sum(1, keepdim=True).mul_(p * ROUNDING))

    def _least(self, chances_BV: torch.Tensor, weights_BV: torch.Tensor, wanted_B1: torch.Tensor) -> torch.Tensor:
        """The probability down to which the weights of the likeliest codes sum to what is wanted."""
        here, sums_BD = tuple(slice(size) for size in chances_BV.shape), self._sums[: len(chances_BV)]
        digits_BV, bins_BV, spare_BV = self._digits[here], self._bins[here], self._spare[here]
        ranks_BV = torch.sub(self._one, chances_BV.view(torch.int32), out=self._ranks[here])  # 0: probability 1
        found_B1 = torch.zeros_like(ranks_BV[:, :1])
        for shift in (2 * _DIGIT, _DIGIT, 0):
            torch.bitwise_right_shift(ranks_BV, shift, out=digits_BV).bitwise_xor_(found_B1 << _DIGIT)
            # Ranks that begin with the digits found so far are below _BINS now. The others go to _BINS more bins,
            # spread by their last digit: sums that all go to one bin would wait for each other.
            torch.bitwise_and(digits_BV, _BINS - 1, out=spare_BV).add_(_BINS)
            bins_BV.copy_(torch.minimum(digits_BV, spare_BV, out=digits_BV))
            ends_BD = sums_BD.zero_().scatter_add_(1, bins_BV, weights_BV)[:, :_BINS].cumsum(1)
            digit_B1 = torch.searchsorted(ends_BD, wanted_B1).clamp_(max=_BINS - 1)
            found_B1 = (found_B1 << _DIGIT) + digit_B1.int()
            below_B1 = ends_BD.gather(1, (digit_B1 - 1).clamp_(min=0)).mul_(digit_B1 > 0)
            wanted_B1 = wanted_B1 - below_B1
        return (self._one - found_B1).view(torch.float32)
