"""Randomness as a function of its purpose: no generator state has to survive a restart.

Data randomness (order, augmentation, label dropout) is keyed by sample, so it does not depend on batch size, process
count or where a run was interrupted. Dropout is keyed by (seed, step, rank), the order of examples by (seed, epoch).
"""

from __future__ import annotations

import hashlib
import math
from typing import Protocol

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_ROUNDS = 16


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of numbers and names; different sequences give unrelated seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def permutation(n: int, *key: int | str) -> np.ndarray:
    """A permutation of ``range(n)`` that depends on the key alone. Returns (n,) int64."""
    return np.random.Generator(np.random.Philox(derive_seed(*key))).permutation(n)


def permuted(positions: np.ndarray, n: int, *key: int | str) -> np.ndarray:
    """Images of ``positions`` under a permutation of ``range(n)`` that depends on the key alone.

    Nothing of size n is held: a Feistel network permutes the pairs (left, right) of a rows and b columns, where a * b
    is the least such number that holds n with a next to its square root, and a result outside ``range(n)``, of which
    there are fewer than a, goes through it again until it is inside. This is another permutation than the one that
    ``permutation`` gives for the same key.

    Args:
        positions: (B,) integers in [0, n).
        n: size of the range, at most 2^62.
        key: the purpose of the order, e.g. ``(seed, "order", epoch)``.

    Returns:
        (B,) int64 in [0, n), different for different positions.

    Source: Luby and Rackoff 1988, the network; Black and Rogaway 2002, the network over a * b numbers with sums modulo
    a and b, and "cycle walking". Four rounds make it a strong pseudorandom permutation of a large domain; with sixteen,
    any three positions of a domain of a few numbers are uniformly distributed over keys too.
    """
    n_left = math.isqrt(n - 1) + 1
    n_right = -(-n // n_left)
    with np.errstate(over="ignore"):
        seed, size = np.uint64(derive_seed(*key)), np.uint64(n)
        round_keys = _mix(seed + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
        values = _feistel(np.asarray(positions).astype(np.uint64), n_left, n_right, round_keys)
        outside = np.flatnonzero(values >= size)
        while len(outside):
            values[outside] = _feistel(values[outside], n_left, n_right, round_keys)
            outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def uniforms(indices: np.ndarray, epochs: np.ndarray, *key: int | str) -> np.ndarray:
    """One number in [0, 1) per (sample index, epoch), independent of every other sample.

    Args:
        indices, epochs: (B,) integers.
        key: the purpose of the numbers, e.g. ``(seed, "flip")``.

    Returns:
        (B,) float64. Source of the mixing function: Steele, Lea and Flood 2014, SplitMix64.
    """
    with np.errstate(over="ignore"):
        state = np.uint64(derive_seed(*key)) + np.asarray(indices, np.uint64) * np.uint64(_GOLDEN)
        state = _mix(state) + np.asarray(epochs, np.uint64) * np.uint64(0xD1B54A32D192ED03)
        return (_mix(_mix(state)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9 & _MASK)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB & _MASK)
    return state ^ (state >> np.uint64(31))


def _feistel(values: np.ndarray, n_left: int, n_right: int, round_keys: np.ndarray) -> np.ndarray:
    """A permutation of ``range(n_left * n_right)``: each round adds to one half a function of the other."""
    half, other = np.uint64(n_left), np.uint64(n_right)
    right, left = np.divmod(values, half)
    for round_key in round_keys:
        shift = ((_mix(right + round_key) >> np.uint64(32)) * half) >> np.uint64(32)  # evenly in [0, half)
        left = left + shift
        left, right = right, np.minimum(left, left - half)  # the sum modulo half: below it, the difference wraps
        half, other = other, half
    return right * half + left


ORDER_VERSION = 2
"""part of a training's identity: a checkpoint from before the order changed could not be continued in the middle of an
epoch"""


class Order(Protocol):
    """A sequence of examples without an end, at any position."""

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of the samples at ``positions`` (B,)."""
        ...


class DataOrder:
    """The order of examples as a pure function of (seed, epoch); a position is the number of samples consumed.

    Every epoch is another permutation, computed at single positions: memory does not depend on the number of examples.

    Args:
        n_examples: size of the data.
        seed: of the shuffling.
    """

    def __init__(self, n_examples: int, seed: int) -> None:
        self.n_examples, self.seed = n_examples, seed

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of the samples at ``positions`` (B,) of the endless sequence."""
        epochs = positions // self.n_examples
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            within = positions[here] % self.n_examples
            indices[here] = permuted(within, self.n_examples, self.seed, "order", int(epoch))
        return indices, epochs


_KEPT_EPOCHS = 2


class WindowedOrder:
    """An order that reads neighbours within a short time, for examples that lie in shards: also a pure function.

    Every epoch is another permutation, in three steps: the groups are shuffled; the examples of a group take turns in
    steps of one length, so that a window which holds a part of a group holds a sample of it; and examples are shuffled
    within windows of consecutive positions. Each example comes once an epoch, and only the groups of one window are
    needed at a time. Memory: a few numbers for each group.

    Args:
        starts_G: (G,) first index of each group, increasing from 0; a group ends where the next one starts.
        n_examples: size of the data.
        seed: of the shuffling.
        window: largest number of examples that are shuffled together.

    Source: shuffled shards with a shuffle buffer are those of the webdataset package (Aizman, Maltby and Breuel 2019);
    a window in place of its buffer makes the order a function of the position.
    """

    def __init__(self, starts_G: np.ndarray, n_examples: int, seed: int, window: int) -> None:
        self.n_examples, self.seed = n_examples, seed
        self.starts_G = np.asarray(starts_G, np.int64)
        self._sizes_G = np.diff(self.starts_G, append=n_examples)
        self.n_windows = -(-n_examples // window)
        self._edges = np.arange(self.n_windows + 1) * n_examples // self.n_windows
        self._epochs: dict[int, _Laps] = {}

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of the samples at ``positions`` (B,) of the endless sequence."""
        epochs, within = np.divmod(positions, self.n_examples)
        windows = np.searchsorted(self._edges, within, side="right") - 1
        indices = np.empty_like(positions)
        for epoch, window in np.unique(np.stack([epochs, windows], 1), axis=0).tolist():
            here = (epochs == epoch) & (windows == window)
            first, end = self._edges[window], self._edges[window + 1]
            shuffled = first + permuted(within[here] - first, int(end - first), self.seed, "window", epoch, window)
            indices[here] = self._laps(epoch).indices(shuffled)
        return indices, epochs

    def window_of(self, position: int) -> tuple[int, int]:
        """(epoch, window) of a position of the endless sequence."""
        epoch, within = divmod(position, self.n_examples)
        return epoch, int(np.searchsorted(self._edges, within, side="right")) - 1

    def groups_of(self, epoch: int, window: int) -> np.ndarray:
        """Numbers of the groups that a window needs, in the order of the epoch."""
        return self._laps(epoch).groups(int(self._edges[window]), int(self._edges[window + 1]))

    def _laps(self, epoch: int) -> _Laps:
        if epoch not in self._epochs:
            laps = _Laps(self.starts_G, self._sizes_G, (self.seed, "groups", epoch))
            kept = list(self._epochs.items())[1 - _KEPT_EPOCHS :]
            self._epochs = {**dict(kept), epoch: laps}  # replaced whole: several threads may ask
        return self._epochs[epoch]


class _Laps:
    """One epoch's sequence of examples before windows are shuffled: position => index."""

    def __init__(self, starts_G: np.ndarray, sizes_G: np.ndarray, key: tuple[int | str, ...]) -> None:
        self._order = permutation(len(starts_G), *key)
        self._starts, self._sizes = starts_G[self._order], sizes_G[self._order]
        self._begins = np.cumsum(self._sizes) - self._sizes
        draws = uniforms(self._order, np.zeros_like(self._order), *key, "steps")
        self._steps = _coprime(self._sizes, 0.3 + 0.4 * draws)

    def indices(self, positions: np.ndarray) -> np.ndarray:
        which = np.searchsorted(self._begins, positions, side="right") - 1
        turn = (positions - self._begins[which]) * self._steps[which] % self._sizes[which]
        return self._starts[which] + turn

    def groups(self, first: int, end: int) -> np.ndarray:
        low = int(np.searchsorted(self._begins, first, side="right")) - 1
        return self._order[low : int(np.searchsorted(self._begins, end, side="left"))]


def _coprime(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """For each size, the next number from ``shares`` of it on that has no divisor in common with it."""
    steps = np.maximum(1, (shares * sizes).astype(np.int64))
    while len(wrong := np.flatnonzero(np.gcd(steps, sizes) != 1)):
        steps[wrong] += 1
    return steps
