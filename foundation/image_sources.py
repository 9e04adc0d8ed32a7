"""Where images come from: a folder, parquet or any dataset that ``datasets`` opens, scikit-learn's digits.

A source knows how many images there are, each one's stable id and label, and how to read one. It does not decide what
is usable: ``foundation.image_set`` decodes everything once and lists what fails.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from foundation.class_names import in_order, require_same_classes
from foundation.config import Choice
from foundation.dataset_source import DatasetData, DatasetSource
from foundation.errors import DataError
from foundation.images import decode_image

_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".tga", ".ico", ".avif", ".jp2",
}  # fmt: skip


class ImageSource(Protocol):
    """Images that can be read one by one, in a fixed order."""

    ids: list[str]
    """stable names: a relative path or a key, never a position in a shuffled order"""
    labels: np.ndarray | None
    """(n,) int64 class numbers, or None when the images have no classes"""
    class_names: tuple[str, ...]

    def read(self, index: int) -> Image.Image:
        """The decoded image. Raises DataError with the reason when it cannot be had."""
        ...


@dataclass(frozen=True, kw_only=True)
class FolderData(Choice):
    """A folder of image files: class subfolders become labels, a flat folder means no labels."""

    type_name: ClassVar[str] = "folder"

    path: str
    """the folder"""
    validation_path: str | None = None
    """a second folder for the held-out images; null takes a share of the first"""


@dataclass(frozen=True, kw_only=True)
class DigitsData(Choice):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels in 17 grey levels; needs no network."""

    type_name: ClassVar[str] = "digits"


DataSource = FolderData | DatasetData | DigitsData


def open_sources(config: DataSource) -> tuple[ImageSource, ImageSource | None]:
    """The training source and, where the configuration names one, the held-out source.

    Raises:
        DataError: a folder, file, split or column that does not exist, or no image at all.
    """
    if isinstance(config, FolderData):
        train: ImageSource = FolderSource(config.path)
        if config.validation_path is None:
            return train, None
        return train, FolderSource(config.validation_path, "data.source.validation_path", train.class_names)
    if isinstance(config, DatasetData):
        train = DatasetSource(config, config.split)
        if config.validation_split is None:
            return train, None
        return train, DatasetSource(config, config.validation_split, train.class_names)
    return DigitsSource(), None


class FolderSource:
    """Image files below a folder, sorted by relative path; symbolic links are not followed."""

    def __init__(self, path: str, field: str = "data.source.path", class_names: tuple[str, ...] | None = None) -> None:
        """List the folder.

        Args:
            path: the folder; ``~`` is the home folder.
            field: what error messages call it.
            class_names: the classes it must have, where another folder has set them.
        """
        self.folder = Path(path).expanduser()
        self._paths = image_files(self.folder, field)
        self.ids = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in self._paths]
        tops = [path.split("/", 1)[0] if "/" in path else None for path in self.ids]
        if any(tops) and not all(tops):
            stray = [path for path, top in zip(self.ids, tops, strict=True) if top is None]
            raise DataError(
                "mixes class subfolders with loose images",
                field=field,
                found=f"{len(stray)} loose, e.g. {stray[0]}",
                expected="either subfolders only (their names become classes) or images only (no classes)",
                fix="move the loose images into a subfolder, or everything into one flat folder",
            )
        self.class_names = in_order({top for top in tops if top is not None})
        require_same_classes(class_names, self.class_names, field)
        number = {name: i for i, name in enumerate(self.class_names)}
        self.labels = np.array([number[top] for top in tops if top], np.int64) if number else None

    def read(self, index: int) -> Image.Image:
        """The decoded image ``ids[index]``."""
        try:
            data = (self.folder / self._paths[index]).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        return decode_image(data)


class DigitsSource:
    """scikit-learn's bundled digits (Alpaydin and Kaynak 1998, UCI), grey values 0..16 scaled to 0..255."""

    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            fix = 'pip install "tessera-images[demo]"'
            raise DataError("the digits need scikit-learn, which is not installed", fix=fix) from error
        bunch: Any = load_digits()
        self._images = (bunch.images * (255 / 16)).round().astype(np.uint8)
        self.labels: np.ndarray | None = bunch.target.astype(np.int64)
        self.ids = [f"digit-{i:04d}" for i in range(len(self._images))]

    def read(self, index: int) -> Image.Image:
        """The digit of row ``index`` as an 8 x 8 grey image."""
        return Image.fromarray(self._images[index])


class SubsetSource:
    """Some images of another source, in the order given."""

    def __init__(self, whole: ImageSource, indices: np.ndarray) -> None:
        self._whole, self._indices = whole, indices
        self.ids = [whole.ids[i] for i in indices]
        self.labels = None if whole.labels is None else whole.labels[indices]
        self.class_names = whole.class_names

    def read(self, index: int) -> Image.Image:
        """The decoded image ``ids[index]``."""
        return self._whole.read(int(self._indices[index]))


def image_files(folder: Path, field: str) -> list[str]:
    """Relative paths of the image files below a folder, sorted; hidden ones and symbolic links are left out.

    Raises:
        DataError: no such folder, or no image in it; ``field`` is what the message calls it.
    """
    if not folder.is_dir():
        raise DataError("no such folder", field=field, found=str(folder), fix="check the path")
    found, links = [], 0
    for root, folders, files in os.walk(folder, followlinks=False):
        links += sum(Path(root, name).is_symlink() for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root, name)
            links += path.is_symlink()
            if not name.startswith(".") and path.suffix.lower() in _SUFFIXES and not path.is_symlink():
                found.append(path.relative_to(folder).as_posix())
    if not found:
        skipped = f" ({links} symbolic links were skipped: they are not followed)" if links else ""
        raise DataError(
            "the folder holds no image files",
            field=field,
            found=f"{folder}{skipped}",
            expected=f"files ending in {', '.join(sorted(_SUFFIXES))}, or subfolders of them",
        )
    return sorted(found)
