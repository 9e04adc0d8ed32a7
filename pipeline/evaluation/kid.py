"""Kernel distance between two sets of features (KID when the features are Inception's)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from foundation.config import require
from foundation.errors import DataError
from pipeline.evaluation.frechet import finite_features

SUBSET_SIZE = 1000


@dataclass(frozen=True)
class KernelDistance:
    """Mean over subsets.

    Attributes:
        value: unbiased, so about 0, and at times below it, for two samples of one distribution.
        standard_error: of the value, from the spread over subsets; NaN with a single subset.
        n_subsets, subset_size: how many subsets, and of how many images of each set.
    """

    value: float
    standard_error: float
    n_subsets: int
    subset_size: int


class KernelDistanceStream:
    """KID from features that arrive in batches, at most one subset of each set in memory.

    The distance is taken on consecutive, disjoint subsets of ``subset_size`` images and averaged. An incomplete last
    subset counts only when there is no other. Bring images in random order: subsets of images that are sorted by
    class compare classes, not sets.

    Args:
        n_features: length F of a feature vector.
        subset_size: images of each set in a subset.
        paired: image i of one set is made from image i of the other, as a reconstruction is.
    """

    def __init__(self, n_features: int, *, subset_size: int = SUBSET_SIZE, paired: bool = False) -> None:
        require(subset_size >= 2, "subset_size", subset_size, "at least 2 images")
        self.n_features, self.subset_size, self.paired = n_features, subset_size, paired
        self._values: list[float] = []
        self._waiting_one_BF = self._waiting_other_BF = np.empty((0, n_features))

    def update(self, one_BF: np.ndarray, other_BF: np.ndarray) -> None:
        """Take in a batch of each set, both (B, F).

        Raises:
            DataError: batches of different lengths, another number of features, or values that are not finite.
        """
        if len(one_BF) != len(other_BF):
            found = f"{len(one_BF)} and {len(other_BF)}"
            raise DataError("batches of different lengths", field="features", found=found, expected="equal lengths")
        one_BF = np.concatenate([self._waiting_one_BF, finite_features(one_BF, self.n_features)])
        other_BF = np.concatenate([self._waiting_other_BF, finite_features(other_BF, self.n_features)])
        size = self.subset_size
        while len(one_BF) >= size:
            self._values.append(unbiased_mmd2(one_BF[:size], other_BF[:size], paired=self.paired))
            one_BF, other_BF = one_BF[size:], other_BF[size:]
        self._waiting_one_BF, self._waiting_other_BF = one_BF, other_BF

    def result(self) -> KernelDistance:
        """The distance so far.

        Raises:
            DataError: fewer than 2 images of each set.
        """
        values, size = self._values, self.subset_size
        if not values:
            size = len(self._waiting_one_BF)
            values = [unbiased_mmd2(self._waiting_one_BF, self._waiting_other_BF, paired=self.paired)]
        n = len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        return KernelDistance(float(np.mean(values)), error, n, size)


def unbiased_mmd2(one_NF: np.ndarray, other_MF: np.ndarray, *, paired: bool = False) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x . y / F + 1)^3 (arXiv:1801.01401, sections 3, 4).

    A reconstruction resembles its own image more than another sample of the same distribution would. Where the sets
    are ``paired`` so, the pairs are left out of the cross term (Gretton et al. 2012, JMLR 13, eq. 4), which keeps the
    estimate unbiased: a perfect reconstruction scores exactly 0, not a value below it that depends on N.

    Args:
        one_NF: (N, F) features of one set.
        other_MF: (M, F) features of the other; M = N when paired.
        paired: row i of one belongs to row i of the other.

    Raises:
        DataError: fewer than 2 rows in a set, or paired sets of different sizes.
    """
    n, m = len(one_NF), len(other_MF)
    if min(n, m) < 2 or (paired and n != m):
        raise DataError("too few images, or unequal pairs", field="images", found=f"{n} and {m}",
                        expected="at least 2 of each set, and as many of either when paired")  # fmt: skip
    cross_NM = _kernel(one_NF, other_MF)
    cross = (cross_NM.sum() - np.trace(cross_NM)) / (n * (n - 1)) if paired else cross_NM.mean()
    return float(_mean_of_pairs(one_NF) + _mean_of_pairs(other_MF) - 2 * cross)


def _kernel(one_NF: np.ndarray, other_MF: np.ndarray) -> np.ndarray:
    return (one_NF @ other_MF.T / one_NF.shape[1] + 1) ** 3


def _mean_of_pairs(features_NF: np.ndarray) -> float:
    kernel_NN, n = _kernel(features_NF, features_NF), len(features_NF)
    return float((kernel_NN.sum() - np.trace(kernel_NN)) / (n * (n - 1)))
