"""Images as the content of files: PNG where it holds every channel and bit, else .npy."""

from __future__ import annotations

import io

import numpy as np

from foundation.images.config import Preprocess
from foundation.images.preprocess import to_pil


def file_ending(preprocess: Preprocess) -> str:
    """``.png`` where it holds every channel and bit of such images, else ``.npy``."""
    return ".png" if preprocess.fits_png else ".npy"


def file_content(pixels_YXC: np.ndarray, preprocess: Preprocess) -> bytes:
    """A file of the kind of ``file_ending`` with an image, as a source with the same preprocess reads it again.

    Values of 16 bits are those of the files that were read: from 0 to ``white_level``, or to 65535 without one.

    Args:
        pixels_YXC: uint8 or uint16 pixels.
        preprocess: of the image.
    """
    buffer = io.BytesIO()
    if pixels_YXC.dtype == np.uint16 and preprocess.white_level is not None:
        scale = preprocess.white_level / preprocess.top_level
        pixels_YXC = np.rint(pixels_YXC * scale).astype(np.uint16)
    if preprocess.fits_png:
        to_pil(pixels_YXC).save(buffer, format="PNG")
    else:
        np.save(buffer, pixels_YXC, allow_pickle=False)
    return buffer.getvalue()
