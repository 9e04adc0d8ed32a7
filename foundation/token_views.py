"""Which row of a token dataset holds which stored view of which image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foundation.errors import DataError


class ImageViews:
    """The rows of images of which every one has the same views (centre, flip, crops).

    A parquet file holds its images view by view, all images in the first view, then all in the second, or image by
    image, all views of the first, then of the second.

    Args:
        views_N: (N,) the view of each row.
        rows_by_shard: how many rows each parquet file has, in order.

    Attributes:
        n_views: stored views of each image.

    Raises:
        DataError: rows in another order, or images with unequal views.
    """

    def __init__(self, views_N: np.ndarray, rows_by_shard: Sequence[int]) -> None:
        sizes, first_row_S = np.array(rows_by_shard), np.cumsum((0, *rows_by_shard))[:-1]
        numbers = np.unique(views_N[: sizes[0]])
        self.n_views = len(numbers)
        strides = [
            _strides(views_N[first : first + size], numbers, shard)
            for shard, (first, size) in enumerate(zip(first_row_S.tolist(), sizes.tolist(), strict=True))
        ]
        self._image_stride_S, self._view_stride_S = np.array(strides).T
        self._first_row_S = first_row_S
        self._first_image_S = np.cumsum((0, *(sizes // self.n_views)))

    def __len__(self) -> int:
        """Number of images."""
        return int(self._first_image_S[-1])

    def rows(self, images_B: np.ndarray, views_B: np.ndarray) -> np.ndarray:
        """Row numbers (B,) of ``images_B``, numbered in file order, each in the view that ``views_B`` counts from 0."""
        shards_B = np.searchsorted(self._first_image_S, images_B, "right") - 1
        inner_B = images_B - self._first_image_S[shards_B]
        steps_B = inner_B * self._image_stride_S[shards_B] + views_B * self._view_stride_S[shards_B]
        return self._first_row_S[shards_B] + steps_B


def _strides(views_R: np.ndarray, numbers: np.ndarray, shard: int) -> tuple[int, int]:
    """Rows from one image to the next, and from one view of an image to its next, in one parquet file."""
    n_views = len(numbers)
    n_images, left_over = divmod(len(views_R), n_views)
    if not left_over:
        if np.array_equal(views_R, np.repeat(numbers, n_images)):
            return 1, n_images
        if np.array_equal(views_R, np.tile(numbers, n_images)):
            return n_views, 1
    raise DataError(
        "one view of each image cannot be drawn: the rows are not in an order that tells the images apart",
        field=f"column view of parquet file {shard}",
        found=f"{len(views_R)} rows, views {', '.join(map(str, np.unique(views_R)))}",
        expected=f"views {', '.join(map(str, numbers))} of every image, view by view or image by image",
        fix="use every stored view as an example of its own (views: all), or encode the images again",
    )
