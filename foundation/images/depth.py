"""Images of more than 8 bits: which value is white, and their conversion to 8 bits.

Cameras and detectors of 10 to 14 bits write files of 16 bits that do not say which value is white. One value for all
images keeps them comparable; a value for each image would make a dark image bright.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from foundation.errors import DataError
from foundation.images.array_image import AnyImage
from foundation.images.failures import BadImage

WHITE = 65_535
_DARK = (WHITE + 1) // 8
_NUMBERS = {"F": "32-bit floating point numbers", "I": "32-bit or signed whole numbers"}
_PHOTOMETRIC, _BITS, _SUBFILE = 262, 258, 254
_DECLARED, _INVERTED, _CUT = "tessera white", "tessera white is zero", "tessera cut to 8 bits"
_SCALED = "tessera scaled to 8 bits"
_BITS_UNKNOWN = ("JPEG2000", "AVIF")


def note_depth(image: Image.Image) -> None:
    """Note in ``info`` what an opened image's header says of its depth; Pillow forgets it when it loads the pixels."""
    tiles = getattr(image, "tile", ())
    codecs = [(each.codec_name, str(each.args)) for each in tiles]
    if image.format == "PPM" and image.mode == "I" and codecs and codecs[0][0] != "raw":
        image.info[_DECLARED] = WHITE  # Pillow has scaled the values by the header's largest one
    if image.format == "PPM" and image.mode == "RGB":
        image.info[_SCALED] = any(each.codec_name != "raw" and each.args[-1] > 255 for each in tiles)
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits = tags.get(_BITS, (1,))
        if image.mode.startswith("I;16") and bits[0] < 16:
            image.info[_DECLARED] = (1 << bits[0]) - 1
        image.info[_INVERTED] = image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == 0
    if image.mode in ("L", "LA", "RGB", "RGBA", "RGBX", "CMYK"):
        image.info[_CUT] = any(";16" in args for _, args in codecs)


def require_one_page(image: Image.Image) -> None:
    """Refuse a TIFF of several pages, and one whose first page is a preview of the image.

    Raises:
        BadImage: with the way out.
    """
    n_pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if image.format != "TIFF":
        return
    kinds = []
    for page in range(n_pages):
        image.seek(page)
        kinds.append(image.tag_v2.get(_SUBFILE, 0))  # type: ignore[attr-defined]
        if page == 0 and kinds[0] & 1:
            fix = "develop it to PNG, TIFF or JPEG"
            raise BadImage("pixel_format", "the first page is a small preview, as in raw photos (DNG, NEF)", fix=fix)
        if page and not kinds[page] & 0b101:  # neither a smaller version nor a mask
            what = f"holds {n_pages} pages, of which each may be an image"
            raise BadImage("pixel_format", what, fix="save each page as a file of its own")
    image.seek(0)


def is_deep(image: Image.Image) -> bool:
    """Whether a decoded image has whole numbers of more than 8 bits with a known white."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def brightest(image: AnyImage) -> int | None:
    """The largest value of an image of more than 8 bits whose header does not say which value is white.

    Returns:
        0..65535; None for other images, to which ``Preprocess.white_level`` does not apply.
    """
    if not isinstance(image, Image.Image):
        known = image.values.dtype != np.uint16 or image.white is not None
        return None if known else int(image.values.max(initial=0))
    if image.info.get(_CUT):
        extrema = image.getextrema()
        bands = [extrema] if isinstance(extrema[0], (int, float)) else extrema[: 1 if image.mode == "LA" else 3]
        return max(int(high) for _, high in bands) * 257  # type: ignore[misc]
    if not is_deep(image) or _DECLARED in image.info:
        return None
    return int(np.asarray(image).max())


def require_white(brightest_N: Iterable[int | None], white_level: int | None) -> None:
    """Refuse a set of images of more than 8 bits that would all be nearly black.

    Args:
        brightest_N: ``brightest`` of each image, or the largest of each part of the set.
        white_level: see ``Preprocess``.

    Raises:
        DataError: with the ways out.
    """
    largest = max((each for each in brightest_N if each is not None), default=_DARK)
    if white_level is not None or largest >= _DARK:
        return
    likely = (1 << max(largest.bit_length(), 9)) - 1
    raise DataError(
        "images of 16 bits that would all be nearly black: it is not known which value is white",
        field="data.preprocess.white_level",
        found=f"null, and no value above {largest:,}",
        expected="the value of white in images of more than 8 bits",
        fix=f"--data.preprocess.white_level {likely} for {likely.bit_length()}-bit data; or "
        f"--data.preprocess.white_level {WHITE} if they are so dark",
    )


def to_8_bits(image: Image.Image, white_level: int | None) -> Image.Image:
    """Scale (not clip) an image of more than 8 bits so that white becomes 255; other images are returned themselves.

    Raises:
        BadImage: a value above white, or a range that is not known.
    """
    require_white_applies(image, white_level)
    if image.mode in _NUMBERS and not is_deep(image):
        what = f"holds {_NUMBERS[image.mode]}, of which it is not known which is white"
        raise BadImage("pixel_format", what, fix="save it as an 8-bit or 16-bit image")
    if not is_deep(image):
        return image
    values, white = deep_values(image, white_level)
    return Image.fromarray(((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8))


def require_white_applies(image: Image.Image, white_level: int | None) -> None:
    """Refuse an image of which only the upper 8 of 16 bits are read, where white is another value than 65535.

    Raises:
        BadImage: such an image.
    """
    if image.info.get(_CUT) and white_level not in (None, WHITE):
        what = "has 16 bits a colour, of which only the upper 8 are read, so white_level cannot apply"
        raise BadImage("pixel_format", what, fix="save it with 8 bits a colour")


def deep_values(image: Image.Image, white_level: int | None) -> tuple[np.ndarray, int]:
    """The (Y, X) uint16 values of an image that ``is_deep``, black at 0, and the value of white.

    Raises:
        BadImage: a value above white.
    """
    white: int = image.info.get(_DECLARED, WHITE if white_level is None else white_level)
    values = np.asarray(image).clip(0, WHITE).astype(np.uint16)
    if values.max(initial=0) > white:
        expected = f"at most white, {white} (data.preprocess.white_level)"
        raise BadImage("pixel_format", "has values above white", found=int(values.max()), expected=expected)
    return white - values if image.info.get(_INVERTED) else values, white


def require_all_bits(image: Image.Image) -> None:
    """Refuse an image of which Pillow reads the upper 8 bits alone, for data of 16 bits.

    Raises:
        BadImage: colours of 16 bits in PNG, PPM or TIFF, and colours in JPEG 2000 and AVIF, which do not say to Pillow
            how many bits they have.
    """
    coloured = image.mode in ("RGB", "RGBA", "LA", "CMYK", "YCbCr", "RGBX")
    if image.info.get(_CUT) or image.info.get(_SCALED) or (coloured and image.format in _BITS_UNKNOWN):
        what = "may have more than 8 bits a colour" if image.format in _BITS_UNKNOWN else "has 16 bits a colour"
        fix = "save it as TIFF or .npy of 16 bits, or use --data.preprocess.bits 8"
        raise BadImage("pixel_format", f"{what}, of which Pillow reads only the upper 8", found=image.format, fix=fix)
