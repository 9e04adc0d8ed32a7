"""Columns of classes: ClassLabel, whole numbers, text and booleans; what else a column holds is named."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from foundation.errors import DataError
from foundation.images.class_names import require_tidy

_MAX_EXACT = 2**53


def class_label_names(feature: Any) -> tuple[str, ...] | None:
    """Names of the classes that ``datasets`` declares for a column; None for a column of another kind."""
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    return tuple(map(str, names)) if names else tuple(map(str, range(int(feature.get("num_classes") or 0)))) or None


def numbers_of(column: pa.ChunkedArray, names: tuple[str, ...], field: str, name: str) -> list[int]:
    """Class numbers of a ClassLabel column.

    Raises:
        DataError: empty cells, or numbers that no class has (-1 in parts of public datasets without labels).
    """
    _require_filled(column, field, name)
    if not pa.types.is_integer(column.type):
        raise DataError("holds no class numbers", field=field, found=f"{name}: {column.type}", expected="whole numbers")
    numbers: list[int] = column.to_pylist()
    if min(numbers) < 0 or max(numbers) >= len(names):
        found = f"{min(numbers)}..{max(numbers)} in {name}"
        expected, fix = f"0..{len(names) - 1}", "drop the unlabelled rows, or leave label_column out"
        raise DataError("has labels outside its classes", field=field, found=found, expected=expected, fix=fix)
    return numbers


def names_of(column: pa.ChunkedArray, field: str, name: str) -> list[str]:
    """The class of each row as text, as it stands in the column.

    Args:
        column: of whole numbers (also as floating point numbers), text, text as bytes, or booleans.
        field: names the column's field in error messages.
        name: of the column.

    Raises:
        DataError: empty cells, or a column of another kind.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    _require_filled(column, field, name)
    kind = column.type
    if pa.types.is_floating(kind):
        column = _whole(column, field, name)
    elif _is_bytes(kind):
        column = _as_text(column, field, name)
    elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind)):
        found, (expected, fix) = f"{name}: {kind}", _ways_out(kind, name)
        raise DataError("holds no classes", field=field, found=found, expected=expected, fix=fix)
    names = [str(value) for value in column.to_pylist()]
    empty = [row for row, value in enumerate(names) if not value.strip()]
    if empty:
        _refuse_empty(len(empty), empty[0], field, name)
    require_tidy(names, field, f"column {name}")
    return names


def _require_filled(column: pa.ChunkedArray, field: str, name: str) -> None:
    if column.null_count:
        _refuse_empty(column.null_count, pc.index(pc.is_null(column), True).as_py(), field, name)


def _refuse_empty(n: int, row: int, field: str, name: str) -> None:
    found = f"{name}: {n:,}, the first in row {row:,}"
    raise DataError("has empty cells", field=field, found=found, fix="fill them, or leave label_column out")


def _whole(column: pa.ChunkedArray, field: str, name: str) -> pa.ChunkedArray:
    """Floating point numbers as whole numbers; pandas makes the former of the latter if a cell was ever empty."""
    values = column.to_pylist()
    wrong = [(row, value) for row, value in enumerate(values) if not abs(value) <= _MAX_EXACT or value != int(value)]
    if not wrong:
        return pa.chunked_array([pa.array([int(value) for value in values], pa.int64())])
    gaps = [row for row, value in wrong if value != value]
    if gaps:
        _refuse_empty(len(gaps), gaps[0], field, name)
    row, value = wrong[0]
    raise DataError(
        "holds floating point numbers that are not whole",
        field=field,
        found=f"{name}: {value:g} in row {row:,}",
        expected="whole numbers or text",
        fix="leave label_column out, or write a column of classes, such as ranges of the numbers",
    )


def _as_text(column: pa.ChunkedArray, field: str, name: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid as error:
        found, expected = f"{name}: {column.type}", "text in UTF-8, or whole numbers"
        raise DataError("holds bytes that are no text", field=field, found=found, expected=expected) from error


def _ways_out(kind: pa.DataType, name: str) -> tuple[str, str]:
    expected = "one class a row: whole numbers or text"
    if pa.types.is_struct(kind):
        fields = [kind.field(i).name for i in range(kind.num_fields)]
        return expected, f"name a field of it: {', '.join(f'{name}.{each}' for each in fields[:10])}"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return expected, "write a column with one class of each list; several classes for an image are not supported"
    return expected, "write the classes as text"


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
