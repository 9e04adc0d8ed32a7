"""Configuration of image data: source, split, preprocessing, augmentation. Imports neither torch, numpy nor Pillow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from foundation.config import Choice, check_types, require, require_range
from foundation.config_fields import added_later
from foundation.errors import DataError
from foundation.paths import PathOrName, PathText, is_remote, require_no_secret

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


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

    def __post_init__(self) -> None:
        check_types(self)
        require_range(self, "above 0", "height", "width")
        white = self.white_level
        require(white is None or 256 <= white <= 65_535, "white_level", white, "a value in 256..65535, or null")
        require(all(0 <= c <= 255 for c in self.background), "background", self.background, "three numbers in 0..255")

    @property
    def n_channels(self) -> int:
        """Channels of the result: 3 for RGB, 1 for L."""
        return 3 if self.mode == "RGB" else 1

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Orient, flatten onto the background, convert, resize to cover, crop. Returns (Y, X, C) uint8."""
        return self.cover(self.prepare(image), self.height, self.width)

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

    def region(
        self,
        prepared: Image.Image,
        box: tuple[float, float, float, float],
        height: int,
        width: int,
        *,
        mirrored: bool = False,
    ) -> np.ndarray:
        """Resize a part of a prepared image to ``height`` x ``width``; nothing outside of it is resized.

        Args:
            prepared: see ``prepare``.
            box: left, top, right and bottom of the part, in pixels of ``prepared``.
            height, width: of the result.
            mirrored: exchange left and right.

        Returns:
            (Y, X, C) uint8, read-only.
        """
        import numpy as np
        from PIL import Image

        resized = prepared.resize((width, height), Image.Resampling[self.resize.upper()], box=box)
        if mirrored:
            resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(resized).reshape(height, width, self.n_channels)

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


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to training images, sampled for each (image, epoch)."""

    flip: bool = False
    """mirror left and right half of the time"""
    max_shift: int = 0
    """move by up to this many pixels in each direction, edges repeated"""
    crop: Literal["center", "random", "random_resized"] = added_later("center")
    """part of an image that is trained on: center, as in validation; random, a window of the image resized to cover
    height x width; random_resized, a part of random area and aspect ratio, resized"""
    crop_fraction: tuple[float, float] = added_later((1.0, 1.0))
    """for random: share of the covering image's sides that the window takes, least and most, above 0 up to 1"""
    scale: tuple[float, float] = added_later((0.08, 1.0))
    """for random_resized: share of the image's area, least and most, above 0 up to 1"""
    ratio: tuple[float, float] = added_later((3 / 4, 4 / 3))
    """for random_resized: width to height, as a multiple of that of the result, least and most"""

    def __post_init__(self) -> None:
        check_types(self)
        require_range(self, "0 or more", "max_shift")
        for name in ("crop_fraction", "scale"):
            least, most = getattr(self, name)
            require(0 < least <= most <= 1, name, (least, most), "two numbers in order, above 0 and at most 1")
        require(0 < self.ratio[0] <= self.ratio[1] < math.inf, "ratio", self.ratio, "two positive numbers in order")


def _require_paths(source: object, *names: str) -> None:
    """Check types, and refuse an empty path, which would mean the working directory."""
    check_types(source)
    for name in names:
        value = getattr(source, name)
        require(value != "", name, '""', "a path; . for the working directory")
        require_no_secret(value or "", name)


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
    """Tar archives of images as the webdataset package lays them out, on a local disk or in a store."""

    type_name: ClassVar[str] = "archives"

    path: PathText
    """a .tar file, a folder of them, or a pattern such as shards/train-*.tar or s3://bucket/train-{0000..0099}.tar;
    s3://, gs://, hf:// and https:// are read by way of a cache"""
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
    base64 or data URIs. Large parquet files and what only the library opens are copied to the library's cache, unless
    they are streamed.
    """

    type_name: ClassVar[str] = "dataset"

    path: PathOrName
    """file, folder, dataset name on the hub, or address of parquet files (s3://, gs://, hf://, https://)"""
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
    streaming: bool = added_later(False)
    """read rows from their parquet files when they are needed and copy nothing; files in a store always are streamed"""

    @property
    def streams(self) -> bool:
        """Whether rows stay in their files."""
        return self.streaming or is_remote(self.path)

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
    shuffle_window: int | None = added_later(None)
    """images that are shuffled together, of archives and streamed tables, whose archives or row groups are shuffled
    too; null shuffles the whole set on a local disk, and 16,384 images of streamed data"""
    remote_cache_gib: float = added_later(64.0)
    """largest size on the disk of what is kept of streamed data, GiB; TESSERA_CACHE names the folder"""

    def __post_init__(self) -> None:
        check_types(self)
        require(0 < self.validation_share < 1, "validation_share", self.validation_share, "a share between 0 and 1")
        require_range(self, "from 0 to 1", "max_failed_share")
        require_range(self, "above 0", "max_megapixels", "remote_cache_gib")
        window = self.shuffle_window
        require(window is None or window > 0, "shuffle_window", window, "a positive number of images, or null")
