"""The classifier on features: a unique minimum, standardised features, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foundation.errors import DataError
from pipeline.evaluation import classifier
from pipeline.evaluation.classifier import DECAY, FeatureClassifier

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 300)
FEATURES = (RNG.normal(size=(300, 5)) + 1.5 * np.eye(5)[LABELS]).astype(np.float32)


def test_it_is_the_minimum_of_its_loss() -> None:
    """scikit-learn's solver finds the same one: C = 1 / (N * decay)."""
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    found = FeatureClassifier.fit(FEATURES, LABELS, 3)
    scaled = (FEATURES - FEATURES.mean(0)) / FEATURES.std(0)
    expected = linear_model.LogisticRegression(C=1 / (300 * DECAY), tol=1e-10, max_iter=5000).fit(scaled, LABELS)
    theirs = expected.predict_proba(scaled)
    ours = torch.from_numpy(found.logits(FEATURES)).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert found.is_right(FEATURES, LABELS).mean() > 0.7


def test_the_scale_of_features_does_not_count() -> None:
    one = FeatureClassifier.fit(FEATURES, LABELS, 3)
    stretch = np.array([1e3, 1, 1e-3, 7, 1])
    other = FeatureClassifier.fit(FEATURES * stretch + 50, LABELS, 3)
    np.testing.assert_allclose(one.logits(FEATURES), other.logits(FEATURES * stretch + 50), atol=2e-2)


def test_constant_features_are_no_trouble_and_equal_input_gives_equal_weights() -> None:
    constant = np.concatenate([FEATURES, np.full((300, 2), 3.0)], 1)
    found = [FeatureClassifier.fit(constant, LABELS, 3) for _ in range(2)]
    assert np.isfinite(found[0].weights_KF).all() and np.array_equal(found[0].weights_KF, found[1].weights_KF)


def test_of_many_images_a_fixed_choice_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "MOST_IMAGES", 100)
    found = FeatureClassifier.fit(FEATURES, LABELS, 3)
    assert found.n_images == 100 and found.is_right(FEATURES, LABELS).mean() > 0.6


def test_wrong_labels_are_refused() -> None:
    for labels in (LABELS[:10], LABELS + 1, LABELS - 1):
        with pytest.raises(DataError, match="not the classes"):
            FeatureClassifier.fit(FEATURES, labels, 3)
    with pytest.raises(DataError, match="one class"):
        FeatureClassifier.fit(FEATURES, np.zeros(300, int), 3)
