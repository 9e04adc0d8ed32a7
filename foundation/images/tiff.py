"""TIFF files that Pillow cuts to 8 bits or cannot read, as arrays, by the package tifffile (extra ``tiff``)."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import Image

from foundation.errors import DataError
from foundation.images.array_image import ArrayImage
from foundation.images.failures import MAX_FILE_BYTES, BadImage

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""the first bytes of TIFF and BigTIFF"""
_INSTALL = 'pip install "tessera-images[tiff]"'
_CHANNEL_AXES = "SC"
_PAGE_AXES = "QI"
_PHOTOMETRIC = {0: "white is zero", 1: "black is zero", 2: "RGB"}
_BITS, _PREMULTIPLIED = 258, 1
_TURNS = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True)}
_TURNS |= {8: (1, False)}
"""EXIF orientation => quarter turns to the left, and whether the result is mirrored"""


def suits_pillow(image: Image.Image) -> bool:
    """Whether Pillow reads an opened TIFF in full: one page, and colours of at most 8 bits or one deep channel."""
    bits = image.tag_v2.get(_BITS, (1,))  # type: ignore[attr-defined]
    one_page = getattr(image, "n_frames", 1) == 1
    return one_page and (max(bits) <= 8 or len(image.getbands()) == 1)


def read_tiff(data: bytes, max_pixels: int) -> ArrayImage:
    """The image in a TIFF file, upright.

    The axis of the channels is known where the file says it. Pages that say nothing may be channels: then the number
    of channels decides. Smaller versions of the image are left out.

    Args:
        data: the file.
        max_pixels: most pixels.

    Raises:
        BadImage: damaged, too large, several images, opacity that is multiplied in, or another kind of colours.
        DataError: tifffile, or a package that it needs for the compression, is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        what = "TIFF files of several channels or of 16-bit colours need tifffile, which is not installed"
        raise DataError(what, field="data.preprocess", fix=_INSTALL) from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            if len(file.series) != 1:
                what, fix = f"holds {len(file.series)} images", "save each as a file of its own"
                raise BadImage("pixel_format", what, fix=fix)
            return _image_of(file.series[0], max_pixels)
    except DataError:
        raise
    except Exception as error:  # on hostile bytes a decoder raises any class
        if "imagecodecs" in str(error):
            what = f"the compression of a TIFF file needs a package that is not installed: {error}"
            raise DataError(what, field="data.preprocess", fix="pip install imagecodecs") from error
        raise BadImage("unreadable", f"cannot be decoded: {type(error).__name__}: {error}") from error


def _image_of(series: Any, max_pixels: int) -> ArrayImage:
    page, shape, axes = series.keyframe, tuple(series.shape), str(series.axes)
    kept = [i for i, (axis, side) in enumerate(zip(axes, shape, strict=True)) if axis in "YX" or side > 1]
    shape, axes = tuple(shape[i] for i in kept), "".join(axes[i] for i in kept)
    others = axes.replace("Y", "").replace("X", "")
    if len(others) > 1 or (others and others not in _CHANNEL_AXES + _PAGE_AXES) or "YX" not in axes.replace(others, ""):
        what, fix = "is not one image of rows, columns and channels", "save each page as a file of its own"
        raise BadImage("pixel_format", what, found=f"axes {axes}, {' x '.join(map(str, shape))}", fix=fix)
    n_pixels = math.prod(sorted(shape)[-2:])
    if n_pixels > max_pixels or math.prod(shape) * page.dtype.itemsize > MAX_FILE_BYTES:
        found, expected = " x ".join(map(str, shape)), f"at most {max_pixels:,} pixels"
        raise BadImage("too_large", "the image is too large", found=found, expected=expected)
    _require_known_colours(page)
    values = np.asarray(series.asarray()).reshape(shape)
    axis = None if not others or others in _PAGE_AXES else {0: 0, len(axes) - 1: 2}[axes.index(others)]
    white = (1 << page.bitspersample) - 1 if values.dtype == np.uint16 and page.bitspersample < 16 else None
    if int(page.photometric) == 0:
        if values.dtype.kind != "u":
            raise BadImage("pixel_format", f"is inverted (white is zero), and holds {values.dtype}")
        values = (white or np.iinfo(values.dtype).max) - values
    return ArrayImage(_upright(values, axis, page), axis, white)


def _require_known_colours(page: Any) -> None:
    photometric = int(page.photometric)
    if photometric not in _PHOTOMETRIC:
        found, expected = str(page.photometric.name).lower(), "black is zero, white is zero, or RGB"
        raise BadImage("pixel_format", "has colours of another kind", found=found, expected=expected)
    extra = page.extrasamples or ()
    if any(int(each) == _PREMULTIPLIED for each in extra):
        what, fix = "holds colours that are multiplied by their opacity", "save it with unassociated alpha"
        raise BadImage("pixel_format", what, fix=fix)


def _upright(values: np.ndarray, axis: int | None, page: Any) -> np.ndarray:
    tag = page.tags.get("Orientation")
    turns, mirrored = _TURNS.get(1 if tag is None else int(tag.value), (0, False))
    if not (turns or mirrored):
        return values
    if values.ndim == 3 and axis is None:
        raise BadImage("pixel_format", "is rotated (EXIF), and does not say which axis holds the channels")
    rows = 1 if axis == 0 else 0
    values = np.rot90(values, turns, (rows, rows + 1))
    return np.ascontiguousarray(np.flip(values, rows + 1) if mirrored else values)
