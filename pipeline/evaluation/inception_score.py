"""Inception score: how certain of class images are, and how varied (Salimans et al. 2016, arXiv:1606.03498)."""

from __future__ import annotations

import itertools

import numpy as np

from foundation.config import require
from foundation.errors import DataError
from pipeline.evaluation.bootstrap import Figure

_TINY = np.finfo(np.float64).tiny


def probabilities(logits_NK: np.ndarray) -> np.ndarray:
    """Logits of classes => probabilities in float64, (N, K)."""
    shifted_NK = logits_NK.astype(np.float64) - logits_NK.max(1, keepdims=True)
    weights_NK = np.exp(shifted_NK)
    return weights_NK / weights_NK.sum(1, keepdims=True)


def inception_scores(probabilities_NK: np.ndarray, n_splits: int = 1) -> np.ndarray:
    """The exponential of the mean KL(p(class | image) || p(class)), from 1 to K (arXiv:1606.03498, section 4).

    Published figures are the mean over 10 splits of 50,000 images. A split of fewer images scores lower, since classes
    that it misses by chance count as missing: one split is best for few images.

    Args:
        probabilities_NK: of K classes for each image, in the order in which the images are split.
        n_splits: consecutive parts, each scored alone.

    Returns:
        (n_splits,).

    Raises:
        DataError: not probabilities.
        ConfigError: fewer than 1 split, or more than images.
    """
    _require_probabilities(probabilities_NK)
    n = len(probabilities_NK)
    require(1 <= n_splits <= n, "n_splits", n_splits, f"from 1 to {n:,}, the number of images")
    edges = np.arange(n_splits + 1) * n // n_splits
    parts = (probabilities_NK[start:end] for start, end in itertools.pairwise(edges))
    return np.array([_scores(part, np.ones((1, len(part))))[0] for part in parts])


def inception_figure(probabilities_NK: np.ndarray, weights_RN: np.ndarray) -> Figure:
    """The score of all images in one split, with its interval.

    Raises:
        DataError: not probabilities.
    """
    _require_probabilities(probabilities_NK)
    value = inception_scores(probabilities_NK)[0]
    return Figure.of(value, _scores(probabilities_NK, weights_RN), len(probabilities_NK), least=1.0)


def _scores(probabilities_NK: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Entropy of the mean prediction less the mean entropy of predictions, as exp; (R,) for weighted images."""
    shares_RN = weights_RN / weights_RN.sum(1, keepdims=True)
    certainty_N = _minus_entropy(probabilities_NK)
    return np.exp(shares_RN @ certainty_N - _minus_entropy(shares_RN @ probabilities_NK))


def _minus_entropy(probabilities_NK: np.ndarray) -> np.ndarray:
    return (probabilities_NK * np.log(probabilities_NK.clip(min=_TINY))).sum(1)


def _require_probabilities(probabilities_NK: np.ndarray) -> None:
    shaped = probabilities_NK.ndim == 2 and len(probabilities_NK) > 0
    sound = shaped and (probabilities_NK >= 0).all() and np.allclose(probabilities_NK.sum(1), 1, atol=1e-6)
    found, expected = probabilities_NK.shape, "(N, K), rows of 0 or more that sum to 1"
    DataError.unless(bool(sound), "are not probabilities of classes", field="images", found=found, expected=expected)
