"""Images from tables: parquet, Arrow, CSV and JSON files, and everything else that ``datasets.load_dataset`` opens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foundation.errors import DataError
from foundation.images.array_image import AnyImage
from foundation.images.class_names import class_numbers, require_plausible_classes, require_same_classes
from foundation.images.inventory import PassedOverFiles
from foundation.images.preprocess import MAX_PIXELS
from foundation.images.source_config import DatasetData
from foundation.images.tables.cells import holds_images, open_cells
from foundation.images.tables.label_columns import class_label_names, names_of, numbers_of
from foundation.images.tables.row_groups import ParquetRows
from foundation.images.tables.rows import Rows, open_rows, pick
from foundation.images.windowed import Streamed
from foundation.randomness import permutation
from foundation.storage.remote.files import DEFAULT_CACHE_GIB

_LABELS = "data.source.label_column"
_ORIGIN = ("__key__", "__url__")


class DatasetSource:
    """One split of a dataset; images are decoded one by one, so that a damaged one is only listed.

    Attributes:
        ids: split and number of the row, or for rows of tar archives (webdataset) split, archive and key.
        fingerprint: changes with the files, or with the hub's revision, that the rows were read from.
        passed_over: files of the folder that belong to no split.
        notes: sentences about the columns.
        groups: (row groups,) index of the first image of each, of streamed rows; None otherwise.
        streamed: what streamed rows need; None otherwise.
    """

    def __init__(
        self,
        config: DatasetData,
        split: str,
        class_names: tuple[str, ...] | None = None,
        max_pixels: int = MAX_PIXELS,
        cache_gib: float = DEFAULT_CACHE_GIB,
        *,
        arrays: bool = False,
    ) -> None:
        """Open a split; ``class_names`` are the classes of the training split, when this is another one.

        ``cache_gib`` limits the cache of streamed rows, in GiB. With ``arrays`` (see ``decode_any``), cells of numbers
        are read as they are, without ``white_value``.

        Raises:
            DataError: nothing to open, no such split or column, a column that holds no images or no classes.
        """
        self._opened_with = (config, split, class_names, max_pixels, cache_gib, arrays)
        rows = open_rows(config, split, cache_gib)
        self.fingerprint, self.passed_over = rows.fingerprint, PassedOverFiles()
        for path in rows.passed_over:
            self.passed_over.add(
                path.suffix.lower() or "without an ending", "in no split, by the rules of datasets", path.name
            )
        images = _pick_image(rows, config.image_column)
        labels = None if config.label_column is None else pick(rows, config.label_column, _LABELS)
        wanted = [*(labels or ())[:1], *(_ORIGIN if set(_ORIGIN) <= set(rows.schema.names) else ())]
        wanted = wanted if rows.streamed else [images[0], *wanted]
        table = rows.read(list(dict.fromkeys(wanted))) if wanted else pa.table({})
        n_rows = rows.streamed.n_rows if rows.streamed else len(table)
        if n_rows == 0:
            raise DataError("the split holds no rows", field="data.source.split", found=f"{config.path} [{split}]")
        self._numbers = np.arange(n_rows)
        if config.limit is not None and config.limit < n_rows:
            self._numbers = np.sort(permutation(n_rows, "limit", split)[: config.limit])
        self.labels: np.ndarray | None = None
        self.class_names: tuple[str, ...] = ()
        self.notes = [] if labels is not None else _unused_classes(rows)
        if labels is not None:
            self._take_labels(_column(table, labels), rows, config, class_names)
        self.ids = _keys(table, split, self._numbers) or [f"{split}/{number:08d}" for number in self._numbers]
        self._column = rows.streamed.column(*images) if rows.streamed else None
        self._take_groups(rows.streamed)
        self._cells = open_cells(
            self._column or _column(table, images),
            rows.folders_of,
            field="data.source.image_column",
            name=config.image_column,
            white_value=config.white_value,
            allow_download=config.allow_download,
            max_pixels=max_pixels,
            arrays=arrays,
        )

    def read(self, index: int) -> AnyImage:
        """The decoded image ``ids[index]``.

        Raises:
            BadImage: with the reason.
        """
        return self._cells.read(int(self._numbers[index]))

    def some(self, indices: np.ndarray) -> ReopenedRows:
        """Some of the images, to be read by another process, which opens the table once."""
        config, *others = self._opened_with
        if Path(config.path).exists():
            config = replace(config, path=str(Path(config.path).absolute()))
        return ReopenedRows((config, *others), self.fingerprint, indices)

    def ahead(self, indices: np.ndarray) -> None:
        """Make the row groups of some images ready in a thread, in this order; they will be read soon."""
        if self._column is not None:
            self._column.ahead(self._numbers[indices])

    def _take_groups(self, streamed: ParquetRows | None) -> None:
        """Where the row groups begin, in images, and what they need."""
        self.groups: np.ndarray | None = None
        self.streamed: Streamed | None = None
        if streamed is not None:
            starts = np.unique(np.searchsorted(self._numbers, streamed.groups))
            self.groups = starts[starts < len(self._numbers)]
            self.streamed = Streamed(streamed.n_bytes, streamed.cache_bytes)

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of the upright image ``ids[index]``, from its header where the cell holds a file.

        Raises:
            BadImage, OSError: it cannot be opened.
        """
        return self._cells.size(int(self._numbers[index]))

    def _take_labels(
        self, column: pa.ChunkedArray, rows: Rows, config: DatasetData, class_names: tuple[str, ...] | None
    ) -> None:
        """Class numbers and names of a column; ``class_names`` of the training split set the numbers."""
        name = str(config.label_column)
        declared = class_label_names(_feature(rows, name))
        trusted = config.trust_classes or class_names is not None
        if declared is not None:
            require_same_classes(class_names, declared, _LABELS)
            numbers = numbers_of(column, declared, _LABELS, name)
            require_plausible_classes([declared[each] for each in numbers], _LABELS, trusted=trusted)
            self.labels, self.class_names = np.asarray(numbers, np.int64)[self._numbers], declared
            return
        names = names_of(column, _LABELS, name)
        require_plausible_classes(names, _LABELS, trusted=trusted)
        self.labels, self.class_names = class_numbers([names[i] for i in self._numbers], class_names, _LABELS)


class ReopenedRows:
    """Images of a table in a process that opens the table at the first one, and once for all such sources of it.

    Args:
        opened_with: what ``DatasetSource`` takes.
        fingerprint: of the table; another process must find the same.
        indices: of the images.
    """

    ids: Sequence[str] = ()
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def __init__(self, opened_with: tuple[Any, ...], fingerprint: str, indices: np.ndarray) -> None:
        self._opened_with, self._fingerprint, self._indices = opened_with, fingerprint, indices

    def read(self, index: int) -> AnyImage:
        """One of the images.

        Raises:
            BadImage: with the reason.
        """
        return self._source().read(int(self._indices[index]))

    def require_here(self) -> None:
        """See ``sources.require_here``."""
        self._source()

    def _source(self) -> DatasetSource:
        config, split, class_names, max_pixels, cache_gib, arrays = self._opened_with
        key = (self._fingerprint, repr(config), split)
        with _OPENING:
            if key not in _OPENED:
                source = DatasetSource(config, split, class_names, max_pixels, cache_gib, arrays=arrays)
                found, fix = source.fingerprint, "copy the same files to every machine, or read them from one place"
                what, expected = "holds another table on this machine", self._fingerprint
                same = found == expected
                DataError.unless(same, what, field=str(config.path), found=found, expected=expected, fix=fix)
                _OPENED[key] = source
            return _OPENED[key]


_OPENED: dict[tuple[str, str, str], DatasetSource] = {}
_OPENING = threading.Lock()


def _pick_image(rows: Rows, name: str) -> tuple[str, list[str]]:
    """The column of images.

    Raises:
        DataError: there is none of this name; the error names columns that may hold images.
    """
    try:
        return pick(rows, name, "data.source.image_column")
    except DataError as error:
        bytes_like = [each.name for each in rows.schema if holds_images(each.type) and not _is_plain_text(each.type)]
        tars = [] if rows.root is None else sorted(each.name for each in rows.root.glob("*.tar"))
        if tars and not bytes_like:
            fix = f"--data.source.type archives reads the images in {tars[0]} and other archives of the folder"
            found = f"{name}, of {', '.join(rows.schema.names)}"
            raise DataError("no such column", field=error.field, found=found, fix=fix) from error
        if not bytes_like or any(f"'{each}'" in str(error) for each in bytes_like):
            raise
        fix = " or ".join(f"--data.source.image_column {each}" for each in bytes_like[:3])
        raise DataError(
            "no such column", field=error.field, found=name, expected="a column of images", fix=fix
        ) from error


def _is_plain_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _column(table: pa.Table, place: tuple[str, list[str]]) -> pa.ChunkedArray:
    top, inner = place
    column = table.column(top)
    return pc.struct_field(column, inner) if inner else column


def _unused_classes(rows: Rows) -> list[str]:
    """A sentence for each column that is declared to hold classes."""
    declared = {name: class_label_names(feature) for name, feature in rows.features.items()}
    return [
        f"column {name} holds {len(classes)} classes, which are not used: --data.source.label-column {name} takes them"
        for name, classes in declared.items()
        if classes is not None
    ]


def _feature(rows: Rows, name: str) -> Any:
    """What ``datasets`` declares of a column."""
    if name in rows.features:
        return rows.features[name]
    found: Any = rows.features
    for each in name.split("."):
        found = found.get(each) if isinstance(found, dict) else None
    return found


def _keys(table: pa.Table, split: str, numbers: np.ndarray) -> list[str] | None:
    """Names of samples of tar archives (webdataset), by archive and key, where rows come from such."""
    if not set(_ORIGIN) <= set(table.column_names):
        return None
    names, urls = (table.column(name).take(pa.array(numbers)).to_pylist() for name in _ORIGIN)
    keys = [f"{split}/{PurePosixPath(str(url)).name}/{key}" for url, key in zip(urls, names, strict=True)]
    return keys if len(set(keys)) == len(keys) else None
