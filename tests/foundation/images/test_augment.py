"""Crops, mirror images and shifts: keyed by (seed, epoch, image), inside of the image, evenly distributed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foundation.errors import ConfigError
from foundation.images.augment import N_DRAWS, augmented, crop_box, random_view, view_draws
from foundation.images.config import Augment, Preprocess
from foundation.images.image_set import ImageSet
from foundation.images.sources import FolderSource

RESIZED = Augment(crop="random_resized")
WINDOW = Augment(crop="random", crop_fraction=(0.8, 1.0))
ALL_WAYS = [Augment(), RESIZED, WINDOW, Augment(crop="random", flip=True, max_shift=2), Augment(flip=True)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> FolderSource:
    for i in range(12):
        picture(60 + 7 * i, 80 - 3 * i, i).save(tmp_path / f"{i:02d}.png")
    return FolderSource(str(tmp_path))


def draws(augment: Augment, n: int, seed: int = 0) -> np.ndarray:
    return view_draws(augment, np.arange(n), np.zeros(n, int), seed)


def test_augmentation_depends_on_image_and_epoch_not_on_the_batch() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 6, 6, 1), np.uint8)
    indices, epochs = np.arange(40), np.zeros(40, int)
    augment = Augment(flip=True, max_shift=1)
    whole = augmented(pixels.copy(), augment, indices, epochs, seed=1)
    order = np.random.default_rng(1).permutation(40)
    assert np.array_equal(augmented(pixels[order], augment, indices[order], epochs, seed=1), whole[order])
    assert not np.array_equal(augmented(pixels.copy(), augment, indices, epochs + 1, seed=1), whole)
    flipped = augmented(pixels.copy(), Augment(flip=True), indices, epochs, seed=1)
    mirrored = (flipped == pixels[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == pixels).all(axis=(1, 2, 3))
    assert (mirrored | same).all() and 8 < mirrored.sum() < 32


@pytest.mark.parametrize("augment", ALL_WAYS)
def test_an_example_depends_on_seed_epoch_and_image_not_on_its_batch(augment: Augment, folder: FolderSource) -> None:
    indices, epochs = np.array([3, 7, 1, 3, 9]), np.array([0, 4, 2, 1, 0])

    def batch(at: np.ndarray, in_epochs: np.ndarray, seed: int = 5, cache_mib: int = 0) -> np.ndarray:
        images = ImageSet(folder, Preprocess(height=24, width=32), cache_mib=cache_mib, augment=augment, seed=seed)
        assert images.decodes == (cache_mib == 0 or augment.crop != "center")
        return images.batch(at, in_epochs)["images"].numpy()

    whole = batch(indices, epochs)
    assert whole.dtype == np.uint8 and whole.shape == (5, 24, 32, 3)
    alone = np.concatenate([batch(indices[i : i + 1], epochs[i : i + 1]) for i in range(5)])
    assert np.array_equal(whole, alone)
    assert np.array_equal(whole, batch(indices, epochs, cache_mib=100)), "in memory and on demand"
    same = augment == Augment()
    assert np.array_equal(whole, batch(indices, epochs + 1)) == same
    assert np.array_equal(whole, batch(indices, epochs, seed=6)) == same


@pytest.mark.parametrize("augment", [RESIZED, WINDOW, Augment(crop="random")])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (100, 30), (16, 300), (1, 1), (9, 1)])
@pytest.mark.parametrize("result", [(256, 256), (24, 32)])
def test_boxes_lie_inside_of_the_image(augment: Augment, size: tuple[int, int], result: tuple[int, int]) -> None:
    for row in (
        *draws(augment, 200),
        np.zeros(1 + N_DRAWS[augment.crop]),
        np.full(1 + N_DRAWS[augment.crop], 1 - 2**-53),
    ):
        left, top, right, bottom = crop_box(augment, row[1:], size, *result)
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1], row


def test_areas_and_ratios_of_resized_crops_are_evenly_distributed() -> None:
    """Where every crop fits: areas up to 0.5 of a square, so that nothing is rejected."""
    n, side = 4000, 2000
    augment = Augment(crop="random_resized", scale=(0.1, 0.5), ratio=(0.75, 4 / 3))
    boxes = np.array([crop_box(augment, row[1:], (side, side), 64, 64) for row in draws(augment, n)])
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    found = {
        "area": (wide * high / side**2 - 0.1) / 0.4,
        "ratio": np.log(wide / high / 0.75) / np.log(16 / 9),
        "left": boxes[:, 0] / (side - wide),
        "top": boxes[:, 1] / (side - high),
    }
    for name, values in found.items():
        distance = np.abs(np.sort(values) - (np.arange(n) + 0.5) / n).max()
        assert distance < 1.95 / n**0.5, f"{name}: Kolmogorov and Smirnov's distance at one in a thousand"
    together = np.corrcoef(list(found.values()))
    assert np.abs(together[~np.eye(4, dtype=bool)]).max() < 4 / n**0.5, "independent of each other"


def test_windows_are_evenly_distributed_at_whole_pixels() -> None:
    """Of a 40 x 20 image covering 16 x 16, resized to 32 x 16: 17 windows."""
    augment, n = Augment(crop="random"), 3400
    boxes = np.array([crop_box(augment, row[1:], (40, 20), 16, 16) for row in draws(augment, n)])
    lefts, counts = np.unique(boxes[:, 0] * 32 / 40, return_counts=True)
    assert lefts.tolist() == list(range(17)) and (boxes[:, 1] == 0).all() and (boxes[:, 3] == 20).all()
    assert ((counts - n / 17) ** 2 / (n / 17)).sum() < 39.3, "chi-squared with 16 degrees of freedom, one in a thousand"


def test_a_fraction_draws_every_side_of_the_covering_image() -> None:
    """A crop of 16 of sides from 16 to 20, as a crop of 0.8 to 1 of the shorter side."""
    boxes = np.array([crop_box(WINDOW, row[1:], (400, 400), 16, 16) for row in draws(WINDOW, 2000)])
    sides, counts = np.unique((16 * 400 / (boxes[:, 2] - boxes[:, 0])).round(6), return_counts=True)
    assert sides.tolist() == [16, 17, 18, 19, 20] and counts.min() > 320


def test_where_no_crop_fits_the_largest_one_is_at_the_centre() -> None:
    augment = Augment(crop="random_resized", scale=(1.0, 1.0), ratio=(0.9, 1.1))
    for row in draws(augment, 20):
        assert crop_box(augment, row[1:], (300, 100), 64, 64) == (95, 0, 205, 100)
        assert crop_box(augment, row[1:], (100, 300), 64, 64) == pytest.approx((0, 94, 100, 205), abs=1)


def test_a_window_has_the_pixels_of_the_image_resized_and_then_cropped() -> None:
    """To one grey level: sums of the filter are rounded at another place."""
    preprocess, image = Preprocess(height=64, width=64), picture(300, 200)
    for row in draws(WINDOW, 10):
        left, top, right, _ = crop_box(WINDOW, row[1:], image.size, 64, 64)
        scale = 64 / (right - left)
        whole = np.asarray(image.resize((round(300 * scale), round(200 * scale)), Image.Resampling.BICUBIC), int)
        x, y = round(left * whole.shape[1] / 300), round(top * whole.shape[0] / 200)
        view = random_view(preprocess, WINDOW, image, row).astype(int)
        assert np.abs(view - whole[y : y + 64, x : x + 64]).max() <= 1


@pytest.mark.parametrize("augment", [RESIZED, Augment(crop="center")])
def test_half_of_the_views_are_mirrored(augment: Augment) -> None:
    preprocess, image, n_mirrored = Preprocess(height=16, width=16), picture(60, 40), 0
    for row in draws(augment, 100):
        plain = random_view(preprocess, augment, image, row)
        flipped = random_view(preprocess, dataclasses.replace(augment, flip=True), image, row)
        n_mirrored += np.array_equal(flipped, plain[:, ::-1])
        assert np.array_equal(flipped, plain if row[0] >= 0.5 else plain[:, ::-1])
    assert 30 < n_mirrored < 70


@pytest.mark.parametrize(
    ("field", "value"),
    [("scale", (0.0, 1.0)), ("scale", (0.5, 0.2)), ("crop_fraction", (0.8, 1.1)), ("ratio", (-1.0, 1.0))],
)
def test_ranges_out_of_order_are_refused_by_name(field: str, value: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=field):
        Augment(**{field: value})  # type: ignore[arg-type]
