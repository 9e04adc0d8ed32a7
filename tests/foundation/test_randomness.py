"""The order of the data is a permutation in every epoch, mixes like a random one, and is held nowhere."""

import math
import tracemalloc
from itertools import permutations

import numpy as np
import pytest

from foundation.randomness import DataOrder, permuted


def deviations(counts: np.ndarray) -> float:
    """Pearson's chi-square of counts that should be equal, in standard deviations from its mean."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


SIZES = [*range(1, 70), 127, 128, 129, 1000, 1023, 1024, 1025, 4096, 50_000, 65_535, 65_536, 65_537, 1_000_003]


@pytest.mark.parametrize("n", SIZES)
def test_it_is_a_permutation_for_every_size(n: int) -> None:
    for epoch in range(2):
        indices, epochs = DataOrder(n, seed=n).at(np.arange(epoch * n, (epoch + 1) * n))
        assert np.array_equal(np.bincount(indices, minlength=n), np.ones(n, int))
        assert (epochs == epoch).all()


@pytest.mark.parametrize("n", [2**31 - 1, 2**40 + 1, 2**62])
def test_it_is_one_for_sizes_that_no_array_could_hold(n: int) -> None:
    places = np.concatenate([np.arange(50_000), n - 1 - np.arange(50_000)])
    found = permuted(places, n, "huge")
    assert len(np.unique(found)) == len(places) and found.min() >= 0 and found.max() < n
    assert abs(deviations(np.bincount((found / n * 100).astype(int), minlength=100))) < 5


def test_the_order_is_the_same_in_every_version() -> None:
    """Computed with the first version: a run that is continued with another one must go on in the same order."""
    assert DataOrder(10, seed=3).at(np.arange(20))[0].tolist() == [
        7,
        1,
        2,
        3,
        0,
        5,
        4,
        9,
        6,
        8,
        6,
        1,
        0,
        3,
        9,
        8,
        5,
        7,
        4,
        2,
    ]
    assert DataOrder(1_281_167, seed=0).at(np.array([0, 1, 1_281_166, 1_281_167]))[0].tolist() == [
        577677,
        137093,
        567259,
        540871,
    ]


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_any_three_places_of_a_small_set_get_every_triple_equally_often(n: int) -> None:
    triples = {triple: i for i, triple in enumerate(permutations(range(n), 3))}
    keys = range(100 * len(triples))
    drawn = [tuple(permuted(np.array([n - 1, 0, 1]), n, key, "order", 0).tolist()) for key in keys]
    assert deviations(np.bincount([triples[each] for each in drawn], minlength=len(triples))) < 4.5


def test_every_example_comes_first_equally_often() -> None:
    first = [int(DataOrder(100, seed).at(np.array([epoch * 100]))[0][0]) for seed in range(200) for epoch in range(20)]
    assert abs(deviations(np.bincount(first, minlength=100))) < 4.5


def test_neighbours_and_epochs_are_unrelated() -> None:
    n = 40_000
    one, other = DataOrder(n, seed=1).at(np.arange(2 * n))[0].reshape(2, n)
    reseeded = DataOrder(n, seed=2).at(np.arange(n))[0]
    for pair in (
        (one[:-1], one[1:]),
        (one[:-2], one[2:]),
        (one[:-200], one[200:]),
        (one, np.arange(n)),
        (one, other),
        (one, reseeded),
    ):
        assert abs(np.corrcoef(*pair)[0, 1]) < 4.5 / math.sqrt(n)
        cells = np.histogram2d(*pair, bins=20, range=[[0, n], [0, n]])[0]
        assert abs(deviations(cells)) < 5
        steps = np.bincount((pair[1] - pair[0]) % n * 100 // n, minlength=100)
        assert abs(deviations(steps)) < 5
    assert (one == other).sum() < 10 and (one == reseeded).sum() < 10, "about one place in common is expected"


def test_the_rank_of_the_data_is_spread_over_the_epoch() -> None:
    """Every tenth of an epoch holds about a tenth of each class of a set that is sorted by class."""
    n = 50_000
    order = DataOrder(n, seed=5).at(np.arange(n))[0]
    counts = np.histogram2d(order, np.arange(n), bins=10)[0]
    assert np.abs(counts - n / 100).max() < 5 * math.sqrt(n / 100)


def test_a_hundred_million_need_no_more_memory_than_a_thousand() -> None:
    peaks = []
    for n in (1_000, 100_000_000):
        order = DataOrder(n, seed=0)
        order.at(np.arange(512))
        tracemalloc.start()
        for step in range(20):
            order.at(np.arange(step * 512, (step + 1) * 512) * (n // 1_000))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 200_000, peaks


def test_an_epoch_that_ends_inside_a_batch_goes_over_into_the_next() -> None:
    order = DataOrder(7, seed=1)
    indices, epochs = order.at(np.arange(5, 19))
    assert epochs.tolist() == [0] * 2 + [1] * 7 + [2] * 5
    assert sorted(indices[2:9]) == list(range(7))
    one_by_one = [order.at(np.array([position]))[0][0] for position in range(5, 19)]
    assert indices.tolist() == one_by_one
