import math

import numpy as np
import pytest

from foundation.errors import ConfigError, DataError
from pipeline.evaluation.distances import KernelDistanceStream, unbiased_mmd2


def draw(n: int, seed: int, shift: float = 0.0, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (n, width))


def mmd2_pair_by_pair(one: np.ndarray, other: np.ndarray, paired: bool) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    def mean_within(rows: np.ndarray) -> float:
        return float(np.mean([kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]))

    pairs = [kernel(x, y) for i, x in enumerate(one) for j, y in enumerate(other) if not (paired and i == j)]
    return mean_within(one) + mean_within(other) - 2 * float(np.mean(pairs))


def stream(one: np.ndarray, other: np.ndarray, batch: int = 32, **settings: object) -> KernelDistanceStream:
    result = KernelDistanceStream(one.shape[1], **settings)  # type: ignore[arg-type]
    for start in range(0, len(one), batch):
        result.update(one[start : start + batch], other[start : start + batch])
    return result


@pytest.mark.parametrize("paired", [False, True])
def test_equals_the_sum_over_all_pairs(paired: bool) -> None:
    one, other = draw(9, 0), draw(9, 1, 0.5)
    assert unbiased_mmd2(one, other, paired=paired) == pytest.approx(mmd2_pair_by_pair(one, other, paired), rel=1e-9)


def test_sets_of_different_sizes_compare_when_they_are_not_paired() -> None:
    one, other = draw(9, 0), draw(5, 1, 0.5)
    assert unbiased_mmd2(one, other) == pytest.approx(mmd2_pair_by_pair(one, other, False), rel=1e-9)
    with pytest.raises(DataError, match="9 and 5"):
        unbiased_mmd2(one, other, paired=True)


def test_unbiased_two_samples_of_one_distribution_scatter_about_zero() -> None:
    result = stream(draw(6000, 0), draw(6000, 1), subset_size=50).result()
    assert result.n_subsets == 120
    assert abs(result.value) < 3 * result.standard_error
    apart = stream(draw(6000, 0), draw(6000, 1, 0.3), subset_size=50).result()
    assert apart.value > 10 * apart.standard_error


def test_pairs_do_not_pull_the_estimate_below_zero() -> None:
    """Image and reconstruction that are equal score 0; the plain estimate is biased downwards for them."""
    one = draw(200, 0)
    assert unbiased_mmd2(one, one, paired=True) == pytest.approx(0, abs=1e-12)
    assert unbiased_mmd2(one, one) < -0.01
    noise = np.random.default_rng(2).normal(0, 0.01, one.shape)
    assert abs(unbiased_mmd2(one, one + noise, paired=True)) < 1e-3


def test_subsets_are_consecutive_whatever_the_batches_and_the_incomplete_one_is_left_out() -> None:
    one, other = draw(250, 0), draw(250, 1, 0.2)
    expected = np.mean([unbiased_mmd2(one[i : i + 100], other[i : i + 100]) for i in (0, 100)])
    for batch in (1, 33, 250):
        result = stream(one, other, batch, subset_size=100).result()
        assert (result.n_subsets, result.subset_size) == (2, 100)
        assert result.value == pytest.approx(expected, rel=1e-12)


def test_a_single_incomplete_subset_counts_and_has_no_standard_error() -> None:
    one, other = draw(30, 0), draw(30, 1)
    result = stream(one, other, subset_size=100).result()
    assert (result.n_subsets, result.subset_size) == (1, 30)
    assert result.value == pytest.approx(unbiased_mmd2(one, other), rel=1e-12)
    assert math.isnan(result.standard_error)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="subset_size"):
        KernelDistanceStream(3, subset_size=1)
    state = KernelDistanceStream(3)
    with pytest.raises(DataError, match="different lengths"):
        state.update(np.zeros((2, 3)), np.zeros((1, 3)))
    with pytest.raises(DataError, match="not finite"):
        state.update(np.zeros((2, 3)), np.full((2, 3), np.inf))
    with pytest.raises(DataError, match="too few"):
        state.result()
