"""Images in tar archives in the webdataset layout: a sample's files share their name up to its first dot.

Example: ``0001.jpg`` and ``0001.cls``. Archives are indexed by their headers and read in place; nothing is unpacked,
and only images and class names are read. An image's id is ``archive/key``.
"""

from __future__ import annotations

import glob
import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foundation.errors import DataError
from foundation.images.class_names import class_numbers, require_tidy
from foundation.images.failures import BadImage, require_sane_bytes
from foundation.images.folder import SUFFIXES
from foundation.images.preprocess import decode_image
from foundation.paths import expand

_MAX_NAME_BYTES = 4096
_TAIL_BLOCK = 1 << 20


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
        expected = f"members ending in {', '.join(sorted(SUFFIXES))}"
        DataError.unless(
            len(self._samples) > 0, "the archives hold no images", field=field, found=path, expected=expected
        )
        self.ids = [f"{each.archive.name}/{each.key}" for each in self._samples]
        self.labels: np.ndarray | None = None
        self.class_names: tuple[str, ...] = ()
        if label_field is not None:
            names = [each.label for each in self._samples]
            missing = [name for name, label in zip(self.ids, names, strict=True) if label is None]
            if missing:
                field, expected = "data.source.label_field", f"a member {missing[0]}.{label_field}"
                raise DataError("some images have no class", field=field, found=label_field, expected=expected)
            classes = [str(name) for name in names]
            require_tidy(classes, "data.source.label_field", [f"of {each}" for each in self.ids])
            self.labels, self.class_names = class_numbers(classes, class_names, field)

    def read(self, index: int) -> Image.Image:
        """The decoded image ``ids[index]``.

        Raises:
            BadImage: with the reason.
        """
        sample = self._samples[index]
        require_sane_bytes(sample.size)
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
    pattern = Path(expand(path, field))
    found = sorted(pattern.glob("*.tar") if pattern.is_dir() else map(Path, glob.glob(str(pattern))))  # noqa: PTH207
    expected, fix = "a .tar file, a folder of them, or a pattern", "check the path; decompress archives to .tar"
    DataError.unless(len(found) > 0, "no such archives", field=field, found=path, expected=expected, fix=fix)
    names = [each.name for each in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError("two archives have one name, which would give two images one id", field=field, found=twice)
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
    """Consecutive members that share a key; each by what follows the first dot of its name."""
    named = ((*_key_and_ending(member.name), member) for member in _members(archive))
    for key, group in itertools.groupby((each for each in named if each[1]), key=lambda each: each[0]):
        yield key, {ending: member for _, ending, member in group}


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
        fix = "download or copy it again; decompress it to .tar"
        raise DataError(f"is not a complete tar archive: {error}", field=str(archive), fix=fix) from error


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
    with open(archive, "rb") as file:
        file.seek(member.offset_data)
        data = file.read(min(member.size, _MAX_NAME_BYTES))
    try:
        text = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text or member.size > _MAX_NAME_BYTES:
        raise DataError("holds no class name", field=f"{archive}: {member.name}", expected="a short text")
    return text
