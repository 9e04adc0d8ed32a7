"""Nearest neighbours, exactly and in blocks: Euclidean between features, Hamming between grids of codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from foundation.errors import DataError

_BLOCK_BYTES = 2**27


def squared_distances(one_NF: np.ndarray, other_MF: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared Euclidean distances, some rows at a time: constant memory.

    Args:
        one_NF: features of one set.
        other_MF: features of the other.

    Yields:
        Which rows of ``one_NF``, and their distances (rows, M) in float64, 0 or more; of equal vectors about 1e-15 of
        their squared length.

    Raises:
        DataError: features of different lengths, or values that are not finite.
    """
    one_NF, other_MF = _comparable(one_NF, other_MF)
    centre_F = other_MF.mean(0) if len(other_MF) else 0.0  # short vectors lose fewer digits
    one_NF, other_MF = one_NF - centre_F, other_MF - centre_F
    lengths_N, lengths_M = (np.einsum("nf,nf->n", each, each) for each in (one_NF, other_MF))
    n_rows = max(1, _BLOCK_BYTES // (8 * max(1, len(other_MF))))
    for start in range(0, len(one_NF), n_rows):
        rows = slice(start, min(start + n_rows, len(one_NF)))
        squared = one_NF[rows] @ other_MF.T
        squared *= -2
        squared += lengths_N[rows, None]
        squared += lengths_M
        yield rows, squared.clip(min=0, out=squared)


def nearest_features(one_NF: np.ndarray, other_MF: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest vectors of another set.

    Args:
        one_NF: whose neighbours are looked for.
        other_MF: among which; M of k or more.
        k: how many.

    Returns:
        Distances and indices into ``other_MF``, both (N, k), the nearest first, of equal ones that of lower index.

    Raises:
        DataError: fewer than k vectors, different lengths, or values that are not finite.
    """
    found = f"{len(other_MF):,}"
    DataError.unless(len(other_MF) >= k, "too few for neighbours", field="images", found=found, expected=f"{k} or more")
    distances_NK, indices_NK = np.empty((len(one_NF), k)), np.empty((len(one_NF), k), np.int64)
    for rows, squared in squared_distances(one_NF, other_MF):
        indices_NK[rows] = _smallest(squared, k)
        distances_NK[rows] = np.sqrt(np.take_along_axis(squared, indices_NK[rows], axis=1))
    return distances_NK, indices_NK


def nearest_codes(one_NT: np.ndarray, other_MT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grid of another set that differs in the fewest codes.

    Args:
        one_NT: codes in the order of the sequence.
        other_MT: the other set's; at least one row.

    Returns:
        Share of codes that differ (Hamming distance / T), from 0 to 1, and the index of the first such row; both (N,).

    Raises:
        DataError: grids of different sizes, or no row.
    """
    if one_NT.ndim != 2 or other_MT.ndim != 2 or one_NT.shape[1] != other_MT.shape[1] or not len(other_MT):
        found, expected = f"{one_NT.shape} and {other_MT.shape}", "(N, T) and (M, T), M of 1 or more"
        raise DataError("cannot be compared", field="codes", found=found, expected=expected)
    shares_N, indices_N = np.empty(len(one_NT)), np.empty(len(one_NT), np.int64)
    small = np.uint16 if max(one_NT.max(initial=0), other_MT.max()) < 2**16 else np.int64
    one_TN, other_TM = (np.ascontiguousarray(each.T, small) for each in (one_NT, other_MT))
    n_rows = max(1, _BLOCK_BYTES // (4 * len(other_MT)))
    for start in range(0, len(one_NT), n_rows):
        rows = slice(start, start + n_rows)
        differing = np.zeros((len(one_NT[rows]), len(other_MT)), np.uint16)
        for one_N, other_M in zip(one_TN[:, rows], other_TM, strict=True):
            differing += one_N[:, None] != other_M
        indices_N[rows] = differing.argmin(1)
        shares_N[rows] = differing.min(1) / one_NT.shape[1]
    return shares_N, indices_N


def _smallest(values_NM: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k smallest of each row, in order."""
    if k == 1:
        return values_NM.argmin(1)[:, None]
    some_NK = np.sort(np.argpartition(values_NM, k - 1, axis=1)[:, :k], axis=1)
    order_NK = np.take_along_axis(values_NM, some_NK, axis=1).argsort(axis=1, kind="stable")
    return np.take_along_axis(some_NK, order_NK, axis=1)


def _comparable(one_NF: np.ndarray, other_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if one_NF.ndim != 2 or other_MF.ndim != 2 or one_NF.shape[1] != other_MF.shape[1]:
        found, fix = f"{one_NF.shape} and {other_MF.shape}", "use one extractor for both sets"
        raise DataError("differ in length between the sets", field="features", found=found, fix=fix)
    if not (np.isfinite(one_NF).all() and np.isfinite(other_MF).all()):
        fix = "look for NaN in the images, and run the extractor in float32"
        raise DataError("are not finite", field="features", found="NaN or infinity", fix=fix)
    return one_NF.astype(np.float64), other_MF.astype(np.float64)
