"""Randomness as a function of what it is for: no generator state has to survive a restart.

Data randomness (order, augmentation, label dropout) is keyed by sample, so it does not depend on batch size, process
count or where a run was interrupted. Dropout is keyed by (seed, step, rank).
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of numbers and names; different sequences give unrelated seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def permutation(n: int, *key: int | str) -> np.ndarray:
    """A permutation of ``range(n)`` that depends on the key alone. Returns (n,) int64."""
    return np.random.Generator(np.random.Philox(derive_seed(*key))).permutation(n)


def uniforms(indices: np.ndarray, epochs: np.ndarray, *key: int | str) -> np.ndarray:
    """One number in [0, 1) per (sample index, epoch), independent of every other sample.

    Args:
        indices, epochs: (B,) integers.
        key: what the numbers are for, e.g. ``(seed, "flip")``.

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
