"""Cells of a column as images: bytes, paths, web addresses, data URIs, base64, numbers, and lists of one of them."""

from __future__ import annotations

import base64
import binascii
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foundation.errors import DataError
from foundation.images.array_image import AnyImage, ArrayImage
from foundation.images.failures import MAX_FILE_BYTES, BadImage, read_plain_file, require_sane_bytes
from foundation.images.headers import size_of, upright_size
from foundation.images.kinds import kind_of
from foundation.images.preprocess import MAX_PIXELS, NPY, decode_any, read_npy
from foundation.images.tables.pixel_numbers import image_of, white_of
from foundation.images.tables.row_groups import RowGroupColumn
from foundation.storage.retrying import retried

_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_N_LOOKED_AT = 64
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Cells:
    """A column of images.

    Attributes:
        column: of a type that ``holds_images`` accepts.
        folders_of: from the number of a row to the folders to which a path in it may be relative.
        allow_download: whether web addresses are fetched.
        max_pixels: see ``decode_image``.
        white: value of white in cells of numbers; None if there are none.
        arrays: whether cells of numbers are arrays of any channels, of which ``Preprocess`` knows what is white.
    """

    column: pa.ChunkedArray | RowGroupColumn
    folders_of: Callable[[int], list[Path]]
    allow_download: bool = False
    max_pixels: int = MAX_PIXELS
    white: float | None = None
    arrays: bool = False

    def read(self, row: int) -> AnyImage:
        """The decoded image of a row.

        Raises:
            BadImage: with the reason.
        """
        value = self._value(row)
        return self._array(value) if isinstance(value, np.ndarray) else self._decoded(value)

    def size(self, row: int) -> tuple[int, int]:
        """(width, height) of the upright image of a row, from its header where the cell holds a file.

        Raises:
            BadImage, OSError: it cannot be opened.
        """
        value = self._value(row)
        return size_of(self._array(value)) if isinstance(value, np.ndarray) else upright_size(value)

    def _array(self, values: np.ndarray) -> AnyImage:
        return ArrayImage(values) if self.arrays else image_of(values, self.white)

    def _decoded(self, data: bytes) -> AnyImage:
        return decode_any(data, self.max_pixels, arrays=self.arrays)

    def _value(self, row: int) -> Any:
        """A file's bytes, or an array of numbers."""
        value = content(self.column[row])
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
            if value is None:
                raise BadImage("unreadable", "the cell holds neither an image nor the path of one")
        if isinstance(value, str):
            value = self._file(value, row)
        return read_npy(value, self.max_pixels) if isinstance(value, bytes) and value.startswith(NPY) else value

    def _file(self, text: str, row: int) -> bytes:
        """The file that a text is, or that it names."""
        if text.startswith("data:"):
            return _data_uri(text)
        address = _ADDRESS.match(text)
        if address and address[1].lower() in ("http", "https"):
            return self._download(text)
        if address and address[1].lower() == "file":
            text = urllib.parse.unquote(urllib.parse.urlparse(text).path)
        elif address:
            fix = "copy the files, and name their paths"
            raise BadImage(
                "remote", f"the cell names an address of {address[1]}://, from which nothing is read", fix=fix
            )
        inside = _base64(text)
        return self._local(text, row) if inside is None else inside

    def _local(self, text: str, row: int) -> bytes:
        if not text.strip() or "\0" in text or len(text) > 4096:
            raise BadImage("unreadable", "the cell holds text that is no path, web address, data URI or base64")
        names = [text] if "\\" not in text else [text, text.replace("\\", "/")]
        folders = [*self.folders_of(row), Path()]  # datasets writes paths relative to the working directory
        tried = [folder / name for name in names for folder in folders]
        for path in tried:
            if os.path.lexists(path):
                return read_plain_file(path, follow_links=True)  # the hub's cache consists of links
        where = " or ".join(dict.fromkeys(str(folder.absolute()) for folder in folders))
        raise BadImage(
            "missing", "the cell names a file that is not there", found=text, expected=f"a file below {where}"
        )

    def _download(self, address: str) -> bytes:
        if not self.allow_download:
            fix = "--data.source.allow_download true, or fetch the images first, e.g. with img2dataset"
            raise BadImage("remote", "the cell holds a web address, from which nothing is fetched", fix=fix)
        try:
            return retried(lambda: _fetched(address))
        except (urllib.error.HTTPError, ValueError) as error:
            raise BadImage("unavailable", f"{address} cannot be fetched: {error}") from error
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or error
            raise BadImage("unavailable", f"{address} cannot be fetched: {reason}") from error


def open_cells(
    column: pa.ChunkedArray | RowGroupColumn,
    folders_of: Callable[[int], list[Path]],
    *,
    field: str,
    name: str,
    white_value: float | None = None,
    allow_download: bool = False,
    max_pixels: int = MAX_PIXELS,
    arrays: bool = False,
) -> Cells:
    """A column of images; which value is white in cells of numbers is found from some of them.

    Args:
        column, folders_of, allow_download, max_pixels, arrays: see ``Cells``.
        field: names the column's field in error messages.
        name: of the column.
        white_value: see ``DatasetData``.

    Raises:
        DataError: a column that holds no images, or numbers of which it is in doubt which is white.
    """
    if not holds_images(column.type):
        expected = "bytes, paths, web addresses, data URIs, base64, numbers, or lists of one of them"
        raise DataError("holds no images", field=field, found=f"{name}: {column.type}", expected=expected)
    if arrays:
        what = "has no effect on arrays that keep their channels and bits"
        fix = "--data.preprocess.white_level, or value_range"
        DataError.unless(white_value is None, what, field="data.source.white_value", found=white_value, fix=fix)
        return Cells(column, folders_of, allow_download, max_pixels, arrays=True)
    rows = column.samples(_N_LOOKED_AT) if isinstance(column, RowGroupColumn) else _at_equal_distances(len(column))
    numbers = [each for row in rows if (each := _numbers(column[row])) is not None]
    white = white_of(numbers, white_value, name) if numbers else None
    if white_value is not None and not numbers:
        what, fix = "has no effect: the cells hold no numbers", "leave it out; see data.preprocess.white_level"
        raise DataError(what, field="data.source.white_value", found=white_value, fix=fix)
    return Cells(column, folders_of, allow_download, max_pixels, white)


def _at_equal_distances(n: int) -> list[int]:
    return sorted({round(i * (n - 1) / (_N_LOOKED_AT - 1)) for i in range(_N_LOOKED_AT)} if n else ())


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold images."""
    kind = _plain(kind)
    if pa.types.is_struct(kind):
        return any(
            kind.get_field_index(name) >= 0 and (_is_bytes(of := kind.field(name).type) or _is_text(of))
            for name in ("bytes", "path")
        )
    if _is_list(kind):
        return _is_number(_innermost(kind)) or holds_images(kind.value_type)
    return _is_bytes(kind) or _is_text(kind)


def content(cell: Any) -> Any:
    """A cell as bytes, text, an array, or a dictionary with ``bytes`` and ``path``.

    Args:
        cell: a scalar of pyarrow.

    Raises:
        BadImage: the cell is empty, or holds several images.
    """
    if isinstance(cell, pa.ExtensionScalar):
        cell = cell.value
    if cell is None or not cell.is_valid:
        raise BadImage("unreadable", "the cell is empty")
    if isinstance(cell, pa.DictionaryScalar):
        return content(cell.value)
    if not _is_list(cell.type):
        if pa.types.is_struct(cell.type):
            return {name: cell[name].as_py() for name in ("bytes", "path") if name in cell}
        return cell.as_py()
    values = cell.values
    if _is_number(_innermost(cell.type)):
        return _array(values)
    if len(values) != 1:
        what = f"the cell holds {len(values)} images" if len(values) else "the cell holds an empty list"
        raise BadImage("unreadable", what, expected="one image a row")
    return content(values[0])


def _numbers(cell: Any) -> np.ndarray | None:
    """The numbers in a cell, if it holds such and no image file."""
    try:
        value = content(cell)
        if isinstance(value, dict):
            value = value.get("bytes")
        if isinstance(value, bytes) and value.startswith(NPY):
            value = read_npy(value)
    except BadImage:
        return None
    return value if isinstance(value, np.ndarray) else None


def _array(values: pa.Array) -> np.ndarray:
    shape = [len(values)]
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if values.null_count:
            raise BadImage("unreadable", "the cell holds numbers with gaps")
        if not _is_list(values.type):
            return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)
        lengths = pc.min_max(pc.list_value_length(values))
        least, most = lengths["min"].as_py(), lengths["max"].as_py()
        if least != most or not most:
            raise BadImage("unreadable", "the cell holds rows of different lengths", found=f"{least} to {most}")
        shape.append(most)
        values = values.flatten()


def _data_uri(text: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma:
        raise BadImage("unreadable", "the cell holds a data URI without data")
    if not head.endswith(";base64"):
        return urllib.parse.unquote_to_bytes(body)
    try:
        return base64.b64decode(urllib.parse.unquote(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage("unreadable", f"the cell holds a data URI with damaged base64: {error}") from error


def _base64(text: str) -> bytes | None:
    """The file that a text is in base64; None if it is no base64 of a file of a known kind."""
    packed = "".join(text.split())
    if len(packed) < 40 or re.fullmatch(r"[A-Za-z0-9+/_-]+={0,2}", packed[:4096]) is None:
        return None
    packed = packed.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if kind_of(data) is not None else None


def _fetched(address: str) -> bytes:
    request = urllib.request.Request(address, headers={"User-Agent": "tessera"})  # http and https alone
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            data: bytes = answer.read(MAX_FILE_BYTES + 1)
    except urllib.error.URLError as error:
        if isinstance(error.reason, OSError):
            raise error.reason from error
        raise
    require_sane_bytes(len(data))
    return data


def _plain(kind: pa.DataType) -> pa.DataType:
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def _innermost(kind: pa.DataType) -> pa.DataType:
    kind = _plain(kind)
    while _is_list(kind):
        kind = _plain(kind.value_type)
    return kind


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
