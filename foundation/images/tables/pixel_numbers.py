"""Arrays of numbers as images: the order of their axes, and which value is white."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from foundation.errors import DataError
from foundation.images.failures import BadImage

_CHANNELS = (1, 3, 4)
_DARK = 32
"""numbers that are all below this leave in doubt whether white is 255"""
_FIELD = "data.source.white_value"


def white_of(arrays: Sequence[np.ndarray], given: float | None, name: str) -> float:
    """The value of white in a column of numbers.

    Args:
        arrays: of some of its cells.
        given: ``DatasetData.white_value``.
        name: of the column.

    Returns:
        255 for whole numbers up to 255; 1 for booleans and for fractions up to 1, 255 for fractions above.

    Raises:
        DataError: the numbers leave it in doubt; with the ways out.
    """
    if given is not None:
        return float(given)
    values = [each[np.isfinite(each)] for each in arrays if each.dtype.kind in "buif"]
    values = [each for each in values if each.size]
    if not values:
        return 255.0  # each cell says what is wrong with it
    low, high = float(min(each.min() for each in values)), float(max(each.max() for each in values))
    if all(each.dtype.kind == "b" for each in values):
        return 1.0
    fractions = any(each.dtype.kind == "f" and (each != np.floor(each)).any() for each in values)
    found = f"{name}: {'fractions' if fractions else 'whole numbers'} from {low:g} to {high:g}"
    if low < 0:
        fix = "write numbers from 0 (black) to 1 or 255 (white) into the column"
        raise DataError(
            "numbers below 0 have no defined colour", field="data.source.image_column", found=found, fix=fix
        )
    if fractions and high <= 1:
        return 1.0
    if _DARK <= high <= 255:
        return 255.0
    likely = [1, 255] if high <= 1 else [255, high] if high <= 255 else [(1 << int(high).bit_length()) - 1, 65_535]
    ways = dict.fromkeys(f"--{_FIELD} {value:g}" for value in likely)
    fix = f"{', or '.join(ways)}, or the value that it is"
    raise DataError("it is in doubt which of the numbers is white", field=_FIELD, found=f"null, and {found}", fix=fix)


def image_of(values: np.ndarray, white: float | None) -> Image.Image:
    """An array as an 8-bit image.

    Args:
        values: (Y, X), (Y, X, C) or (C, Y, X) numbers, with C of 1, 3 or 4.
        white: the value of white; None means 255.

    Raises:
        BadImage: another shape, one that can be read in two ways, or values outside 0..white.
    """
    white = 255.0 if white is None else white
    if values.dtype.kind not in "buif":
        raise BadImage("pixel_format", f"the cell holds no numbers, but {values.dtype}")
    pixels_YXC = _channels_last(values)
    low, high = float(pixels_YXC.min()), float(pixels_YXC.max())
    if not (low >= 0 and high <= white):  # also where one is not a number
        found, expected = f"{low:g} to {high:g}", f"0 to white, {white:g} ({_FIELD})"
        raise BadImage("pixel_format", "the cell holds numbers out of range", found=found, expected=expected)
    if white != 255 or pixels_YXC.dtype != np.uint8:
        pixels_YXC = (pixels_YXC.astype(np.float64) * (255 / white) + 0.5).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels_YXC[..., 0] if pixels_YXC.shape[-1] == 1 else pixels_YXC))


def _channels_last(values: np.ndarray) -> np.ndarray:
    """(Y, X, C) of one image."""
    if values.ndim == 4 and values.shape[0] == 1:  # a list of one image
        values = values[0]
    shape = " x ".join(map(str, values.shape))
    if not values.size or values.ndim not in (2, 3):
        what = "the cell holds numbers that are not height x width, with or without channels"
        fix = "write nested lists of rows, which say height and width"
        raise BadImage("pixel_format", what, found=shape or "one number", fix=fix)
    if values.ndim == 2:
        return values[..., None]
    first, last = values.shape[0] in _CHANNELS, values.shape[-1] in _CHANNELS
    if first and last:
        what, fix = "channels may be first or last", "write images of more than 4 pixels a side, channels last"
        raise BadImage("pixel_format", what, found=shape, fix=fix)
    if not first and not last:
        raise BadImage("pixel_format", "no axis has 1, 3 or 4 channels", found=shape, expected="Y x X x C or C x Y x X")
    return values if last else values.transpose(1, 2, 0)
