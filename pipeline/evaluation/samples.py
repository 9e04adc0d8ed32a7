"""Scores of samples: how near they are to real images, how varied, of which class, and whether they are copies.

Each figure stands beside the same figure of held-out real images in place of samples: what a perfect generator gets.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from foundation.config import require
from foundation.errors import DataError
from foundation.randomness import permutation
from pipeline.evaluation.bootstrap import (
    N_REPLICATES,
    Figure,
    frechet_figure,
    kernel_figure,
    mean_figure,
    resampling_weights,
)
from pipeline.evaluation.classifier import FeatureClassifier
from pipeline.evaluation.config import LEAST_SAMPLES
from pipeline.evaluation.extractors import FeatureExtractor
from pipeline.evaluation.features import ImageFeatures, features_of
from pipeline.evaluation.inception_score import inception_figure, probabilities
from pipeline.evaluation.manifold import overlap
from pipeline.evaluation.memorisation import Memorisation, memorisation_in_codes, memorisation_in_features

MOST_COMPARED = 10_000
"""images of each set between which all distances are computed"""


@dataclass(frozen=True)
class CodeSets:
    """Codes in the order of the sequence, of one tokenizer.

    Attributes:
        samples_NT: of each sample.
        training_MT: of training images; of several views of one, all that a prior was trained on.
        held_out_LT: of held-out images.
    """

    samples_NT: np.ndarray
    training_MT: np.ndarray
    held_out_LT: np.ndarray


@dataclass(frozen=True)
class SampleScores:
    """Result of ``score_samples``.

    Attributes:
        extractor: name of the features' network.
        n_features: length of a feature vector.
        resize: how images reached the network's size.
        caveat: why figures do not compare with published ones; None if they do.
        n_samples, n_training, n_held_out: images of each set.
        figures: of the samples, by name; see docs/EVALUATION.md.
        real: of held-out images in place of the samples, by the same names, at most as many.
        near_features: distances to the nearest training images.
        near_codes: the same in codes; None without codes.
        classes_of: whose classes the Inception score takes; None without it.
        n_classified: training images that the classifier was fitted on; 0 without it.
    """

    extractor: str
    n_features: int
    resize: str
    caveat: str | None
    n_samples: int
    n_training: int
    n_held_out: int
    figures: dict[str, Figure]
    real: dict[str, Figure]
    near_features: Memorisation
    near_codes: Memorisation | None
    classes_of: str | None
    n_classified: int

    def metrics(self) -> dict[str, float]:
        """Log values; every name ends with the extractor, ``real_`` precedes figures of held-out images."""
        numbers = {"n_samples": float(self.n_samples)}
        for prefix, figures in (("", self.figures), ("real_", self.real)):
            numbers |= {f"{prefix}{name}_{self.extractor}": each.value for name, each in figures.items()}
        return numbers


def score_samples(
    samples_NYXC: np.ndarray,
    labels_N: np.ndarray | None,
    training_MYXC: np.ndarray,
    training_labels_M: np.ndarray | None,
    held_out_LYXC: np.ndarray,
    held_out_labels_L: np.ndarray | None,
    extractor: FeatureExtractor,
    *,
    codes: CodeSets | None = None,
    seed: int = 0,
    n_replicates: int = N_REPLICATES,
) -> SampleScores:
    """Score images in memory. To score several sets against one, keep ``features_of`` it and call ``score_features``.

    Args:
        samples_NYXC: uint8, 1 or 3 channels; 10 images or more of each set.
        labels_N: the classes that were asked for, or None: no class accuracy then.
        training_MYXC: real images that the samples are compared with.
        training_labels_M: their classes, or None.
        held_out_LYXC: real images that were not trained on.
        held_out_labels_L: their classes, or None.
        extractor: makes the features.
        codes: finds copies in codes too; None does not.
        seed: of the choice of images where a figure takes as many of each set, and of the resampling.
        n_replicates: resamplings for the confidence intervals.

    Raises:
        DataError: no such pixels, too few images, or labels without a fellow.
        ConfigError: something else than an extractor, or no replicate.
    """
    samples, training, held_out = (
        features_of(images, labels, extractor)
        for images, labels in (
            (samples_NYXC, labels_N),
            (training_MYXC, training_labels_M),
            (held_out_LYXC, held_out_labels_L),
        )
    )
    return score_features(samples, training, held_out, extractor, codes=codes, seed=seed, n_replicates=n_replicates)


def score_features(
    samples: ImageFeatures,
    training: ImageFeatures,
    held_out: ImageFeatures,
    extractor: FeatureExtractor,
    *,
    codes: CodeSets | None = None,
    seed: int = 0,
    n_replicates: int = N_REPLICATES,
) -> SampleScores:
    """As ``score_samples``, of features that are known.

    Raises:
        DataError, ConfigError: see ``score_samples``.
    """
    for name, each in (("samples", samples), ("training images", training), ("held-out images", held_out)):
        expected = f"{LEAST_SAMPLES} or more"
        DataError.unless(
            len(each) >= LEAST_SAMPLES, "are too few to score", field=name, found=len(each), expected=expected
        )
    require(n_replicates >= 2, "n_replicates", n_replicates, "2 or more")
    classifier = _classifier(training)
    comparison = _Comparison(training, classifier, seed, n_replicates)
    chosen = np.sort(permutation(len(held_out), "held-out as samples", seed)[: len(samples)])
    as_samples = held_out.rows(chosen)
    figures, real = comparison.figures(samples), comparison.figures(as_samples)
    weights_RN = resampling_weights(len(samples), n_replicates, "samples", seed)
    near_features = memorisation_in_features(
        samples.features_NF, training.features_NF, held_out.features_NF, weights_RN
    )
    near_codes = None
    if codes is not None:
        near_codes = memorisation_in_codes(codes.samples_NT, codes.training_MT, codes.held_out_LT, weights_RN)
    for suffix, near in (("", near_features), ("_codes", near_codes)):
        if near is not None:
            figures |= {f"nearer{suffix}": near.nearer, f"close{suffix}": near.close}
            n = len(held_out)
            real |= {f"nearer{suffix}": _known(0.5, n), f"close{suffix}": _known(near.real_close, n)}
    return SampleScores(
        extractor.name,
        extractor.n_features,
        extractor.resize,
        extractor.caveat,
        len(samples),
        len(training),
        len(held_out),
        figures,
        real,
        near_features,
        near_codes,
        comparison.classes_of(samples),
        0 if classifier is None else classifier.n_images,
    )


def _known(value: float, n_images: int) -> Figure:
    """A figure of held-out images that is no estimate."""
    return Figure(value, value, value, n_images)


def _classifier(training: ImageFeatures) -> FeatureClassifier | None:
    labels_N = training.labels_N
    if labels_N is None or len(np.unique(labels_N)) < 2:
        return None
    return FeatureClassifier.fit(training.features_NF, labels_N, int(labels_N.max()) + 1)


class _Comparison:
    """Compares sets of images with the training images."""

    def __init__(
        self, training: ImageFeatures, classifier: FeatureClassifier | None, seed: int, n_replicates: int
    ) -> None:
        self._training, self._classifier = training, classifier
        self._seed, self._n_replicates = seed, n_replicates

    def figures(self, images: ImageFeatures) -> dict[str, Figure]:
        """All figures of a set that need no other one."""
        training, seed = self._training, self._seed
        n = min(len(images), len(training), MOST_COMPARED)  # equal numbers, on which some figures depend
        some = images.features_NF[_some(len(images), n, "images", seed)]
        fellow = training.features_NF[_some(len(training), n, "training images", seed)]
        weights_RN, weights_RM = (self._weights(n, name) for name in ("compared", "compared with"))
        shared = overlap(some, fellow)
        all_RN, all_RM = self._weights(len(images), "all"), self._weights(len(training), "training")
        return {
            "kernel_distance": kernel_figure(some, fellow, weights_RN, weights_RM),
            "frechet_distance": self._frechet(images.features_NF, all_RN, all_RM),
            **self._by_class(images, all_RN),
            "precision": mean_figure(shared.precise_N, weights_RN),
            "recall": mean_figure(shared.recalled_M, weights_RM),
            "density": mean_figure(shared.dense_N, weights_RN),
            "coverage": mean_figure(shared.covered_M, weights_RM),
        }

    def classes_of(self, images: ImageFeatures) -> str | None:
        """Whose classes the Inception score takes."""
        if images.logits_NK.shape[1]:
            return "the extractor's own classes"
        return None if self._classifier is None else "the data's classes, by the classifier"

    def _by_class(self, images: ImageFeatures, weights_RN: np.ndarray) -> dict[str, Figure]:
        found, logits_NK = {}, images.logits_NK
        if self._classifier is not None and not logits_NK.shape[1]:
            logits_NK = self._classifier.logits(images.features_NF)
        if logits_NK.shape[1]:
            found["inception_score"] = inception_figure(probabilities(logits_NK), weights_RN)
        if self._classifier is not None and images.labels_N is not None:
            right_N = self._classifier.is_right(images.features_NF, images.labels_N)
            found["class_accuracy"] = mean_figure(right_N, weights_RN)
        return found

    def _frechet(self, features_NF: np.ndarray, weights_RN: np.ndarray, weights_RM: np.ndarray) -> Figure:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few images: the notes say it
            return frechet_figure(features_NF, self._training.features_NF, weights_RN, weights_RM)

    def _weights(self, n: int, name: str) -> np.ndarray:
        return resampling_weights(n, self._n_replicates, name, self._seed)


def _some(n_images: int, n: int, *key: int | str) -> np.ndarray:
    """A fixed choice of n images, in order; all of them where there are no more."""
    return np.sort(permutation(n_images, "compared", *key)[:n])
