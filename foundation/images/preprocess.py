"""Image decoding, orientation and colour conversion; pixels as arrays, tensors, Pillow images and grids."""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import threading

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps

from foundation.arguments import shown
from foundation.config import require
from foundation.errors import DataError
from foundation.images.array_image import AnyImage, ArrayImage
from foundation.images.depth import note_depth, require_one_page, to_8_bits
from foundation.images.failures import BadImage
from foundation.images.kinds import kind_of
from foundation.images.tiff import MARKS, read_tiff, suits_pillow

MAX_PIXELS = 64_000_000
"""of an image in memory, unless ``DataConfig.max_megapixels`` says otherwise"""
_MAX_JPEG_PIXELS = 4 * MAX_PIXELS
_MAX_SIDES_RATIO = 20
NPY = b"\x93NUMPY"
"""the first bytes of a .npy file"""
GRID_GAP = 2
MOST_CHANNELS = 64
_PIXEL_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))
_MAX_GRID = 16_384
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "ICO", "AVIF", "JPEG2000")
_KNOWN_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_LARGE = threading.Lock()
"""held while a large image is decoded: one at a time is in memory"""


def _renew_lock() -> None:
    """In a forked process, where a thread of the other one may hold it forever."""
    global _LARGE
    _LARGE = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


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


def to_mode(
    image: Image.Image, mode: str, background: tuple[int, int, int], white_level: int | None = None
) -> Image.Image:
    """Convert to RGB or L, flatten transparency, scale (not clip) values of more than 8 bits.

    An image that has this mode already is returned itself.

    Raises:
        BadImage: a pixel format whose range is not known, such as 32-bit float, or values above ``white_level``.
    """
    image = to_8_bits(image, white_level)
    if image.mode not in _KNOWN_MODES:
        fix = "save it as an 8-bit or 16-bit image"
        raise BadImage("pixel_format", f"pixel format {image.mode} has no defined range", fix=fix)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        flat = Image.new("RGBA", layer.size, (*background, 255))
        image = Image.alpha_composite(flat, layer)
    return image if image.mode == mode else image.convert(mode)


def decode_any(data: bytes, max_pixels: int = MAX_PIXELS, *, arrays: bool) -> AnyImage:
    """Decode an image file's bytes; with ``arrays``, .npy files and TIFF of any channels and bits too.

    Args:
        data: the file.
        max_pixels: of the image in memory.
        arrays: whether arrays are wanted, see ``Preprocess.is_plain``. Files that Pillow reads in full stay Pillow
            images.

    Raises:
        BadImage: with the reason.
        DataError: a package that the file needs is not installed.
    """
    if not arrays:
        return decode_image(data, max_pixels)
    if data[: len(NPY)] == NPY:
        return ArrayImage(read_npy(data, max_pixels))
    is_tiff, suited = data[:4] in MARKS, False
    with contextlib.suppress(
        Exception
    ):  # on hostile bytes a decoder raises any class: then tifffile says what is wrong
        suited = is_tiff and suits_pillow(_opened(data))
    return read_tiff(data, max_pixels) if is_tiff and not suited else decode_image(data, max_pixels)


def read_npy(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The array in a .npy file; pickled objects are refused.

    Raises:
        BadImage: damaged, no array of numbers, or too large.
    """
    try:
        values: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # damaged headers raise any class
        raise BadImage("unreadable", f"is no complete .npy file: {error}") from error
    if math.prod(sorted(values.shape)[-2:]) > max_pixels:
        found, expected = " x ".join(map(str, values.shape)), f"at most {max_pixels:,} pixels"
        raise BadImage("too_large", "the array is too large", found=found, expected=expected)
    return values


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file's bytes; refuse damaged, truncated and far too large files.

    The header's size is checked before anything is decoded. A JPEG of more than ``MAX_PIXELS``, such as a phone's of
    200 megapixels, is decoded at a half, a quarter or an eighth of its sides. Formats that Pillow hands to other
    programs, such as PostScript, are not accepted. Of an animation, the first frame is read; a TIFF of several pages
    is refused.

    Args:
        data: the file.
        max_pixels: of the image in memory.

    Raises:
        BadImage: with the reason, in plain words.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise DataError("is not the content of a file", field="data", found=shown(data), expected="bytes")
    if not data:
        raise BadImage("unreadable", "the file is empty (0 bytes)")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError("Pillow's LOAD_TRUNCATED_IMAGES is on, which makes damaged images grey", fix="set it to False")
    try:
        image = _opened(data)
        is_large = image.width * image.height > MAX_PIXELS
        _fit(image, max_pixels)
        require_one_page(image)
        note_depth(image)
        with _LARGE if is_large else contextlib.nullcontext():
            image.load()
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_large", "the image is too large", expected=_limits(max_pixels)) from error
    except Exception as error:  # on hostile bytes a decoder raises any class
        raise BadImage("unreadable", f"cannot be decoded: {type(error).__name__}: {error}") from error
    return image


def _opened(data: bytes) -> ImageFile.ImageFile:
    """As ``Image.open`` with formats, without Pillow's own limit of size: ``_fit`` has one that can be set."""
    Image.init()
    for name in _FORMATS:
        opens, accepts = Image.OPEN.get(name, (None, None))
        if opens is None or (accepts is not None and accepts(data[:16]) is not True):
            continue
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
            return opens(io.BytesIO(data), "")
    kind = kind_of(data)
    if kind is None:
        raise BadImage("unreadable", "cannot be decoded: not an image of a known format")
    if kind.is_read:
        what = f"cannot be decoded: begins like {kind.name}, and is damaged or of a kind that Pillow does not read"
        raise BadImage("unreadable", what)
    raise BadImage("unreadable", f"cannot be decoded: not an image of a known format, but {kind.name}", fix=kind.fix)


def _fit(image: Image.Image, max_pixels: int) -> None:
    """Choose the scale at which a large JPEG is decoded, and refuse an image that is too large all the same."""
    width, height = image.size
    found, n_pixels = f"{width} x {height}", width * height
    if image.format in ("JPEG", "MPO") and MAX_PIXELS < n_pixels <= max(_MAX_JPEG_PIXELS, max_pixels):
        scale = next(each for each in (2, 4, 8) if n_pixels <= MAX_PIXELS * each * each or each == 8)
        image.draft(image.mode, (width // scale, height // scale))
        n_pixels = image.width * image.height
    if n_pixels > max_pixels or max(width, height) > _MAX_SIDES_RATIO * min(width, height):
        fix = "make it smaller, or increase data.max_megapixels" if n_pixels > max_pixels else "cut it into pieces"
        what, expected = "the image is too large or too long", _limits(max_pixels)
        raise BadImage("too_large", what, found=found, expected=expected, fix=fix)


def _limits(max_pixels: int) -> str:
    return (
        f"at most {max_pixels:,} pixels (a JPEG: {max(_MAX_JPEG_PIXELS, max_pixels):,}), "
        f"and sides of at most {_MAX_SIDES_RATIO} to 1"
    )


def require_pixels(field: str, value: object, n_axes: int) -> None:
    """Refuse anything but uint8 or uint16 pixels, channels last, and no side of 0.

    Raises:
        DataError: naming the field.
    """
    sound = isinstance(value, np.ndarray) and value.dtype in _PIXEL_TYPES and value.ndim == n_axes
    if not (sound and value.size and value.shape[-1] <= MOST_CHANNELS):  # type: ignore[attr-defined]
        expected = f"a NumPy array ({'B, ' if n_axes == 4 else ''}Y, X, C) of uint8 or uint16"
        raise DataError("are not pixels", field=field, found=shown(value), expected=expected)


def require_picture(field: str, value: object, n_axes: int) -> None:
    """Refuse anything but uint8 pixels of 1 or 3 channels, channels last: what a screen shows.

    Raises:
        DataError: naming the field.
    """
    sound = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == n_axes
    if not (sound and value.size and value.shape[-1] in (1, 3)):  # type: ignore[attr-defined]
        expected = f"a NumPy array ({'B, ' if n_axes == 4 else ''}Y, X, 1 or 3) of uint8"
        raise DataError("are not pixels", field=field, found=shown(value), expected=expected)


def to_unit_range(images_BYXC: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(B, Y, X, C) uint8 or uint16 => (B, C, Y, X) float32 in [-1, 1]: 0 becomes -1, 255 or 65535 becomes 1.

    A tensor stays on its device, with the same bits there.

    Raises:
        DataError: not such an array or tensor.
    """
    if isinstance(images_BYXC, torch.Tensor):
        return _tensor_to_unit_range(images_BYXC)
    require_pixels("images_BYXC", images_BYXC, 4)
    half = 127.5 if images_BYXC.dtype == np.uint8 else 32_767.5
    images = images_BYXC.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    images /= np.float32(half)  # by NumPy: OpenMP's threads of a second Python thread would slow down the first one's
    images -= np.float32(1.0)
    return torch.from_numpy(images)


def _tensor_to_unit_range(images_BYXC: torch.Tensor) -> torch.Tensor:
    known = images_BYXC.dtype in (torch.uint8, torch.uint16)
    sound = known and images_BYXC.ndim == 4 and 0 < images_BYXC.shape[-1] <= MOST_CHANNELS
    found, expected = shown(images_BYXC), "a tensor (B, Y, X, C) of uint8 or uint16"
    DataError.unless(sound, "are not pixels", field="images_BYXC", found=found, expected=expected)
    images = images_BYXC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    level = 127.5 if images_BYXC.dtype == torch.uint8 else 32_767.5
    half = torch.full((), level, device=images.device)  # a number would become a product with 1 / 127.5 on a GPU
    return images.div_(half).sub_(1.0)


def to_uint8(images_BCYX: torch.Tensor) -> np.ndarray:
    """(B, C, Y, X) in [-1, 1], clamped and rounded => (B, Y, X, C) uint8.

    Raises:
        DataError: not a tensor of that shape.
    """
    return to_pixels(images_BCYX, 8)


def to_pixels(images_BCYX: torch.Tensor, bits: int) -> np.ndarray:
    """(B, C, Y, X) in [-1, 1], clamped and rounded => (B, Y, X, C) uint8 for 8 bits, uint16 for 16.

    Raises:
        DataError: not a tensor of that shape.
    """
    sound = isinstance(images_BCYX, torch.Tensor) and images_BCYX.ndim == 4 and not images_BCYX.is_complex()
    found, expected = shown(images_BCYX), "a (B, C, Y, X) tensor from -1 to 1"
    DataError.unless(
        sound and not images_BCYX.is_meta, "is no batch", field="images_BCYX", found=found, expected=expected
    )
    scaled = images_BCYX.detach().float().clamp(-1, 1).add(1.0).mul(127.5 if bits == 8 else 32_767.5).round()
    if bits == 8:
        return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint16)


def to_pil(image_YXC: np.ndarray) -> Image.Image:
    """(Y, X, 1, 3 or 4) uint8, or (Y, X, 1) uint16 => a Pillow image of mode L, RGB, RGBA or I;16.

    Raises:
        DataError: not such an array.
    """
    if isinstance(image_YXC, np.ndarray) and image_YXC.dtype == np.uint8 and image_YXC.shape[-1:] == (4,):
        require_pixels("image_YXC", image_YXC, 3)
    elif not (isinstance(image_YXC, np.ndarray) and image_YXC.dtype == np.uint16 and image_YXC.shape[2:] == (1,)):
        require_picture("image_YXC", image_YXC, 3)
    return Image.fromarray(np.ascontiguousarray(image_YXC[..., 0] if image_YXC.shape[-1] == 1 else image_YXC))


def image_grid(images_BYXC: np.ndarray, n_columns: int, *, scale: int = 1, gap: int = GRID_GAP) -> Image.Image:
    """Lay images out row by row on white.

    Args:
        images_BYXC: (B, Y, X, 1 or 3) uint8; other images by ``preview.Preview``.
        n_columns: images in a row.
        scale: each pixel becomes a square of this side, so that 8 x 8 images can be seen.
        gap: pixels between images, 0 or more.

    Raises:
        DataError: not such an array, or no image.
        ConfigError: a number of columns, a scale or a gap that is no whole number, or too small.
    """
    require_picture("images_BYXC", images_BYXC, 4)
    for name, value, least in (("n_columns", n_columns, 1), ("scale", scale, 1), ("gap", gap, 0)):
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MAX_GRID
        require(whole, name, shown(value), f"a whole number from {least} to {_MAX_GRID:,}")
    enlarged = images_BYXC.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, channels = enlarged.shape
    n_rows = -(-n // n_columns)
    shape = (n_rows * (height + gap) - gap, n_columns * (width + gap) - gap, channels)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for i, image in enumerate(enlarged):
        top, left = (i // n_columns) * (height + gap), (i % n_columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return to_pil(canvas)
