"""Inception score: its limits, splits, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.errors import ConfigError, DataError
from pipeline.evaluation.bootstrap import resampling_weights
from pipeline.evaluation.inception_score import inception_figure, inception_scores, probabilities


def test_it_is_the_number_of_classes_for_certain_and_even_predictions() -> None:
    certain = np.eye(7)[np.arange(70) % 7]
    assert inception_scores(certain)[0] == pytest.approx(7)


def test_it_is_one_without_certainty_or_without_variety() -> None:
    assert inception_scores(np.full((50, 7), 1 / 7))[0] == pytest.approx(1)
    assert inception_scores(np.eye(7)[np.zeros(50, int)])[0] == pytest.approx(1)


def test_each_split_is_scored_alone() -> None:
    sorted_by_class = np.eye(5)[np.repeat(np.arange(5), 20)]
    assert inception_scores(sorted_by_class, 5) == pytest.approx(np.ones(5))
    assert inception_scores(sorted_by_class)[0] == pytest.approx(5)


def test_it_follows_its_definition() -> None:
    p = probabilities(np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32))
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert inception_scores(p)[0] == pytest.approx(expected, rel=1e-12)
    figure = inception_figure(p, resampling_weights(60, 100, "test"))
    assert figure.value == pytest.approx(expected) and 1 <= figure.low < figure.high


def test_large_logits_stay_finite() -> None:
    assert probabilities(np.array([[1e4, 0.0, -1e4]])).tolist() == [[1, 0, 0]]


def test_what_is_no_distribution_is_refused() -> None:
    for wrong in (np.ones((3, 2)), np.array([[1.5, -0.5]]), np.empty((0, 3)), np.ones(3)):
        with pytest.raises(DataError, match="not probabilities"):
            inception_scores(wrong)
    with pytest.raises(ConfigError, match="n_splits"):
        inception_scores(np.eye(3), 4)
