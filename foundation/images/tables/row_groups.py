"""Rows that stay in their parquet files, on a disk or in a store: row groups are read when a row of them is asked for.

A single row of a parquet file cannot be read. A row group that is read in order is kept in memory for a while. One that
is asked for again, as a shuffled order does, or that is said to be needed soon, is unpacked into a file of the cache,
which all processes of the machine map into memory; the cache is bounded, and its least recently used files go first.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundation.config import digest
from foundation.errors import DataError, StorageError
from foundation.images.failures import BadImage
from foundation.paths import cache_root
from foundation.storage.disk_cache import DiskCache
from foundation.storage.remote.errors import RemoteError
from foundation.storage.remote.files import LocalFile, ReadAhead, RemoteFile, Seekable, StoredFile, stream_cache
from foundation.threads import map_in_threads

_FIELD = "data.source.path"
_FOOTER_BYTES = 1 << 30
_MEMORY_BYTES = 1 << 28
_MAPPED_BYTES = 1 << 20
"""what a mapped row group counts for, so that a few hundred are kept open"""


@dataclass(frozen=True)
class _Group:
    """One row group: which file, its number in it, its rows, and the bytes of its columns by name."""

    file: int
    number: int
    n_rows: int


class ParquetRows:
    """The rows of some parquet files.

    Args:
        files: in the order of the rows.
        cache_gib: limit of the unpacked row groups.

    Attributes:
        schema: of the first file; the others have the same columns.
        first_rows: (files,) number of each file's first row.
        groups: (row groups,) number of the first row of each.
        n_rows: of all files.

    Raises:
        DataError: a file is damaged or has other columns.
        RemoteError: a footer cannot be read.
    """

    def __init__(self, files: Sequence[StoredFile], cache_gib: float) -> None:
        self.files, self.is_remote = files, any(isinstance(each, RemoteFile) for each in files)
        self.keys = [each.key for each in files]
        self._unpacked = stream_cache(cache_gib)
        footers = map_in_threads(self._footer, range(len(files)))
        self.schema: pa.Schema = footers[0].schema.to_arrow_schema()
        for file, each in zip(files, footers, strict=True):
            names = each.schema.to_arrow_schema().names
            if names != self.schema.names:
                found, expected = f"{file.shown}: {', '.join(names)}", f"the columns of {files[0].name}"
                raise DataError("has other columns than the first file", field=_FIELD, found=found, expected=expected)
        counts = np.array([each.num_rows for each in footers], np.int64)
        self.first_rows, self.n_rows = np.cumsum(counts) - counts, int(counts.sum())
        self._footers = footers
        every = [_Group(i, g, f.row_group(g).num_rows) for i, f in enumerate(footers) for g in range(f.num_row_groups)]
        self._groups = [each for each in every if each.n_rows]
        sizes = np.array([each.n_rows for each in self._groups], np.int64)
        self.groups = np.cumsum(sizes) - sizes
        self.n_bytes = sum(each.size for each in files)
        self.cache_bytes = self._unpacked.limit_bytes

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Whole columns, for labels and keys; of remote files they are kept for the next start."""
        parts = map_in_threads(lambda i: self._columns(i, list(columns)), range(len(self.files)))
        return pa.concat_tables([each.replace_schema_metadata() for each in parts], promote_options="permissive")

    def column(self, top: str, inner: Sequence[str]) -> RowGroupColumn:
        """A column, or a field of it, whose rows are read on demand."""
        return RowGroupColumn(self, top, list(inner))

    def group_of(self, row: int) -> int:
        """Number of the row group of a row."""
        return int(np.searchsorted(self.groups, row, side="right")) - 1

    def decode(self, group: int, column: str) -> pa.ChunkedArray:
        """A column of a row group, read into memory. Raises BadImage."""
        each = self._groups[group]
        try:
            table = self._opened(each.file).read_row_group(each.number, columns=[column], use_threads=False)
        except RemoteError as error:
            raise BadImage(error.code, str(error)) from error
        except FileNotFoundError as error:
            raise BadImage("vanished", f"{self.files[each.file].shown} is no longer there") from error
        except (OSError, pa.ArrowException) as error:
            what = f"row group {each.number} of {self.files[each.file].shown} cannot be read: {error}"
            raise BadImage("unreadable", " ".join(what.split())) from error
        self._require_unchanged(each.file)
        if len(table) != each.n_rows:
            raise BadImage("unreadable", f"{self.files[each.file].shown} has other rows than its footer says")
        return table.column(0)

    def unpack(self, group: int, column: str, *, wait: bool = True) -> None:
        """Make the file of the cache with a column of a row group, if it is not there. Raises BadImage, StorageError.

        Without ``wait``, it is left to another process that is making it.
        """
        each = self._groups[group]
        about = self._footers[each.file].row_group(each.number)
        chunks = map(about.column, range(about.num_columns))
        n_bytes = sum(each.total_uncompressed_size for each in chunks if each.path_in_schema.split(".")[0] == column)

        def make(target: Path) -> None:
            array = self.decode(group, column)
            table = pa.table({column: array})
            with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)

        get = self._unpacked.get if wait else self._unpacked.prepare
        get(self._name(group, column), int(1.2 * n_bytes) + 4096, make)

    def mapped(self, group: int, column: str) -> pa.ChunkedArray | None:
        """A column of a row group from the cache, mapped into memory; None if it is not there."""
        path = self._unpacked.find(self._name(group, column))
        if path is None:
            return None
        try:
            found = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException):  # damaged by a crash of the machine
            path.unlink(missing_ok=True)
            return None
        return found if len(found) == self._groups[group].n_rows else None

    def _name(self, group: int, column: str) -> str:
        each = self._groups[group]
        return f"{self.keys[each.file]}-{each.number:05d}-{digest(column)[:8]}.arrow"

    def _opened(self, file: int) -> pq.ParquetFile:
        stored = self.files[file]
        source = stored.local() if isinstance(stored, LocalFile) else pa.PythonFile(Seekable(stored), "r")
        return pq.ParquetFile(source, metadata=self._footers[file])

    def _footer(self, file: int) -> pq.FileMetaData:
        stored = self.files[file]
        if isinstance(stored, LocalFile):
            return _checked(stored, lambda: pq.read_metadata(stored.path))
        kept = DiskCache(cache_root() / "footers", _FOOTER_BYTES)

        def make(target: Path) -> None:
            about = _checked(stored, lambda: pq.read_metadata(pa.PythonFile(Seekable(stored), "r")))
            about.write_metadata_file(str(target))

        return _kept_table(kept, self.keys[file], make, lambda path: pq.read_metadata(path))

    def _columns(self, file: int, columns: list[str]) -> pa.Table:
        stored = self.files[file]
        if isinstance(stored, LocalFile):
            return _checked(stored, lambda: self._opened(file).read(columns=columns).select(columns))
        kept = DiskCache(cache_root() / "footers", _FOOTER_BYTES)

        def make(target: Path) -> None:
            table = _checked(stored, lambda: self._opened(file).read(columns=columns).select(columns))
            pq.write_table(table, target, compression="zstd")

        return _kept_table(kept, f"{self.keys[file]}-{digest(columns)[:8]}", make, lambda path: pq.read_table(path))

    def _require_unchanged(self, file: int) -> None:
        stored = self.files[file]
        if isinstance(stored, LocalFile) and stored.key != self.keys[file]:
            raise BadImage("changed", f"{stored.shown} was written again since it was listed")


def _kept_table(kept: DiskCache, key: str, make: Any, load: Any) -> Any:
    """What a file of the cache holds; a damaged one is made again."""
    path = kept.get(key, 0, make)
    try:
        return load(path)
    except (OSError, pa.ArrowException):
        path.unlink(missing_ok=True)
        return load(kept.get(key, 0, make))


def _checked(stored: StoredFile, read: Any) -> Any:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        what, fix = f"is not a complete parquet file: {error}", "download or copy it again"
        raise DataError(what, field=_FIELD, found=stored.shown, fix=fix) from error


class RowGroupColumn:
    """A column of ``ParquetRows`` with the methods of a ``pyarrow.ChunkedArray`` that images need.

    Args:
        rows: where they are.
        top: the column.
        inner: names of the field in it, outermost first.
    """

    def __init__(self, rows: ParquetRows, top: str, inner: list[str]) -> None:
        self._rows, self._top, self._inner = rows, top, inner
        kind = rows.schema.field(top).type
        for name in inner:
            kind = kind.field(kind.get_field_index(name)).type
        self.type: pa.DataType = kind
        self._ahead = ReadAhead()
        self._restart()

    def _restart(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Future[tuple[pa.ChunkedArray, int]]] = OrderedDict()
        self._unpacks: set[int] = set()
        """row groups that are unpacked when they are read: they were dropped from memory, or most of them is needed"""
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("_rows", "_top", "_inner", "type", "_ahead")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._restart()

    def __len__(self) -> int:
        return self._rows.n_rows

    def __getitem__(self, row: int) -> pa.Scalar:
        group = self._rows.group_of(row)
        return self._group(group)[row - int(self._rows.groups[group])]

    def ahead(self, rows: np.ndarray) -> None:
        """Unpack the row groups of some rows in a thread, in this order; most of each will be read soon."""
        groups = dict.fromkeys(self._rows.group_of(int(row)) for row in rows)
        self._unpacks.update(groups)
        self._ahead.want([functools.partial(self._rows.unpack, each, self._top, wait=False) for each in groups])

    def samples(self, most: int) -> list[int]:
        """Some rows of the first, the middle and the last row group."""
        groups, n = self._rows.groups, self._rows.n_rows
        found: list[int] = []
        for group in sorted({0, len(groups) // 2, len(groups) - 1}):
            end = int(groups[group + 1]) if group + 1 < len(groups) else n
            found += range(int(groups[group]), min(end, int(groups[group]) + most // 3))
        return found

    def _group(self, group: int) -> pa.ChunkedArray:
        """A row group's cells; threads that ask for it at one time share one reading."""
        if self._process != os.getpid():  # forked, maybe while a thread read
            self._restart()
        with self._lock:
            waiting = self._kept.get(group)
            if waiting is not None:
                self._kept.move_to_end(group)
            else:
                mine = self._kept[group] = Future()
        if waiting is not None:
            return waiting.result()[0]
        try:
            column, n_bytes = self._load(group)
        except BaseException as error:
            with self._lock:
                self._kept.pop(group, None)
            mine.set_exception(error)
            raise
        mine.set_result((column, n_bytes))
        self._drop_oldest()
        return column

    def _load(self, group: int) -> tuple[pa.ChunkedArray, int]:
        column = self._rows.mapped(group, self._top)
        if column is None and group in self._unpacks:
            column = self._unpacked(group)
        n_bytes = _MAPPED_BYTES
        if column is None:
            column = self._rows.decode(group, self._top)
            n_bytes = column.nbytes
        return (pc.struct_field(column, self._inner) if self._inner else column), n_bytes

    def _unpacked(self, group: int) -> pa.ChunkedArray | None:
        try:
            self._rows.unpack(group, self._top)
        except StorageError as error:  # memory does without the disk
            warnings.warn(f"row groups are read again and again: {error}", stacklevel=2)
            return None
        return self._rows.mapped(group, self._top)

    def _drop_oldest(self) -> None:
        with self._lock:
            done = {group: each.result()[1] for group, each in self._kept.items() if each.done()}
            used = sum(done.values())
            for group, n_bytes in done.items():
                if used <= _MEMORY_BYTES or group == next(reversed(self._kept)):
                    break
                del self._kept[group]
                self._unpacks.add(group)
                used -= n_bytes
