"""Image folders; classes from subfolders or from a CSV file."""

from __future__ import annotations

import csv
import os
import posixpath
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from foundation.errors import DataError, nearest
from foundation.images.class_names import class_numbers, in_order, require_same_classes
from foundation.images.failures import read_plain_file
from foundation.images.preprocess import decode_image

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
}


class FolderSource:
    """Image files below a folder, sorted by relative path; symbolic links are not followed."""

    def __init__(
        self,
        path: str,
        field: str = "data.source.path",
        class_names: tuple[str, ...] | None = None,
        labels: str | None = None,
    ) -> None:
        """List the folder.

        Args:
            path: the folder; ``~`` is the home folder.
            field: what error messages call it.
            class_names: the classes it must have; None takes those that are there.
            labels: CSV file that names the class of each image; None takes the subfolders' names.

        Raises:
            DataError: a folder that is missing, empty or not readable; loose images beside classes; a list that leaves
                an image out.
        """
        self.folder = Path(path).expanduser()
        self._paths = image_files(self.folder, field)
        self.ids = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in self._paths]
        self.labels: np.ndarray | None = None
        if labels is not None:
            names = _listed_classes(Path(labels).expanduser(), self.ids, field.replace("path", "labels"))
            self.labels, self.class_names = class_numbers(names, class_names, field.replace("path", "labels"))
            return
        tops = [path.split("/", 1)[0] if "/" in path else None for path in self.ids]
        if any(tops) and not all(tops):
            stray = [path for path, top in zip(self.ids, tops, strict=True) if top is None]
            raise DataError(
                "mixes class subfolders with loose images",
                field=field,
                found=f"{len(stray)} loose, e.g. {stray[0]}",
                expected="either subfolders only (their names become classes) or images only (no classes)",
                fix="move the loose images into a subfolder, or all into one folder; or name classes in a CSV (labels)",
            )
        self.class_names = in_order({top for top in tops if top is not None})
        require_same_classes(class_names, self.class_names, field)
        if self.class_names:
            self.labels, _ = class_numbers([top for top in tops if top], self.class_names, field)

    def read(self, index: int) -> Image.Image:
        """The decoded image ``ids[index]``.

        Raises:
            BadImage: with the reason.
        """
        return decode_image(read_plain_file(self.folder / self._paths[index]))


def image_files(folder: Path, field: str) -> list[str]:
    """Relative paths of the image files below a folder, sorted; hidden files and symbolic links are left out.

    Raises:
        DataError: naming ``field``: no such folder, a subfolder that cannot be listed, or no image.
    """
    DataError.unless(folder.is_dir(), "no such folder", field=field, found=str(folder), fix="check the path")
    found, links = [], 0
    for root, folders, files in os.walk(folder, followlinks=False, onerror=_not_listed):
        links += sum(Path(root, name).is_symlink() for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root, name)
            links += path.is_symlink()
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES and not path.is_symlink():
                found.append(path.relative_to(folder).as_posix())
    skipped = f"{links} symbolic links were skipped: they are not followed" if links else ""
    if not found:
        raise DataError(
            "the folder holds no image files",
            field=field,
            found=f"{folder} ({skipped})" if skipped else folder,
            expected=f"files ending in {', '.join(sorted(SUFFIXES))}, or subfolders of them",
        )
    if skipped:
        warnings.warn(f"{folder}: {skipped}", stacklevel=2)
    return sorted(found)


def _not_listed(error: OSError) -> None:
    what = f"the folder cannot be listed: {error.strerror}"
    raise DataError(what, field=str(error.filename), fix="check its permissions") from error


def _listed_classes(path: Path, ids: list[str], field: str) -> list[str]:
    """The class of each image by a CSV file.

    Raises:
        DataError: the file cannot be read or lacks a column; an image without a row, or a row without an image.
    """
    classes = _read_classes(path, field)
    missing = [each for each in ids if each not in classes]
    if missing:
        found, expected = f"{len(missing)}, e.g. {missing[0]}", f"a row in {path} for each image"
        raise DataError("names no class for some images", field=field, found=found, expected=expected)
    others = sorted(classes.keys() - set(ids))
    if others:
        found, fix = (
            f"{len(others)}, e.g. {others[0]}",
            f"restore the files, or list only files that are there in {path}",
        )
        raise DataError("names files that are missing", field=field, found=found, fix=fix)
    return [classes[each] for each in ids]


def _read_classes(path: Path, field: str) -> dict[str, str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for column in ("path", "label"):
                columns = list(reader.fieldnames or ())
                if column not in columns:
                    fix = nearest(column, columns)
                    raise DataError("lacks a column", field=field, found=f"no {column} in {path}", fix=fix)
            classes: dict[str, str] = {}
            for row in reader:
                name, label = posixpath.normpath(row["path"] or ""), (row["label"] or "").strip()
                if not label or classes.get(name, label) != label:
                    what = "names two classes for an image" if label else "names no class for some images"
                    raise DataError(what, field=field, found=f"{name}, line {reader.line_num} of {path}")
                classes[name] = label
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", field=field, found=str(path), fix="check the file") from error
    return classes
