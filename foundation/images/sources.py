"""Image sources: ids, labels and random access, over folders, tar archives, ``datasets`` and scikit-learn's digits.

A source does not decide which images are usable: ``image_set`` and the export decode them and list failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from foundation.config import require
from foundation.errors import DataError
from foundation.images.archive import ArchiveSource
from foundation.images.array_image import AnyImage
from foundation.images.dataset import DatasetSource
from foundation.images.folder import FolderSource
from foundation.images.headers import image_size
from foundation.images.preprocess import MAX_PIXELS
from foundation.images.source_config import ArchiveData, DatasetData, DataSource, FolderData
from foundation.images.windowed import chosen_groups
from foundation.storage.remote.files import DEFAULT_CACHE_GIB


class ImageSource(Protocol):
    """Images that can be read one by one, in a fixed order."""

    @property
    def ids(self) -> Sequence[str]:
        """Stable names: a relative path or a key, never a position in a shuffled order."""
        ...

    labels: np.ndarray | None
    """(n,) int64 class numbers, or None when the images have no classes"""
    class_names: tuple[str, ...]

    # A source of files also offers ``stamps`` (see ``folder.Stamps``), ``data(index)``, a file's bytes, and ``decode``;
    # one that is too large to travel to other processes ``some(indices)``, see ``some_images``.

    def read(self, index: int) -> AnyImage:
        """The decoded image. Raises DataError with the reason when it cannot be had."""
        ...


def open_sources(
    config: DataSource,
    max_pixels: int = MAX_PIXELS,
    cache_gib: float = DEFAULT_CACHE_GIB,
    *,
    arrays: bool = False,
) -> tuple[ImageSource, ImageSource | None]:
    """The training source and, if the configuration names one, the validation source.

    Args:
        config: what to open.
        max_pixels, arrays: see ``decode_any``.
        cache_gib: limit of what is kept of streamed data on the disk.

    Raises:
        DataError: a folder, file, split or column that does not exist, or no image at all.
    """
    if isinstance(config, FolderData):
        return _open_folders(config, max_pixels, arrays)
    if isinstance(config, ArchiveData):
        return _open_archives(config, max_pixels, cache_gib, arrays)
    if isinstance(config, DatasetData):
        train = DatasetSource(config, config.split, None, max_pixels, cache_gib, arrays=arrays)
        if config.validation_split is None:
            return train, None
        names = train.class_names
        return train, DatasetSource(config, config.validation_split, names, max_pixels, cache_gib, arrays=arrays)
    return DigitsSource(), None


def _open_archives(
    config: ArchiveData, max_pixels: int, cache_gib: float, arrays: bool
) -> tuple[ImageSource, ImageSource | None]:
    how: dict[str, Any] = {"trust_classes": config.trust_classes, "max_pixels": max_pixels}
    how |= {"cache_gib": cache_gib, "arrays": arrays}
    train = ArchiveSource(config.path, config.label_field, **how)
    if config.validation_path is None:
        return train, None
    field, classes = "data.source.validation_path", train.class_names or None
    return train, ArchiveSource(config.validation_path, config.label_field, field, classes, **how)


def _open_folders(config: FolderData, max_pixels: int, arrays: bool) -> tuple[ImageSource, ImageSource | None]:
    how: dict[str, Any] = {name: getattr(config, name) for name in ("subfolders", "trust_classes", "follow_links")}
    how |= {"max_pixels": max_pixels, "arrays": arrays}
    train, labels = FolderSource(config.path, labels=config.labels, **how), config.validation_labels
    if config.validation_path is None:
        require(labels is None, "data.source.validation_labels", labels, "null, since there is no validation_path")
        return train, None
    both = (config.labels is None) == (labels is None)
    require(both, "data.source.validation_labels", labels, "a CSV file if labels is one, else null")
    field, classes = "data.source.validation_path", train.class_names
    return train, FolderSource(config.validation_path, field, classes, labels, **how)


def some_images(source: ImageSource, indices: np.ndarray) -> ImageSource:
    """Some images of a source, in the order given, to be pickled and read by another process.

    They bring what is needed to read them, and not the list of all images. Names and labels may be left out.
    """
    some: Any = getattr(source, "some", None)
    return SubsetSource(source, indices) if some is None else some(indices)


def require_here(source: ImageSource) -> None:
    """Require that what holds the images of a source is on this machine: else each of them would be lost in silence.

    Raises:
        DataError: naming the folder, archive or table, and the machine.
    """
    check: Any = getattr(source, "require_here", None)
    if check is not None:
        check()


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

    def __init__(self, source: ImageSource, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices
        self.ids = [source.ids[i] for i in indices]
        self.labels = None if source.labels is None else source.labels[indices]
        self.class_names = source.class_names
        self.groups, self.streamed = chosen_groups(source, indices), getattr(source, "streamed", None)
        stamps = getattr(source, "stamps", None)
        self.stamps = None if stamps is None else stamps.some(indices)

    def read(self, index: int) -> AnyImage:
        """The decoded image ``ids[index]``."""
        return self._source.read(int(self._indices[index]))

    def some(self, indices: np.ndarray) -> ImageSource:
        """See ``some_images``."""
        return some_images(self._source, self._indices[indices])

    def ahead(self, indices: np.ndarray) -> None:
        """Make some images of a streamed source ready in a thread."""
        self._source.ahead(self._indices[indices])  # type: ignore[attr-defined]

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of the upright image ``ids[index]``; see ``image_size``."""
        return image_size(self._source, int(self._indices[index]))
