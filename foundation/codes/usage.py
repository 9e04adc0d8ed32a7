"""Codebook usage: counts of the codes that occur, share used, entropy, perplexity.

Time and memory grow with the codes that are seen, not with the codebook, which may have 2^27 entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from foundation.codes.spec import CodeSpec, code_positions, require_codes

if TYPE_CHECKING:
    from foundation.training.shares import Share

_ROWS = 65_536  # read at once of a token dataset that is not in memory


def _none() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class CodeUsage:
    """How often each code of a codebook occurs.

    Attributes:
        codebook_size: V, number of different codes.
        codes_U: (U,) int64, the codes that occur, in ascending order.
        counts_U: (U,) int64, how often, 1 or more.
    """

    codebook_size: int
    codes_U: np.ndarray = field(default_factory=_none)
    counts_U: np.ndarray = field(default_factory=_none)

    def __add__(self, other: CodeUsage) -> CodeUsage:
        """Usage over both."""
        return total_usage([self, other])

    @property
    def n_codes(self) -> int:
        """How many codes were counted."""
        return int(self.counts_U.sum())

    @property
    def share_used(self) -> float:
        """Share of the codebook that occurs at all, 0 to 1."""
        return len(self.codes_U) / self.codebook_size

    @property
    def entropy_bits(self) -> float:
        """Entropy of the code frequencies in bits: what an ideal position-blind coder needs per code."""
        frequencies = self.counts_U / self.counts_U.sum()
        return float(-(frequencies * np.log2(frequencies)).sum())

    @property
    def perplexity(self) -> float:
        """2 to the entropy: the number of equally frequent codes with the same entropy."""
        return float(2.0**self.entropy_bits)


def count_codes(codes: np.ndarray, codebook_size: int) -> CodeUsage:
    """Usage over an array of codes of any shape, each from 0 to below ``codebook_size``."""
    flat = codes.reshape(-1)
    if codebook_size > len(flat):
        found, counts = np.unique(flat, return_counts=True)
        return CodeUsage(codebook_size, found.astype(np.int64), counts.astype(np.int64))
    counts_V = np.bincount(flat, minlength=codebook_size)  # without sorting: a codebook no larger than the codes
    codes_U = np.flatnonzero(counts_V)
    return CodeUsage(codebook_size, codes_U, counts_V[codes_U])


def total_usage(usages: Sequence[CodeUsage]) -> CodeUsage:
    """Usage of one codebook over several sets of codes.

    Args:
        usages: one or more, of equal codebooks.
    """
    codes = np.concatenate([each.codes_U for each in usages])
    counts = np.concatenate([each.counts_U for each in usages])
    order = np.argsort(codes, kind="stable")  # which merges runs that are sorted already
    codes, counts = codes[order], counts[order]
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    summed = np.add.reduceat(counts, first) if len(first) else counts
    return CodeUsage(usages[0].codebook_size, codes[first], summed)


class UsageCounter:
    """Counts the codes of each slot over batches; the sum is computed where as much has come as it holds.

    Args:
        spec: of the codes.
    """

    def __init__(self, spec: CodeSpec) -> None:
        self.spec = spec
        self._slot_T = code_positions(spec).slot_T
        self._parts = [[CodeUsage(slot.codebook_size)] for slot in spec.slots]

    def add(self, codes_BT: np.ndarray) -> None:
        """Count a batch of sequences.

        Raises:
            DataError: sequences that do not fit the specification, or a code outside its codebook.
        """
        require_codes(codes_BT, self.spec)
        for i, (slot, parts) in enumerate(zip(self.spec.slots, self._parts, strict=True)):
            parts.append(count_codes(codes_BT[:, self._slot_T == i], slot.codebook_size))
            if sum(len(each.codes_U) for each in parts[1:]) > len(parts[0].codes_U):
                parts[:] = [total_usage(parts)]

    def usages(self, share: Share | None = None) -> list[CodeUsage]:
        """Usage of each slot's codebook so far, in the order of ``spec.slots``.

        Args:
            share: adds up what all its processes have counted; each of them calls this. None counts this one only.
        """
        own = [total_usage(parts) for parts in self._parts]
        return own if share is None else [_over_processes(each, share) for each in own]


def _over_processes(usage: CodeUsage, share: Share) -> CodeUsage:
    rows = share.rows_of_all(np.stack([usage.codes_U, usage.counts_U], 1))
    return total_usage([CodeUsage(usage.codebook_size, each[:, 0], each[:, 1]) for each in rows])


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
    counter = UsageCounter(spec)
    for start in range(0, len(codes_BT), _ROWS):
        counter.add(np.asarray(codes_BT[start : start + _ROWS]))
    return counter.usages()


def summarize(usages: Iterable[CodeUsage]) -> UsageSummary:
    """One summary of several slots, or of one; slots weigh in the entropy as many codes as they hold."""
    usages = list(usages)
    n_used = sum(len(usage.codes_U) for usage in usages)
    n_entries = sum(usage.codebook_size for usage in usages)
    n_codes = sum(usage.n_codes for usage in usages)
    bits = sum(usage.entropy_bits * usage.n_codes for usage in usages)
    return UsageSummary(n_used / n_entries, bits / n_codes if n_codes else 0.0)
