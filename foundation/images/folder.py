"""Image folders; classes from subfolders or from a CSV file."""

from __future__ import annotations

import contextlib
import os
import platform
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foundation.errors import DataError
from foundation.images.array_image import AnyImage
from foundation.images.class_names import (
    class_numbers,
    in_order,
    listed_classes,
    require_plausible_classes,
    require_same_classes,
)
from foundation.images.failures import read_plain_file
from foundation.images.headers import upright_size
from foundation.images.inventory import PassedOverFiles
from foundation.images.kinds import FOREIGN_SUFFIXES, HEAD_BYTES, kind_of, way_to_open
from foundation.images.layout import classes_of
from foundation.images.preprocess import MAX_PIXELS, decode_any
from foundation.paths import expand

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
}
ARRAY_SUFFIXES = {".npy"}
"""endings of image files where arrays are wanted"""
_LOOKS = 20
"""files of one ending that are looked into, before the others are taken for the same"""
_LINK_REASON = "symbolic links: follow them with --data.source.follow_links true"
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


@dataclass(frozen=True)
class Stamps:
    """What a file system says of files without reading them.

    Attributes:
        sizes: (n,) int64 bytes.
        times: (n,) int64 nanoseconds of the last change.
    """

    sizes: np.ndarray
    times: np.ndarray

    def some(self, indices: np.ndarray) -> Stamps:
        """The stamps of some files, in the order given."""
        return Stamps(self.sizes[indices], self.times[indices])


class FolderFiles:
    """Images below a folder whose relative paths are known: nothing is listed.

    Args:
        folder: where they are.
        ids: their names; a name is its file's path below the folder.
        labels: (n,) class numbers, or None.
        class_names: by class number.
        follow_links: read symbolic links.
        max_pixels, arrays: see ``decode_any``.
    """

    def __init__(
        self,
        folder: Path,
        ids: list[str],
        labels: np.ndarray | None,
        class_names: tuple[str, ...],
        *,
        follow_links: bool = False,
        max_pixels: int = MAX_PIXELS,
        arrays: bool = False,
    ) -> None:
        self.folder, self.ids, self.labels, self.class_names = folder, ids, labels, class_names
        self._follow_links, self._max_pixels, self._arrays = follow_links, max_pixels, arrays

    def data(self, index: int) -> bytes:
        """The file of the image ``ids[index]``.

        Raises:
            BadImage: with the reason.
        """
        return read_plain_file(self.folder / self._path(index), follow_links=self._follow_links)

    def decode(self, data: bytes) -> AnyImage:
        """The image that a file holds.

        Raises:
            BadImage: with the reason.
        """
        return decode_any(data, self._max_pixels, arrays=self._arrays)

    def read(self, index: int) -> AnyImage:
        """The decoded image ``ids[index]``.

        Raises:
            BadImage: with the reason.
        """
        return self.decode(self.data(index))

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of the upright image ``ids[index]``, from its file's header.

        Raises:
            OSError: it cannot be opened.
        """
        return upright_size(str(self.folder / self._path(index)))

    def some(self, indices: np.ndarray) -> FolderFiles:
        """Some of the images, to be read by another process: small, and named by their paths."""
        paths = [self._path(int(i)) for i in indices]
        how: dict[str, Any] = {"max_pixels": self._max_pixels, "arrays": self._arrays}
        return FolderFiles(self.folder.absolute(), paths, None, (), follow_links=self._follow_links, **how)

    def require_here(self) -> None:
        """See ``sources.require_here``."""
        there, fix = self.folder.is_dir(), "mount or copy it under this path on every machine"
        DataError.unless(there, "is not on this machine", field=str(self.folder), found=platform.node(), fix=fix)

    def _path(self, index: int) -> str:
        return self.ids[index]


class FolderSource(FolderFiles):
    """Image files below a folder, sorted by relative path.

    Attributes:
        stamps: sizes and times of the files, as they were listed.
        passed_over: files that are not read.
        notes: sentences about the structure.
    """

    def __init__(
        self,
        path: str,
        field: str = "data.source.path",
        class_names: tuple[str, ...] | None = None,
        labels: str | None = None,
        *,
        subfolders: Literal["classes", "ignored"] = "classes",
        trust_classes: bool = False,
        follow_links: bool = False,
        max_pixels: int = MAX_PIXELS,
        arrays: bool = False,
    ) -> None:
        """List the folder.

        Args:
            path: the folder; ``~`` is the home folder.
            field: what error messages call it.
            class_names: the classes it must have; None takes those that are there.
            labels: CSV file that names the class of each image; None takes the subfolders' names.
            subfolders: whether their names are classes.
            trust_classes: take classes as they are, also if they look like something else.
            follow_links: read symbolic links to files and folders.
            max_pixels, arrays: see ``decode_any``.

        Raises:
            DataError: a folder that is missing, empty or not readable; loose images beside classes; subfolders that
                look like splits; a list that leaves an image out.
        """
        folder = Path(expand(path, field))
        self.passed_over, self.notes = PassedOverFiles(), list[str]()
        listed = listed_files(folder, field, follow_links=follow_links, passed_over=self.passed_over, arrays=arrays)
        self._paths, self.stamps = listed
        ids = [_name(path) for path in self._paths]
        super().__init__(folder, ids, None, (), follow_links=follow_links, max_pixels=max_pixels, arrays=arrays)
        names: list[str] | None = None
        if labels is not None:
            field = field.replace("path", "labels")
            names = listed_classes(Path(expand(labels, field)), ids, field)
        elif subfolders == "classes":
            names, self.notes = classes_of(ids, path.rstrip("/"), field, trusted=trust_classes or bool(class_names))
        if names is None:
            require_same_classes(class_names, (), field)
            return
        if labels is None:
            require_same_classes(class_names, in_order(set(names)), field)
        require_plausible_classes(names, field, trusted=trust_classes or bool(class_names))
        self.labels, self.class_names = class_numbers(names, class_names, field)

    def _path(self, index: int) -> str:
        return self._paths[index]


def _name(path: str) -> str:
    """A path as text: bytes that are no UTF-8 are written as escapes."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")


def is_a_path(name: str) -> bool:
    """Whether an image's name is its path, without escapes."""
    return "\\" not in name


def suffixes_of(*, arrays: bool) -> set[str]:
    """Endings of image files, and of arrays where they are wanted."""
    return SUFFIXES | ARRAY_SUFFIXES if arrays else SUFFIXES


def image_files(
    folder: Path,
    field: str,
    *,
    follow_links: bool = False,
    passed_over: PassedOverFiles | None = None,
    arrays: bool = False,
) -> list[str]:
    """Relative paths of the image files below a folder, see ``listed_files``."""
    return listed_files(folder, field, follow_links=follow_links, passed_over=passed_over, arrays=arrays)[0]


def listed_files(
    folder: Path,
    field: str,
    *,
    follow_links: bool = False,
    passed_over: PassedOverFiles | None = None,
    arrays: bool = False,
) -> tuple[list[str], Stamps]:
    """Relative paths of the image files below a folder, sorted, with their stamps; hidden files are left out.

    Args:
        folder: where to look.
        field: what error messages call it.
        follow_links: read symbolic links to files and folders; a folder is listed once.
        passed_over: counts the files that are left out.
        arrays: whether .npy files are images.

    Raises:
        DataError: no such folder, a subfolder that cannot be listed, or no image.
    """
    if folder.is_file():
        name, fix = way_to_open(folder)
        raise DataError(f"is {name}", field=field, found=str(folder), expected="a folder of images", fix=fix)
    fix = f"check the path; --{field} FOLDER names the folder of your images"
    DataError.unless(folder.is_dir(), "no such folder", field=field, found=str(folder), fix=fix)
    suffixes = suffixes_of(arrays=arrays)
    walk = _Walk(follow_links, PassedOverFiles() if passed_over is None else passed_over, suffixes)
    walk.enter(str(folder), "")
    if not walk.found:
        others = "; ".join(f"{each.count:,} {each.kind} ({each.reason})" for each in walk.left_out.rows()[:5])
        raise DataError(
            "the folder holds no image files",
            field=field,
            found=f"{folder}: {others}" if others else str(folder),
            expected=f"files ending in {', '.join(sorted(suffixes))}, or subfolders of them",
        )
    order = sorted(range(len(walk.found)), key=walk.found.__getitem__)
    stamps = Stamps(np.array(walk.sizes, np.int64), np.array(walk.times, np.int64))
    return [walk.found[i] for i in order], stamps.some(np.array(order))


class _Walk:
    """Lists folders; one system call a folder and one a file."""

    def __init__(self, follow_links: bool, left_out: PassedOverFiles, suffixes: set[str]) -> None:
        self.found, self.left_out = list[str](), left_out
        self.sizes, self.times = array("q"), array("q")
        self._follow_links, self._seen = follow_links, set[str]()
        self._passing = _Passing(follow_links, suffixes)

    def enter(self, top: str, inside: str) -> None:
        """List a folder and all below it; ``inside`` is its path below the first one."""
        folders = [(top, inside)]
        while folders:
            path, inside = folders.pop()
            if self._follow_links:
                real = os.path.realpath(path)
                if real in self._seen:
                    self.left_out.add("folder links", "a link to a folder that is listed already", inside)
                    continue
                self._seen.add(real)
            try:
                with os.scandir(path) as entries:
                    for entry in entries:
                        self._look_at(entry, f"{inside}/{entry.name}" if inside else entry.name, folders)
            except OSError as error:
                _not_listed(error)

    def _look_at(self, entry: os.DirEntry[str], inside: str, folders: list[tuple[str, str]]) -> None:
        if entry.is_dir():
            if _is_listed(entry, inside, self.left_out, self._follow_links):
                folders.append((entry.path, inside))
            return
        kind, reason = self._passing.reason(entry)
        if reason:
            self.left_out.add(kind, reason, inside)
            return
        size, time = 0, 0
        with contextlib.suppress(OSError):  # gone since, or a link to nothing: reading it will say so
            status = entry.stat(follow_symlinks=self._follow_links)
            size, time = status.st_size, status.st_mtime_ns
        self.found.append(inside)
        self.sizes.append(size)
        self.times.append(time)


def _is_listed(entry: os.DirEntry[str], inside: str, left_out: PassedOverFiles, follow_links: bool) -> bool:
    """Whether a subfolder is listed; otherwise it is counted as left out, except hidden ones."""
    if entry.is_symlink() and not follow_links:
        left_out.add("folder links", _LINK_REASON, inside)
        return False
    if entry.name in _SYSTEM_FOLDERS:
        left_out.add("system folders", "thumbnails or deleted files of the system", inside)
        return False
    return not entry.name.startswith(".")


class _Passing:
    """Why a file is passed over. Files of an ending that is not an image's are looked into, the first ones of each."""

    def __init__(self, follow_links: bool, suffixes: set[str]) -> None:
        self._follow_links, self._suffixes = follow_links, suffixes
        self._unknown: Counter[str] = Counter()

    def reason(self, entry: os.DirEntry[str]) -> tuple[str, str]:
        """Kind of a file and the reason why it is passed over; "" for an image file."""
        if entry.name.startswith("."):
            return "hidden files", "names that begin with a dot"
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
        if entry.is_symlink() and not self._follow_links:
            return "links", _LINK_REASON
        if suffix in self._suffixes:
            return suffix, ""
        ending, kind = suffix or "without an ending", None
        if self._unknown[suffix] < _LOOKS:
            kind = kind_of(_head(Path(entry.path)))
            self._unknown[suffix] += kind is None
        if kind is None:
            foreign = "pictures of a format that is not read: convert them to PNG or JPEG"
            return ending, foreign if suffix in FOREIGN_SUFFIXES else "not an image"
        return (
            ending,
            f"{kind.name}, which this ending does not say: rename them" if kind.is_read else f"{kind.name}: {kind.fix}",
        )


def _head(path: Path) -> bytes:
    """The first bytes of a plain file; empty if it cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would block
            return b""
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def _not_listed(error: OSError) -> None:
    what = f"the folder cannot be listed: {error.strerror}"
    raise DataError(what, field=str(error.filename), fix="check its permissions") from error
