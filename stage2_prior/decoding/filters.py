"""Filters of probabilities: top-k and top-p by the least probability that is kept.

On a CPU that probability is found by selection and sorting. Elsewhere it is found without sorting, by a radix search:
the bits of non-negative floating-point numbers, read as whole numbers, are ordered as the numbers are. Three rounds of
summing by ten bits each find it exactly, in an amount of work that does not depend on the data, without a
synchronisation with the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

BELOW_ONE = 1 - 2.0**-52
"""times any positive float64 it is below that number"""
ROUNDING = 1 - 2.0**-23
"""of float32: a sum that misses p by this factor has reached it"""
_BITS_OF_ONE = 0x3F800000
"""of float32 1.0, the largest probability"""
_AS_CLOSE = 1e-6
"""nats: a smaller difference in surprise is rounding"""
_DIGIT = 10
"""bits per round of the radix search"""
_BINS = 1 << _DIGIT
_SORTED_BLOCK = 128
"""sorted numbers whose sum is taken first"""


class Filters(ABC):
    """Filters (B, V) probabilities; ``probs.filters_for`` makes the kind that is fast on a device."""

    def keep_top_k(self, probs_BV: torch.Tensor, k: int) -> torch.Tensor:
        """Zero in place what is less likely than the k-th likeliest code of each row; codes tied with it stay.

        Args:
            probs_BV: contiguous float32 probabilities.
            k: 1 or more.
        """
        return probs_BV if k >= probs_BV.shape[1] else self.keep_from(probs_BV, self._least_of_top_k(probs_BV, k))

    def keep_top_p(self, probs_BV: torch.Tensor, p: float) -> torch.Tensor:
        """Zero in place all but the likeliest codes of each row, up to the one at which their sum reaches p of the
        row's; codes tied with that one stay.

        Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1, where no two codes are tied.

        Args:
            probs_BV: contiguous float32 probabilities, of any sum up to 1.
            p: above 0; 1 or more keeps all.
        """
        return probs_BV if p >= 1.0 else self.keep_from(probs_BV, self._least_of_top_p(probs_BV, p))

    def keep_typical(self, probs_BV: torch.Tensor, p: float) -> torch.Tensor:
        """Zero in place all but the codes whose surprise -log(prob) is closest to the row's entropy, up to the one at
        which their sum reaches p of the row's; codes as close as that one stay.

        Source: Meister et al. 2022, arXiv:2202.00666, section 5.

        Args:
            probs_BV: contiguous float32 probabilities, of any sum up to 1.
            p: above 0; 1 or more keeps all.
        """
        if p >= 1.0:
            return probs_BV
        total_B1 = probs_BV.sum(1, keepdim=True)
        normed_BV = probs_BV / total_B1
        surprise_BV = normed_BV.log().neg_()
        away_BV = surprise_BV.sub_(torch.special.entr(normed_BV).sum(1, keepdim=True)).abs_()
        ordered_BV, codes_BV = away_BV.sort(1)
        ends_BV = normed_BV.gather(1, codes_BV).cumsum(1, dtype=torch.float64)
        last_B1 = torch.searchsorted(ends_BV, ends_BV[:, -1:] * (p * ROUNDING)).clamp_max_(probs_BV.shape[1] - 1)
        most_B1 = ordered_BV.gather(1, last_B1).add_(_AS_CLOSE)
        return probs_BV.mul_(torch.le(away_BV, most_B1, out=ordered_BV))

    def keep_from(self, probs_BV: torch.Tensor, least_B1: torch.Tensor) -> torch.Tensor:
        """Zero in place what is less likely than ``least_B1``, (B, 1)."""
        kept = torch.empty_like(probs_BV)  # float32: with bool, a CPU multiplies five times slower
        return probs_BV.mul_(torch.ge(probs_BV, least_B1, out=kept))

    @abstractmethod
    def _least_of_top_k(self, probs_BV: torch.Tensor, k: int) -> torch.Tensor:
        """(B, 1), the probabilities of the k-th likeliest codes."""

    @abstractmethod
    def _least_of_top_p(self, probs_BV: torch.Tensor, p: float) -> torch.Tensor:
        """(B, 1), the probabilities of the codes at which the sum of the likeliest reaches p of all."""


class DigitFilters(Filters):
    """Radix search, for a GPU. Holds the memory for B rows, so that no step allocates.

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

    def _least_of_top_k(self, probs_BV: torch.Tensor, k: int) -> torch.Tensor:
        weights_BV = self._weights[: len(probs_BV), : probs_BV.shape[1]].fill_(1.0)
        return self._least(probs_BV, weights_BV, torch.full_like(self._sums[: len(probs_BV), :1], k))

    def _least_of_top_p(self, probs_BV: torch.Tensor, p: float) -> torch.Tensor:
        weights_BV = self._weights[: len(probs_BV), : probs_BV.shape[1]].copy_(probs_BV)
        return self._least(probs_BV, weights_BV, weights_BV.sum(1, keepdim=True).mul_(p * ROUNDING))

    def _least(self, probs_BV: torch.Tensor, weights_BV: torch.Tensor, wanted_B1: torch.Tensor) -> torch.Tensor:
        """The probability down to which the weights of the likeliest codes sum to ``wanted_B1``."""
        here, sums_BD = tuple(slice(size) for size in probs_BV.shape), self._sums[: len(probs_BV)]
        digits_BV, bins_BV, spare_BV = self._digits[here], self._bins[here], self._spare[here]
        ranks_BV = torch.sub(self._one, probs_BV.view(torch.int32), out=self._ranks[here])  # 0: probability 1
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


class SortingFilters(Filters):
    """Selection and sorting, for a CPU: numpy takes 10 and 25 microseconds for 16,384 numbers.

    Args:
        n_rows: most B.
        n_codes: most V.
    """

    def __init__(self, n_rows: int, n_codes: int) -> None:
        self._memory = torch.empty(n_rows, n_codes + _SORTED_BLOCK)

    def _least_of_top_k(self, probs_BV: torch.Tensor, k: int) -> torch.Tensor:
        from_end = probs_BV.shape[1] - k
        return torch.from_numpy(np.partition(probs_BV.detach().numpy(), from_end, axis=1)[:, from_end : from_end + 1])

    def _least_of_top_p(self, probs_BV: torch.Tensor, p: float) -> torch.Tensor:
        n_rows, n_codes = probs_BV.shape
        n_zeros = -n_codes % _SORTED_BLOCK  # which sort to the beginning, below everything
        ordered = self._memory[:n_rows, : n_zeros + n_codes]
        ordered[:, :n_zeros] = 0.0
        ordered[:, n_zeros:].copy_(probs_BV.detach())
        ordered.numpy().sort(axis=1)
        blocks_BNK = ordered.unflatten(1, (-1, _SORTED_BLOCK))
        mass_BN = blocks_BNK.sum(2, dtype=torch.float64)
        ends_BN = mass_BN.cumsum(1)
        spare_B1 = ends_BN[:, -1:] * min(1 - p * ROUNDING, BELOW_ONE)  # the least likely codes may go up to this sum
        block_B1 = torch.searchsorted(ends_BN, spare_B1, right=True)
        spare_B1 = spare_B1 - (ends_BN - mass_BN).gather(1, block_B1)
        block_BK = blocks_BNK.gather(1, block_B1.unsqueeze(2).expand(-1, 1, _SORTED_BLOCK)).squeeze(1)
        place_B1 = torch.searchsorted(block_BK.cumsum(1, dtype=torch.float64), spare_B1, right=True)
        return block_BK.gather(1, place_B1.clamp_max_(_SORTED_BLOCK - 1))
