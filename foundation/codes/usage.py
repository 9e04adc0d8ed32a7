"""Codebook usage: counts, share used, entropy, perplexity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundation.codes.spec import CodeSpec, code_positions, require_codes

_ROWS = 65_536  # read at once of a token dataset that is not in memory


@dataclass(frozen=True)
class CodeUsage:
    """Counts of each code.

    Attributes:
        counts_V: (V,) int64.
    """

    counts_V: np.ndarray

    def __add__(self, other: CodeUsage) -> CodeUsage:
        """Usage over both."""
        return CodeUsage(self.counts_V + other.counts_V)

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


@dataclass(frozen=True)
class UsageSummary:
    """Usage over all slots of a specification.

    Attributes:
        share_used: entries that occur over all entries, 0 to 1.
        entropy_bits: what an ideal coder that knows the slot, and is blind to all else, needs per code.
    """

    share_used: float
    entropy_bits: float

    @property
    def perplexity(self) -> float:
        """2 to the entropy."""
        return float(2.0**self.entropy_bits)


def count_codes_by_slot(codes_BT: np.ndarray, spec: CodeSpec) -> list[CodeUsage]:
    """Usage of each slot's codebook, in the order of ``spec.slots``: one per depth of each level.

    Raises:
        DataError: sequences that do not fit ``spec``, or a code outside its codebook.
    """
    spec.require_length(codes_BT)
    slot_T = code_positions(spec).slot_T
    usages = [CodeUsage(np.zeros(slot.codebook_size, np.int64)) for slot in spec.slots]
    for start in range(0, len(codes_BT), _ROWS):
        rows = np.asarray(codes_BT[start : start + _ROWS])
        require_codes(rows, spec)
        for i, usage in enumerate(usages):
            usages[i] = usage + count_codes(rows[:, slot_T == i], len(usage.counts_V))
    return usages


def summarize(usages: list[CodeUsage]) -> UsageSummary:
    """One summary of several slots, or of one; slots weigh in the entropy as many codes as they hold."""
    n_used = sum(int((usage.counts_V > 0).sum()) for usage in usages)
    n_entries = sum(len(usage.counts_V) for usage in usages)
    n_codes = sum(int(usage.counts_V.sum()) for usage in usages)
    bits = sum(usage.entropy_bits * int(usage.counts_V.sum()) for usage in usages)
    return UsageSummary(n_used / n_entries, bits / n_codes if n_codes else 0.0)
