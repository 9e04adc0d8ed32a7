"""top-k and top-p without sorting: the probability at which to cut is found digit by digit among its bits.

The bits of non-negative floating-point numbers, read as whole numbers, stand in the order of the numbers. Three rounds
of summing by ten bits each find the cut exactly, in work that depends on the data in no way. (Of 16,384 numbers a CPU
sorts one row in 2 ms and selects by partition in 0.02 to 0.4 ms; this takes 0.05.)
"""

from __future__ import annotations

import torch

_BITS_OF_ONE = 0x3F800000  # float32 1.0, the largest probability
_DIGIT = 10  # bits per round
_BINS = 1 << _DIGIT
_CPU_NUMBERS = 1 << 16  # filtered at once on a CPU: memory for these stays in its cache
_ROUNDING = 1 - 2.0**-23  # of float32: a sum that misses p by this much has reached it


class Filters:
    """Memory for filtering (B, V) probabilities, P rows at once, so that no step asks for new.

    Args:
        n_rows: B.
        n_codes: most V.
        device: of the probabilities.
    """

    def __init__(self, n_rows: int, n_codes: int, device: torch.device) -> None:
        self._n_rows = min(n_rows, max(1, _CPU_NUMBERS // n_codes)) if device.type == "cpu" else n_rows
        self._ranks = torch.empty(self._n_rows, n_codes, dtype=torch.int32, device=device)
        self._digits, self._mask = torch.empty_like(self._ranks), torch.empty_like(self._ranks)
        self._bins = torch.empty_like(self._ranks, dtype=torch.int64)
        self._weights = torch.empty_like(self._ranks, dtype=torch.float64)
        self._sums = torch.empty(self._n_rows, 2 * _BINS, dtype=torch.float64, device=device)
        self._one = torch.tensor(_BITS_OF_ONE, dtype=torch.int32, device=device)

    def keep_top_k(self, chances_BV: torch.Tensor, k: int) -> torch.Tensor:
        """Zero in place what is less likely than the k-th likeliest code of each row; codes tied with it stay.

        Args:
            chances_BV: contiguous float32 probabilities.
            k: 1 or more.
        """
        if k >= chances_BV.shape[1]:
            return chances_BV
        for part_PV in chances_BV.split(self._n_rows):
            weights_PV = self._weights[: len(part_PV), : part_PV.shape[1]].fill_(1.0)
            self._keep(part_PV, weights_PV, torch.full_like(self._sums[: len(part_PV), :1], k))
        return chances_BV

    def keep_top_p(self, chances_BV: torch.Tensor, p: float) -> torch.Tensor:
        """Zero in place all but the likeliest codes of each row, up to the one at which their sum reaches p of the
        row's; codes tied with that one stay.

        Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1, where no two codes are tied.

        Args:
            chances_BV: contiguous float32 probabilities, of any sum up to 1.
            p: above 0; 1 or more keeps all.
        """
        if p >= 1.0:
            return chances_BV
        for part_PV in chances_BV.split(self._n_rows):
            weights_PV = self._weights[: len(part_PV), : part_PV.shape[1]].copy_(part_PV)
            self._keep(part_PV, weights_PV, weights_PV.sum(1, keepdim=True).mul_(p * _ROUNDING))
        return chances_BV

    def _keep(self, chances_PV: torch.Tensor, weights_PV: torch.Tensor, wanted_P1: torch.Tensor) -> None:
        """Zero what is less likely than the likeliest codes whose weights sum to what is wanted."""
        here, sums_PD = tuple(slice(size) for size in chances_PV.shape), self._sums[: len(chances_PV)]
        digits_PV, bins_PV, mask_PV = self._digits[here], self._bins[here], self._mask[here]
        ranks_PV = torch.sub(self._one, chances_PV.view(torch.int32), out=self._ranks[here])  # 0: probability 1
        found_P1 = torch.zeros_like(ranks_PV[:, :1])
        for shift in (2 * _DIGIT, _DIGIT, 0):
            torch.bitwise_right_shift(ranks_PV, shift, out=digits_PV).bitwise_xor_(found_P1 << _DIGIT)
            # Ranks that begin with the digits found so far are below _BINS now. The others go to _BINS more bins,
            # spread by their last digit: sums that all go to one bin would wait for each other.
            spare_PV = torch.bitwise_and(digits_PV, _BINS - 1, out=mask_PV).add_(_BINS)
            bins_PV.copy_(torch.minimum(digits_PV, spare_PV, out=digits_PV))
            ends_PD = sums_PD.zero_().scatter_add_(1, bins_PV, weights_PV)[:, :_BINS].cumsum(1)
            digit_P1 = torch.searchsorted(ends_PD, wanted_P1).clamp_(max=_BINS - 1)
            found_P1 = (found_P1 << _DIGIT) + digit_P1.int()
            below_P1 = ends_PD.gather(1, (digit_P1 - 1).clamp_(min=0)).mul_(digit_P1 > 0)
            wanted_P1 = wanted_P1 - below_P1
        least_P1 = (self._one - found_P1).view(torch.float32)
        kept_PV = torch.ge(chances_PV, least_P1, out=mask_PV.view(torch.float32))
        chances_PV.mul_(kept_PV)
