"""Nearest neighbours: exact, in blocks, of features and of codes."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.errors import DataError
from pipeline.evaluation import nearest
from pipeline.evaluation.nearest import nearest_codes, nearest_features, squared_distances

RNG = np.random.default_rng(0)
ONE, OTHER = RNG.normal(5, 1, (40, 7)).astype(np.float32), RNG.normal(5, 1, (60, 7)).astype(np.float32)


def by_definition(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.array(np.sqrt(np.square(one[:, None].astype(float) - other[None].astype(float)).sum(2)))


@pytest.mark.parametrize("k", [1, 4, 60])
def test_neighbours_are_those_of_the_definition(k: int) -> None:
    expected = by_definition(ONE, OTHER)
    distances, indices = nearest_features(ONE, OTHER, k)
    np.testing.assert_allclose(distances, np.sort(expected, 1)[:, :k], rtol=1e-10)
    assert np.array_equal(indices, np.argsort(expected, 1)[:, :k])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nearest_features(ONE, OTHER, 3), nearest_codes((ONE * 2).astype(int), (OTHER * 2).astype(int))
    monkeypatch.setattr(nearest, "_BLOCK_BYTES", 8 * 60 * 7)
    assert len(list(squared_distances(ONE, OTHER))) == 6
    parts = nearest_features(ONE, OTHER, 3), nearest_codes((ONE * 2).astype(int), (OTHER * 2).astype(int))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-12)
        assert np.array_equal(one[1], other[1])


def test_a_copy_is_at_distance_zero_whatever_the_mean() -> None:
    distances, indices = nearest_features(ONE[:5] + 1000, OTHER + 1000)
    assert (distances > 0.1).all()
    distances, indices = nearest_features(OTHER[7:9] + 1000, OTHER + 1000)
    assert indices[:, 0].tolist() == [7, 8] and distances.max() < 1e-5


def test_of_equal_neighbours_the_first_is_taken() -> None:
    same = np.repeat(OTHER[:1], 5, 0)
    assert nearest_features(OTHER[:1], same, 3)[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("top", [30, 70_000])
def test_codes_are_compared_by_the_share_that_differs(top: int) -> None:
    one, other = RNG.integers(0, top, (20, 9)), RNG.integers(0, top, (30, 9))
    one[:, :4] = other[:20, :4]
    other[25] = one[3]
    shares, indices = nearest_codes(one, other)
    expected = (one[:, None] != other[None]).mean(2)
    np.testing.assert_allclose(shares, expected.min(1))
    assert np.array_equal(indices, expected.argmin(1)) and shares[3] == 0 and indices[3] == 25


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="differ in length"):
        nearest_features(ONE, OTHER[:, :3])
    with pytest.raises(DataError, match="not finite"):
        nearest_features(ONE * np.nan, OTHER)
    with pytest.raises(DataError, match="too few"):
        nearest_features(ONE, OTHER[:2], 3)
    with pytest.raises(DataError, match="cannot be compared"):
        nearest_codes(np.zeros((2, 4), int), np.zeros((2, 5), int))
    with pytest.raises(DataError, match="cannot be compared"):
        nearest_codes(np.zeros((2, 4), int), np.zeros((0, 4), int))
