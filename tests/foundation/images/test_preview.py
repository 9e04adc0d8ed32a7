"""Previews of any channels and bits: 8-bit pictures that compare."""

import numpy as np
import pytest
import torch
from support.multispectral import hill

from foundation.errors import DataError
from foundation.images.config import Preprocess
from foundation.images.preprocess import image_grid, to_pil, to_unit_range
from foundation.images.preview import Preview, Stretch, checkerboard, find_stretch, visible

RGBN = Preprocess(height=16, width=16, mode="channels", channels=4, bits=16, white_level=10_000)


def test_plain_pictures_are_shown_themselves() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    assert Preview(Preprocess())(pixels) is pixels
    assert find_stretch(pixels // 8, Preprocess()) == Stretch()
    images = to_unit_range(pixels)
    assert visible(images, Preprocess()) is images


def test_three_channels_are_shown_by_one_linear_stretch_that_dark_images_share() -> None:
    pixels = np.stack([RGBN(hill(i) // 4) for i in range(4)])
    stretch = find_stretch(pixels, RGBN)
    assert stretch.low < stretch.high < 0.3
    assert find_stretch(pixels, RGBN) == stretch and find_stretch(pixels * 4, RGBN) == Stretch()
    shown = Preview(RGBN, stretch)(pixels)
    assert shown.shape == (4, 16, 16, 3) and shown.dtype == np.uint8 and shown.max() == 255
    low, high = stretch.low * 65_535, stretch.high * 65_535
    expected = ((pixels[..., :3] - low) * 255 / (high - low)).clip(0, 255)
    assert abs(shown - expected).max() <= 0.51
    nearly = to_unit_range(pixels) + 1e-3
    assert abs(Preview(RGBN, stretch).of_images(nearly).astype(int) - shown).max() <= 1  # of a quarter of the range
    image_grid(shown, 2)


def test_named_channels_two_channels_and_deep_grey() -> None:
    pixels = np.arange(2 * 2 * 4, dtype=np.uint16).reshape(1, 2, 2, 4) * 4000
    false_colour = Preprocess(mode="channels", channels=4, bits=16, preview_channels=(3, 0, 1))
    assert np.array_equal(Preview(false_colour)(pixels), np.rint(pixels[..., [3, 0, 1]] * (255 / 65_535)))
    two = Preprocess(mode="channels", channels=2, bits=16)
    assert Preview(two)(pixels[..., :2]).shape == (1, 2, 2, 1)
    grey = Preprocess(mode="L", bits=16)
    assert grey.fits_png and to_pil(pixels[0, ..., :1]).mode == "I;16"
    assert np.array_equal(Preview(grey)(pixels[..., :1]), np.rint(pixels[..., :1] * (255 / 65_535)))


def test_opacity_is_shown_on_a_checkerboard() -> None:
    pixels = np.full((1, 16, 16, 4), 60, np.uint8)
    pixels[0, :, :8, 3], pixels[0, :, 8:, 3] = 255, 0
    shown = Preview(Preprocess(mode="RGBA"))(pixels)
    assert (shown[0, :, :8] == 60).all() and np.array_equal(shown[0, :, 8:], checkerboard(16, 16)[:, 8:].repeat(3, -1))
    seen = visible(to_unit_range(pixels), Preprocess(mode="RGBA"))
    assert seen.shape == (1, 3, 16, 16) and not seen[..., 8:].any()


def test_networks_see_the_shown_channels_with_gradients() -> None:
    images = torch.rand(2, 4, 8, 8, requires_grad=True)
    visible(images, RGBN).sum().backward()
    assert images.grad is not None and images.grad[:, :3].all() and not images.grad[:, 3].any()


def test_pictures_and_pixels_are_told_apart() -> None:
    deep = np.zeros((1, 4, 4, 3), np.uint16)
    for wrong in (deep, np.zeros((1, 4, 4, 4), np.uint8)):
        with pytest.raises(DataError, match="not pixels"):
            image_grid(wrong, 1)
    with pytest.raises(DataError, match="not pixels"):
        to_pil(deep[0])
    assert to_pil(np.zeros((4, 4, 4), np.uint8)).mode == "RGBA"
