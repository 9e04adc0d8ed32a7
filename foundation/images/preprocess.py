"""From any image file to pixels, in one way: training, export, evaluation and sampling all use this ``Preprocess``."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from foundation.config import require
from foundation.errors import DataError
from foundation.images.failures import BadImage

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384
MAX_SIDES_RATIO = 20
MAX_FILE_BYTES = 1 << 30
GRID_GAP = 2
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "ICO", "AVIF", "JPEG2000")
_KNOWN_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


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

    def __post_init__(self) -> None:
        require(self.height > 0, "height", self.height, "a positive number of pixels")
        require(self.width > 0, "width", self.width, "a positive number of pixels")
        require(all(0 <= c <= 255 for c in self.background), "background", self.background, "three numbers in 0..255")

    @property
    def n_channels(self) -> int:
        """Channels of the result: 3 for RGB, 1 for L."""
        return 3 if self.mode == "RGB" else 1

    def keeping_size(self, image: Image.Image, multiple: int) -> np.ndarray:
        """As a call, but instead of resizing, crop each side to the largest multiple. Returns (Y, X, C) uint8.

        Raises:
            DataError: a side shorter than ``multiple``.
        """
        image = self.prepared(image)
        width, height = (side // multiple * multiple for side in image.size)
        if not width or not height:
            raise DataError("the image is too small", found=f"{image.width} x {image.height}",
                            expected=f"sides of at least {multiple}")  # fmt: skip
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
        return np.array(image, dtype=np.uint8).reshape(height, width, self.n_channels)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Orient, flatten onto the background, convert, resize to cover, crop. Returns (Y, X, C) uint8."""
        return self.covering(self.prepared(image), self.height, self.width)

    def prepared(self, image: Image.Image) -> Image.Image:
        """Orient, flatten onto the background, convert; every pixel is kept.

        Raises:
            DataError: damaged EXIF data, or a pixel format without a defined range.
        """
        return to_mode(upright(image), self.mode, self.background)

    def covering(self, prepared: Image.Image, height: int, width: int) -> np.ndarray:
        """Resize to cover ``height`` x ``width`` and crop at the centre. Returns (Y, X, C) uint8."""
        if prepared.size != (width, height):
            method = _RESAMPLING[self.resize]
            prepared = ImageOps.fit(prepared, (width, height), method=method, centering=(0.5, 0.5))
        return np.array(prepared, dtype=np.uint8).reshape(height, width, self.n_channels)


def upright(image: Image.Image) -> Image.Image:
    """Turn and mirror an image as its EXIF orientation says.

    Raises:
        BadImage: the EXIF block is damaged.
    """
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged block raises anything at all
        raise BadImage("unreadable", f"the EXIF data is damaged: {type(error).__name__}: {error}") from error
    turned.format = image.format
    return turned


def to_mode(image: Image.Image, mode: str, background: tuple[int, int, int]) -> Image.Image:
    """Convert to RGB or L with transparency flattened and 16-bit values scaled (not clipped) to 8 bits.

    Raises:
        BadImage: a pixel format whose range is not known, such as 32-bit float.
    """
    if image.mode.startswith("I;16"):
        sixteen = np.asarray(image, dtype=np.uint16)
        image = Image.fromarray(((sixteen.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "I" and image.format == "PNG":  # Pillow opens some 16-bit PNG files as 32-bit integers
        image = Image.fromarray(((np.asarray(image).clip(0, 65535) + 128) // 257).astype(np.uint8))
    elif image.mode not in _KNOWN_MODES:
        what = f"pixel format {image.mode} has no defined range"
        raise BadImage("pixel_format", what, fix="save it as an 8-bit or 16-bit image")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        flat = Image.new("RGBA", layer.size, (*background, 255))
        image = Image.alpha_composite(flat, layer)
    return image.convert(mode)


def decode_image(data: bytes) -> Image.Image:
    """Decode an image file's bytes, refusing what is damaged, truncated or far too large.

    Sizes are taken from the file's header, before anything is decoded. Formats that Pillow hands to other programs,
    such as PostScript, are not among the known ones. Of an animation, the first frame counts.

    Raises:
        BadImage: with the reason, in plain words.
    """
    if not data:
        raise BadImage("unreadable", "the file is empty (0 bytes)")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError("Pillow's LOAD_TRUNCATED_IMAGES is on, which turns damaged images grey", fix="turn it off")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _require_sane_size(*image.size)
        image.load()
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_large", "the image is too large", expected=_SIZE_LIMIT) from error
    except UnidentifiedImageError as error:  # its text holds a memory address; reasons must be the same every time
        raise BadImage("unreadable", "cannot be decoded: not an image of a known format") from error
    except Exception as error:  # decoders raise anything at all on hostile bytes: the reason is reported, never hidden
        raise BadImage("unreadable", f"cannot be decoded: {type(error).__name__}: {error}") from error
    return image


_SIZE_LIMIT = f"at most {MAX_PIXELS:,} pixels, {MAX_SIDE:,} a side, and sides of at most {MAX_SIDES_RATIO} to 1"


def _require_sane_size(width: int, height: int) -> None:
    ratio = max(width, height) / max(1, min(width, height))
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE or ratio > MAX_SIDES_RATIO:
        raise BadImage("too_large", "the image is too large or too long", found=f"{width} x {height}",
                       expected=_SIZE_LIMIT)  # fmt: skip


def to_unit_range(images_BYXC: np.ndarray) -> torch.Tensor:
    """(B, Y, X, C) uint8 => (B, C, Y, X) float32 in [-1, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(images_BYXC.transpose(0, 3, 1, 2)))
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images_BCYX: torch.Tensor) -> np.ndarray:
    """(B, C, Y, X) in [-1, 1], clamped and rounded => (B, Y, X, C) uint8."""
    scaled = images_BCYX.detach().float().clamp(-1, 1).add(1.0).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_pil(image_YXC: np.ndarray) -> Image.Image:
    """(Y, X, 1 or 3) uint8 => a Pillow image."""
    return Image.fromarray(image_YXC[..., 0] if image_YXC.shape[-1] == 1 else image_YXC)


def image_grid(images_BYXC: np.ndarray, n_columns: int, *, scale: int = 1, gap: int = GRID_GAP) -> Image.Image:
    """Lay images out row by row on a white ground.

    Args:
        images_BYXC: (B, Y, X, C) uint8.
        n_columns: images in a row.
        scale: each pixel becomes a square of this side, so that 8 x 8 images can be seen.
        gap: pixels between images.
    """
    enlarged = images_BYXC.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, channels = enlarged.shape
    n_rows = -(-n // n_columns)
    shape = (n_rows * (height + gap) - gap, n_columns * (width + gap) - gap, channels)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for i, image in enumerate(enlarged):
        top, left = (i // n_columns) * (height + gap), (i % n_columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return to_pil(canvas)
