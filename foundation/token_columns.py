"""The columns of one split of a token dataset, row by row; here read whole into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foundation.codes import CodeSpec
from foundation.token_manifest import SplitShards
from foundation.token_shards import Shard, code_dtype

LABEL_DTYPE, VIEW_DTYPE = np.dtype("<i8"), np.dtype("u1")
ID_BYTES = 100  # of one name in memory, about


@dataclass(frozen=True)
class TokenColumns:
    """N rows, whichever way they are held: arrays, or ``StoredColumn``s, which are read when they are indexed by rows.

    Attributes:
        codes_NT: (N, T) uint16 or int32.
        labels_N: (N,) int64, or None.
        views_N: (N,) uint8.
        image_ids: N names.
    """

    codes_NT: np.ndarray
    labels_N: np.ndarray | None
    views_N: np.ndarray
    image_ids: Sequence[str]


def codes_dtype(spec: CodeSpec) -> np.dtype:
    """uint16 up to 65,536 codes, else int32; little-endian."""
    return np.dtype(code_dtype(spec.codebook_size).to_pandas_dtype()).newbyteorder("<")


def arrays_of(shard: Shard, spec: CodeSpec) -> dict[str, np.ndarray]:
    """A shard's numbers in the types of every form: ``codes``, ``views`` and, where there are some, ``labels``."""
    arrays = {"codes": shard.codes_BT.astype(codes_dtype(spec)), "views": shard.views.astype(VIEW_DTYPE)}
    return arrays if shard.labels is None else {**arrays, "labels": shard.labels.astype(LABEL_DTYPE)}


def memory_bytes(split: SplitShards) -> int:
    """About what ``load_columns`` needs; names of images are taken to be short ones."""
    per_row = split.spec.n_codes * codes_dtype(split.spec).itemsize + LABEL_DTYPE.itemsize + VIEW_DTYPE.itemsize
    return split.rows * (per_row + ID_BYTES)


def load_columns(split: SplitShards) -> TokenColumns:
    """Read and verify every shard. Memory: the columns and one shard.

    Raises:
        DataError, ContractError: as ``SplitShards.read``.
    """
    codes_NT = np.empty((split.rows, split.spec.n_codes), codes_dtype(split.spec))
    columns = {"codes": codes_NT, "views": np.empty(split.rows, VIEW_DTYPE)}
    if split.labelled:
        columns["labels"] = np.empty(split.rows, LABEL_DTYPE)
    image_ids: list[str] = []
    for shard in split.read():
        rows = slice(len(image_ids), len(image_ids) + len(shard.image_ids))
        for name, values in arrays_of(shard, split.spec).items():
            columns[name][rows] = values
        image_ids += shard.image_ids
    return TokenColumns(codes_NT, columns.get("labels"), columns["views"], image_ids)
