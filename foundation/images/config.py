"""Configuration of image data: source, split, preprocessing, augmentation. Imports neither torch, numpy nor Pillow."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from foundation.config import Choice, check_types, require, require_range
from foundation.config_fields import added_later
from foundation.errors import DataError
from foundation.images.shapes import Shape, bucket_of, equal_shapes, propose_shapes
from foundation.paths import PathOrName, PathText

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from PIL import Image


_MOST_SHAPES = 64


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes pixels in [-1, 1]."""

    height: int = 256
    """rows after resizing and cropping, in pixels"""
    width: int = 256
    """columns after resizing and cropping, in pixels"""
    mode: Literal["RGB", "L"] = "RGB"
    """colour (3 channels) or grey (1 channel)"""
    resize: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """filter of the resize that makes the image cover height x width"""
    crop: Literal["center"] = "center"
    """which part of the covering image is kept"""
    background: tuple[int, int, int] = (255, 255, 255)
    """colour put behind transparent pixels, red, green and blue in 0..255"""
    white_level: int | None = added_later(None)
    """value of white in images of more than 8 bits whose files do not say it, in 256..65535, e.g. 4095 for 12-bit data
    in 16-bit files; null means 65535, and refuses images that would then all be nearly black"""
    shapes: tuple[Shape, ...] = added_later(())
    """further shapes beside height x width, each [height, width] in pixels with as many pixels, e.g. [[64, 48]] beside
    48 x 64: an image takes the shape nearest to its aspect ratio"""

    def __post_init__(self) -> None:
        check_types(self)
        require_range(self, "above 0", "height", "width")
        white = self.white_level
        require(white is None or 256 <= white <= 65_535, "white_level", white, "a value in 256..65535, or null")
        require(all(0 <= c <= 255 for c in self.background), "background", self.background, "three numbers in 0..255")
        if self.shapes:
            self._require_shapes()

    def _require_shapes(self) -> None:
        """Refuse shapes of another area: all images have the same number of codes."""
        n_pixels, first = self.height * self.width, f"{self.height} x {self.width}"
        multiple = math.gcd(*(side for shape in self.all_shapes for side in shape))
        for i, (height, width) in enumerate(self.shapes):
            if min(height, width) < 1 or height * width != n_pixels:
                others = [
                    each for each in equal_shapes(self.height, self.width, multiple) if each != self.all_shapes[0]
                ]
                like = f", such as {_listed(others)}" if others else ""
                expected = f"{n_pixels:,} pixels, as {first}{like}"
                fix = f"take shapes of one area, e.g. {_listed(propose_shapes(n_pixels, multiple))}"
                require(False, f"shapes[{i}]", f"{height} x {width}", expected, fix)
        again = [each for i, each in enumerate(self.all_shapes) if each in self.all_shapes[:i]]
        require(not again, "shapes", _listed(again), "shapes that differ from each other and from height x width")
        require(len(self.all_shapes) <= _MOST_SHAPES, "shapes", len(self.shapes), f"up to {_MOST_SHAPES - 1} of them")

    @property
    def all_shapes(self) -> tuple[Shape, ...]:
        """(height, width) of every shape, ``height`` x ``width`` first."""
        return ((self.height, self.width), *self.shapes)

    def of_shape(self, index: int) -> Preprocess:
        """The same for images of one shape, by its index in ``all_shapes``."""
        if not self.shapes:
            return self
        height, width = self.all_shapes[index]
        return dataclasses.replace(self, height=height, width=width, shapes=())

    @property
    def n_channels(self) -> int:
        """Channels of the result: 3 for RGB, 1 for L."""
        return 3 if self.mode == "RGB" else 1

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Orient, flatten onto the background, convert, resize to cover, crop. Returns (Y, X, C) uint8.

        With several shapes, (Y, X) is the one nearest to the image's aspect ratio.
        """
        prepared = self.prepare(image)
        return self.cover(prepared, *self.all_shapes[self.shape_of(prepared.size)])

    def shape_of(self, size: tuple[int, int]) -> int:
        """Index in ``all_shapes`` of the shape that an upright image of this (width, height) takes."""
        if not self.shapes:
            return 0
        return bucket_of(size, self.all_shapes)

    def prepare(self, image: Image.Image) -> Image.Image:
        """Orient, flatten onto the background, convert; keep every pixel.

        Raises:
            DataError: not a Pillow image, or one without pixels, with damaged EXIF data, or in a pixel format without a
                defined range.
        """
        from PIL import Image

        from foundation.images.preprocess import to_mode, upright

        if not isinstance(image, Image.Image) or not min(image.size):
            found = f"{image.width} x {image.height}" if isinstance(image, Image.Image) else type(image).__name__
            raise DataError("is not an image", field="image", found=found, expected="a Pillow image with pixels")
        return to_mode(upright(image), self.mode, self.background, self.white_level)

    def cover(self, prepared: Image.Image, height: int, width: int) -> np.ndarray:
        """Resize to cover ``height`` x ``width`` and crop at the centre. Returns (Y, X, C) uint8."""
        from PIL import Image, ImageOps

        if prepared.size != (width, height):
            method = Image.Resampling[self.resize.upper()]
            prepared = ImageOps.fit(prepared, (width, height), method=method, centering=(0.5, 0.5))
        return self._pixels(prepared)

    def crop_to_multiple(self, image: Image.Image, multiple: int) -> np.ndarray:
        """As a call, but crop each side to its largest multiple instead of resizing. Returns (Y, X, C) uint8.

        Raises:
            DataError: a side shorter than ``multiple``.
        """
        image = self.prepare(image)
        width, height = (side // multiple * multiple for side in image.size)
        if not width or not height:
            found = f"{image.width} x {image.height}"
            raise DataError("the image is too small", found=found, expected=f"sides of at least {multiple}")
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return self._pixels(image.crop((left, top, left + width, top + height)))

    def _pixels(self, image: Image.Image) -> np.ndarray:
        import numpy as np

        return np.array(image, dtype=np.uint8).reshape(image.height, image.width, self.n_channels)


def _listed(shapes: Sequence[Shape]) -> str:
    return ", ".join(f"{height} x {width}" for height, width in shapes)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to training images, sampled for each (image, epoch)."""

    flip: bool = False
    """mirror left and right half of the time"""
    max_shift: int = 0
    """move by up to this many pixels in each direction, edges repeated"""

    def __post_init__(self) -> None:
        require_range(self, "0 or more", "max_shift")


def _require_paths(source: object, *names: str) -> None:
    """Check types, and refuse an empty path, which would mean the working directory."""
    check_types(source)
    for name in names:
        require(getattr(source, name) != "", name, '""', "a path; . for the working directory")


@dataclass(frozen=True, kw_only=True)
class FolderData(Choice):
    """A folder of image files: class subfolders become labels, a flat folder means no labels."""

    type_name: ClassVar[str] = "folder"

    path: PathText
    """the folder"""
    validation_path: PathText | None = None
    """a second folder, for validation; null takes a share of the first"""
    labels: PathText | None = added_later(None)
    """CSV file with the columns path or file_name (below the folder) and label or class, one row for each image,
    instead of subfolders"""
    validation_labels: PathText | None = added_later(None)
    """the same for the second folder"""
    subfolders: Literal["classes", "ignored"] = added_later("classes")
    """whether the names of subfolders are classes"""
    trust_classes: bool = added_later(False)
    """take classes as they are, also if they look like splits, dates, cameras or names of single images"""
    follow_links: bool = added_later(False)
    """read symbolic links to files and folders"""

    def __post_init__(self) -> None:
        _require_paths(self, "path", "validation_path", "labels", "validation_labels")


@dataclass(frozen=True, kw_only=True)
class ArchiveData(Choice):
    """Tar archives of images as the webdataset package lays them out, on a local disk; for archives on the hub use
    type dataset.
    """

    type_name: ClassVar[str] = "archives"

    path: PathText
    """a .tar file, a folder of them, or a pattern such as shards/train-*.tar"""
    validation_path: PathText | None = None
    """the same, for validation; null takes a share of the first"""
    label_field: str | None = None
    """ending of the member that holds the class as text, e.g. cls; or of a JSON member and the key of the class in it,
    e.g. json.label; null means no labels"""
    trust_classes: bool = added_later(False)
    """take classes as they are, also if nearly every image has one of its own"""

    def __post_init__(self) -> None:
        _require_paths(self, "path", "validation_path")


@dataclass(frozen=True, kw_only=True)
class DatasetData(Choice):
    """A table of images: a parquet, Arrow, CSV or JSON file, a folder of them, a folder of ``save_to_disk``, a clone
    of a hub dataset, or any name that ``datasets.load_dataset`` opens. Cells hold images as bytes, paths, numbers,
    base64 or data URIs. Large parquet files and what only the library opens are copied to the library's cache.
    """

    type_name: ClassVar[str] = "dataset"

    path: PathOrName
    """file, folder, or dataset name on the hub"""
    config_name: str | None = None
    """the dataset's configuration, where it has several"""
    split: str = "train"
    """split to train on"""
    validation_split: str | None = None
    """split for validation; null takes a share of the training split"""
    image_column: str = "image"
    """column with the images; a.b is field b of column a"""
    label_column: str | None = None
    """column with the classes (ClassLabel, whole numbers or text), a.b as above; null means no labels"""
    limit: int | None = None
    """use only this many images of each split, sampled uniformly; null uses all"""
    revision: str | None = added_later(None)
    """commit, branch or tag of a dataset on the hub"""
    trust_classes: bool = added_later(False)
    """take classes as they are, also if nearly every image has one of its own"""
    allow_download: bool = added_later(False)
    """fetch images of which a cell holds a web address, whenever they are read; img2dataset fetches them once"""
    white_value: float | None = added_later(None)
    """value of white where cells hold numbers: 1, 255, 4095, ...; null takes 255 or 1 if the numbers leave no doubt"""

    def __post_init__(self) -> None:
        _require_paths(self, "path")
        require(self.limit is None or self.limit > 0, "limit", self.limit, "a positive number of images, or null")
        white = self.white_value
        require(white is None or white > 0, "white_value", white, "a number above 0, or null")


@dataclass(frozen=True, kw_only=True)
class DigitsData(Choice):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels in 17 grey levels; needs no network."""

    type_name: ClassVar[str] = "digits"


DataSource = FolderData | ArchiveData | DatasetData | DigitsData


Identity = Literal["auto", "files", "content"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split and read."""

    source: DataSource = field(default_factory=DigitsData)
    """where the images come from"""
    preprocess: Preprocess = field(default_factory=Preprocess)
    """how an image becomes pixels"""
    validation_share: float = 0.1
    """share of the images for validation if the source names no validation part, between 0 and 1; an image is chosen by
    a hash of its id, so the choice does not depend on the other images"""
    max_failed_share: float = 0.05
    """stop if more than this share of the images is unusable, between 0 and 1"""
    cache_mib: int = 4096
    """keep the pixels in memory when they need at most this many MiB, else decode on demand"""
    identity: Identity = added_later("auto")
    """what tells whether images are the ones that a run began with: files, their names and sizes; content, also their
    pixels, for which every image is decoded once as the run begins, and copies of training images are not held out;
    auto, content for at most 16,384 images and 64 MiB of pixels"""
    max_megapixels: int = added_later(64)
    """largest image that is decoded, in million pixels; a larger JPEG, up to four times 64 or this, is decoded at a
    half, a quarter or an eighth of its sides"""

    def __post_init__(self) -> None:
        check_types(self)
        require(0 < self.validation_share < 1, "validation_share", self.validation_share, "a share between 0 and 1")
        require_range(self, "from 0 to 1", "max_failed_share")
        require_range(self, "above 0", "max_megapixels")
