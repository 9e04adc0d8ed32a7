"""Each view of each image is found, or the dataset is refused."""

import numpy as np
import pytest

from foundation.errors import DataError
from foundation.token_views import ImageViews

BY_VIEW, BY_IMAGE = np.repeat, np.tile


@pytest.mark.parametrize("numbers", [[0], [0, 1], [0, 2, 3, 4, 5]])
@pytest.mark.parametrize("layouts", [(BY_VIEW,) * 3, (BY_IMAGE,) * 3, (BY_VIEW, BY_IMAGE, BY_VIEW)])
def test_every_row_is_one_image_in_one_view(numbers: list[int], layouts: tuple) -> None:
    sizes = (4, 1, 6)
    views_N = np.concatenate([layout(numbers, n) for layout, n in zip(layouts, sizes, strict=True)]).astype(np.uint8)
    images_N = np.concatenate([
        first + (np.tile(range(n), len(numbers)) if layout is BY_VIEW else np.repeat(range(n), len(numbers)))
        for layout, n, first in zip(layouts, sizes, (0, 4, 5), strict=True)
    ])  # fmt: skip
    table = ImageViews(views_N, [n * len(numbers) for n in sizes])
    assert len(table) == 11 and table.n_views == len(numbers)
    images, views = (each.reshape(-1) for each in np.mgrid[:11, : len(numbers)])
    rows = table.rows(images, views)
    assert sorted(rows) == list(range(len(views_N)))
    assert np.array_equal(images_N[rows], images) and np.array_equal(views_N[rows], np.array(numbers)[views])


WRONG = [
    [0, 0, 0, 1, 1],
    [0, 1, 1, 0],
    [0, 0, 1, 1, 0, 1],
    [1, 1, 0, 0],
]


@pytest.mark.parametrize("second", [*WRONG, [0, 0, 0, 0], [0, 0, 1, 1, 2, 2]])
def test_rows_that_do_not_tell_the_images_apart_are_refused(second: list[int]) -> None:
    with pytest.raises(DataError, match=r"parquet file 1(.|\n)*views 0, 1 of every image(.|\n)*views: all"):
        ImageViews(np.array([0, 0, 1, 1, *second], np.uint8), [4, len(second)])
