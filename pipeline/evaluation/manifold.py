"""Precision, recall, density and coverage: overlap of two sets, each seen as balls around its feature vectors.

The ball of a vector reaches to its k-th nearest neighbour in its own set. Precision and recall: Kynkaanniemi et al.
2019, arXiv:1904.06991, section 3, k = 3. Density and coverage: Naeem et al. 2020, arXiv:2002.09797, section 3, k = 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundation.config import require
from foundation.errors import DataError
from pipeline.evaluation.nearest import squared_distances

NEIGHBOURS = 3
"""k of precision and recall, as published"""
DENSITY_NEIGHBOURS = 5
"""k of density and coverage, as published"""


@dataclass(frozen=True)
class Overlap:
    """What each image contributes; the figures are means.

    Attributes:
        precise_N: generated images that lie in a ball of a real one, bool.
        recalled_M: real images that lie in a ball of a generated one, bool.
        dense_N: real balls that hold a generated image, over k: 1 on average where both sets are alike.
        covered_M: real images whose ball holds a generated one, bool.
    """

    precise_N: np.ndarray
    recalled_M: np.ndarray
    dense_N: np.ndarray
    covered_M: np.ndarray

    @property
    def precision(self) -> float:
        """Share of generated images that look real, 0 to 1."""
        return float(self.precise_N.mean())

    @property
    def recall(self) -> float:
        """Share of real images that could be generated, 0 to 1; a single outlier's large ball may reach many."""
        return float(self.recalled_M.mean())

    @property
    def density(self) -> float:
        """Like precision, but an outlier's ball counts little; 0 or more, above 1 where samples crowd together."""
        return float(self.dense_N.mean())

    @property
    def coverage(self) -> float:
        """Share of real images near which something is generated, 0 to 1."""
        return float(self.covered_M.mean())


def overlap(
    generated_NF: np.ndarray,
    real_MF: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    density_k: int = DENSITY_NEIGHBOURS,
) -> Overlap:
    """Compare generated with real images. All four figures depend on N and M: compare them at equal numbers only.

    Args:
        generated_NF: features of generated images.
        real_MF: features of real ones, from the same extractor.
        k: neighbours of precision and recall.
        density_k: neighbours of density and coverage.

    Raises:
        DataError: as many neighbours as images of a set or more, features of different lengths or not finite.
        ConfigError: a number of neighbours below 1.
    """
    for name, value in (("k", k), ("density_k", density_k)):
        require(value >= 1, name, value, "1 neighbour or more")
    n, least = min(len(generated_NF), len(real_MF)), max(k, density_k) + 1
    what = "too few for neighbours within a set"
    DataError.unless(n >= least, what, field="images", found=f"{n:,}", expected=f"{least} or more of each set")
    radii_KM = _squared_radii(real_MF, (k, density_k))
    (radius_N,) = _squared_radii(generated_NF, (k,))
    precise_N, dense_N = np.empty(len(generated_NF), bool), np.empty(len(generated_NF))
    recalled_M, covered_M = np.zeros(len(real_MF), bool), np.zeros(len(real_MF), bool)
    for rows, squared in squared_distances(generated_NF, real_MF):
        precise_N[rows] = (squared <= radii_KM[0]).any(1)
        inside = squared <= radii_KM[1]
        dense_N[rows] = inside.sum(1) / density_k
        covered_M |= inside.any(0)
        recalled_M |= (squared <= radius_N[rows, None]).any(0)
    return Overlap(precise_N, recalled_M, dense_N, covered_M)


def _squared_radii(features_NF: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """Squared distance of each vector to its k-th nearest neighbour, itself left out; (number of ks, N)."""
    radii_KN = np.empty((len(ks), len(features_NF)))
    for rows, squared in squared_distances(features_NF, features_NF):
        squared[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = np.inf
        for i, k in enumerate(ks):
            radii_KN[i, rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return radii_KN
