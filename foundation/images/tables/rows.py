"""Tables of images: the files of a dataset's split, found and opened, with a fingerprint of what was opened.

Local files are resolved first and read as they are now: the cache of ``datasets`` names a folder by its last part, so
it would hand out rows of another folder, or of files that were replaced since.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundation.config import digest
from foundation.errors import DataError, nearest
from foundation.images.kinds import HEAD_BYTES, kind_of, way_to_open
from foundation.images.source_config import DatasetData
from foundation.images.tables.files import LocalFiles, absolute, cache_folder, local_files
from foundation.images.tables.row_groups import ParquetRows
from foundation.images.tables.streamed import open_streamed
from foundation.images.tables.text import read_text_table
from foundation.paths import expand, is_remote
from foundation.storage.remote.files import DEFAULT_CACHE_GIB, LocalFile

_FIELD = "data.source.path"
_IN_MEMORY_BYTES = 1 << 30
"""parquet columns up to this size are read into memory; larger ones become a memory-mapped copy in the library's cache,
since a single row of a parquet file cannot be read"""


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        schema: names and types of the columns.
        features: what ``datasets`` declares of columns, by name, as in a dataset's card.
        read: from names of columns to the table of these.
        fingerprint: changes with the rows' origin: the files' names, sizes and contents, or the hub's revision.
        files: of local rows, in the order of the rows.
        first_rows: (len(files),) number of each file's first row.
        root: folder of local rows.
        passed_over: files of the folder of which there is no row.
        streamed: the rows themselves, where they stay in their files; ``read`` is then for narrow columns.
    """

    schema: pa.Schema
    features: dict[str, Any]
    read: Callable[[Sequence[str]], pa.Table]
    fingerprint: str
    files: Sequence[Path] = ()
    first_rows: np.ndarray | None = None
    root: Path | None = None
    passed_over: Sequence[Path] = ()
    streamed: ParquetRows | None = None

    def folders_of(self, row: int) -> list[Path]:
        """Folders to which a path in this row may be relative: its file's, and the dataset's."""
        found = [] if self.root is None else [self.root]
        if self.first_rows is not None:
            found.insert(0, self.files[int(np.searchsorted(self.first_rows, row, side="right")) - 1].parent)
        return list(dict.fromkeys(found))


def open_rows(config: DatasetData, split: str, cache_gib: float = DEFAULT_CACHE_GIB) -> Rows:
    """Open a split.

    Args:
        config, split: which rows.
        cache_gib: limit of the cache of streamed rows.

    Raises:
        DataError: naming the field: no such file or split, a file that is no table, files that are damaged, incomplete
            or of different columns.
    """
    path = Path(expand(config.path, "data.source.path"))
    is_there = not is_remote(config.path) and path.exists()
    if is_there or is_remote(config.path):
        _require_no_hub(config)
    elif not _may_be_of_hub(path, config.path):
        raise DataError("no such file or folder", field=_FIELD, found=config.path, fix="check the path")
    if config.streams:
        return _open_streamed(config, split, cache_gib)
    if not is_there:
        return _open_by_library(config, split, None)
    files = local_files(path, config, split)
    return _open_files(files, config, split) if files.kind in _READERS else _open_by_library(config, split, files)


def _may_be_of_hub(path: Path, text: str) -> bool:
    is_file = path.suffix and way_to_open(path)[0] != "a file"
    return not (is_file or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text)


def _require_no_hub(config: DatasetData) -> None:
    """Refuse fields that act on names of the hub alone."""
    found, fix = config.revision, "leave it out for files and addresses"
    DataError.unless(found is None, "is of the hub", field="data.source.revision", found=found, fix=fix)
    name = config.config_name if is_remote(config.path) else None
    DataError.unless(name is None, "is of the hub", field="data.source.config_name", found=name, fix=fix)


def _open_streamed(config: DatasetData, split: str, cache_gib: float) -> Rows:
    rows, fingerprint, passed_over = open_streamed(config, split, cache_gib)
    local = [each.path for each in rows.files if isinstance(each, LocalFile)]
    return Rows(
        schema=rows.schema,
        features=_features(rows.schema),
        read=rows.read,
        fingerprint=fingerprint,
        files=local,
        first_rows=rows.first_rows if local else None,
        root=local[0].parent if local else None,
        passed_over=passed_over,
        streamed=rows,
    )


def _open_files(files: LocalFiles, config: DatasetData, split: str) -> Rows:
    tables = [_READERS[files.kind](each) for each in files.paths]
    schemas = [schema for schema, _, _ in tables]
    for schema, path in zip(schemas, files.paths, strict=True):
        if schema.names != schemas[0].names:
            found = f"{path}: {', '.join(schema.names)}"
            expected = f"the columns of {files.paths[0].name}: {', '.join(schemas[0].names)}"
            raise DataError("has other columns than the first file", field=_FIELD, found=found, expected=expected)
    n_rows = [n for _, n, _ in tables]

    def read(columns: Sequence[str]) -> pa.Table:
        if files.kind == "parquet" and _column_bytes(files.paths, columns) > _IN_MEMORY_BYTES:
            return _copied(files, config, split, sum(n_rows)).select(columns)
        parts = [load(list(columns)) for _, _, load in tables]
        return pa.concat_tables([each.replace_schema_metadata() for each in parts], promote_options="permissive")

    return Rows(
        schema=schemas[0],
        features=_features(schemas[0]),
        read=read,
        fingerprint=files.fingerprint,
        files=files.paths,
        first_rows=np.cumsum([0, *n_rows[:-1]]),
        root=files.root,
        passed_over=files.passed_over,
    )


def _copied(files: LocalFiles, config: DatasetData, split: str, n_rows: int) -> pa.Table:
    """The table of large parquet files, by a memory-mapped copy that belongs to these very files."""
    import datasets

    datasets.disable_progress_bars()
    paths, cache = [str(path) for path in files.paths], str(cache_folder(files))
    rows = _by_library(
        lambda: datasets.load_dataset("parquet", data_files={"rows": paths}, split="rows", cache_dir=cache), config.path
    )
    found, expected = f"{len(rows):,} rows in {cache}", f"{n_rows:,}, as the files say"
    DataError.unless(len(rows) == n_rows, "was copied incompletely", field=_FIELD, found=found, expected=expected)
    return rows.data.table


def _column_bytes(paths: Sequence[Path], columns: Sequence[str]) -> int:
    total = 0
    for path in paths:
        about = pq.read_metadata(path)
        for group in map(about.row_group, range(about.num_row_groups)):
            chunks = map(group.column, range(group.num_columns))
            total += sum(
                each.total_uncompressed_size for each in chunks if each.path_in_schema.split(".")[0] in columns
            )
    return total


def _open_by_library(config: DatasetData, split: str, files: LocalFiles | None) -> Rows:
    """Rows of the hub, or of local files that only ``datasets`` knows, by a cache that belongs to these very files."""
    import datasets

    datasets.disable_progress_bars()
    where = str(files.root) if files else config.path
    cache = str(cache_folder(files)) if files else None
    rows = _by_library(
        lambda: datasets.load_dataset(
            where, config.config_name, split=split, cache_dir=cache, revision=None if files else config.revision
        ),
        f"{config.path} [{split}]",
    )
    table, about = rows.data.table, rows.info
    source = sorted(about.download_checksums or {})  # addresses with the revision in them
    return Rows(
        schema=table.schema,
        features=json.loads(json.dumps(about.features.to_dict())) if about.features else {},
        read=lambda columns: table.select(list(columns)),
        fingerprint=files.fingerprint if files else _hub_fingerprint(config, split, source, len(rows)),
        root=files.root if files else None,
        passed_over=_without_row(files, table) if files and files.kind == "imagefolder" else (),
    )


def _without_row(files: LocalFiles, table: pa.Table) -> list[Path]:
    """Files of an image folder that became no row; ``datasets`` says nothing of them."""
    cells = pc.struct_field(table.column("image"), "path").to_pylist() if "image" in table.column_names else []
    there = {absolute(each) for each in cells if each}
    tables = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
    listed = [each for each in sorted(files.root.rglob("*")) if each.is_file() and not each.name.startswith(".")]
    return [each for each in listed if absolute(each) not in there and each.name not in tables]


def _by_library(load: Callable[[], Any], found: str) -> Any:
    try:
        return load()
    except Exception as error:  # the library raises many kinds; the message is what helps
        cause = error.__cause__ or error
        raise DataError(
            f"cannot be opened: {error}{f' ({error.__cause__})' if error.__cause__ else ''}",
            field=_FIELD,
            found=found,
            fix=_library_fix(cause),
        ) from error


def _library_fix(cause: BaseException) -> str:
    if isinstance(cause, ModuleNotFoundError):
        return f"pip install {cause.name}, or write the images to parquet files or folders"
    if isinstance(cause, PermissionError):
        return f"make {cause.filename or 'the file'} readable, or the library's cache writable (HF_HOME)"
    if isinstance(cause, OSError) and cause.errno is not None and cause.filename:
        return "free or repair the disk"
    return "check the path and the split's name; a hub dataset needs a network connection"


def _hub_fingerprint(config: DatasetData, split: str, source: list[str], n_rows: int) -> str:
    return digest([config.path, config.config_name, config.revision, split, source, n_rows])


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What ``datasets`` has noted of the columns in a file's metadata."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(noted.get("info", {}).get("features") or {})
    except (ValueError, TypeError, AttributeError):
        return {}


_Table = tuple[pa.Schema, int, Callable[[Sequence[str]], pa.Table]]


def _parquet(path: Path) -> _Table:
    """Schema, number of rows and reader of a parquet file."""
    try:
        opened = pq.ParquetFile(path)
        schema, n = opened.schema_arrow, opened.metadata.num_rows
        opened.close()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, "parquet", error) from error
    return schema, n, functools.partial(_read_parquet, path, n)


def _read_parquet(path: Path, n: int, columns: Sequence[str]) -> pa.Table:
    try:
        table = pq.ParquetFile(path).read(columns=list(columns)).select(list(columns))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, "parquet", error) from error
    DataError.unless(
        len(table) == n, "has other rows than its footer says", field=_FIELD, found=f"{path}: {len(table)}", expected=n
    )
    return table


def _arrow(path: Path) -> _Table:
    """Schema, number of rows and reader of an Arrow file, memory-mapped; of ``save_to_disk`` (a stream) or Feather."""
    try:
        source = pa.memory_map(str(path))
        try:
            table = pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, "Arrow", error) from error
    return table.schema, len(table), lambda columns: table.select(list(columns))


def _text(path: Path) -> _Table:
    table = read_text_table(path, _FIELD)
    return table.schema, len(table), lambda columns: table.select(list(columns))


def _damaged(path: Path, kind: str, error: Exception) -> DataError:
    try:
        with open(path, "rb") as file:
            found = kind_of(file.read(HEAD_BYTES))
    except OSError as problem:
        return DataError(f"cannot be read: {problem.strerror}", field=_FIELD, found=str(path), fix="check the file")
    if found is not None and not found.name.startswith(("a parquet", "an Arrow")):
        fix = found.fix or "use type folder for images"
        return DataError(f"is no {kind} file, but {found.name}", field=_FIELD, found=str(path), fix=fix)
    what = f"is not a complete {kind} file: {error}"
    return DataError(what, field=_FIELD, found=str(path), fix="download or copy it again")


_READERS: dict[str, Callable[[Path], _Table]] = {"parquet": _parquet, "arrow": _arrow, "csv": _text, "json": _text}


def pick(rows: Rows, name: str, field: str) -> tuple[str, list[str]]:
    """Split a column's name into the column and the fields in it.

    Raises:
        DataError: there is none of this name.
    """
    if name in rows.schema.names:
        return name, []
    top, *inner = name.split(".")
    kind: Any = rows.schema.field(top).type if inner and top in rows.schema.names else pa.null()
    for each in inner:
        index = kind.get_field_index(each) if pa.types.is_struct(kind) else -1
        if index < 0:
            raise DataError("no such column", field=field, found=name, fix=nearest(name, _all_names(rows.schema)))
        kind = kind.field(index).type
    if not inner:
        raise DataError("no such column", field=field, found=name, fix=nearest(name, rows.schema.names))
    return top, inner


def _all_names(schema: pa.Schema) -> list[str]:
    inner = [
        f"{each.name}.{each.type.field(i).name}"
        for each in schema
        if pa.types.is_struct(each.type)
        for i in range(each.type.num_fields)
    ]
    return [*schema.names, *inner]
