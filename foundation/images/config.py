"""Configuration of image data: split, preprocessing, augmentation. Imports neither torch, numpy nor Pillow."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from foundation.config import check_types, require, require_range
from foundation.config_fields import added_later
from foundation.errors import DataError
from foundation.images.shapes import Shape, bucket_of, equal_shapes, propose_shapes
from foundation.images.source_config import DataSource, DigitsData

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from PIL import Image

    from foundation.images.array_image import AnyImage
    from foundation.images.channels import Levels

_MOST_CHANNELS = 64


_MOST_SHAPES = 64


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes pixels in [-1, 1]."""

    height: int = 256
    """rows after resizing and cropping, in pixels"""
    width: int = 256
    """columns after resizing and cropping, in pixels"""
    mode: Literal["RGB", "L", "RGBA", "channels"] = "RGB"
    """colour (3 channels), grey (1 channel), colour with opacity (4 channels), or any channels as they are"""
    resize: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """filter of the resize that makes the image cover height x width"""
    crop: Literal["center"] = "center"
    """which part of the covering image is kept"""
    background: tuple[int, int, int] = (255, 255, 255)
    """colour put behind transparent pixels, red, green and blue in 0..255"""
    white_level: int | None = added_later(None)
    """value of white in images of more than 8 bits whose files do not say it, in 256..65535, e.g. 4095 for 12-bit data
    in 16-bit files; null means 65535, and refuses images that would then all be nearly black"""
    channels: int | None = added_later(None)
    """number of channels for mode channels, from 1 to 64; every image must have it; null for other modes"""
    bits: int = added_later(8)
    """bits of a value of a channel: 8, or 16 to keep what 16-bit files hold"""
    value_range: tuple[float, float] | None = added_later(None)
    """the values of black and white in arrays and TIFF files of other numbers than uint8 and uint16, e.g. [0, 1]; null
    refuses such images"""
    channel_axis: Literal["auto", "first", "last"] = added_later("auto")  # type: ignore[assignment]
    """which axis of an array holds the channels; auto takes the file's word, else the axis of that many, and refuses an
    image of which two could be meant"""
    preview_channels: tuple[int, ...] | None = added_later(None)
    """three channels, from 0, that are shown as red, green and blue, or one shown as grey, in mode channels; null shows
    the first three, and the first of two"""
    shapes: tuple[Shape, ...] = added_later(())
    """further shapes beside height x width, each [height, width] in pixels with as many pixels, e.g. [[64, 48]] beside
    48 x 64: an image takes the shape nearest to its aspect ratio"""

    def __post_init__(self) -> None:
        check_types(self)
        require_range(self, "above 0", "height", "width")
        self._check_channels()
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

    def _check_channels(self) -> None:
        many, n, shown = self.mode == "channels", self.channels, self.preview_channels
        expected = "a whole number from 1 to 64" if many else "null, since only mode channels has a number"
        require((n is not None and 1 <= n <= _MOST_CHANNELS) if many else n is None, "channels", n, expected)
        require(self.bits in (8, 16), "bits", self.bits, "8 or 16")
        low, high = self.value_range or (0.0, 1.0)
        finite = all(math.isfinite(each) for each in (low, high))
        require(finite and low < high, "value_range", self.value_range, "two numbers, the lower one first, or null")
        plain = self.is_plain and self.value_range is not None
        require(not plain, "value_range", self.value_range, "null for RGB and L of 8 bits, which are read from images")
        inside = shown is None or (many and len(shown) in (1, 3) and all(0 <= each < (n or 0) for each in shown))
        expected = "one or three numbers of channels, from 0, or null" if many else "null, except in mode channels"
        require(inside, "preview_channels", shown, expected)

    @property
    def n_channels(self) -> int:
        """Channels of the result: 3 for RGB, 1 for L, 4 for RGBA, else ``channels``."""
        return self.channels or {"RGB": 3, "L": 1, "RGBA": 4}[self.mode]

    @property
    def is_plain(self) -> bool:
        """Whether images become RGB or grey of 8 bits; else arrays and deep TIFF files are read too."""
        return self.mode in ("RGB", "L") and self.bits == 8

    @property
    def fits_png(self) -> bool:
        """Whether a PNG file, and a Pillow image, holds every channel and bit: grey, RGB, RGBA; of 16 bits grey."""
        return self.n_channels == 1 or (self.bits == 8 and (self.n_channels == 3 or self.mode == "RGBA"))

    @property
    def top_level(self) -> int:
        """The largest value of a pixel, which is white: 255 or 65535."""
        return (1 << self.bits) - 1

    @property
    def pixel_type(self) -> Literal["uint8", "uint16"]:
        """NumPy's name of the type of a pixel's values."""
        return "uint8" if self.bits == 8 else "uint16"

    def __call__(self, image: AnyImage | np.ndarray) -> np.ndarray:
        """Orient, flatten onto the background, convert, resize to cover, crop.

        Returns:
            (Y, X, C) uint8, or uint16 with 16 ``bits``. In mode RGBA nothing is flattened: the colours of partly
            transparent pixels are kept, and a transparent pixel is 0 in all channels.
            With several shapes, (Y, X) is the one nearest to the image's aspect ratio.
        """
        prepared = self.prepare(image)
        return self.cover(prepared, *self.all_shapes[self.shape_of(prepared.size)])

    def shape_of(self, size: tuple[int, int]) -> int:
        """Index in ``all_shapes`` of the shape that an upright image of this (width, height) takes."""
        if not self.shapes:
            return 0
        return bucket_of(size, self.all_shapes)

    def prepare(self, image: AnyImage | np.ndarray) -> Image.Image | Levels:
        """Orient, flatten onto the background, convert; keep every pixel.

        Raises:
            DataError: not a Pillow image (for RGB and L of 8 bits), or one without pixels, with damaged EXIF data, or
                in a pixel format without a defined range; an array of other axes, channels or values than declared.
        """
        import numpy as np
        from PIL import Image

        from foundation.images.array_image import ArrayImage
        from foundation.images.channels import to_levels
        from foundation.images.preprocess import to_mode, upright

        if not self.is_plain and isinstance(image, (ArrayImage, np.ndarray)):
            return to_levels(image, self)
        if not isinstance(image, Image.Image) or not min(image.size):
            found = f"{image.width} x {image.height}" if isinstance(image, Image.Image) else type(image).__name__
            raise DataError("is not an image", field="image", found=found, expected="a Pillow image with pixels")
        if not self.is_plain:
            return to_levels(upright(image), self)
        return to_mode(upright(image), self.mode, self.background, self.white_level)

    def cover(self, prepared: Image.Image | Levels, height: int, width: int) -> np.ndarray:
        """Resize to cover ``height`` x ``width`` and crop at the centre. Returns (Y, X, C) pixels."""
        from PIL import Image, ImageOps

        if not isinstance(prepared, Image.Image):
            return prepared.cover((width, height), Image.Resampling[self.resize.upper()])
        if prepared.size != (width, height):
            method = Image.Resampling[self.resize.upper()]
            prepared = ImageOps.fit(prepared, (width, height), method=method, centering=(0.5, 0.5))
        return self._pixels(prepared)

    def region(
        self,
        prepared: Image.Image | Levels,
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
            (Y, X, C) pixels, read-only.
        """
        import numpy as np
        from PIL import Image

        if not isinstance(prepared, Image.Image):
            pixels = prepared.region(box, (width, height), Image.Resampling[self.resize.upper()])
            return pixels[:, ::-1] if mirrored else pixels
        resized = prepared.resize((width, height), Image.Resampling[self.resize.upper()], box=box)
        if mirrored:
            resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(resized).reshape(height, width, self.n_channels)

    def crop_to_multiple(self, image: AnyImage | np.ndarray, multiple: int) -> np.ndarray:
        """As a call, but crop each side to its largest multiple instead of resizing. Returns (Y, X, C) pixels.

        Raises:
            DataError: a side shorter than ``multiple``.
        """
        from PIL import Image

        prepared = self.prepare(image)
        columns, rows = prepared.size
        width, height = (side // multiple * multiple for side in prepared.size)
        if not width or not height:
            found = f"{columns} x {rows}"
            raise DataError("the image is too small", found=found, expected=f"sides of at least {multiple}")
        left, top = (columns - width) // 2, (rows - height) // 2
        box = (left, top, left + width, top + height)
        if not isinstance(prepared, Image.Image):
            return prepared.crop(*box).cover((width, height), Image.Resampling.NEAREST)
        return self._pixels(prepared.crop(box))

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
    crop: Literal["center", "random", "random_resized"] = added_later("center")
    """part of an image that is trained on: center, as in validation; random, a window of the image resized to cover
    height x width; random_resized, a part of random area and aspect ratio, resized"""
    crop_fraction: tuple[float, float] = added_later((1.0, 1.0))
    """for random: share of the covering image's sides that the window takes, least and most, above 0 up to 1"""
    scale: tuple[float, float] = added_later((0.08, 1.0))
    """for random_resized: share of the image's area, least and most, above 0 up to 1"""
    ratio: tuple[float, float] = added_later((0.75, 1.33))
    """for random_resized: width to height, as a multiple of that of the result, least and most"""

    def __post_init__(self) -> None:
        check_types(self)
        require_range(self, "0 or more", "max_shift")
        for name in ("crop_fraction", "scale"):
            least, most = getattr(self, name)
            require(0 < least <= most <= 1, name, (least, most), "two numbers in order, above 0 and at most 1")
        require(0 < self.ratio[0] <= self.ratio[1] < math.inf, "ratio", self.ratio, "two positive numbers in order")


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
