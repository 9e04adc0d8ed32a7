"""Where images come from: a folder, parquet or any dataset that ``datasets`` opens, scikit-learn's digits.

A source knows how many images there are, each one's stable id and label, and how to read one. It does not decide what
is usable: ``foundation.image_set`` decodes everything once and lists what fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from foundation.config import Choice, require
from foundation.errors import DataError, nearest
from foundation.images import decode_image
from foundation.randomness import permutation

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
class DatasetData(Choice):
    """A parquet file, a folder of them, or any name that ``datasets.load_dataset`` opens."""

    type_name: ClassVar[str] = "dataset"

    path: str
    """parquet file, folder, or dataset name on the hub"""
    config_name: str | None = None
    """the dataset's configuration, where it has several"""
    split: str = "train"
    """split to train on"""
    validation_split: str | None = None
    """split held out; null takes a share of the training split"""
    image_column: str = "image"
    """column with the images"""
    label_column: str | None = None
    """column with the classes (ClassLabel, whole numbers or text); null means no labels"""
    limit: int | None = None
    """use only this many images of each split, evenly drawn; null uses all"""

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, "limit", self.limit, "a positive number of images, or null")


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
        _require_same_classes(class_names, self.class_names, field)
        number = {name: i for i, name in enumerate(self.class_names)}
        self.labels = np.array([number[top] for top in tops if top], np.int64) if number else None

    def read(self, index: int) -> Image.Image:
        """The decoded image ``ids[index]``."""
        try:
            data = (self.folder / self._paths[index]).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        return decode_image(data)


class DatasetSource:
    """One split of a ``datasets`` dataset, decoded here so that a damaged image stops nothing."""

    def __init__(self, config: DatasetData, split: str, class_names: tuple[str, ...] | None = None) -> None:
        """Open a split; ``class_names`` are the classes of the training split, when this is another one."""
        import datasets

        rows = _load_split(config, split)
        if len(rows) == 0:
            raise DataError("the split holds no rows", field="data.source.split", found=f"{config.path} [{split}]")
        numbers = np.arange(len(rows))
        if config.limit is not None and config.limit < len(rows):
            numbers = np.sort(permutation(len(rows), "limit", split)[: config.limit])
            rows = rows.select(numbers)
        for field, column in (("image_column", config.image_column), ("label_column", config.label_column)):
            if column is not None and column not in rows.column_names:
                fix = nearest(column, rows.column_names)
                raise DataError("no such column", field=f"data.source.{field}", found=column, fix=fix)
        self.labels, self.class_names = _labels(rows, config.label_column, class_names)
        self._rows = rows.select_columns([config.image_column]).cast_column(
            config.image_column, datasets.Image(decode=False)
        )
        self._column = config.image_column
        self.ids = [f"{split}/{number:08d}" for number in numbers]  # row numbers of the source, whatever the limit

    def read(self, index: int) -> Image.Image:
        """The decoded image of row ``index``."""
        cell = self._rows[index][self._column]
        if cell is None:
            raise DataError("the cell is empty")
        data = cell.get("bytes")
        if data is None:
            try:
                data = Path(cell["path"]).read_bytes()
            except (OSError, TypeError) as error:
                raise DataError(f"cannot be read: {error}") from error
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


def in_order(names: set[str]) -> tuple[str, ...]:
    """Class names in label order: by number when all are numbers, else alphabetically."""
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numeric else (0, name)))


def _load_split(config: DatasetData, split: str) -> Any:
    import datasets

    local = Path(config.path).expanduser()
    load: Callable[..., Any] = datasets.load_dataset
    datasets.disable_progress_bars()
    if local.is_file() and (config.split, config.validation_split) != ("train", None):
        raise DataError(
            "one file has one split, train",
            field="data.source.validation_split" if config.validation_split else "data.source.split",
            found=config.validation_split or config.split,
            fix="leave both split fields out (data.validation_share holds some out), or give a folder with a file each",
        )
    try:
        if local.is_file():
            return load("parquet", data_files={split: str(local)}, split=split)
        if not local.exists() and (local.suffix == ".parquet" or config.path.startswith((".", "/"))):
            raise DataError("no such file or folder", field="data.source.path", found=config.path, fix="check the path")
        return load(config.path, config.config_name, split=split)
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds; the message is what helps
        raise DataError(
            f"cannot be opened: {error}{f' ({error.__cause__})' if error.__cause__ else ''}",
            field="data.source.path",
            found=f"{config.path} [{split}]",
            fix="check the path and the split's name; a hub dataset needs a network connection",
        ) from error


def _labels(
    rows: Any, column: str | None, class_names: tuple[str, ...] | None
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Class numbers and names of a column; numbers follow ``class_names`` where another split has set them."""
    if column is None:
        return None, ()
    field, feature, values = "data.source.label_column", rows.features[column], rows[column][:]
    if any(value is None for value in values):
        raise DataError("has empty cells", field=field, found=column, fix="fill them, or leave label_column out")
    if hasattr(feature, "names"):
        names = tuple(feature.names)
        _require_same_classes(class_names, names, field)
        labels = np.asarray(values, np.int64)
        if labels.min() < 0 or labels.max() >= len(names):
            found = f"{labels.min()}..{labels.max()} in {column}"
            raise DataError("has labels outside its classes", field=field, found=found, expected=f"0..{len(names) - 1}",
                            fix="drop the unlabelled rows, or leave label_column out")  # fmt: skip
        return labels, names
    if not all(isinstance(value, (int, str)) for value in values):
        raise DataError("holds no classes", field=field, found=f"{column}: {feature}", expected="numbers or text")
    names = class_names or in_order({str(value) for value in values})
    number = {name: i for i, name in enumerate(names)}
    unknown = sorted({str(value) for value in values} - number.keys())
    if unknown:
        raise DataError("has classes that the training split lacks", field=field, found=", ".join(unknown[:10]),
                        fix="train on a split that has every class")  # fmt: skip
    return np.array([number[str(value)] for value in values], np.int64), names


def _require_same_classes(expected: tuple[str, ...] | None, found: tuple[str, ...], field: str) -> None:
    if expected is not None and found != expected:
        raise DataError(
            "has other classes than the training images",
            field=field,
            found=", ".join(found) or "no classes",
            expected=", ".join(expected) or "no classes",
        )
