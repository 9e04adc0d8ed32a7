"""Image decoding, orientation and colour conversion; pixels as arrays, tensors, Pillow images and grids."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from foundation.arguments import shown
from foundation.config import require
from foundation.errors import DataError
from foundation.images.failures import BadImage

MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384
MAX_SIDES_RATIO = 20
GRID_GAP = 2
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "ICO", "AVIF", "JPEG2000")
_KNOWN_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def upright(image: Image.Image) -> Image.Image:
    """Rotate and mirror an image as its EXIF orientation says; an image that is upright is returned itself.

    Raises:
        BadImage: the EXIF block is damaged.
    """
    try:
        image.load()  # some formats keep the EXIF block behind the pixels
        if image.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9):
            return image
        rotated = ImageOps.exif_transpose(image)
    except Exception as error:  # on a damaged block Pillow raises any class
        raise BadImage("unreadable", f"the EXIF data is damaged: {type(error).__name__}: {error}") from error
    rotated.format = image.format
    return rotated


def to_mode(image: Image.Image, mode: str, background: tuple[int, int, int]) -> Image.Image:
    """Convert to RGB or L, flatten transparency, scale (not clip) 16-bit values to 8 bits.

    An image that has this mode already is returned itself.

    Raises:
        BadImage: a pixel format whose range is not known, such as 32-bit float.
    """
    if image.mode.startswith("I;16"):
        sixteen = np.asarray(image, dtype=np.uint16)
        image = Image.fromarray(((sixteen.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "I" and image.format == "PNG":  # Pillow opens some 16-bit PNG files as 32-bit integers
        image = Image.fromarray(((np.asarray(image).clip(0, 65535) + 128) // 257).astype(np.uint8))
    elif image.mode not in _KNOWN_MODES:
        fix = "save it as an 8-bit or 16-bit image"
        raise BadImage("pixel_format", f"pixel format {image.mode} has no defined range", fix=fix)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        flat = Image.new("RGBA", layer.size, (*background, 255))
        image = Image.alpha_composite(flat, layer)
    return image if image.mode == mode else image.convert(mode)


def decode_image(data: bytes) -> Image.Image:
    """Decode an image file's bytes; refuse damaged, truncated and far too large files.

    The header's size is checked before anything is decoded. Formats that Pillow hands to other programs, such as
    PostScript, are not accepted. Of an animation, the first frame is read.

    Raises:
        BadImage: with the reason, in plain words.
    """
    known, found = isinstance(data, (bytes, bytearray, memoryview)), shown(data)
    DataError.unless(known, "is not the content of a file", field="data", found=found, expected="bytes")
    if not data:
        raise BadImage("unreadable", "the file is empty (0 bytes)")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError("Pillow's LOAD_TRUNCATED_IMAGES is on, which makes damaged images grey", fix="set it to False")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _require_sane_size(*image.size)
        image.load()
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_large", "the image is too large", expected=_SIZE_LIMIT) from error
    except UnidentifiedImageError as error:  # its text holds a memory address, which differs every time
        raise BadImage("unreadable", "cannot be decoded: not an image of a known format") from error
    except Exception as error:  # on hostile bytes a decoder raises any class
        raise BadImage("unreadable", f"cannot be decoded: {type(error).__name__}: {error}") from error
    return image


_SIZE_LIMIT = f"at most {MAX_PIXELS:,} pixels, {MAX_SIDE:,} a side, and sides of at most {MAX_SIDES_RATIO} to 1"


def _require_sane_size(width: int, height: int) -> None:
    ratio = max(width, height) / max(1, min(width, height))
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE or ratio > MAX_SIDES_RATIO:
        found = f"{width} x {height}"
        raise BadImage("too_large", "the image is too large or too long", found=found, expected=_SIZE_LIMIT)


def require_pixels(field: str, value: object, n_axes: int) -> None:
    """Refuse anything but uint8 pixels, channels last, 1 or 3 of them, and no side of 0.

    Raises:
        DataError: naming the field.
    """
    sound = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == n_axes
    if not (sound and value.size and value.shape[-1] in (1, 3)):  # type: ignore[attr-defined]
        expected = f"a NumPy array ({'B, ' if n_axes == 4 else ''}Y, X, 1 or 3) of uint8"
        raise DataError("are not pixels", field=field, found=shown(value), expected=expected)


def to_unit_range(images_BYXC: np.ndarray) -> torch.Tensor:
    """(B, Y, X, C) uint8 => (B, C, Y, X) float32 in [-1, 1].

    Raises:
        DataError: not such an array.
    """
    require_pixels("images_BYXC", images_BYXC, 4)
    images = torch.from_numpy(np.ascontiguousarray(images_BYXC.transpose(0, 3, 1, 2)))
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images_BCYX: torch.Tensor) -> np.ndarray:
    """(B, C, Y, X) in [-1, 1], clamped and rounded => (B, Y, X, C) uint8.

    Raises:
        DataError: not a tensor of that shape.
    """
    sound = isinstance(images_BCYX, torch.Tensor) and images_BCYX.ndim == 4 and not images_BCYX.is_complex()
    found, expected = shown(images_BCYX), "a (B, C, Y, X) tensor from -1 to 1"
    DataError.unless(
        sound and not images_BCYX.is_meta, "is no batch", field="images_BCYX", found=found, expected=expected
    )
    scaled = images_BCYX.detach().float().clamp(-1, 1).add(1.0).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_pil(image_YXC: np.ndarray) -> Image.Image:
    """(Y, X, 1 or 3) uint8 => a Pillow image.

    Raises:
        DataError: not such an array.
    """
    require_pixels("image_YXC", image_YXC, 3)
    return Image.fromarray(image_YXC[..., 0] if image_YXC.shape[-1] == 1 else image_YXC)


def image_grid(images_BYXC: np.ndarray, n_columns: int, *, scale: int = 1, gap: int = GRID_GAP) -> Image.Image:
    """Lay images out row by row on white.

    Args:
        images_BYXC: (B, Y, X, C) uint8.
        n_columns: images in a row.
        scale: each pixel becomes a square of this side, so that 8 x 8 images can be seen.
        gap: pixels between images, 0 or more.

    Raises:
        DataError: not such an array, or no image.
        ConfigError: a number of columns, a scale or a gap that is no whole number, or too small.
    """
    require_pixels("images_BYXC", images_BYXC, 4)
    for name, value, least in (("n_columns", n_columns, 1), ("scale", scale, 1), ("gap", gap, 0)):
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_SIDE
        require(whole, name, shown(value), f"a whole number from {least} to {MAX_SIDE:,}")
    enlarged = images_BYXC.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, channels = enlarged.shape
    n_rows = -(-n // n_columns)
    shape = (n_rows * (height + gap) - gap, n_columns * (width + gap) - gap, channels)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for i, image in enumerate(enlarged):
        top, left = (i // n_columns) * (height + gap), (i % n_columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return to_pil(canvas)
