"""Columns of foreign tables as arrays: codes in flat or nested lists, labels, image ids, views."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundation.errors import DataError, nearest

COLUMNS = ("codes", "label", "image_id", "view", "grid")
_CODES = "whole numbers from 0 in a list of one length, flat or nested (rows, columns, depths)"


@dataclass(frozen=True)
class CodeBlock:
    """Some rows of codes.

    Attributes:
        codes: (B, T), (B, H, W) or (B, H, W, D) integers, as the source holds them.
        labels: B class numbers or names, or None.
        image_ids: B names of images, or None.
        views: (B,) numbers of views, or None.
        grids: (B,) numbers of the grids that the codes form, or None.
    """

    codes: np.ndarray
    labels: Sequence[Any] | None = None
    image_ids: Sequence[str] | None = None
    views: np.ndarray | None = None
    grids: np.ndarray | None = None


class ParquetRows:
    """Rows of parquet files, one file after the other, read by row group; the last row group is kept.

    Args:
        paths: the files.

    Attributes:
        schema: of the first file; the others must have its columns.

    Raises:
        DataError: a file cannot be read, or has other columns than the first.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._groups: list[tuple[Path, int]] = []
        sizes, self.schema = [], _schema(paths[0])
        for path in paths:
            schema = _schema(path)
            names = [name for name in COLUMNS if name in schema.names]
            expected = [name for name in COLUMNS if name in self.schema.names]
            what = f"has other columns than {paths[0].name}"
            DataError.unless(names == expected, what, field=str(path), found=names, expected=expected)
            metadata = pq.read_metadata(path)
            self._groups += [(path, group) for group in range(metadata.num_row_groups)]
            sizes += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._kept: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows ``start..stop`` of the known columns.

        Raises:
            DataError: a file is damaged.
        """
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        last = int(np.searchsorted(self._starts, stop, "left"))
        parts = []
        for group in range(max(first, 0), min(last, len(self._groups))):
            offset = int(self._starts[group])
            low = max(start, offset)
            parts.append(self._group(group).slice(low - offset, min(stop, int(self._starts[group + 1])) - low))
        return pa.concat_tables(parts, promote_options="permissive") if parts else self.schema.empty_table()

    def _group(self, index: int) -> pa.Table:
        if self._kept is None or self._kept[0] != index:
            path, group = self._groups[index]
            columns = [name for name in COLUMNS if name in self.schema.names]
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    self._kept = index, file.read_row_group(group, columns=columns)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise DataError(f"is damaged: {error}", field=str(path), fix="restore the file") from error
        assert self._kept is not None
        return self._kept[1]


def block_of(table: pa.Table, where: str) -> CodeBlock:
    """The known columns of a table.

    Raises:
        DataError: no column ``codes``, codes that are no whole numbers or of several lengths, or missing values.
    """
    require_codes_column(table.column_names, where)
    values = {name: table[name] for name in COLUMNS[1:] if name in table.column_names}
    for name, column in values.items():
        n_missing = column.null_count
        fix = "fill in or filter those rows"
        DataError.unless(not n_missing, "has missing values", field=f"{where}: {name}", found=n_missing, fix=fix)
    views, grids = values.get("view"), values.get("grid")
    return CodeBlock(
        nested_array(table["codes"], f"{where}: codes"),
        values["label"].to_pylist() if "label" in values else None,
        [str(each) for each in values["image_id"].to_pylist()] if "image_id" in values else None,
        None if views is None else _numbers(views, f"{where}: view", "views"),
        None if grids is None else _numbers(grids, f"{where}: grid", "grids"),
    )


def require_codes_column(names: Sequence[str], where: str) -> None:
    """Raise ``DataError`` unless there is a column ``codes``."""
    fix = f"rename the column of the codes; {nearest('codes', names)}"
    DataError.unless("codes" in names, "has no column codes", field=where, found=", ".join(names), fix=fix)


def nested_array(column: pa.ChunkedArray, field: str) -> np.ndarray:
    """A column of lists, flat or nested, as an array (B, ...).

    Raises:
        DataError: rows of several lengths, missing values, or no whole numbers.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    sides = [len(array)]
    while True:
        array = array.storage if isinstance(array, pa.ExtensionArray) else array
        if array.null_count:
            found = f"{array.null_count} missing values"
            raise DataError("has missing values", field=field, found=found, expected=_CODES)
        if not _is_list(array.type):
            break
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) > 1:
            found = f"lengths {', '.join(map(str, sorted(lengths)[:6]))}"
            fix = "codes of images of several sizes cannot be one training set: keep one size"
            raise DataError("has rows of several lengths", field=field, found=found, expected=_CODES, fix=fix)
        sides.append(lengths[0] if lengths else 0)
        array = array.flatten()
    if len(sides) == 1 or not pa.types.is_integer(array.type):
        fractions = len(sides) > 1 and pa.types.is_floating(array.type)
        what = "holds fractions, not codes" if fractions else "holds no codes"
        way_out = "round and convert them, if they are codes: astype('int64')" if fractions else None
        raise DataError(what, field=field, found=str(column.type), expected=_CODES, fix=way_out)
    return array.to_numpy(zero_copy_only=False).reshape(sides)


def class_names_of(schema: pa.Schema, column: str = "label") -> tuple[str, ...]:
    """Names of a ``ClassLabel`` column as ``datasets`` stores them in a schema; empty without them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _numbers(column: pa.ChunkedArray, field: str, what: str) -> np.ndarray:
    """Numbers of views or of grids, uint8."""
    whole, what = pa.types.is_integer(column.type), f"holds no {what}"
    expected = "whole numbers from 0 to 255"
    DataError.unless(whole, what, field=field, found=str(column.type), expected=expected)
    numbers = column.to_numpy().astype(np.int64)
    inside = not len(numbers) or (numbers.min() >= 0 and numbers.max() <= 255)
    DataError.unless(inside, what, field=field, found=numbers, expected=expected)
    return numbers.astype(np.uint8)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot be read as parquet: {reason}", field=str(path), fix="give another file") from error
