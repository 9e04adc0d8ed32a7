"""Columns of one split of a token dataset: arrays in memory, or files that read the rows they are indexed by."""

from __future__ import annotations

import copy
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foundation.codes.manifest import SplitShards
from foundation.codes.shards import Shard, code_dtype
from foundation.codes.spec import CodeSpec
from foundation.errors import DataError

LABEL_DTYPE, VIEW_DTYPE, GRID_DTYPE = np.dtype("<i8"), np.dtype("u1"), np.dtype("i1")
ID_BYTES = 100  # of one name in memory, about


@dataclass(frozen=True)
class TokenColumns:
    """N rows: arrays, or ``StoredColumn``s, which read the rows that they are indexed by.

    Attributes:
        codes_NT: (N, T) uint16 or int32.
        labels_N: (N,) int64, or None.
        views_N: (N,) uint8.
        image_ids: N names.
        grids_N: (N,) int8 index of each image's grid, or None where there is one.
    """

    codes_NT: np.ndarray
    labels_N: np.ndarray | None
    views_N: np.ndarray
    image_ids: Sequence[str]
    grids_N: np.ndarray | None = None


def arrays_of(shard: Shard, spec: CodeSpec) -> dict[str, np.ndarray]:
    """A shard's numbers in the types of every form: ``codes``, ``views`` and, if it has them, ``grids``, ``labels``."""
    arrays = {"codes": shard.codes_BT.astype(code_dtype(spec)), "views": shard.views.astype(VIEW_DTYPE)}
    if shard.grids is not None:
        arrays["grids"] = shard.grids.astype(GRID_DTYPE)
    return arrays if shard.labels is None else {**arrays, "labels": shard.labels.astype(LABEL_DTYPE)}


def column_types(split: SplitShards) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of a split's ``codes``, ``views`` and, if it has them, ``grids`` and ``labels``."""
    types = {"codes": ((split.rows, split.spec.n_codes), code_dtype(split.spec)), "views": ((split.rows,), VIEW_DTYPE)}
    if split.spec.n_grids > 1:
        types["grids"] = ((split.rows,), GRID_DTYPE)
    return {**types, "labels": ((split.rows,), LABEL_DTYPE)} if split.labelled else types


def memory_bytes(split: SplitShards) -> int:
    """Estimate of what ``load_columns`` needs, with short names of images."""
    per_row = split.spec.n_codes * code_dtype(split.spec).itemsize + LABEL_DTYPE.itemsize + VIEW_DTYPE.itemsize
    return split.rows * (per_row + ID_BYTES)


def load_columns(split: SplitShards) -> TokenColumns:
    """Read and verify every shard. Memory: the columns and one shard.

    Raises:
        DataError, ContractError: as ``SplitShards.read``.
    """
    columns = {name: np.empty(*each) for name, each in column_types(split).items()}
    image_ids: list[str] = []
    for shard in split.read():
        rows = slice(len(image_ids), len(image_ids) + len(shard.image_ids))
        for name, values in arrays_of(shard, split.spec).items():
            columns[name][rows] = values
        image_ids += shard.image_ids
    return TokenColumns(columns["codes"], columns.get("labels"), columns["views"], image_ids, columns.get("grids"))


class StoredColumn(ABC):
    """A column on disk with the ``shape`` and ``dtype`` of an array.

    Indexing by an integer, a slice, an array of row numbers or a mask gives an array; ``numpy.asarray`` reads it all.

    Args:
        shape: (N, ...), rows first.
        dtype: of the values.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype, self._stored_shape = shape, dtype, shape[1:]

    @abstractmethod
    def _read(self, rows_B: np.ndarray, values: np.ndarray) -> None:
        """Fill ``values`` (B, ...) with the rows ``rows_B`` (B,), each from 0 to N - 1."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, tuple):
            raise IndexError("a column on disk is read by whole rows: index the rows first, then what they hold")
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else _row_numbers(rows, len(self))
        values = np.empty((numbers.size, *self._stored_shape), self.dtype)
        self._read(numbers.reshape(-1), values)
        return values.reshape((*numbers.shape, *self.shape[1:]))[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, in memory."""
        return np.asarray(self[:], dtype)

    def reshape(self, *shape: int) -> StoredColumn:
        """The same rows in another shape each; the first axis stays."""
        if shape[0] != len(self) or np.prod(shape[1:]) != np.prod(self.shape[1:]):
            raise ValueError(f"cannot read rows of shape {self.shape} as {shape}")
        column = copy.copy(self)
        column.shape = shape
        return column


class FileColumn(StoredColumn):
    """A column that is a flat file of its values; the file stays open as long as the column lives.

    Rows are read, not mapped: a map brings 64 KiB of the file or more into the process for each random row. Safe for
    several threads.

    Args:
        path: the file.
        shape, dtype: as in ``StoredColumn``.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        super().__init__(shape, dtype)
        self._file = _OpenFile(path)

    def _read(self, rows_B: np.ndarray, values: np.ndarray) -> None:
        content = values.reshape(-1).view(np.uint8).data
        row_bytes = values[:1].nbytes
        gaps = (np.flatnonzero(np.diff(rows_B) != 1) + 1).tolist()
        runs = zip([0, *gaps], [*gaps, len(rows_B)], strict=True)  # rows that follow one another are read at once
        for start, stop in runs:
            if start < stop:
                self._file.read(content[start * row_bytes : stop * row_bytes], int(rows_B[start]) * row_bytes)


class _OpenFile:
    """An open file that is closed with the last column that reads from it."""

    def __init__(self, path: Path) -> None:
        self.path, self._file, self._lock = path, open(path, "rb", buffering=0), threading.Lock()  # noqa: SIM115

    def __del__(self) -> None:
        if file := getattr(self, "_file", None):
            file.close()

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on."""
        done = 0
        while done < len(buffer):
            n_bytes = self._read(buffer[done:], offset + done)
            what, fix = "ends before the requested row", "run the command again: it writes a complete file"
            DataError.unless(n_bytes > 0, what, field=str(self.path), fix=fix)
            done += n_bytes

    def _read(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [buffer], offset)
        with self._lock:  # Windows and older systems of macOS: threads share the position in the file
            self._file.seek(offset)
            return self._file.readinto(buffer) or 0


def _row_numbers(rows: Any, n: int) -> np.ndarray:
    """Row numbers from 0 of an integer, an array of integers or a mask; negative ones count from the end."""
    numbers = np.asarray(rows)
    if numbers.dtype == bool:
        if numbers.shape != (n,):
            raise IndexError(f"a mask of {numbers.shape} for {n} rows")
        return np.flatnonzero(numbers)
    numbers = numbers.astype(np.int64, casting="same_kind") if numbers.size else numbers.astype(np.int64)
    if ((numbers < -n) | (numbers >= n)).any():
        raise IndexError(f"rows {numbers.min()}..{numbers.max()} of {n}")
    return np.where(numbers < 0, numbers + n, numbers)
