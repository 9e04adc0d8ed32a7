"""Tables in text files, CSV and JSON: every CSV cell stays the text that it is."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from foundation.errors import DataError

_DELIMITERS = ",;\t"


def read_text_table(path: Path, field: str) -> pa.Table:
    """The table in a .csv, .tsv, .json or .jsonl file.

    A CSV file has its columns' names in the first line, and commas, semicolons or tabs between them. A JSON file holds
    a list of objects, an object with one such list, or an object a line.

    Raises:
        DataError: naming ``field``: it cannot be read, or is not such a file.
    """
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            return _csv_table(path, field)
        return _json_table(path, field)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException, RecursionError) as error:
        fix = "check the file; text is UTF-8"
        raise DataError(f"cannot be read: {error}", field=field, found=str(path), fix=fix) from error


def _csv_table(path: Path, field: str) -> pa.Table:
    with open(path, newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        file.seek(0)
        counts = {each: first.count(each) for each in _DELIMITERS}
        delimiter = max(counts, key=lambda each: counts[each])
        rows = list(csv.reader(file, delimiter=delimiter))
    rows = [row for row in rows if row]
    names = rows[0] if rows else []
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        found = f"{path}: {', '.join(twice) or 'empty'}"
        raise DataError("the first line does not name the columns", field=field, found=found)
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            found = f"{len(row)} cells in row {number} of {path}"
            fix = "put text that holds the separator between quotes"
            raise DataError("rows differ in length", field=field, found=found, expected=len(names), fix=fix)
    columns = zip(*rows[1:], strict=True) if len(rows) > 1 else [() for _ in names]
    # an empty cell is an empty cell: CSV has no other way to say it
    cells = [pa.array([each or None for each in column], pa.string()) for column in columns]
    return pa.table(dict(zip(names, cells, strict=True)))


def _json_table(path: Path, field: str) -> pa.Table:
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = _rows_of(json.loads(text))
    except ValueError:
        rows = _rows_by_line(text, path, field)
    if not isinstance(rows, list) or not rows or not all(isinstance(each, dict) for each in rows):
        expected = "a list of objects, an object with one such list, or an object a line"
        fix = "write a file with one object for each image, that names its file"
        found = f"{path}, with the lists {', '.join(map(str, rows))}" if isinstance(rows, dict) else str(path)
        raise DataError("holds no table of images", field=field, found=found, expected=expected, fix=fix)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _rows_of(data: Any) -> Any:
    """The one list of objects in an object; all such lists, by name, if there are several (as COCO has it)."""
    if not isinstance(data, dict):
        return data
    lists = {key: each for key, each in data.items() if isinstance(each, list) and each and isinstance(each[0], dict)}
    if not lists:
        return [data]
    return next(iter(lists.values())) if len(lists) == 1 else lists


def _rows_by_line(text: str, path: Path, field: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"is no JSON: {error}", field=field, found=f"line {number} of {path}") from error
    return rows
