"""Streamed columns: read from the parquet shards on demand, one row group at a time.

For datasets that are too large for memory and have no packed copy, and for the names of images. Each random row costs
a row group unless most of them fit into the memory limit.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow.parquet as pq

from foundation.codes.columns import ID_BYTES, StoredColumn, TokenColumns, column_types
from foundation.codes.manifest import SplitShards
from foundation.codes.shards import codes_of, damaged_shard, reading
from foundation.codes.spec import require_codes

_BLOCK = 4096
_NAMES = {"labels": "label", "views": "view", "grids": "grid"}  # in the parquet files


class RowGroups:
    """A least-recently-used cache of decoded row groups of a split; safe for several threads.

    A shard's bytes are verified against the manifest before the first of its row groups is used, and codes against the
    codebook whenever a row group is decoded.

    Args:
        split: the shards.
        limit_bytes: memory of the cached row groups; the newest is kept even if it is larger.
    """

    def __init__(self, split: SplitShards, limit_bytes: int) -> None:
        self.split, self.limit_bytes = split, limit_bytes
        self._first_row_S = np.cumsum((0, *split.rows_by_shard))
        self._group_starts: dict[int, np.ndarray] = {}
        self._kept: OrderedDict[tuple[int, int, str], np.ndarray] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def read(self, column: str, rows_B: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` (B, ...) with the values of ``column``, by its name in the file, at ``rows_B``.

        Raises:
            DataError: a shard is missing, damaged, or holds a code outside the codebook.
        """
        with self._lock:
            shards_B = np.searchsorted(self._first_row_S, rows_B, "right") - 1
            for shard in np.unique(shards_B).tolist():
                starts = self._starts_of(shard)
                here = np.flatnonzero(shards_B == shard)
                inner = rows_B[here] - self._first_row_S[shard]
                groups = np.searchsorted(starts, inner, "right") - 1
                for group in np.unique(groups).tolist():
                    chosen = groups == group
                    values = self._group(shard, group, column)
                    out[here[chosen]] = values[inner[chosen] - starts[group]]

    def _starts_of(self, shard: int) -> np.ndarray:
        """First row of each row group of a shard, whose bytes are verified the first time."""
        if shard not in self._group_starts:
            listed = self.split.shards[shard]
            listed.require_unchanged(self.split.spec)
            metadata = pq.read_metadata(listed.path)
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            if sum(sizes) != listed.rows:
                raise damaged_shard(listed.path, "it has another number of rows than the manifest lists")
            self._group_starts[shard] = np.cumsum((0, *sizes[:-1]))
        return self._group_starts[shard]

    def _group(self, shard: int, group: int, column: str) -> np.ndarray:
        key = (shard, group, column)
        if key not in self._kept:
            self._kept[key] = self._decode(*key)
            self._kept_bytes += _bytes_of(self._kept[key])
            while self._kept_bytes > self.limit_bytes and len(self._kept) > 1:
                self._kept_bytes -= _bytes_of(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(key)
        return self._kept[key]

    def _decode(self, shard: int, group: int, column: str) -> np.ndarray:
        path = self.split.shards[shard].path
        with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            values = file.read_row_group(group, columns=[column])[column]
            if column != "codes":
                return values.to_numpy()
            codes = codes_of(values, self.split.spec)
        require_codes(codes, self.split.spec, str(path))
        return codes


class ShardColumn(StoredColumn):
    """A column of the shards, by its ``name`` in the files."""

    def __init__(self, groups: RowGroups, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        super().__init__(shape, dtype)
        self.groups, self.name = groups, name

    def _read(self, rows_B: np.ndarray, values: np.ndarray) -> None:
        self.groups.read(self.name, rows_B, values)


class ImageIds(Sequence[str]):
    """Names of the source images, read on demand."""

    def __init__(self, groups: RowGroups) -> None:
        self._column = ShardColumn(groups, "image_id", (groups.split.rows,), np.dtype(object))

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, rows: int) -> str: ...

    @overload
    def __getitem__(self, rows: slice) -> list[str]: ...

    def __getitem__(self, rows: int | slice) -> str | list[str]:
        found = self._column[rows]
        return found.tolist() if isinstance(rows, slice) else found

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self[start : start + _BLOCK]


def stream_columns(split: SplitShards, limit_bytes: int) -> TokenColumns:
    """The columns of a split, read on demand; at most ``limit_bytes`` of row groups stay in memory."""
    groups = RowGroups(split, limit_bytes)
    columns: dict[str, Any] = {
        name: ShardColumn(groups, _NAMES.get(name, name), *each) for name, each in column_types(split).items()
    }
    return TokenColumns(
        columns["codes"], columns.get("labels"), columns["views"], ImageIds(groups), columns.get("grids")
    )


def _bytes_of(values: np.ndarray) -> int:
    return len(values) * ID_BYTES if values.dtype == object else values.nbytes
