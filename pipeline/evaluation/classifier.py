"""A classifier on frozen features: multinomial logistic regression by a fixed recipe, the same for every evaluation.

Its accuracy on held-out real images is the ceiling beside which the accuracy on samples is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from foundation.errors import DataError
from foundation.randomness import permutation

DECAY = 1e-3
"""weight of the squared length of the weights, which makes the best classifier unique"""
MOST_IMAGES = 20_000
"""training images that it is fitted on"""
_ITERATIONS = 200


@dataclass(frozen=True)
class FeatureClassifier:
    """Classes from features that were standardised over the training images.

    Attributes:
        mean_F, spread_F: of the training features.
        weights_KF, bias_K: of the logits.
        n_images: training images that it was fitted on.
    """

    mean_F: np.ndarray
    spread_F: np.ndarray
    weights_KF: np.ndarray
    bias_K: np.ndarray
    n_images: int

    @classmethod
    def fit(cls, features_NF: np.ndarray, labels_N: np.ndarray, n_classes: int) -> FeatureClassifier:
        """Minimise mean cross entropy + DECAY / 2 * |weights|^2 by L-BFGS from zero, on the CPU in float32.

        Args:
            features_NF: of training images; a fixed choice of ``MOST_IMAGES`` is taken of more.
            labels_N: their classes, 0 to n_classes - 1.
            n_classes: K.

        Raises:
            DataError: numbers that differ, classes outside the range, or fewer than two classes.
        """
        sound = len(features_NF) == len(labels_N) and len(labels_N) > 0
        sound = sound and int(labels_N.min()) >= 0 and int(labels_N.max()) < n_classes
        expected = f"one of 0 to {n_classes - 1} for each of {len(features_NF):,} images"
        DataError.unless(sound, "are not the classes of the images", field="labels", expected=expected)
        several = len(np.unique(labels_N)) > 1
        DataError.unless(several, "hold one class: nothing to tell apart", field="labels", expected="2 classes or more")
        chosen = np.sort(permutation(len(labels_N), "classifier on features")[:MOST_IMAGES])
        features_NF, labels_N = features_NF[chosen].astype(np.float64), labels_N[chosen].astype(np.int64)
        mean_F, spread_F = features_NF.mean(0), features_NF.std(0)
        spread_F[spread_F < 1e-8 * max(1.0, float(spread_F.max()))] = 1.0  # constant features stay 0
        scaled = torch.from_numpy(((features_NF - mean_F) / spread_F).astype(np.float32))
        weights_KF, bias_K = _minimum(scaled, torch.from_numpy(labels_N), n_classes)
        return cls(mean_F, spread_F, weights_KF, bias_K, len(chosen))

    def logits(self, features_NF: np.ndarray) -> np.ndarray:
        """Features of any images => (N, K)."""
        return ((features_NF - self.mean_F) / self.spread_F) @ self.weights_KF.T + self.bias_K

    def is_right(self, features_NF: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
        """Whether the likeliest class of each image is its own; (N,) bool."""
        return np.asarray(self.logits(features_NF).argmax(1) == labels_N)


def _minimum(scaled_NF: torch.Tensor, labels_N: torch.Tensor, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    weights_KF = torch.zeros(n_classes, scaled_NF.shape[1], requires_grad=True)
    bias_K = torch.zeros(n_classes, requires_grad=True)
    search = torch.optim.LBFGS([weights_KF, bias_K], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        value = F.cross_entropy(F.linear(scaled_NF, weights_KF, bias_K), labels_N)
        value = value + DECAY / 2 * weights_KF.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        search.step(loss)  # type: ignore[arg-type]
    return weights_KF.detach().double().numpy(), bias_K.detach().double().numpy()
