"""Memorisation: whether samples lie nearer to training images than new real images do.

Both statistics compare the distance of each sample to its nearest training image with the same distance of held-out
real images (the test of Meehan et al. 2020, arXiv:2004.05675, section 3, without its cells). Distances are between
features, which sees copies of any kind, or between grids of codes, which sees copies that a prior makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from foundation.errors import DataError
from foundation.images.preprocess import image_grid, require_picture
from pipeline.evaluation.bootstrap import Figure, mean_figure
from pipeline.evaluation.nearest import nearest_codes, nearest_features

CLOSE_SHARE = 0.01
"""share of held-out images that are called close to a training image"""
N_LISTED = 16


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image, and what they say.

    Attributes:
        distances_N: of samples.
        nearest_N: index of the training image nearest to each sample.
        held_out_M: distances of held-out images.
        nearer: probability that a sample is nearer to a training image than a held-out image is, ties counted half:
            0.5 where samples are like new images, towards 1 for copies, and also for samples that are blurred.
        close: share of samples that are at most as far as the closest 1 % of held-out images.
        real_close: the same share of held-out images; above 0.01 where there are ties.
    """

    distances_N: np.ndarray
    nearest_N: np.ndarray
    held_out_M: np.ndarray
    nearer: Figure
    close: Figure
    real_close: float

    @property
    def closest(self) -> np.ndarray:
        """Samples by distance, the nearest to a training image first; (N,) indices."""
        return np.argsort(self.distances_N, kind="stable")

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The closest pairs, and quantiles of both distances.

        Args:
            names: of the training images.
        """
        quantiles = (0.0, 0.01, 0.1, 0.5, 0.9)
        pairs = [
            {"sample": int(i), "training_image": names[int(self.nearest_N[i])], "distance": float(self.distances_N[i])}
            for i in self.closest[:N_LISTED]
        ]
        return {
            "closest": pairs,
            "quantiles": {
                "of": list(quantiles),
                "samples": np.quantile(self.distances_N, quantiles).tolist(),
                "held_out": np.quantile(self.held_out_M, quantiles).tolist(),
            },
        }


def memorisation_in_features(
    samples_NF: np.ndarray, training_LF: np.ndarray, held_out_MF: np.ndarray, weights_RN: np.ndarray
) -> Memorisation:
    """By Euclidean distances between features.

    Args:
        samples_NF, training_LF, held_out_MF: features from one extractor; at least one vector each.
        weights_RN: how samples are resampled, see ``bootstrap``.

    Raises:
        DataError: features of different lengths or not finite, or an empty set.
    """
    distances, indices = nearest_features(samples_NF, training_LF)
    return _memorisation(
        distances[:, 0], indices[:, 0], nearest_features(held_out_MF, training_LF)[0][:, 0], weights_RN
    )


def memorisation_in_codes(
    samples_NT: np.ndarray, training_LT: np.ndarray, held_out_MT: np.ndarray, weights_RN: np.ndarray
) -> Memorisation:
    """By the share of codes that differ; see ``memorisation_in_features``."""
    found = nearest_codes(samples_NT, training_LT)
    return _memorisation(*found, nearest_codes(held_out_MT, training_LT)[0], weights_RN)


def _memorisation(
    distances_N: np.ndarray, nearest_N: np.ndarray, held_out_M: np.ndarray, weights_RN: np.ndarray
) -> Memorisation:
    DataError.unless(len(held_out_M) > 0, "are needed", field="held-out images", found=0, expected="1 or more")
    ordered_M = np.sort(held_out_M)
    below_N, upto_N = (np.searchsorted(ordered_M, distances_N, side) for side in ("left", "right"))
    nearer_N = 1 - (below_N + upto_N) / 2 / len(ordered_M)
    limit = ordered_M[int(CLOSE_SHARE * (len(ordered_M) - 1))]
    return Memorisation(
        distances_N,
        nearest_N,
        held_out_M,
        nearer=mean_figure(nearer_N, weights_RN),
        close=mean_figure(distances_N <= limit, weights_RN),
        real_close=float((held_out_M <= limit).mean()),
    )


def neighbours_picture(samples_NYXC: np.ndarray, neighbours_NKYXC: np.ndarray) -> Image.Image:
    """One row for each sample: the sample, a gap, and its nearest training images.

    Args:
        samples_NYXC: uint8, 1 or 3 channels.
        neighbours_NKYXC: K training images for each, the nearest first, of the samples' shape.

    Raises:
        DataError: not such pixels, or of another shape.
    """
    require_picture("samples", samples_NYXC, 4)
    sound = neighbours_NKYXC.ndim == 5 and neighbours_NKYXC.shape[:1] + neighbours_NKYXC.shape[2:] == samples_NYXC.shape
    found, expected = neighbours_NKYXC.shape, "(N, K, Y, X, C), N, Y, X and C of the samples"
    DataError.unless(sound, "are of another shape", field="neighbours", found=found, expected=expected)
    scale = max(1, 64 // max(samples_NYXC.shape[1:3]))
    left = image_grid(samples_NYXC, 1, scale=scale)
    right = image_grid(neighbours_NKYXC.reshape(-1, *samples_NYXC.shape[1:]), neighbours_NKYXC.shape[1], scale=scale)
    gap = left.width // 4
    picture = Image.new(left.mode, (left.width + gap + right.width, left.height), "white")
    picture.paste(left, (0, 0))
    picture.paste(right, (left.width + gap, 0))
    return picture
