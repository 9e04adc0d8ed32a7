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

    Args:
        pixels_YXC: uint8 or uint16 pixels.
        preprocess: of the image.
    """
    buffer = io.BytesIO()
    if preprocess.fits_png:
        to_pil(pixels_YXC).save(buffer, format="PNG")
    else:
        np.save(buffer, pixels_YXC, allow_pickle=False)
    return buffer.getvalue()
