"""Images in tar archives as the ``webdataset`` package lays them out: files of one sample share a name up to its first
dot, as in ``0001.jpg`` and ``0001.cls``.

Archives are indexed by their headers and read in place, in any order; nothing is unpacked, and no member but images
and class names is looked into. An image's id is ``archive/key``.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from foundation.config import Choice
from foundation.errors import DataError
from foundation.images.class_names import class_numbers
from foundation.images.failures import BadImage
from foundation.images.folder import SUFFIXES
from foundation.images.preprocess import MAX_FILE_BYTES, decode_image

_MAX_NAME_BYTES = 4096
_TAIL_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ArchiveData(Choice):
    """Tar archives of images as the webdataset package lays them out, on a local disk; for archives on the hub use
    type dataset.
    """

    type_name: ClassVar[str] = "archives"

    path: str
    """a .tar file, a folder of them, or a pattern such as shards/train-*.tar"""
    validation_path: str | None = None
    """the same for the held-out images; null takes a share of the first"""
    label_field: str | None = None
    """ending of the member that holds the class as text, e.g. cls; null means no labels"""


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
    ) -> None:
        """Index the archives.

        Args:
            path: a file, a folder or a pattern.
            label_field: ending of the members that hold classes.
            field: what error messages call ``path``.
            class_names: the classes of the training images, when these are others.

        Raises:
            DataError: no archive, one that is damaged or compressed, no image, two images of one name, or one
                without a class.
        """
        self._samples = [sample for each in _archives(path, field) for sample in _samples(each, label_field)]
        if not self._samples:
            raise DataError("the archives hold no images", field=field, found=path,
                            expected=f"members ending in {', '.join(sorted(SUFFIXES))}")  # fmt: skip
        self.ids = [f"{each.archive.name}/{each.key}" for each in self._samples]
        self.labels: np.ndarray | None = None
        self.class_names: tuple[str, ...] = ()
        if label_field is not None:
            names = [each.label for each in self._samples]
            missing = [name for name, label in zip(self.ids, names, strict=True) if label is None]
            if missing:
                raise DataError("some images have no class", field="data.source.label_field", found=label_field,
                                expected=f"a member {missing[0]}.{label_field}")  # fmt: skip
            self.labels, self.class_names = class_numbers([str(name) for name in names], class_names, field)

    def read(self, index: int) -> Image.Image:
        """The decoded image ``ids[index]``.

        Raises:
            BadImage: with the reason.
        """
        sample = self._samples[index]
        if sample.size > MAX_FILE_BYTES:
            raise BadImage("too_large", "the file is too large", found=f"{sample.size:,} bytes",
                           expected=f"at most {MAX_FILE_BYTES:,}")  # fmt: skip
        try:
            with open(sample.archive, "rb") as file:
                file.seek(sample.offset)
                data = file.read(sample.size)
        except FileNotFoundError as error:
            raise BadImage("vanished", "the archive is no longer there") from error
        except OSError as error:
            raise BadImage("unavailable", f"the archive cannot be read: {error.strerror}") from error
        return decode_image(data)


def _archives(path: str, field: str) -> list[Path]:
    place = Path(path).expanduser()
    found = sorted(place.glob("*.tar")) if place.is_dir() else sorted(map(Path, glob.glob(str(place))))  # noqa: PTH207
    if not found:
        raise DataError("no such archives", field=field, found=path, expected="a .tar file, a folder of them, or a "
                        "pattern", fix="check the path; compressed archives must be unpacked to .tar")  # fmt: skip
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise DataError("two archives have one name, which would give two images one id", field=field,
                        found=next(name for name in names if names.count(name) > 1))  # fmt: skip
    return found


def _samples(archive: Path, label_field: str | None) -> Iterator[_Sample]:
    seen: set[str] = set()
    for key, members in _by_key(archive):
        images = [each for ending, each in members.items() if f".{ending.rpartition('.')[2].lower()}" in SUFFIXES]
        if not images:
            continue
        if key in seen or len(images) > 1:
            raise DataError("two images have one name up to its first dot", field=str(archive), found=key)
        seen.add(key)
        label = None
        if label_field is not None and label_field in members:
            label = _text(archive, members[label_field])
        yield _Sample(archive, key, images[0].offset_data, images[0].size, label)


def _by_key(archive: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Members one after the other that share a key, by what follows the first dot of their names."""
    key, members = "", dict[str, tarfile.TarInfo]()
    for member in _members(archive):
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        base, _, ending = name.partition(".")
        new = f"{folder}/{base}" if folder else base
        if not base or not ending:
            continue
        if new != key and members:
            yield key, members
            members = {}
        key = new
        members[ending] = member
    if members:
        yield key, members


def _members(archive: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files of an archive, which must be whole up to its end mark."""
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
        raise DataError(f"is not a whole tar archive: {error}", field=str(archive),
                        fix="take it anew; a compressed one must be unpacked to .tar") from error  # fmt: skip


def _require_end(archive: Path, offset: int) -> None:
    """The tar format ends with zeros; what stops earlier was cut off, and a damaged header hides what follows it."""
    with open(archive, "rb") as file:
        file.seek(offset)
        first = block = file.read(_TAIL_BLOCK)
        while block and not any(block):
            block = file.read(_TAIL_BLOCK)
    if block or len(first) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no end mark at byte {offset:,} of {os.path.getsize(archive):,}")  # noqa: PTH202


def _text(archive: Path, member: tarfile.TarInfo) -> str:
    with open(archive, "rb") as file:
        file.seek(member.offset_data)
        data = file.read(min(member.size, _MAX_NAME_BYTES))
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or member.size > _MAX_NAME_BYTES:
        raise DataError("holds no class name", field=f"{archive}: {member.name}", expected="a short text")
    return text
