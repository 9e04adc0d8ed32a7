"""Planted copies are found, in features and in codes; new images are not called copies."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.errors import DataError
from pipeline.evaluation.bootstrap import resampling_weights
from pipeline.evaluation.memorisation import memorisation_in_codes, memorisation_in_features, neighbours_picture

RNG = np.random.default_rng(0)
TRAINING, NEW = RNG.normal(size=(500, 8)), RNG.normal(size=(400, 8))
WEIGHTS = resampling_weights(200, 100, "test")


def test_new_images_are_as_near_as_new_images() -> None:
    found = memorisation_in_features(RNG.normal(size=(200, 8)), TRAINING, NEW, WEIGHTS)
    assert found.nearer.low < 0.5 < found.nearer.high and found.nearer.value == pytest.approx(0.5, abs=0.06)
    assert found.close.value <= 0.03 and found.real_close == pytest.approx(0.01)


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_planted_copies_are_found_and_named(noise: float) -> None:
    samples = RNG.normal(size=(200, 8))
    planted, originals = np.arange(30, 50), np.arange(100, 120)
    samples[planted] = TRAINING[originals] + RNG.normal(0, noise, (20, 8))
    found = memorisation_in_features(samples, TRAINING, NEW, WEIGHTS)
    assert set(found.closest[:20]) == set(planted)
    assert np.array_equal(found.nearest_N[planted], originals)
    assert found.close.value >= 0.1 and found.close.low > found.real_close and found.nearer.value > 0.5
    pairs = found.as_json([f"image {i}" for i in range(500)])["closest"]
    assert {each["training_image"] for each in pairs} <= {f"image {i}" for i in originals}


def test_planted_copies_of_codes_are_found() -> None:
    training, new, samples = (RNG.integers(0, 50, (n, 16)) for n in (500, 400, 200))
    samples[5:15] = training[40:50]
    samples[5:15, 0] = 51
    found = memorisation_in_codes(samples, training, new, WEIGHTS)
    assert set(found.closest[:10]) == set(range(5, 15)) and found.distances_N[5] == 1 / 16
    assert found.close.value >= 0.05 and found.nearest_N[5:15].tolist() == list(range(40, 50))


def test_all_copies_are_certain_and_ties_count_half() -> None:
    copies = memorisation_in_features(TRAINING[:200], TRAINING, NEW, WEIGHTS)
    assert copies.nearer.value == 1.0 and copies.close.value == 1.0
    same = np.zeros((200, 4), int)
    tied = memorisation_in_codes(same, same, same, WEIGHTS)
    assert tied.nearer.value == 0.5 and tied.close.value == tied.real_close == 1.0


def test_the_picture_has_a_row_for_each_sample() -> None:
    samples = RNG.integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    neighbours = RNG.integers(0, 255, (3, 4, 8, 8, 3)).astype(np.uint8)
    picture = np.asarray(neighbours_picture(samples, neighbours))
    assert picture.shape == (3 * 64 + 4, 64 + 16 + 4 * 64 + 6, 3)
    assert np.array_equal(picture[:64:8, :64:8], samples[0]) and (picture[:, 64:80] == 255).all()
    assert np.array_equal(picture[132::8, 80:144:8][:8], neighbours[2, 0])
    with pytest.raises(DataError, match="another shape"):
        neighbours_picture(samples, neighbours[:, :, :4])


def test_empty_sets_are_refused() -> None:
    with pytest.raises(DataError, match="held-out"):
        memorisation_in_features(TRAINING[:200], TRAINING, NEW[:0], WEIGHTS)
