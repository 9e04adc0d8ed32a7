"""Frechet and kernel distances between two sets of features.

With Inception features: FID (Heusel et al. 2017, arXiv:1706.08500) and KID (Binkowski et al. 2018, arXiv:1801.01401).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

from foundation.config import require
from foundation.errors import DataError

SUBSET_SIZE = 1000
_ONE_EXTRACTOR = "use one extractor for both sets"
_RELATIVE_ZERO = 1e-10
"""share of the largest singular value below which a direction has no variance"""


class FeatureMoments:
    """Running count, mean and scatter of features in float64.

    Batches are centred, then merged by the pairwise update of Chan et al. 1979, which keeps precision for features with
    a large mean.

    Args:
        n_features: length F of a feature vector.
    """

    def __init__(self, n_features: int) -> None:
        self.n_features = n_features
        self.n = 0
        self.mean_F = np.zeros(n_features)
        self.scatter_FF = np.zeros((n_features, n_features))

    def update(self, features_BF: np.ndarray) -> None:
        """Add a batch, (B, F).

        Raises:
            DataError: another number of features, or values that are not finite.
        """
        features_BF = finite_features(features_BF, self.n_features)
        if len(features_BF):
            mean_F, total = features_BF.mean(0), self.n + len(features_BF)
            centred_BF, shift_F = features_BF - mean_F, mean_F - self.mean_F
            joined = np.outer(shift_F, shift_F) * (self.n * len(features_BF) / total)
            self.scatter_FF += centred_BF.T @ centred_BF + joined
            self.mean_F += shift_F * (len(features_BF) / total)
            self.n = total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, (F, F).

        Raises:
            DataError: fewer than 2 feature vectors.
        """
        if self.n < 2:
            raise DataError("too few images for a covariance", field="images", found=self.n, expected="at least 2")
        return self.scatter_FF / (self.n - 1)


def frechet_distance(one: FeatureMoments, other: FeatureMoments) -> float:
    """Frechet distance of the Gaussians fitted to two sets, 0 or more (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

    Warns if a set has at most as many images as features: a singular covariance biases the distance upwards.

    Raises:
        DataError: different numbers of features, or fewer than 2 images in a set.
    """
    _require_comparable(one, other)
    return gaussian_frechet_distance(one.mean_F, one.covariance, other.mean_F, other.covariance)


def _require_comparable(one: FeatureMoments, other: FeatureMoments) -> None:
    if one.n_features != other.n_features:
        found = f"{one.n_features} and {other.n_features}"
        raise DataError("differ in length between the sets", field="features", found=found, fix=_ONE_EXTRACTOR)
    n = min(one.n, other.n)
    if 2 <= n <= one.n_features:
        what = f"Frechet distance from {n} images and {one.n_features} features is biased upwards (singular covariance)"
        warnings.warn(f"{what}; use more images, or KID", stacklevel=3)


def gaussian_frechet_distance(
    mean_F: np.ndarray, covariance_FF: np.ndarray, other_mean_F: np.ndarray, other_covariance_FF: np.ndarray
) -> float:
    """Frechet distance of two Gaussians: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (arXiv:1706.08500, eq. 6).

    With S1 = A A' and S2 = B B', tr((S1 S2)^(1/2)) is the sum of the singular values of A' B: real by construction, and
    accurate where a matrix square root of a singular product is not.

    Args:
        mean_F, other_mean_F: (F,).
        covariance_FF, other_covariance_FF: (F, F), symmetric and positive semi-definite.

    Raises:
        DataError: values that are not finite.
    """
    if not all(np.isfinite(each).all() for each in (mean_F, covariance_FF, other_mean_F, other_covariance_FF)):
        raise DataError("have moments that are not finite", field="features", found="NaN or infinity")
    factors = _factor(covariance_FF).T @ _factor(other_covariance_FF)
    overlap = np.linalg.svd(factors, compute_uv=False).sum()
    spread = np.trace(covariance_FF) + np.trace(other_covariance_FF) - 2 * overlap
    return max(0.0, float(np.square(mean_F - other_mean_F).sum() + spread))


@dataclass(frozen=True)
class FrechetGradient:
    """Derivative of the Frechet distance with respect to the mean and the covariance of one set.

    Attributes:
        slope_F: with respect to the mean.
        root_KF: G of the derivative I - G'G with respect to the covariance; G'G carries one Gaussian to the other.
    """

    slope_F: np.ndarray
    root_KF: np.ndarray

    def of(self, centred_NF: np.ndarray) -> np.ndarray:
        """By how much more of each image moves the distance, up to a constant; (N,).

        Args:
            centred_NF: features less the mean of their set.
        """
        spread_N = np.square(centred_NF).sum(1) - np.square(centred_NF @ self.root_KF.T).sum(1)
        return centred_NF @ self.slope_F + spread_N


def frechet_gradient(one: FeatureMoments, other: FeatureMoments) -> tuple[float, FrechetGradient, FrechetGradient]:
    """The Frechet distance of two sets, and its derivative with respect to the moments of either.

    With S1 = A A', S2 = B B' and A' B = U D V', tr((S1 S2)^(1/2)) is the trace of D, and twice its derivative with
    respect to S1 is B V D^(-1) V' B'. Directions without variance in both sets are left out.

    Raises:
        DataError: see ``frechet_distance``.
    """
    _require_comparable(one, other)
    factors = _factor(one.covariance), _factor(other.covariance)
    left, sizes_K, right = np.linalg.svd(factors[0].T @ factors[1])
    seen_K = sizes_K > _RELATIVE_ZERO * sizes_K[0]
    shrink_K1 = np.sqrt(1 / sizes_K[seen_K])[:, None]
    root_of_one, root_of_other = right[seen_K] @ factors[1].T, left.T[seen_K] @ factors[0].T
    shift_F, spread = one.mean_F - other.mean_F, np.trace(one.covariance) + np.trace(other.covariance)
    distance = max(0.0, float(shift_F @ shift_F + spread - 2 * sizes_K.sum()))
    gradients = (
        FrechetGradient(2 * shift_F, root_of_one * shrink_K1),
        FrechetGradient(-2 * shift_F, root_of_other * shrink_K1),
    )
    return distance, *gradients


def _factor(covariance_FF: np.ndarray) -> np.ndarray:
    eigenvalues, vectors = np.linalg.eigh(covariance_FF)
    return vectors * np.sqrt(eigenvalues.clip(min=0))


@dataclass(frozen=True)
class KernelDistance:
    """Kernel distance averaged over subsets.

    Attributes:
        value: unbiased: about 0, possibly negative, for two samples of one distribution.
        standard_error: from the spread over subsets; NaN with a single subset.
        n_subsets, subset_size: number of subsets, images of each set in a subset.
    """

    value: float
    standard_error: float
    n_subsets: int
    subset_size: int


class KernelDistanceStream:
    """Running KID with at most one subset of each set in memory.

    Averages the distance over consecutive, disjoint subsets of ``subset_size`` images; an incomplete last subset counts
    only if there is no other. Expects images in random order: subsets of one class each would compare classes.

    Args:
        n_features: length F of a feature vector.
        subset_size: images of each set in a subset.
        paired: image i of one set is made from image i of the other, e.g. a reconstruction.
    """

    def __init__(self, n_features: int, *, subset_size: int = SUBSET_SIZE, paired: bool = False) -> None:
        require(subset_size >= 2, "subset_size", subset_size, "at least 2 images")
        self.n_features, self.subset_size, self.paired = n_features, subset_size, paired
        self._values: list[float] = []
        self._waiting_one_BF = self._waiting_other_BF = np.empty((0, n_features))

    def update(self, one_BF: np.ndarray, other_BF: np.ndarray) -> None:
        """Add a batch of each set, both (B, F).

        Raises:
            DataError: batches of different lengths, another number of features, or values that are not finite.
        """
        if len(one_BF) != len(other_BF):
            found = f"{len(one_BF)} and {len(other_BF)}"
            raise DataError("batches of different lengths", field="features", found=found, expected="one length")
        one_BF = np.concatenate([self._waiting_one_BF, finite_features(one_BF, self.n_features)])
        other_BF = np.concatenate([self._waiting_other_BF, finite_features(other_BF, self.n_features)])
        size = self.subset_size
        while len(one_BF) >= size:
            self._values.append(unbiased_mmd2(one_BF[:size], other_BF[:size], paired=self.paired))
            one_BF, other_BF = one_BF[size:], other_BF[size:]
        self._waiting_one_BF, self._waiting_other_BF = one_BF, other_BF

    def result(self) -> KernelDistance:
        """Compute the distance so far.

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

    A reconstruction resembles its own image more than another sample of the distribution does. With ``paired``, the
    cross term therefore excludes pairs (Gretton et al. 2012, JMLR 13, eq. 4) and stays unbiased: perfect
    reconstructions score exactly 0.

    Args:
        one_NF: features of one set.
        other_MF: features of the other; M = N if paired.
        paired: row i of both sets belongs together.

    Raises:
        DataError: fewer than 2 rows in a set, or paired sets of different sizes.
    """
    n, m = len(one_NF), len(other_MF)
    if min(n, m) < 2 or (paired and n != m):
        expected = "at least 2 of each set, equal numbers if paired"
        raise DataError("too few images, or unequal pairs", field="images", found=f"{n} and {m}", expected=expected)
    cross_NM = _kernel(one_NF, other_MF)
    cross = (cross_NM.sum() - np.trace(cross_NM)) / (n * (n - 1)) if paired else cross_NM.mean()
    return float(_mean_of_pairs(one_NF) + _mean_of_pairs(other_MF) - 2 * cross)


def finite_features(features_BF: np.ndarray, n_features: int) -> np.ndarray:
    """Check features and convert them to float64.

    Raises:
        DataError: not (B, n_features), or values that are not finite.
    """
    if features_BF.ndim != 2 or features_BF.shape[1] != n_features:
        shape, expected = features_BF.shape, f"(B, {n_features})"
        raise DataError("have another shape", field="features", found=shape, expected=expected, fix=_ONE_EXTRACTOR)
    if not np.isfinite(features_BF).all():
        fix = "look for NaN in the images, and run the extractor in float32"
        raise DataError("are not finite", field="features", found="NaN or infinity", fix=fix)
    return features_BF.astype(np.float64)


def _kernel(one_NF: np.ndarray, other_MF: np.ndarray) -> np.ndarray:
    return (one_NF @ other_MF.T / one_NF.shape[1] + 1) ** 3


def _mean_of_pairs(features_NF: np.ndarray) -> float:
    kernel_NN, n = _kernel(features_NF, features_NF), len(features_NF)
    return float((kernel_NN.sum() - np.trace(kernel_NN)) / (n * (n - 1)))
