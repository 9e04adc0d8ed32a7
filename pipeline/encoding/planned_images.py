"""Planned images: ids and numbers in Arrow arrays, or in a parquet file of which single groups of rows are read.

A hundred million ids take about 35 bytes each in memory, and a few in the file; a process that encodes one file of a
dataset reads one group of rows.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundation.errors import DataError

_KEY = b"tessera"
_IN_MEMORY = 1 << 16  # rows of an array
_FEW, _MANY = 1 << 13, 1 << 20
"""rows that are stored together, unless the files of the dataset hold a number in between"""
_COLUMNS = {"image_ids": "image_id", "labels": "label", "grids": "grid"}
"""attributes of a split with a value for each image, and their columns in a file"""


class Column(Sequence[Any]):
    """Values of one column, in arrays of ``rows`` values, the last one with the rest.

    Args:
        n: number of values.
        rows: values of one array.
        read: number of an array => the array.
    """

    def __init__(self, n: int, rows: int, read: Callable[[int], pa.Array]) -> None:
        self._n, self._rows, self._read = n, rows, read

    @classmethod
    def of(cls, values: Sequence[Any] | np.ndarray, kind: pa.DataType) -> Column:
        """Hold values in memory."""
        starts = range(0, len(values), _IN_MEMORY)
        return cls(len(values), _IN_MEMORY, [pa.array(values[at : at + _IN_MEMORY], kind) for at in starts].__getitem__)

    def arrays(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Array]:
        """The values ``start..stop`` in arrays; one array is in memory at a time, unless all are."""
        stop = self._n if stop is None else stop
        while start < stop:
            number, first = divmod(start, self._rows)
            count = min(stop - start, self._rows - first)
            yield self._read(number).slice(first, count)
            start += count

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._n)
            return [each for array in self.arrays(start, stop) for each in array.to_pylist()][::step]
        number, row = divmod(range(self._n)[index], self._rows)
        return self._read(number)[row].as_py()

    def __iter__(self) -> Iterator[Any]:
        for array in self.arrays():
            yield from array.to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Column) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        arrays = [each.to_numpy(zero_copy_only=False) for each in self.arrays()]
        return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)

    def json_parts(self) -> Iterator[str]:
        """The values as a JSON list, as ``json.dumps`` writes it, in pieces."""
        between = "["
        for array in self.arrays():
            yield between + json.dumps(array.to_pylist())[1:-1]
            between = ", "
        yield "]" if self._n else "[]"


@dataclass(frozen=True)
class PlannedSplit:
    """The images of one split.

    Attributes:
        image_ids: in the order of the source.
        labels: class numbers, or None.
        views: indices into ``foundation.images.views.VIEWS``.
        grids: index of each image's shape in ``Preprocess.all_shapes``; None where there is one.
    """

    image_ids: Column
    labels: Column | None
    views: tuple[int, ...]
    grids: Column | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], views: Sequence[int]) -> PlannedSplit:
        """Hold values in memory: sequences or arrays by attribute; what is no attribute is left out."""
        given = {name: values[name] for name in _COLUMNS if values.get(name) is not None}
        return cls._of({name: Column.of(each, _kind(name)) for name, each in given.items()}, views)

    @classmethod
    def _of(cls, columns: Mapping[str, Column], views: Sequence[int]) -> PlannedSplit:
        return cls(**{name: columns.get(name) for name in _COLUMNS}, views=tuple(views))  # type: ignore[arg-type]

    def columns(self) -> dict[str, Column]:
        """Attributes with a value for each image, by name."""
        found = ((name, getattr(self, name)) for name in _COLUMNS)
        return {name: each for name, each in found if each is not None}

    def json_parts(self, name: str) -> Iterator[str]:
        """The split as a JSON object with sorted keys, in pieces."""
        columns = self.columns()
        values = {"labels": None, "name": name, "views": self.views}
        for i, key in enumerate(sorted({*values, *columns})):
            yield f'{", " if i else "{"}"{key}": '
            yield from columns[key].json_parts() if key in columns else [json.dumps(values[key])]
        yield "}"

    def differences(self, other: PlannedSplit, name: str) -> list[tuple[str, object, object]]:
        """What differs first, with its value here and there."""
        if self.views != other.views:
            return [(f"views of {name}", self.views, other.views)]
        if self.image_ids != other.image_ids:
            ours, theirs = (_hashes(each) for each in (self.image_ids, other.image_ids))
            here, there = _only_here(self.image_ids, ours, theirs), _only_here(other.image_ids, theirs, ours)
            return [(f"images of {name}", here, there)]
        for what, own, given in (("label", self.labels, other.labels), ("shape", self.grids, other.grids)):
            if own != given:
                pairs = enumerate(zip(own or (), given or (), strict=False))
                first = next((i for i, (one, another) in pairs if one != another), 0)
                one, another = (each and each[first] for each in (own, given))
                return [(f"{what} of {self.image_ids[first]} ({name})", one, another)]
        return []


def _kind(name: str) -> pa.DataType:
    return pa.string() if name == "image_ids" else pa.int64()


def _only_here(image_ids: Column, own: np.ndarray, other: np.ndarray) -> str:
    """The number of images, and of images whose hashes the other plan lacks, with examples."""
    only = np.flatnonzero(~np.isin(own, other))
    examples = ", ".join(image_ids[int(i)] for i in only[:3])
    return f"{len(image_ids):,}{f', {len(only)} of them only in this plan, e.g. {examples}' if len(only) else ''}"


def rows_together(images_per_shard: int) -> int:
    """Rows of a group: those of whole files of the dataset, unless one holds more than a million."""
    return min(images_per_shard * max(1, _FEW // images_per_shard), _MANY)


def write_images(path: Path, splits: Mapping[str, PlannedSplit], rows: int, identity: str) -> None:
    """Write a parquet file of the images; each split begins a group of ``rows`` rows.

    Args:
        path: of the file.
        splits: by name.
        rows: of a group, see ``rows_together``.
        identity: of the plan.
    """
    names = [name for name in _COLUMNS if any(name in each.columns() for each in splits.values())]
    fields = [(_COLUMNS[name], _kind(name)) for name in names]
    about = json.dumps({"plan": identity, "rows": rows}).encode()
    schema = pa.schema([("split", pa.dictionary(pa.int32(), pa.string())), *fields], {_KEY: about})
    options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True, "write_statistics": False}
    with pq.ParquetWriter(path, schema, use_dictionary=["split"], **options) as writer:
        for split, each in splits.items():
            for start in range(0, len(each.image_ids), rows):
                stop = min(start + rows, len(each.image_ids))
                of_split = pa.array([split] * (stop - start), pa.string()).dictionary_encode()
                arrays = [_rows(each.columns().get(name), _kind(name), start, stop) for name in names]
                writer.write_table(pa.table([of_split, *arrays], schema=schema), row_group_size=rows)


def _rows(column: Column | None, kind: pa.DataType, start: int, stop: int) -> pa.ChunkedArray | pa.Array:
    if column is None:
        return pa.nulls(stop - start, kind)
    return pa.chunked_array(list(column.arrays(start, stop)), kind)


def is_of_plan(path: Path, identity: str) -> bool:
    """Whether a file was written for the plan of that identity."""
    try:
        about = json.loads(pq.read_schema(path).metadata[_KEY])
        return bool(about["plan"] == identity)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return False


def described(splits: Mapping[str, PlannedSplit]) -> list[dict[str, Any]]:
    """Splits without their images: what ``open_images`` needs to know of a file, as JSON values."""
    return [
        {"name": name, "n_images": len(each.image_ids), "columns": list(each.columns()), "views": list(each.views)}
        for name, each in splits.items()
    ]


def open_images(path: Path, splits: Iterable[Mapping[str, Any]]) -> dict[str, PlannedSplit]:
    """The splits of a file, whose values are read when they are asked for.

    Args:
        path: of a file of ``write_images``.
        splits: as ``described``.

    Raises:
        ValueError, OSError, KeyError: it is missing, damaged, or holds another number of rows. A group that is damaged
            is a ``DataError`` when it is read.
    """
    footer = pq.read_metadata(path)
    rows = int(json.loads(footer.metadata[_KEY])["rows"])

    @functools.lru_cache(maxsize=2)
    def group(number: int) -> pa.Table:
        try:
            with pq.ParquetFile(path, metadata=footer, page_checksum_verification=True) as file:
                return file.read_row_group(number).combine_chunks()
        except (OSError, ValueError, pa.ArrowException) as error:
            fix = "restore it, or move the codes folder away and run tessera encode again"
            raise DataError(f"the planned images cannot be read: {error}", field=str(path), fix=fix) from error

    def read(first: int, name: str, number: int) -> pa.Array:
        return group(first + number)[_COLUMNS[name]].chunk(0)

    opened, first, total = {}, 0, 0
    for split in splits:
        n = split["n_images"]
        columns = {name: Column(n, rows, functools.partial(read, first, name)) for name in split["columns"]}
        opened[split["name"]] = PlannedSplit._of(columns, split["views"])
        first, total = first + -(-n // rows), total + n
    if (footer.num_rows, footer.num_row_groups) != (total, first):
        raise ValueError(f"{path.name} has {footer.num_rows:,} rows, and {total:,} images are planned")
    return opened


def first_duplicate(values: Column) -> str | None:
    """The first value that occurs a second time, None if all differ."""
    hashes = _hashes(values)
    hashes.sort()
    twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    for value in values if twice else ():
        if hash(value) in twice and value in seen:
            return str(value)
        if hash(value) in twice:
            seen.add(value)
    return None


def _hashes(values: Column) -> np.ndarray:
    """(n,) int64: Python's hash of each value, 8 bytes a value where a set of texts takes over 100."""
    return np.fromiter(map(hash, values), np.int64, len(values))
