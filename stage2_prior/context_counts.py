"""How often codes occur beside their neighbours, kept sparsely: only what occurred takes memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_CODEBOOK = 1 << 20
"""Largest codebook whose triples of codes fit into 63 bits."""


@dataclass(frozen=True)
class SparseCounts:
    """Counts of whole numbers.

    Attributes:
        keys_K: int64, sorted, each once.
        counts_K: int64, 1 or more.
    """

    keys_K: np.ndarray
    counts_K: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray) -> SparseCounts:
        """Count the numbers of an int64 array."""
        return cls(*np.unique(keys, return_counts=True))

    def look_up(self, keys: np.ndarray) -> np.ndarray:
        """The count of each key, 0 where it never occurred."""
        if not len(self.keys_K):
            return np.zeros(len(keys), np.int64)
        found = np.minimum(np.searchsorted(self.keys_K, keys), len(self.keys_K) - 1)
        return np.where(self.keys_K[found] == keys, self.counts_K[found], 0)


@dataclass(frozen=True)
class Neighbours:
    """Codes with what stands left of them and above them, flat over images and places.

    Attributes:
        code: int64.
        left, up: int64; the codebook's size where the code stands at the left or upper edge.
    """

    code: np.ndarray
    left: np.ndarray
    up: np.ndarray

    def part(self, chosen: np.ndarray | slice) -> Neighbours:
        """Some of them."""
        return Neighbours(self.code[chosen], self.left[chosen], self.up[chosen])


def neighbours(codes_BHW: np.ndarray, codebook_size: int) -> Neighbours:
    """Every code of some grids, raster order within an image."""
    codes_BHW = codes_BHW.astype(np.int64)
    left, up = np.full_like(codes_BHW, codebook_size), np.full_like(codes_BHW, codebook_size)
    left[:, :, 1:] = codes_BHW[:, :, :-1]
    up[:, 1:] = codes_BHW[:, :-1]
    return Neighbours(codes_BHW.reshape(-1), left.reshape(-1), up.reshape(-1))


@dataclass(frozen=True)
class Evidence:
    """What the counts say about some codes: how often each occurred in its context, and how often the context did.

    Attributes:
        total: all codes counted.
        code: (n,) times that the code occurred anywhere.
        left, up, pair: (n,) times that it occurred beside this left neighbour, this upper one, and both.
        left_total, up_total, pair_total: (n,) times that the context occurred.
    """

    total: int
    code: np.ndarray
    left: np.ndarray
    left_total: np.ndarray
    up: np.ndarray
    up_total: np.ndarray
    pair: np.ndarray
    pair_total: np.ndarray


class NeighbourCounts:
    """Counts of codes, of (left, code), of (up, code) and of (left, up, code).

    Args:
        seen: the codes to count.
        codebook_size: number of different codes, V.
    """

    def __init__(self, seen: Neighbours, codebook_size: int) -> None:
        self._size, self._total = codebook_size, len(seen.code)
        self._code_V = np.bincount(seen.code, minlength=codebook_size)
        self._left_total = np.bincount(seen.left, minlength=codebook_size + 1)
        self._up_total = np.bincount(seen.up, minlength=codebook_size + 1)
        self._left = SparseCounts.of(seen.left * codebook_size + seen.code)
        self._up = SparseCounts.of(seen.up * codebook_size + seen.code)
        self._pair = SparseCounts.of(self._pairs(seen) * codebook_size + seen.code)
        self._pair_total = SparseCounts.of(self._pairs(seen))

    def evidence(self, of: Neighbours) -> Evidence:
        """Look codes up."""
        return Evidence(
            total=self._total,
            code=self._code_V[of.code],
            left=self._left.look_up(of.left * self._size + of.code),
            left_total=self._left_total[of.left],
            up=self._up.look_up(of.up * self._size + of.code),
            up_total=self._up_total[of.up],
            pair=self._pair.look_up(self._pairs(of) * self._size + of.code),
            pair_total=self._pair_total.look_up(self._pairs(of)),
        )

    def _pairs(self, of: Neighbours) -> np.ndarray:
        return of.left * (self._size + 1) + of.up
