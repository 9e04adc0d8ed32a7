"""How much of a codebook is used, counted over a whole set of codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CodeUsage:
    """Counts of each code.

    Attributes:
        counts_V: (V,) int64.
    """

    counts_V: np.ndarray

    @property
    def share_used(self) -> float:
        """Share of the codebook that occurs at all, 0 to 1."""
        return float((self.counts_V > 0).mean())

    @property
    def entropy_bits(self) -> float:
        """Entropy of the code frequencies in bits: what an ideal position-blind coder needs per code."""
        frequencies = self.counts_V[self.counts_V > 0] / self.counts_V.sum()
        return float(-(frequencies * np.log2(frequencies)).sum())

    @property
    def perplexity(self) -> float:
        """2 to the entropy: the number of equally frequent codes with the same entropy."""
        return float(2.0**self.entropy_bits)


def count_codes(codes: np.ndarray, codebook_size: int) -> CodeUsage:
    """Usage over an array of codes of any shape."""
    return CodeUsage(np.bincount(codes.reshape(-1), minlength=codebook_size))
