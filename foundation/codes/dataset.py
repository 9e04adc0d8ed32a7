"""Token datasets: in memory if they fit, else read by row from a packed copy.

All forms have the same rows in the same order, so a training does not depend on the form. ``ImageViews`` finds the rows
of an image's views.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foundation.arguments import as_path, require_type
from foundation.codes.columns import TokenColumns, load_columns, memory_bytes
from foundation.codes.manifest import SplitShards, open_split
from foundation.codes.packed import pack_columns, packed_home
from foundation.codes.spec import CodeSpec
from foundation.codes.streamed import stream_columns
from foundation.errors import DataError
from foundation.hardware import TokenAccess


class TokenDataset:
    """One split of a token dataset.

    Attributes:
        spec: what the codes mean.
        form: how the columns are held: ``memory`` (arrays), ``packed`` or ``streamed`` (``StoredColumn``, which looks
            like an array and is read when it is indexed by rows: read large ones in blocks).
        codes_NT: (N, T) uint16 or int32.
        labels_N: (N,) int64, or None.
        image_ids, views_N: which image and view each row is; the ids are a list in memory, else a sequence that reads.
        grids_N: (N,) int8, which of ``spec.grids`` each row's codes form; None where images have one shape.
        rows_by_shard: how many rows each parquet file has, in order.
    """

    def __init__(self, folder: str | Path, split: str = "train", access: TokenAccess | None = None) -> None:
        """Open ``folder``.

        Args:
            folder: a complete token dataset.
            split: which of its splits.
            access: how to read it.

        Raises:
            DataError: no such dataset, an incomplete or damaged one, or no such split.
            StorageError: it does not fit into memory and no packed copy can be written.
        """
        require_type("split", split, str)
        require_type("access", access, (TokenAccess, type(None)))
        access = access or TokenAccess()
        shards = open_split(as_path(folder, "folder"), split)
        self.spec: CodeSpec = shards.spec
        self.rows_by_shard = shards.rows_by_shard
        self.form = access.form
        if access.form == "auto":
            self.form = "memory" if memory_bytes(shards) <= access.memory_limit else "packed"
        columns = _open_columns(shards, self.form, access)
        self.codes_NT: np.ndarray = columns.codes_NT
        self.grids_N: np.ndarray | None = columns.grids_N
        self.labels_N: np.ndarray | None = columns.labels_N
        self.views_N: np.ndarray = columns.views_N
        self.image_ids: Sequence[str] = columns.image_ids

    def __len__(self) -> int:
        return len(self.codes_NT)

    @property
    def grids(self) -> np.ndarray:
        """Codes as ``tokenizer.decode`` takes them: (N, H, W), (N, H, W, D), or (N, T) for several levels.

        Raises:
            DataError: rows of several shapes, which are no one array.
        """
        fix = "take the rows of one: dataset.spec.grid(dataset.codes_NT[dataset.grids_N == i], i)"
        what, n = "the rows have several shapes", self.spec.n_grids
        DataError.unless(n == 1, what, field="grids", found=f"{n} grids", expected="one grid", fix=fix)
        return self.spec.grid(self.codes_NT)


def _open_columns(shards: SplitShards, form: str, access: TokenAccess) -> TokenColumns:
    if form == "memory":
        return load_columns(shards)
    if form == "packed":
        return pack_columns(shards, packed_home(shards.folder, access.packed_folder))
    return stream_columns(shards, access.memory_limit)


class ImageViews:
    """Rows of images that all have the same views (centre, flip, crops).

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
        "one view of each image cannot be sampled: the order of the rows does not tell the images apart",
        field=f"column view of parquet file {shard}",
        found=f"{len(views_R)} rows, views {', '.join(map(str, np.unique(views_R)))}",
        expected=f"views {', '.join(map(str, numbers))} of every image, view by view or image by image",
        fix="use every stored view as an example of its own (views: all), or encode the images again",
    )
