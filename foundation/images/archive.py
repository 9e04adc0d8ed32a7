"""Images in tar archives in the webdataset layout: a sample's files share their name up to its first dot.

Example: ``0001.jpg`` and ``0001.cls``, or ``0001.json`` with the class in it. Archives are indexed by their headers and
read in place; nothing is unpacked, and only images and classes are read. An image's id is ``archive/key``.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foundation.config import digest
from foundation.errors import DataError, nearest
from foundation.images.class_names import class_numbers, require_plausible_classes, require_tidy
from foundation.images.failures import BadImage, require_sane_bytes, retried
from foundation.images.folder import SUFFIXES
from foundation.images.headers import upright_size
from foundation.images.inventory import PassedOverFiles
from foundation.images.kinds import FOREIGN_SUFFIXES, HEAD_BYTES, kind_of, way_to_open
from foundation.images.preprocess import MAX_PIXELS, decode_image
from foundation.paths import expand

_FIELD = "data.source.label_field"
_MAX_NAME_BYTES = 4096
_MAX_JSON_BYTES = 1 << 24
_TAIL_BLOCK = 1 << 20
_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class _Sample:
    """Where one image lies in an archive."""

    archive: Path
    key: str
    offset: int
    size: int
    label: str | None


class ArchiveSource:
    """The images of some archives, in the order of archives' names and of members."""

    def __init__(
        self,
        path: str,
        label_field: str | None,
        field: str = "data.source.path",
        class_names: tuple[str, ...] | None = None,
        *,
        trust_classes: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Index the archives.

        Args:
            path: a file, a folder or a pattern.
            label_field: see ``ArchiveData``.
            field: what error messages call ``path``.
            class_names: the classes of the training images, when these are others.
            trust_classes: see ``ArchiveData``.
            max_pixels: see ``decode_image``.

        Raises:
            DataError: no archive, one that is damaged or compressed, no image, two images of one name, one without a
                class, or classes that hardly are such.
        """
        archives, self._max_pixels = _archives(path, field), max_pixels
        self.passed_over = PassedOverFiles()
        self._samples = [sample for each in archives for sample in _samples(each, label_field, self.passed_over)]
        expected = f"members ending in {', '.join(sorted(SUFFIXES))}"
        DataError.unless(
            len(self._samples) > 0, "the archives hold no images", field=field, found=path, expected=expected
        )
        self.ids = [f"{each.archive.name}/{each.key}" for each in self._samples]
        sizes = [(each.key, each.size) for each in self._samples]
        self.fingerprint = digest([[(each.name, each.stat().st_size) for each in archives], sizes])
        self.labels: np.ndarray | None = None
        self.class_names: tuple[str, ...] = ()
        if label_field is not None:
            names = [each.label for each in self._samples]
            missing = [name for name, label in zip(self.ids, names, strict=True) if label is None]
            if missing:
                expected = f"a member {missing[0]}.{label_field.partition('.')[0]}"
                found = f"{label_field}, missing for {len(missing):,} of {len(names):,} images"
                raise DataError("some images have no class", field=_FIELD, found=found, expected=expected)
            classes = [str(name) for name in names]
            require_tidy(classes, _FIELD, [f"of {each}" for each in self.ids])
            require_plausible_classes(classes, _FIELD, trusted=trust_classes or class_names is not None)
            self.labels, self.class_names = class_numbers(classes, class_names, _FIELD)

    def read(self, index: int) -> Image.Image:
        """The decoded image ``ids[index]``.

        Raises:
            BadImage: with the reason.
        """
        sample = self._samples[index]
        require_sane_bytes(sample.size)
        try:
            data = retried(lambda: _bytes_of(sample.archive, sample.offset, sample.size))
        except FileNotFoundError as error:
            raise BadImage("vanished", "the archive is no longer there") from error
        except OSError as error:
            code = "forbidden" if isinstance(error, PermissionError) else "unavailable"
            raise BadImage(code, f"the archive cannot be read: {error.strerror}") from error
        if len(data) < sample.size:
            raise BadImage("vanished", "the archive is shorter than when it was listed")
        return decode_image(data, self._max_pixels)

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of the upright image ``ids[index]``, from the head of its member.

        Raises:
            OSError: it cannot be opened.
        """
        sample = self._samples[index]
        head = _bytes_of(sample.archive, sample.offset, min(sample.size, _HEADER_BYTES))
        try:
            return upright_size(head)
        except OSError:  # a header that is longer, such as one with a preview in it
            return upright_size(_bytes_of(sample.archive, sample.offset, sample.size))


def _bytes_of(archive: Path, offset: int, size: int) -> bytes:
    with open(archive, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _archives(path: str, field: str) -> list[Path]:
    pattern = Path(expand(path, field))
    if pattern.is_dir():
        found = sorted(pattern.glob("*.tar"))
    else:
        found = [pattern] if pattern.is_file() else sorted(map(Path, glob.glob(str(pattern))))  # noqa: PTH207
    expected, fix = "a .tar file, a folder of them, or a pattern", "check the path; decompress archives to .tar"
    if not found and pattern.is_dir():
        others = sorted(each.name for each in pattern.iterdir() if not each.name.startswith("."))
        path = f"{path}, with {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" if others else path
        fix = f"{_way_out(others)}; decompress archives to .tar"
    DataError.unless(len(found) > 0, "no such archives", field=field, found=path, expected=expected, fix=fix)
    names = [each.name for each in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError("two archives have one name, which would give two images one id", field=field, found=twice)
    return found


def _way_out(names: list[str]) -> str:
    if any(Path(name).suffix.lower() in SUFFIXES for name in names):
        return "--data.source.type folder reads images in folders"
    kind, fix = next((each for each in map(way_to_open, map(Path, names)) if each[0] != "a file"), ("", ""))
    return f"for {kind}, {fix}" if kind else "--data.source.type folder reads images in folders"


def _samples(archive: Path, label_field: str | None, passed_over: PassedOverFiles) -> Iterator[_Sample]:
    seen: set[str] = set()
    for key, members in _by_key(archive, passed_over):
        images = _images_of(members, SUFFIXES) or _images_of(members, FOREIGN_SUFFIXES)[:1]
        if not images:
            for ending, member in members.items():
                kind = f".{ending.rpartition('.')[2].lower()}"
                passed_over.add(kind, "no image of this name beside it", f"{archive.name}/{member.name}")
            continue
        if key in seen or len(images) > 1:
            raise DataError("two images have one name up to its first dot", field=str(archive), found=key)
        seen.add(key)
        label = None if label_field is None else _label_of(archive, members, label_field)
        yield _Sample(archive, key, images[0].offset_data, images[0].size, label)


def _images_of(members: dict[str, tarfile.TarInfo], endings: Collection[str]) -> list[tarfile.TarInfo]:
    return [each for ending, each in members.items() if f".{ending.rpartition('.')[2].lower()}" in endings]


def _label_of(archive: Path, members: dict[str, tarfile.TarInfo], label_field: str) -> str | None:
    """The class in a member of this ending, or under a key of a JSON member; None if there is none."""
    if label_field in members:
        if label_field.lower() == "json":
            keys = ", ".join(f"json.{each}" for each in list(_json(archive, members[label_field]))[:10])
            fix = f"name a key of it: {keys}" if keys else "leave label_field out"
            raise DataError("holds JSON objects, not classes", field=_FIELD, found=label_field, fix=fix)
        return _text(archive, members[label_field])
    ending, _, inner = label_field.partition(".")
    if not inner or ending not in members:
        return None
    found: Any = _json(archive, members[ending])
    for key in [inner] if inner in found else inner.split("."):
        known = list(found) if isinstance(found, dict) else []
        found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            where = f"{label_field} in {archive}: {members[ending].name}"
            raise DataError("the JSON names no class", field=_FIELD, found=where, fix=nearest(key, known))
    if not isinstance(found, str | int) or (isinstance(found, str) and not found.strip()):
        expected = "a text or a whole number"
        raise DataError(
            "the JSON holds no class here", field=_FIELD, found=f"{label_field}: {found}", expected=expected
        )
    return str(found)


def _json(archive: Path, member: tarfile.TarInfo) -> dict[str, Any]:
    try:
        data = json.loads(_bytes_of(archive, member.offset_data, min(member.size, _MAX_JSON_BYTES)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON: {error}", field=f"{archive}: {member.name}") from error
    if not isinstance(data, dict):
        raise DataError("is no JSON object", field=f"{archive}: {member.name}", found=type(data).__name__)
    return data


def _by_key(archive: Path, passed_over: PassedOverFiles) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Consecutive members that share a key; each by what follows the first dot of its name."""
    named = ((*_key_and_ending(member.name), member) for member in _members(archive))
    for (key, is_sample), group in itertools.groupby(named, key=lambda each: (each[0], bool(each[1]))):
        if is_sample:
            yield key, {ending: member for _, ending, member in group}
            continue
        for _, _, member in group:
            kind = "hidden files" if key.rpartition("/")[2] == "" else "without an ending"
            passed_over.add(kind, "no part of a sample", f"{archive.name}/{member.name}")


def _key_and_ending(name: str) -> tuple[str, str]:
    """What is before and after the first dot of a file's name; a hidden file and one without a dot have no ending."""
    folder, _, file = name.removeprefix("./").rpartition("/")
    base, _, ending = file.partition(".")
    return f"{folder}/{base}" if folder else base, ending if base else ""


def _members(archive: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files of an archive, which must be complete up to its end mark."""
    try:
        with tarfile.open(archive, "r:") as opened:
            tar: Any = opened
            for member in tar:
                if member.isreg() and not member.issparse():
                    yield member
                tar.members = []  # they would fill the memory
            end = tar.offset
        _require_end(archive, end)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"is not a complete tar archive: {error}", field=str(archive), fix=_repair(archive)) from error


def _repair(archive: Path) -> str:
    with contextlib.suppress(OSError), open(archive, "rb") as file:
        kind = kind_of(file.read(HEAD_BYTES))
        if kind is not None and kind.name != "a tar archive":
            return f"it is {kind.name}: {kind.fix or 'use type folder for images'}"
    return "download or copy it again; decompress it to .tar"


def _require_end(archive: Path, offset: int) -> None:
    """Require the zeros that end a tar archive: they are missing after a cut, or behind a damaged header."""
    with open(archive, "rb") as file:
        file.seek(offset)
        first = block = file.read(_TAIL_BLOCK)
        while block and not any(block):
            block = file.read(_TAIL_BLOCK)
    if block or len(first) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no end mark at byte {offset:,} of {os.path.getsize(archive):,}")  # noqa: PTH202


def _text(archive: Path, member: tarfile.TarInfo) -> str:
    data = _bytes_of(archive, member.offset_data, min(member.size, _MAX_NAME_BYTES))
    try:
        text = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text or member.size > _MAX_NAME_BYTES:
        raise DataError("holds no class name", field=f"{archive}: {member.name}", expected="a short text")
    return text
