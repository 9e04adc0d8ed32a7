"""Confidence intervals: they cover what is known, and replicates are what they are said to be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from foundation.errors import ConfigError, DataError
from pipeline.evaluation.bootstrap import Figure, frechet_figure, kernel_figure, mean_figure, resampling_weights
from pipeline.evaluation.distances import FeatureMoments, frechet_distance, gaussian_frechet_distance, unbiased_mmd2
from pipeline.evaluation.inception_score import inception_figure, inception_scores

F = 6
SHIFT, SCALE = 0.4, 1.3


def draws(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, F)), rng.normal(SHIFT, SCALE, size=(n, F))


def of_mean(seed: int) -> Figure:
    return mean_figure(np.random.default_rng(seed).random(300) < 0.2, resampling_weights(300, 300, seed))


def of_kernel(seed: int) -> Figure:
    one, other = draws(200, seed)
    return kernel_figure(one, other, resampling_weights(200, 200, "a", seed), resampling_weights(200, 200, "b", seed))


def of_frechet(seed: int) -> Figure:
    one, other = draws(1000, seed)
    return frechet_figure(
        one, other, resampling_weights(1000, 200, "a", seed), resampling_weights(1000, 200, "b", seed)
    )


def of_inception(seed: int) -> Figure:
    return inception_figure(predictions(2000, seed), resampling_weights(2000, 200, seed))


KINDS = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])


def predictions(n: int, seed: int) -> np.ndarray:
    """Three kinds of image, in the shares 1/2, 1/4, 1/4."""
    return KINDS[np.random.default_rng(seed).choice(3, n, p=[0.5, 0.25, 0.25])]


def true_kernel() -> float:
    """From the first three moments of both Gaussians, which the kernel of degree 3 needs."""

    def moments(mean: float, variance: float) -> list[np.ndarray]:
        one, unit = np.full(F, mean), np.eye(F)
        two = np.multiply.outer(one, one) + variance * unit
        mixed = np.multiply.outer(unit, one)
        three = np.multiply.outer(np.multiply.outer(one, one), one)
        three = three + variance * (mixed + mixed.transpose(0, 2, 1) + mixed.transpose(2, 1, 0))
        return [one, two, three]

    def mean_kernel(one: list[np.ndarray], other: list[np.ndarray]) -> float:
        first, second, third = (float((a * b).sum()) for a, b in zip(one, other, strict=True))
        return 1 + 3 * first / F + 3 * second / F**2 + third / F**3

    one, other = moments(0, 1), moments(SHIFT, SCALE**2)
    return mean_kernel(one, one) + mean_kernel(other, other) - 2 * mean_kernel(one, other)


def true_frechet() -> float:
    return gaussian_frechet_distance(np.zeros(F), np.eye(F), np.full(F, SHIFT), SCALE**2 * np.eye(F))


def true_inception() -> float:
    return float(inception_scores(KINDS[[0, 0, 1, 2]])[0])


@pytest.mark.parametrize(
    ("figure", "truth"),
    [(of_mean, lambda: 0.2), (of_kernel, true_kernel), (of_frechet, true_frechet), (of_inception, true_inception)],
)
def test_intervals_cover_the_known_value_in_90_of_100_simulations(
    figure: Callable[[int], Figure], truth: Callable[[], float]
) -> None:
    known = truth()
    found = [figure(seed) for seed in range(100)]
    covered = [each.low <= known <= each.high for each in found]
    assert 90 <= sum(covered) <= 100
    widths = np.array([each.high - each.low for each in found])
    spread = np.std([each.value for each in found])
    assert widths.mean() == pytest.approx(2 * 1.96 * spread, rel=0.25), "no wider than the figure's own spread"


def test_weights_count_draws_and_depend_on_the_key_alone() -> None:
    weights = resampling_weights(50, 20, "a", 3)
    assert (weights.sum(1) == 50).all() and (weights == weights.round()).all() and (weights == 0).any()
    assert np.array_equal(weights, resampling_weights(50, 20, "a", 3))
    assert not np.array_equal(weights, resampling_weights(50, 20, "b", 3))


def test_a_kernel_replicate_is_the_distance_of_what_was_drawn_without_pairs_of_one_image() -> None:
    one, other = draws(12, 0)
    weights = resampling_weights(12, 4, "a"), resampling_weights(12, 4, "b")
    expected = []
    for w, v in zip(*weights, strict=True):
        rows, columns = np.repeat(np.arange(12), w.astype(int)), np.repeat(np.arange(12), v.astype(int))

        def pairs(features: np.ndarray, ids: np.ndarray) -> float:
            kernel = (features[ids] @ features[ids].T / F + 1) ** 3
            return float(kernel[ids[:, None] != ids[None]].mean())

        cross = ((one[rows] @ other[columns].T / F + 1) ** 3).mean()
        expected.append(pairs(one, rows) + pairs(other, columns) - 2 * cross)
    figure = kernel_figure(one, other, *weights)
    shifts = np.percentile(np.mean(expected) - expected, (2.5, 97.5))
    assert figure.value == pytest.approx(unbiased_mmd2(one, other), rel=1e-10)
    assert (figure.low, figure.high) == pytest.approx(tuple(figure.value + shifts), rel=1e-9)


def test_first_order_replicates_of_the_frechet_distance_spread_as_exact_ones_do() -> None:
    one, other = draws(400, 5)
    weights = resampling_weights(400, 200, "a"), resampling_weights(400, 200, "b")
    figure, exact = frechet_figure(one, other, *weights), []
    for w, v in zip(*weights, strict=True):
        moments = [FeatureMoments(F), FeatureMoments(F)]
        moments[0].update(np.repeat(one, w.astype(int), 0))
        moments[1].update(np.repeat(other, v.astype(int), 0))
        exact.append(frechet_distance(*moments))
    width = np.subtract(*np.percentile(exact, (97.5, 2.5)))
    assert figure.high - figure.low == pytest.approx(width, rel=0.15)


def test_a_set_is_at_distance_zero_from_itself() -> None:
    one, _ = draws(500, 0)
    weights = resampling_weights(500, 20, "a")
    figure = frechet_figure(one, one, weights, weights)
    assert figure.value < 1e-6 and figure.low == 0.0


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="resample"):
        resampling_weights(0, 5, "a")
    with pytest.raises(ConfigError, match="n_replicates"):
        resampling_weights(5, 0, "a")
    one, other = draws(1, 0)
    weights = resampling_weights(1, 5, "a")
    with pytest.raises(DataError, match="too few"):
        kernel_figure(one, other, weights, weights)
