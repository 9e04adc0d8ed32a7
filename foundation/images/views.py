"""Views of an image for encoding: the image, its mirror image, and crops at its corners.

Views are enumerated, never random: an export is a function of the images alone.

Source: ten crops as in Krizhevsky, Sutskever and Hinton 2012, section 4.1; the scale of 1.1 as in
the export of Sun et al. 2024 (LlamaGen), arXiv:2406.06525. Unlike theirs, view 0 has scale 1, as in the tokenizer's
training, with and without crops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundation.images.array_image import AnyImage
from foundation.images.config import Preprocess


@dataclass(frozen=True)
class ImageView:
    """One view.

    Attributes:
        name: in words.
        corner: (0 top | 1 bottom, 0 left | 1 right) of the enlarged image, None for the centre.
        mirrored: left and right are exchanged.
    """

    name: str
    corner: tuple[int, int] | None = None
    mirrored: bool = False


VIEWS = (
    ImageView("centre"),
    ImageView("centre, mirrored", mirrored=True),
    ImageView("top left", (0, 0)),
    ImageView("top right", (0, 1)),
    ImageView("bottom left", (1, 0)),
    ImageView("bottom right", (1, 1)),
    ImageView("top left, mirrored", (0, 0), mirrored=True),
    ImageView("top right, mirrored", (0, 1), mirrored=True),
    ImageView("bottom left, mirrored", (1, 0), mirrored=True),
    ImageView("bottom right, mirrored", (1, 1), mirrored=True),
)
"""by number"""
CENTRE, FLIP, TEN_CROP = (0,), (0, 1), tuple(range(len(VIEWS)))


def view_pixels(
    preprocess: Preprocess, image: AnyImage, views: tuple[int, ...], corner_scale: float = 1.1
) -> np.ndarray:
    """The pixels of some views of an image.

    Args:
        preprocess: size, mode and filter.
        image: decoded.
        views: numbers in ``VIEWS``.
        corner_scale: corners are cut from the image resized to cover this many times height and width, and cropped at
            the centre to that size.

    Returns:
        (len(views), Y, X, C) pixels, see ``Preprocess``.

    Raises:
        DataError: damaged EXIF data, or a pixel format without a defined range.
    """
    prepared = preprocess.prepare(image)
    height, width = preprocess.height, preprocess.width
    centre_YXC = preprocess.cover(prepared, height, width)
    if any(VIEWS[view].corner for view in views):
        enlarged_YXC = preprocess.cover(prepared, round(height * corner_scale), round(width * corner_scale))
    pixels = []
    for view in (VIEWS[number] for number in views):
        image_YXC = centre_YXC
        if view.corner is not None:
            top = view.corner[0] * (enlarged_YXC.shape[0] - height)
            left = view.corner[1] * (enlarged_YXC.shape[1] - width)
            image_YXC = enlarged_YXC[top : top + height, left : left + width]
        pixels.append(image_YXC[:, ::-1] if view.mirrored else image_YXC)
    return np.stack(pixels)
