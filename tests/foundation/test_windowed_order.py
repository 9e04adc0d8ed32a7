"""A windowed order: each example once an epoch, neighbours within a short time, a function of the position alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.randomness import WindowedOrder

SIZES = np.random.default_rng(0).integers(1, 300, 60)
N = int(SIZES.sum())
STARTS = np.cumsum(SIZES) - SIZES


def order(window: int = 1000, seed: int = 1) -> WindowedOrder:
    return WindowedOrder(STARTS, N, seed, window)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 500), st.integers(0, 99))
def test_each_example_comes_once_an_epoch(sizes: list[int], window: int, seed: int) -> None:
    n = sum(sizes)
    found = WindowedOrder(np.cumsum(sizes) - sizes, n, seed, window)
    indices, epochs = found.at(np.arange(3 * n))
    assert (np.sort(indices.reshape(3, n), 1) == np.arange(n)).all()
    assert (epochs.reshape(3, n) == np.arange(3)[:, None]).all()


def test_it_does_not_depend_on_batches_processes_or_where_it_began() -> None:
    whole = order().at(np.arange(2 * N))[0]
    for batch in (1, 7, 256):
        resumed = order()
        for first in (0, 5 * batch, N - batch // 2, 2 * N - batch):
            positions = np.arange(first, first + batch)
            assert np.array_equal(resumed.at(positions)[0], whole[positions])
    shares = [order().at(np.arange(rank, 2 * N, 3))[0] for rank in range(3)]
    assert all(np.array_equal(share, whole[rank::3]) for rank, share in enumerate(shares))
    scattered = np.random.default_rng(0).permutation(2 * N)
    assert np.array_equal(order().at(scattered)[0], whole[scattered])


def test_a_window_needs_few_groups_and_the_groups_that_it_names() -> None:
    found = order(window=1000)
    indices = found.at(np.arange(2 * N))[0]
    group_of = np.searchsorted(STARTS, indices, side="right") - 1
    seen: dict[tuple[int, int], set[int]] = {}
    for position, group in enumerate(group_of.tolist()):
        seen.setdefault(found.window_of(position), set()).add(group)
    assert len(seen) == 2 * found.n_windows
    for (epoch, window), groups in seen.items():
        named = found.groups_of(epoch, window)
        assert groups == set(named.tolist()) and len(named) == len(groups)
        assert len(groups) < len(SIZES) / 2
    lengths = np.bincount([found.window_of(position)[1] for position in range(N)])
    assert lengths.max() <= 1000 and lengths.max() - lengths.min() <= 1, "no window is much shorter than the others"


def test_epochs_and_seeds_differ_and_neighbours_are_taken_apart() -> None:
    found, other = order(window=2000), order(window=2000, seed=2)
    first, second = found.at(np.arange(N))[0], found.at(np.arange(N, 2 * N))[0]
    for one, two in ((first, second), (first, other.at(np.arange(N))[0])):
        assert (one == two).mean() < 0.02
    assert (np.abs(np.diff(first)) == 1).mean() < 0.01
    places = np.argsort(first)
    assert abs(np.corrcoef(np.arange(N), places)[0, 1]) < 0.3, "early images do not come early"


def test_every_example_is_early_in_some_epochs_and_late_in_others() -> None:
    found = order(window=500)
    halves = np.zeros(N)
    for epoch in range(60):
        halves[found.at(np.arange(epoch * N, epoch * N + N // 2))[0]] += 1
    assert halves.min() > 10 and halves.max() < 50 and abs(halves.mean() - 30) < 0.1


def test_a_window_over_a_part_of_a_group_holds_a_sample_of_all_of_it() -> None:
    found = WindowedOrder(np.array([0]), 10_000, 0, 500)
    for window in range(3):
        indices = found.at(np.arange(window * 500, window * 500 + 500))[0]
        assert np.bincount(indices // 1000, minlength=10).min() > 30


def test_a_window_of_everything_is_an_order_of_everything() -> None:
    indices = order(window=N).at(np.arange(N))[0]
    assert order(window=N).n_windows == 1 and np.array_equal(np.sort(indices), np.arange(N))


@pytest.mark.parametrize("window", [10, 16_384])
def test_the_order_is_the_same_in_every_version(window: int) -> None:
    """Computed with the first version: a run that is continued with another one must go on in the same order."""
    found = WindowedOrder(np.array([0, 4, 9]), 12, 3, window).at(np.arange(24))[0].tolist()
    assert found == EXPECTED[window]


EXPECTED = {
    10: [1, 0, 3, 9, 10, 2, 8, 5, 11, 6, 4, 7, 8, 6, 4, 7, 5, 9, 0, 11, 2, 1, 10, 3],
    16_384: [11, 2, 8, 3, 7, 9, 4, 5, 0, 10, 6, 1, 11, 6, 7, 10, 4, 8, 1, 3, 0, 9, 5, 2],
}
