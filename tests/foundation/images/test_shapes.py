"""Shapes of one area: the nearest to an aspect ratio, proposals, names."""

import pytest
from PIL import Image

from foundation.errors import ConfigError
from foundation.images.config import Preprocess
from foundation.images.shapes import aspect_name, bucket_of, equal_shapes, find_shape, propose_shapes, shapes_text

SHAPES = ((48, 64), (64, 48), (32, 96))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), 0),
        ((480, 640), 1),
        ((3000, 1000), 2),
        ((500, 500), 0),
        ((1, 900), 1),
        ((200, 100), 0),
        ((201, 100), 2),
    ],
)
def test_an_image_takes_the_shape_nearest_in_log_ratio_and_the_first_of_equally_near_ones(size, expected) -> None:
    assert bucket_of(size, SHAPES) == expected, "2:1 is exactly between 4:3 and 3:1"


def test_shapes_of_one_area_have_it_and_are_multiples() -> None:
    found = equal_shapes(48, 64, 16)
    assert (48, 64) in found and (64, 48) in found and (32, 96) in found
    assert all(h * w == 48 * 64 and h % 16 == w % 16 == 0 for h, w in found)
    assert (16, 192) not in found, "beyond a ratio of 3"
    proposed = propose_shapes(256 * 256, 16)
    assert len({h * w for h, w in proposed}) == 1 and len(proposed) > 2
    assert abs(proposed[0][0] * proposed[0][1] / 256**2 - 1) <= 0.2


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [
        ("4:3", 0),
        ("8:6", 0),
        ("3:4", 1),
        ("portrait", 1),
        ("Landscape", 0),
        ("64x48", 1),
        ((32, 96), 2),
        (2, 2),
        ("3:1", 2),
    ],
)
def test_a_shape_is_found_by_ratio_word_sides_or_number(aspect, expected) -> None:
    assert find_shape(aspect, SHAPES) == expected


@pytest.mark.parametrize("aspect", ["16:9", "square", 3, -1, True, "0:0", "", (48, 48), None, 1.5, ("a", "b")])
def test_an_unknown_shape_is_refused_with_a_list_of_them(aspect) -> None:
    with pytest.raises(ConfigError, match=r"48 x 64 \(4:3, landscape\), 64 x 48 \(3:4, portrait\), 32 x 96 \(3:1\)"):
        find_shape(aspect, SHAPES)


def test_names() -> None:
    assert aspect_name((1080, 1920)) == "16:9"
    assert shapes_text([(32, 32)]) == "32 x 32 (1:1, square)"


def test_shapes_of_another_area_are_refused_with_some_that_would_do() -> None:
    with pytest.raises(ConfigError, match=r"shapes\[0\](.|\n)*3,072 pixels, as 48 x 64, such as (.|\n)*64 x 48"):
        Preprocess(height=48, width=64, shapes=((64, 64),))
    with pytest.raises(ConfigError, match="differ from each other"):
        Preprocess(height=48, width=64, shapes=((48, 64),))
    with pytest.raises(ConfigError, match="wrong length"):
        Preprocess(height=48, width=64, shapes=((48, 64, 3),))


def test_a_preprocess_of_several_shapes_takes_the_one_of_the_image() -> None:
    preprocess = Preprocess(height=48, width=64, shapes=((64, 48),))
    assert preprocess(Image.new("RGB", (200, 150))).shape == (48, 64, 3)
    assert preprocess(Image.new("RGB", (150, 200))).shape == (64, 48, 3)
    turned = Image.new("RGB", (200, 150))
    turned.getexif()[0x0112] = 6
    assert preprocess(turned).shape == (64, 48, 3), "the size after the EXIF orientation counts"
    assert preprocess.of_shape(1) == Preprocess(height=64, width=48)
