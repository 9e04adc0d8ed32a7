"""Numbers as images: which value is white is known, or asked for; never found for each image."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.image_tables import arrays, opened, reds, write_parquet

from foundation.errors import DataError
from foundation.images.failures import BadImage
from foundation.images.tables.pixel_numbers import image_of, white_of


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 9), st.integers(5, 9), st.sampled_from([1, 3, 4]), st.integers(0, 2**32 - 1))
def test_every_order_and_kind_of_numbers_gives_the_same_pixels(h: int, w: int, c: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, c), np.uint8)
    expected = np.asarray(image_of(pixels, None)).reshape(h, w, c)
    assert (expected == pixels).all()
    for values, white in (
        (pixels.transpose(2, 0, 1), 255),
        (pixels.astype(np.float32) / 255, 1),
        (pixels.astype(np.int64), 255),
        (pixels.astype(np.uint16) * 257, 65_535),
        (pixels[None], 255),
    ):
        assert (np.asarray(image_of(values, white)).reshape(h, w, c) == pixels).all()


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.array([[0, 255]], np.uint8), 255),
        (np.array([[0.0, 0.5]]), 1),
        (np.array([[0.5, 200.0]]), 255),
        (np.array([[True, False]]), 1),
        (np.array([[np.nan, 0.25]]), 1),
    ],
)
def test_white_is_found_where_the_numbers_leave_no_doubt(values: np.ndarray, white: float) -> None:
    assert white_of([values], None, "image") == white


@pytest.mark.parametrize(
    ("values", "ways"),
    [
        (np.array([[0, 1]]), ["white_value 1", "white_value 255"]),
        (np.array([[0, 16]]), ["white_value 255", "white_value 16"]),
        (np.array([[0, 4000]]), ["white_value 4095", "white_value 65535"]),
        (np.array([[0.5, 2.5]]), ["white_value 255", "white_value 2.5"]),
    ],
)
def test_white_is_asked_for_where_it_is_in_doubt(values: np.ndarray, ways: list[str]) -> None:
    with pytest.raises(DataError, match="in doubt which of the numbers is white") as refused:
        white_of([values], None, "image")
    assert all(way in str(refused.value) for way in ways)
    assert white_of([values], 16, "image") == 16


def test_numbers_below_black_and_above_white_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="numbers below 0 have no defined colour"):
        white_of([np.array([[-1.0, 1.0]])], None, "image")
    with pytest.raises(BadImage, match="out of range"):
        image_of(np.array([[0, 300]]), 255)
    column = [(each // 20).tolist() for each in arrays()]
    assert reds(opened(write_parquet(tmp_path / "x.parquet", image=column), white_value=5)) == [102, 153, 204, 255]


def test_white_value_for_images_in_files_has_no_effect_and_is_refused(tmp_path: Path) -> None:
    from support.image_tables import png

    path = write_parquet(tmp_path / "x.parquet", image=[png(1)])
    with pytest.raises(DataError, match="white_value: has no effect"):
        opened(path, white_value=255)
