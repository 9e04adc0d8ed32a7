"""Sizes of images from their headers, after the EXIF orientation; no pixel is decoded."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from PIL import ExifTags, Image, TiffImagePlugin

from foundation.images.array_image import AnyImage

_SWAPPED = (5, 6, 7, 8)
"""EXIF orientations that exchange rows and columns"""


def upright_size(data: bytes | str) -> tuple[int, int]:
    """(width, height) of an image file after its EXIF orientation.

    Args:
        data: the file's content, its head where that holds the header, or its path.

    Raises:
        OSError: no image file that Pillow can open.
    """
    with Image.open(data if isinstance(data, str) else io.BytesIO(data)) as image:
        return size_of(image)


def size_of(image: AnyImage) -> tuple[int, int]:
    """(width, height) of an open image after its EXIF orientation; it is not decoded.

    An orientation that a PNG file holds behind its pixels is not seen: the image then takes the shape of its pixels as
    they are stored, and is still turned upright when it is read.
    """
    if not isinstance(image, Image.Image):
        return image.size
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose size has the orientation in it, by Pillow's version
        width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    try:
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # on a damaged block Pillow raises any class; reading the image says so
        orientation = 1
    return (height, width) if orientation in _SWAPPED else (width, height)


def image_size(source: Any, index: int) -> tuple[int, int]:
    """(width, height) of an image of a source: by its ``size``, or else of the decoded image.

    Raises:
        DataError: it cannot be opened.
    """
    size = getattr(source, "size", None)
    if size is not None:
        with contextlib.suppress(OSError):  # an array, or an image that Pillow does not open
            found: tuple[int, int] = size(index)
            return found
    return size_of(source.read(index))
