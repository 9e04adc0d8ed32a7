"""Count-based baselines of a prior: unigram frequencies, and counts given the left and the upper neighbour.

Both are fitted on training codes and evaluated on validation codes, as a prior is. Each slot (a depth of a level) has
its own counts, and neighbours belong to the same slot.

Sources: additive smoothing by one half: Krichevsky and Trofimov 1981, IEEE Trans. Inf. Theory 27(2); a context's
counts interpolated with the probabilities of a shorter context: MacKay and Peto 1995, "A hierarchical Dirichlet
language model", Natural Language Engineering 1(3), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from foundation.codes.spec import CodeSlot, CodeSpec, code_positions, require_codes
from foundation.codes.usage import CodeUsage, count_codes_by_slot
from foundation.errors import DataError

MAX_CODEBOOK = 1 << 20
"""Largest codebook whose triples of codes fit into 63 bits."""
_SMOOTHING = 0.5
_ROWS_AT_A_TIME = 4096
_MAX_CODES = 10_000_000
"""counted by the neighbour model: half a gigabyte"""
_MAX_TUNING_CODES = 200_000
_STRENGTHS = 2.0 ** np.arange(-4, 15)
_LEFT_SHARES = np.linspace(0, 1, 11)


class SparseCounts(NamedTuple):
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


class Neighbours(NamedTuple):
    """Codes with their left and upper neighbours, flat over images and positions.

    Attributes:
        code: int64.
        left, up: int64; the codebook's size at the left or upper edge.
    """

    code: np.ndarray
    left: np.ndarray
    up: np.ndarray

    def part(self, chosen: np.ndarray | slice) -> Neighbours:
        """Some of them."""
        return Neighbours(*(each[chosen] for each in self))

    def contexts(self, codebook_size: int) -> tuple[np.ndarray, ...]:
        """Contexts of each code as whole numbers: none, left, up, and both neighbours."""
        return np.zeros_like(self.code), self.left, self.up, self.left * (codebook_size + 1) + self.up


def neighbours(codes_BHW: np.ndarray, codebook_size: int) -> Neighbours:
    """Every code of some grids, raster order within an image."""
    codes_BHW = codes_BHW.astype(np.int64)
    left, up = np.full_like(codes_BHW, codebook_size), np.full_like(codes_BHW, codebook_size)
    left[:, :, 1:] = codes_BHW[:, :, :-1]
    up[:, 1:] = codes_BHW[:, :-1]
    return Neighbours(codes_BHW.reshape(-1), left.reshape(-1), up.reshape(-1))


class Seen(NamedTuple):
    """How often n codes were counted in their contexts, and how often the contexts were: (n,) int64 each."""

    of_code: np.ndarray
    of_context: np.ndarray


class Evidence(NamedTuple):
    """Counts of some codes: anywhere, beside their left neighbour, their upper one, and both."""

    code: Seen
    left: Seen
    up: Seen
    pair: Seen


class NeighbourCounts:
    """Counts of codes, of (left, code), of (up, code) and of (left, up, code).

    Args:
        seen: the codes to count.
        codebook_size: number of different codes, V.
    """

    def __init__(self, seen: Neighbours, codebook_size: int) -> None:
        self._size, contexts = codebook_size, seen.contexts(codebook_size)
        self._codes = [SparseCounts.of(context * codebook_size + seen.code) for context in contexts]
        self._contexts = [SparseCounts.of(context) for context in contexts]

    def evidence(self, of: Neighbours) -> Evidence:
        """Look codes up."""
        rows = zip(self._codes, self._contexts, of.contexts(self._size), strict=True)
        return Evidence(*(Seen(a.look_up(key * self._size + of.code), b.look_up(key)) for a, b, key in rows))


class UnigramModel:
    """p(code) by its frequency in its slot.

    Args:
        spec: of the codes.
        usages: counts of each slot's codes.
    """

    def __init__(self, spec: CodeSpec, usages: list[CodeUsage]) -> None:
        self.spec = spec
        self._slot_T = code_positions(spec).slot_T
        self._usages = usages

    @classmethod
    def fit(cls, codes_NT: np.ndarray, spec: CodeSpec) -> UnigramModel:
        """Count (N, T) codes, some rows at a time.

        Raises:
            DataError: no codes, or codes that do not fit ``spec``.
        """
        _require_rows(codes_NT)
        return cls(spec, count_codes_by_slot(codes_NT, spec))

    def bits(self, codes_BT: np.ndarray) -> np.ndarray:
        """(B, T) codes => (B, T) float64: -log2 p of each."""
        require_codes(codes_BT, self.spec)
        bits_BT = np.empty(codes_BT.shape)
        for i, usage in enumerate(self._usages):
            codes_BN = codes_BT[:, self._slot_T == i]
            counts = SparseCounts(usage.codes_U, usage.counts_U).look_up(codes_BN.reshape(-1))
            of_code = _unigram(Seen(counts, np.asarray(usage.n_codes)), usage.codebook_size)
            bits_BT[:, self._slot_T == i] = -np.log2(of_code).reshape(codes_BN.shape)
        return bits_BT


@dataclass(frozen=True)
class NeighbourWeights:
    """How far the counts of a context are trusted.

    Attributes:
        left, up: strength of the code frequencies beside the counts of (left, code) and of (up, code), in codes.
        left_share: of the left neighbour in the mixture of both, 0 to 1.
        pair: strength of that mixture beside the counts of (left, up, code), in codes.
    """

    left: float
    up: float
    left_share: float
    pair: float


class NeighbourModel:
    """p(code | code to the left, code above): a bigram in two directions, which backs off where it has seen little.

    p(c) = (n(c) + 1/2) / (N + V/2); p(c|l) = (n(l,c) + a p(c)) / (n(l) + a), likewise p(c|u) with b;
    p(c|l,u) = (n(l,u,c) + k (s p(c|l) + (1-s) p(c|u))) / (n(l,u) + k). The weights a, b, s, k of each slot are those
    under which a tenth of the training rows is likeliest, given the counts of the others; the counts used are of all.
    An edge of the grid counts as one more neighbour.

    Args:
        spec: of the codes.
        counts, weights: of each slot.
        n_rows: rows that were counted.
    """

    def __init__(
        self, spec: CodeSpec, counts: list[NeighbourCounts], weights: list[NeighbourWeights], n_rows: int
    ) -> None:
        self.spec, self.weights, self.n_rows = spec, weights, n_rows
        self._counts, self._slot_T = counts, code_positions(spec).slot_T

    @classmethod
    def fit(cls, codes_NT: np.ndarray, spec: CodeSpec, *, max_codes: int = _MAX_CODES) -> NeighbourModel:
        """Count (N, T) codes and choose the weights.

        Args:
            codes_NT: training codes, possibly memory-mapped.
            spec: of the codes; of images of one shape, whose neighbours are those of its grid.
            max_codes: of a larger set, rows at even distances are counted, about this many codes in all.

        Raises:
            DataError: no codes, codes that do not fit ``spec``, a codebook of more than 1,048,576 codes, or images of
                several shapes.
        """
        _require_rows(codes_NT)
        what, fix = "images of several shapes have no common neighbours", "count each: spec.of_grid(index)"
        DataError.unless(spec.n_grids == 1, what, field="spec", found=f"{spec.n_grids} grids", expected=1, fix=fix)
        step = -(-len(codes_NT) * spec.n_codes // max_codes)
        rows = np.asarray(codes_NT[np.arange(0, len(codes_NT), step if step == 1 else step | 1)])  # odd: all views
        require_codes(rows, spec)
        slot_T, counts, weights = code_positions(spec).slot_T, [], []
        for i, slot in enumerate(spec.slots):
            if slot.codebook_size > MAX_CODEBOOK:
                found, expected = slot.codebook_size, f"up to {MAX_CODEBOOK:,}"
                raise DataError("too large to count pairs", field="codebook_size", found=found, expected=expected)
            seen = neighbours(_grid(rows[:, slot_T == i], spec, slot), slot.codebook_size)
            weights.append(_choose_weights(seen, slot, len(rows)))
            counts.append(NeighbourCounts(seen, slot.codebook_size))
        return cls(spec, counts, weights, len(rows))

    def bits(self, codes_BT: np.ndarray) -> np.ndarray:
        """(B, T) codes => (B, T) float64: -log2 p of each, given its neighbours."""
        require_codes(codes_BT, self.spec)
        bits_BT = np.empty(codes_BT.shape)
        for i, slot in enumerate(self.spec.slots):
            of = neighbours(_grid(codes_BT[:, self._slot_T == i], self.spec, slot), slot.codebook_size)
            probs = _probability(self._counts[i].evidence(of), self.weights[i], slot.codebook_size)
            bits_BT[:, self._slot_T == i] = -np.log2(probs).reshape(len(codes_BT), -1)
        return bits_BT


def mean_bits(model: UnigramModel | NeighbourModel, codes_NT: np.ndarray) -> float:
    """Bits per code over (N, T) codes, some rows at a time.

    Raises:
        DataError: no codes, or codes that do not fit.
    """
    _require_rows(codes_NT)
    starts = range(0, len(codes_NT), _ROWS_AT_A_TIME)
    total = sum(float(model.bits(np.asarray(codes_NT[each : each + _ROWS_AT_A_TIME])).sum()) for each in starts)
    return total / (len(codes_NT) * model.spec.n_codes)


def _unigram(seen: Seen, size: int) -> np.ndarray:
    return (seen.of_code + _SMOOTHING) / (seen.of_context + _SMOOTHING * size)


def _backed_off(seen: Seen, shorter: np.ndarray, strength: float) -> np.ndarray:
    """A context's relative counts, with ``strength`` more codes distributed as given the shorter context."""
    return (seen.of_code + strength * shorter) / (seen.of_context + strength)


def _mixture(seen: Evidence, weights: NeighbourWeights, size: int) -> np.ndarray:
    alone = _unigram(seen.code, size)
    by_left, by_up = _backed_off(seen.left, alone, weights.left), _backed_off(seen.up, alone, weights.up)
    return weights.left_share * by_left + (1 - weights.left_share) * by_up


def _probability(seen: Evidence, weights: NeighbourWeights, size: int) -> np.ndarray:
    return _backed_off(seen.pair, _mixture(seen, weights, size), weights.pair)


def _choose_weights(seen: Neighbours, slot: CodeSlot, n_rows: int) -> NeighbourWeights:
    """The weights under which the tuning rows are likeliest, given the counts of the others."""
    is_tuning = np.repeat(_tuning_rows(n_rows), slot.n_codes)
    tuning = seen.part(np.flatnonzero(is_tuning)[:: -(-int(is_tuning.sum()) // _MAX_TUNING_CODES)])
    others = seen if n_rows == 1 else seen.part(~is_tuning)
    evidence, size = NeighbourCounts(others, slot.codebook_size).evidence(tuning), slot.codebook_size
    alone = _unigram(evidence.code, size)
    left = _likeliest(_STRENGTHS, lambda x: _backed_off(evidence.left, alone, x))
    up = _likeliest(_STRENGTHS, lambda x: _backed_off(evidence.up, alone, x))
    best, chosen = -np.inf, NeighbourWeights(left, up, 0.5, 1.0)
    for share in _LEFT_SHARES:
        mixture = _mixture(evidence, NeighbourWeights(left, up, float(share), 1.0), size)
        for pair in _STRENGTHS:
            score = np.log(_backed_off(evidence.pair, mixture, float(pair))).mean()
            if score > best:
                best, chosen = score, NeighbourWeights(left, up, float(share), float(pair))
    return chosen


def _likeliest(values: np.ndarray, probs_of: Callable[[float], np.ndarray]) -> float:
    return float(max(values, key=lambda value: float(np.log(probs_of(float(value))).mean())))


def _tuning_rows(n_rows: int) -> np.ndarray:
    """(N,) bool: a tenth of the rows, in blocks spread evenly, so that sets sorted by class are cut fairly."""
    chosen: np.ndarray = np.arange(n_rows) // max(1, n_rows // 200) % 10 == 9
    chosen[-1] |= not chosen.any()
    return chosen


def _grid(codes_BS: np.ndarray, spec: CodeSpec, slot: CodeSlot) -> np.ndarray:
    level = spec.levels[slot.level]
    return codes_BS.reshape(len(codes_BS), level.height, level.width)  # (B, H * W) => (B, H, W)


def _require_rows(codes_NT: np.ndarray) -> None:
    if len(codes_NT) == 0:
        raise DataError("there are no codes to count", field="codes", found=0, expected="one image or more")
