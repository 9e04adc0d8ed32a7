"""Index of a tar archive: where each image lies, with its key and class; built once and kept.

The index of an archive is a file in the cache folder under a name that depends on the archive's place, size and
version, so that a second start reads no archive. An archive in a store is indexed as it passes through the cache: the
headers of small members lie so close that requests for them alone would take longer than the archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from foundation.config import digest
from foundation.errors import DataError, StorageError, nearest
from foundation.images.folder import suffixes_of
from foundation.images.inventory import PassedOverFiles
from foundation.images.kinds import FOREIGN_SUFFIXES, HEAD_BYTES, kind_of
from foundation.storage import durable
from foundation.storage.disk_cache import DiskCache
from foundation.storage.remote.files import StoredFile

LABEL_FIELD = "data.source.label_field"
_FORMAT = 1
_MAX_NAME_BYTES = 4096
_MAX_JSON_BYTES = 1 << 24
_TAIL_BLOCK = 1 << 20
_SUM_BYTES = 32
_ABOUT = b"tessera"
_SCHEMA = pa.schema([("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.string())])


@dataclass(frozen=True)
class ArchiveIndex:
    """The images of one archive, in the order of its members.

    Attributes:
        keys: names up to the first dot.
        offsets, sizes: (n,) int64, bytes.
        labels: classes as text, null where there is none.
        passed_over: (kind, reason, example, count) of the other members.
        digest: hash of keys and sizes.
        is_kept: whether the next start finds it.
    """

    keys: pa.Array
    offsets: np.ndarray
    sizes: np.ndarray
    labels: pa.Array
    passed_over: list[tuple[str, str, str, int]]
    digest: str
    is_kept: bool = True


def index_of(archive: StoredFile, label_field: str | None, kept: DiskCache, *, arrays: bool = False) -> ArchiveIndex:
    """The index of an archive, from its file or built now.

    Args:
        archive: the tar file.
        label_field: see ``ArchiveData``.
        kept: folder of the files.
        arrays: whether .npy members are images.

    Raises:
        DataError: the archive is damaged or compressed, two images have one name, or a class cannot be read.
        RemoteError: it cannot be fetched.
    """
    key = digest([_FORMAT, archive.key, archive.name, label_field, *(["arrays"] if arrays else [])])[:32]
    found = kept.find(key)
    index = None if found is None else _load(found)
    if index is not None:
        return index
    if found is not None:
        found.unlink(missing_ok=True)
    made: list[bytes] = []

    def make(target: Path) -> None:
        made.append(_build(archive, label_field, arrays))
        durable.write_bytes(target, made[0])

    try:
        index = _load(kept.get(key, 0, make))
    except StorageError:  # a folder that may only be read
        index = None
    if index is not None:
        return index
    return _parsed(pa.py_buffer(made[0] if made else _build(archive, label_field, arrays)), is_kept=False)


def _load(path: Path) -> ArchiveIndex | None:
    """An index file, mapped into memory; None if it is damaged."""
    try:
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
        return _parsed(content, is_kept=True)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _parsed(content: pa.Buffer, *, is_kept: bool) -> ArchiveIndex:
    view = memoryview(content)
    body, expected = view[:-_SUM_BYTES], bytes(view[-_SUM_BYTES:])
    if hashlib.sha256(body).digest() != expected:
        raise ValueError("the index is damaged")
    table = pa.ipc.open_stream(content.slice(0, len(body))).read_all().combine_chunks()
    keys, offsets, sizes, labels = (
        table[name].chunk(0) if table.num_rows else pa.array([], _SCHEMA.field(name).type) for name in _SCHEMA.names
    )
    about = json.loads(table.schema.metadata[_ABOUT])
    arrays = keys, offsets.to_numpy(), sizes.to_numpy(), labels
    return ArchiveIndex(*arrays, about["passed_over"], about["digest"], is_kept)


def _build(archive: StoredFile, label_field: str | None, arrays: bool) -> bytes:
    passed_over = PassedOverFiles()
    while True:
        try:
            rows = list(_Reader(archive, archive.local(), passed_over, suffixes_of(arrays=arrays)).samples(label_field))
            break
        except FileNotFoundError:  # removed from the cache for another file since
            continue
    columns = list(zip(*rows, strict=True)) or [()] * 4
    rows_over = [(each.kind, each.reason, each.example, each.count) for each in passed_over.rows()]
    about = {"passed_over": rows_over, "digest": digest([columns[0], columns[2]])}
    schema = _SCHEMA.with_metadata({_ABOUT: json.dumps(about).encode()})
    table = pa.table([pa.array(each, field.type) for each, field in zip(columns, _SCHEMA, strict=True)], schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    body = sink.getvalue().to_pybytes()
    return body + hashlib.sha256(body).digest()


class _Reader:
    """Reads the members of one archive.

    Args:
        archive: how messages name it.
        path: of the whole archive.
        passed_over: counts members that belong to no image.
        suffixes: endings of images.
    """

    def __init__(
        self, archive: StoredFile, path: Path, passed_over: PassedOverFiles, suffixes: Collection[str]
    ) -> None:
        self._suffixes = suffixes
        self._name, self._shown, self._path, self._passed_over = archive.name, archive.shown, path, passed_over

    _file: BinaryIO

    def samples(self, label_field: str | None) -> Iterator[tuple[str, int, int, str | None]]:
        """(key, offset, size, class) of each image."""
        with open(self._path, "rb") as self._file:
            yield from self._samples(label_field)

    def _samples(self, label_field: str | None) -> Iterator[tuple[str, int, int, str | None]]:
        seen: set[str] = set()
        for key, members in self._by_key():
            images = _images_of(members, self._suffixes) or _images_of(members, FOREIGN_SUFFIXES)[:1]
            if not images:
                for ending, member in members.items():
                    kind = f".{ending.rpartition('.')[2].lower()}"
                    self._passed_over.add(kind, "no image of this name beside it", f"{self._name}/{member.name}")
                continue
            if key in seen or len(images) > 1:
                raise DataError("two images have one name up to its first dot", field=self._shown, found=key)
            seen.add(key)
            label = None if label_field is None else self._label_of(members, label_field)
            yield key, images[0].offset_data, images[0].size, label

    def _label_of(self, members: dict[str, tarfile.TarInfo], label_field: str) -> str | None:
        """The class in a member of this ending, or under a key of a JSON member; None if there is none."""
        if label_field in members:
            if label_field.lower() == "json":
                keys = ", ".join(f"json.{each}" for each in list(self._json(members[label_field]))[:10])
                fix = f"name a key of it: {keys}" if keys else "leave label_field out"
                raise DataError("holds JSON objects, not classes", field=LABEL_FIELD, found=label_field, fix=fix)
            return self._text(members[label_field])
        ending, _, inner = label_field.partition(".")
        if not inner or ending not in members:
            return None
        found: Any = self._json(members[ending])
        for key in [inner] if inner in found else inner.split("."):
            known = list(found) if isinstance(found, dict) else []
            found = found.get(key) if isinstance(found, dict) else None
            if found is None:
                where = f"{label_field} in {self._shown}: {members[ending].name}"
                raise DataError("the JSON names no class", field=LABEL_FIELD, found=where, fix=nearest(key, known))
        if not isinstance(found, str | int) or (isinstance(found, str) and not found.strip()):
            shown, expected = f"{label_field}: {found}", "a text or a whole number"
            raise DataError("the JSON holds no class here", field=LABEL_FIELD, found=shown, expected=expected)
        return str(found)

    def _json(self, member: tarfile.TarInfo) -> dict[str, Any]:
        try:
            data = json.loads(self._bytes(member, _MAX_JSON_BYTES))
        except (ValueError, RecursionError) as error:
            raise DataError(f"is no JSON: {error}", field=f"{self._shown}: {member.name}") from error
        if not isinstance(data, dict):
            found = type(data).__name__
            raise DataError("is no JSON object", field=f"{self._shown}: {member.name}", found=found)
        return data

    def _text(self, member: tarfile.TarInfo) -> str:
        try:
            text = self._bytes(member, _MAX_NAME_BYTES).decode().rstrip("\r\n")
        except UnicodeDecodeError:
            text = ""
        if not text or member.size > _MAX_NAME_BYTES:
            field = f"{self._shown}: {member.name}"
            raise DataError("holds no class name", field=field, expected="a short text")
        return text

    def _bytes(self, member: tarfile.TarInfo, most: int) -> bytes:
        self._file.seek(member.offset_data)
        return self._file.read(min(member.size, most))

    def _by_key(self) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
        """Consecutive members that share a key; each by what follows the first dot of its name."""
        named = ((*_key_and_ending(member.name), member) for member in self._members())
        for (key, is_sample), group in itertools.groupby(named, key=lambda each: (each[0], bool(each[1]))):
            if is_sample:
                yield key, {ending: member for _, ending, member in group}
                continue
            for _, _, member in group:
                kind = "hidden files" if key.rpartition("/")[2] == "" else "without an ending"
                self._passed_over.add(kind, "no part of a sample", f"{self._name}/{member.name}")

    def _members(self) -> Iterator[tarfile.TarInfo]:
        """The plain files of an archive, which must be complete up to its end mark."""
        try:
            with tarfile.open(self._path, "r:") as opened:
                tar: Any = opened
                for member in tar:
                    if member.isreg() and not member.issparse():
                        yield member
                    tar.members = []  # they would fill the memory
                end = tar.offset
            _require_end(self._path, end)
        except FileNotFoundError:
            raise
        except (tarfile.TarError, OSError) as error:
            what, fix = f"is not a complete tar archive: {error}", _repair(self._path)
            raise DataError(what, field=self._shown, fix=fix) from error


def _images_of(members: dict[str, tarfile.TarInfo], endings: Collection[str]) -> list[tarfile.TarInfo]:
    return [each for ending, each in members.items() if f".{ending.rpartition('.')[2].lower()}" in endings]


def _key_and_ending(name: str) -> tuple[str, str]:
    """What is before and after the first dot of a file's name; a hidden file and one without a dot have no ending."""
    folder, _, file = name.removeprefix("./").rpartition("/")
    base, _, ending = file.partition(".")
    return f"{folder}/{base}" if folder else base, ending if base else ""


def _repair(path: Path) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        kind = kind_of(file.read(HEAD_BYTES))
        if kind is not None and kind.name != "a tar archive":
            return f"it is {kind.name}: {kind.fix or 'use type folder for images'}"
    return "download or copy it again; decompress it to .tar"


def _require_end(path: Path, offset: int) -> None:
    """Require the zeros that end a tar archive: they are missing after a cut, or behind a damaged header."""
    with open(path, "rb") as file:
        file.seek(offset)
        first = block = file.read(_TAIL_BLOCK)
        while block and not any(block):
            block = file.read(_TAIL_BLOCK)
    if block or len(first) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no end mark at byte {offset:,} of {os.path.getsize(path):,}")  # noqa: PTH202
