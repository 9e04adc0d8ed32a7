"""Image folders; classes from subfolders or from a CSV file."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Literal

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


class FolderSource:
    """Image files below a folder, sorted by relative path."""

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
        self.folder = Path(expand(path, field))
        self.passed_over, self.notes = PassedOverFiles(), list[str]()
        self._paths = image_files(
            self.folder, field, follow_links=follow_links, passed_over=self.passed_over, arrays=arrays
        )
        self._follow_links, self._max_pixels, self._arrays = follow_links, max_pixels, arrays
        self.ids = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in self._paths]
        self.labels: np.ndarray | None = None
        self.class_names: tuple[str, ...] = ()
        names: list[str] | None = None
        if labels is not None:
            field = field.replace("path", "labels")
            names = listed_classes(Path(expand(labels, field)), self.ids, field)
        elif subfolders == "classes":
            names, self.notes = classes_of(
                self.ids, path.rstrip("/"), field, trusted=trust_classes or bool(class_names)
            )
        if names is None:
            require_same_classes(class_names, (), field)
            return
        if labels is None:
            require_same_classes(class_names, in_order(set(names)), field)
        require_plausible_classes(names, field, trusted=trust_classes or bool(class_names))
        self.labels, self.class_names = class_numbers(names, class_names, field)

    def read(self, index: int) -> AnyImage:
        """The decoded image ``ids[index]``.

        Raises:
            BadImage: with the reason.
        """
        data = read_plain_file(self.folder / self._paths[index], follow_links=self._follow_links)
        return decode_any(data, self._max_pixels, arrays=self._arrays)


def image_files(
    folder: Path,
    field: str,
    *,
    follow_links: bool = False,
    passed_over: PassedOverFiles | None = None,
    arrays: bool = False,
) -> list[str]:
    """Relative paths of the image files below a folder, sorted; hidden files are left out.

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
    DataError.unless(folder.is_dir(), "no such folder", field=field, found=str(folder), fix="check the path")
    found, left_out, seen = list[str](), PassedOverFiles() if passed_over is None else passed_over, set[str]()
    suffixes = SUFFIXES | ARRAY_SUFFIXES if arrays else SUFFIXES
    passing = _Passing(follow_links, suffixes)
    for root, folders, files in os.walk(folder, followlinks=follow_links, onerror=_not_listed):
        inside = Path(root).relative_to(folder)
        real = os.path.realpath(root)
        if real in seen:
            left_out.add("folder links", "a link to a folder that is listed already", inside.as_posix())
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [each for each in folders if _is_listed(Path(root, each), inside, left_out, follow_links)]
        for name in files:
            kind, reason = passing.reason(Path(root, name))
            if reason:
                left_out.add(kind, reason, (inside / name).as_posix())
            else:
                found.append((inside / name).as_posix())
    if not found:
        others = "; ".join(f"{each.count:,} {each.kind} ({each.reason})" for each in left_out.rows()[:5])
        raise DataError(
            "the folder holds no image files",
            field=field,
            found=f"{folder}: {others}" if others else str(folder),
            expected=f"files ending in {', '.join(sorted(suffixes))}, or subfolders of them",
        )
    return sorted(found)


def _is_listed(path: Path, inside: Path, left_out: PassedOverFiles, follow_links: bool) -> bool:
    """Whether a subfolder is listed; otherwise it is counted as left out, except hidden ones."""
    if path.is_symlink() and not follow_links:
        left_out.add("folder links", _LINK_REASON, (inside / path.name).as_posix())
        return False
    if path.name in _SYSTEM_FOLDERS:
        left_out.add("system folders", "thumbnails or deleted files of the system", (inside / path.name).as_posix())
        return False
    return not path.name.startswith(".")


class _Passing:
    """Why a file is passed over. Files of an ending that is not an image's are looked into, the first ones of each."""

    def __init__(self, follow_links: bool, suffixes: set[str]) -> None:
        self._follow_links, self._suffixes = follow_links, suffixes
        self._unknown: Counter[str] = Counter()

    def reason(self, path: Path) -> tuple[str, str]:
        """Kind of a file and the reason why it is passed over; "" for an image file."""
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            return "hidden files", "names that begin with a dot"
        if path.is_symlink() and not self._follow_links:
            return "links", _LINK_REASON
        if suffix in self._suffixes:
            return suffix, ""
        ending, kind = suffix or "without an ending", None
        if self._unknown[suffix] < _LOOKS:
            kind = kind_of(_head(path))
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
