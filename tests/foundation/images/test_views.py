import numpy as np
from PIL import Image

from foundation.images.config import Preprocess
from foundation.images.views import CENTRE, FLIP, TEN_CROP, VIEWS, view_pixels

PREPROCESS = Preprocess(height=20, width=30)


def image(height: int = 55, width: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_the_first_view_is_the_preprocessed_image_whatever_other_views_there_are() -> None:
    expected = PREPROCESS(image())
    for views in (CENTRE, FLIP, TEN_CROP):
        pixels = view_pixels(PREPROCESS, image(), views)
        assert pixels.shape == (len(views), 20, 30, 3) and pixels.dtype == np.uint8
        assert np.array_equal(pixels[0], expected)


def test_each_mirrored_view_is_the_mirror_image_of_the_plain_one() -> None:
    pixels = view_pixels(PREPROCESS, image(), TEN_CROP)
    plain = {view.corner: i for i, view in enumerate(VIEWS) if not view.mirrored}
    for i, view in enumerate(VIEWS):
        if view.mirrored:
            assert np.array_equal(pixels[i], pixels[plain[view.corner]][:, ::-1])


def test_corners_are_cut_from_the_enlarged_image_and_equal_the_centre_at_scale_one() -> None:
    corners = [i for i, view in enumerate(VIEWS) if view.corner and not view.mirrored]
    large = Preprocess(height=40, width=60)(image())
    pixels = view_pixels(PREPROCESS, image(), TEN_CROP, corner_scale=2.0)
    tiles = [large[:20, :30], large[:20, 30:], large[20:, :30], large[20:, 30:]]
    assert all(np.array_equal(pixels[i], tile) for i, tile in zip(corners, tiles, strict=True))
    same = view_pixels(PREPROCESS, image(), TEN_CROP, corner_scale=1.0)
    assert all(np.array_equal(same[i], same[0]) for i in corners)
