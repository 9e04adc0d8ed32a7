"""Confidence intervals by the bootstrap: images are drawn again with replacement (Efron 1979).

A replicate is a figure of weighted images, the weight of an image being how often it was drawn. No image is scored
twice: means, kernel distances and Inception scores are computed from weights exactly, the Frechet distance to first
order in the weights.

An interval lies around the figure itself: the quantiles of (mean of the replicates - replicate) are added to it. It
tells how much chance moves the figure at this number of images, and leaves the figure's bias in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundation.config import require
from foundation.errors import DataError
from foundation.randomness import derive_seed
from pipeline.evaluation.distances import FeatureMoments, finite_features, frechet_gradient

N_REPLICATES = 500
CONFIDENCE = 0.95
_BLOCK = 1024


@dataclass(frozen=True)
class Figure:
    """A number with its confidence interval.

    Attributes:
        value: the figure.
        low, high: ends of its 95 % interval.
        n_images: images that were scored.
    """

    value: float
    low: float
    high: float
    n_images: int

    @classmethod
    def of(cls, value: float, replicates_R: np.ndarray, n_images: int, least: float = -np.inf) -> Figure:
        """The figure with the interval that its replicates give; no end is below ``least``."""
        tail = 50 * (1 - CONFIDENCE)
        shifts = np.percentile(replicates_R.mean() - replicates_R, (tail, 100 - tail))
        low, high = (max(least, float(value + shift)) for shift in shifts)
        return cls(float(value), low, high, n_images)

    def as_json(self) -> dict[str, float]:
        """For a file."""
        return {"value": self.value, "low": self.low, "high": self.high, "n_images": self.n_images}


def resampling_weights(n_images: int, n_replicates: int, *key: int | str) -> np.ndarray:
    """How often each image is drawn in each replicate: (R, N) float64, rows that sum to N.

    Args:
        n_images: N.
        n_replicates: R.
        key: what the weights depend on.

    Raises:
        DataError: no image.
        ConfigError: no replicate.
    """
    require(n_replicates >= 1, "n_replicates", n_replicates, "1 or more")
    DataError.unless(n_images >= 1, "has none to resample", field="images", found=n_images, expected="1 or more")
    rng = np.random.Generator(np.random.Philox(derive_seed("bootstrap", *key)))
    weights_RN = np.empty((n_replicates, n_images))
    for weights_N in weights_RN:
        weights_N[:] = np.bincount(rng.integers(0, n_images, n_images), minlength=n_images)
    return weights_RN


def mean_figure(values_N: np.ndarray, weights_RN: np.ndarray) -> Figure:
    """The mean of one value for each image, e.g. of a share."""
    values_N = values_N.astype(np.float64)
    return Figure.of(values_N.mean(), weights_RN @ values_N / len(values_N), len(values_N))


def kernel_figure(one_NF: np.ndarray, other_MF: np.ndarray, weights_RN: np.ndarray, weights_RM: np.ndarray) -> Figure:
    """Unbiased kernel distance of two whole sets, see ``distances.unbiased_mmd2``; both are resampled.

    Pairs of an image with itself are left out of the replicates too, however often it is drawn: a replicate is the
    weighted mean over pairs of different images. Constant memory beside the weights.

    Raises:
        DataError: fewer than 2 images of a set, another number of features, or values that are not finite.
    """
    one_NF, other_MF = (finite_features(each, one_NF.shape[1]) for each in (one_NF, other_MF))
    n = min(len(one_NF), len(other_MF))
    DataError.unless(n >= 2, "too few for a kernel distance", field="images", found=n, expected="2 or more of each set")
    ones_RN, ones_RM = (np.concatenate([np.ones((1, each.shape[1])), each]) for each in (weights_RN, weights_RM))
    cross_R = _weighted_kernel(one_NF, other_MF, ones_RN, ones_RM) / (ones_RN.sum(1) * ones_RM.sum(1))
    all_R = _pairs(one_NF, ones_RN) + _pairs(other_MF, ones_RM) - 2 * cross_R
    return Figure.of(all_R[0], all_R[1:], len(one_NF))


def _pairs(features_NF: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Mean of the kernel over pairs of different images, weighted; (R,)."""
    own_N = (np.einsum("nf,nf->n", features_NF, features_NF) / features_NF.shape[1] + 1) ** 3
    squares_RN = weights_RN**2
    total_R = _weighted_kernel(features_NF, features_NF, weights_RN, weights_RN) - squares_RN @ own_N
    return total_R / (weights_RN.sum(1) ** 2 - squares_RN.sum(1))


def _weighted_kernel(
    one_NF: np.ndarray, other_MF: np.ndarray, weights_RN: np.ndarray, weights_RM: np.ndarray
) -> np.ndarray:
    """Sum of w_i K_ij v_j for the weights of each replicate, K the kernel (x . y / F + 1)^3; (R,)."""
    total_R = np.zeros(len(weights_RN))
    for start in range(0, len(one_NF), _BLOCK):
        rows = slice(start, start + _BLOCK)
        kernel = one_NF[rows] @ other_MF.T
        kernel /= one_NF.shape[1]
        kernel += 1
        kernel *= kernel * kernel
        total_R += np.einsum("rn,rn->r", weights_RN[:, rows], weights_RM @ kernel.T)
    return total_R


def frechet_figure(one_NF: np.ndarray, other_MF: np.ndarray, weights_RN: np.ndarray, weights_RM: np.ndarray) -> Figure:
    """Frechet distance of two sets; both are resampled.

    An exact replicate would take an eigendecomposition. To first order in the weights, the distance changes by the mean
    of one number for each image: its derivative with respect to mean and covariance, applied to the image's deviation
    from the mean (Hampel 1974, the influence curve).

    Raises:
        DataError: see ``distances.frechet_distance``.
    """
    moments = [FeatureMoments(one_NF.shape[1]), FeatureMoments(one_NF.shape[1])]
    for each, features in zip(moments, (one_NF, other_MF), strict=True):
        each.update(features)
    distance, *gradients = frechet_gradient(*moments)
    replicates_R = np.full(len(weights_RN), distance)
    sets = ((one_NF, weights_RN), (other_MF, weights_RM))
    for each, gradient, (features, weights) in zip(moments, gradients, sets, strict=True):
        influence_N = gradient.of(features.astype(np.float64) - each.mean_F)
        replicates_R += (weights @ (influence_N - influence_N.mean())) / len(features)
    return Figure.of(distance, replicates_R, len(one_NF), least=0.0)
