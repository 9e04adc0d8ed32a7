"""Random crops, mirror images and shifts of training images, sampled for each (image, epoch).

Sources: "random_resized" is the crop of Szegedy et al. 2015, arXiv:1409.4842, section 6, with up to ten tries as in
torchvision. "random" is the crop of Esser et al. 2021, arXiv:2012.09841, for a ``crop_fraction`` of 1, and that of
Dhariwal and Nichol 2021, arXiv:2105.05233, for one from 0.8 to 1, which Sun et al. 2024 (LlamaGen), arXiv:2406.06525,
train with.
"""

from __future__ import annotations

import math

import numpy as np

from foundation.images.array_image import AnyImage
from foundation.images.config import Augment, Preprocess
from foundation.randomness import uniforms

Box = tuple[float, float, float, float]
"""left, top, right and bottom in pixels of the decoded image"""
_TRIES = 10
N_DRAWS = {"center": 0, "random": 3, "random_resized": 2 + 2 * _TRIES}
"""random numbers of each kind of crop"""


def view_draws(augment: Augment, indices: np.ndarray, epochs: np.ndarray, seed: int) -> np.ndarray:
    """The random numbers of ``random_view``, which depend on (seed, epoch, index) alone.

    Args:
        augment: which numbers are needed.
        indices, epochs: (B,) which images, and in which pass over the data.
        seed: of the augmentation.

    Returns:
        (B, 1 + N) float64 in [0, 1): of the mirror image, then of the crop.
    """
    keys: list[tuple[int | str, ...]] = [("flip",), *(("crop", i) for i in range(N_DRAWS[augment.crop]))]
    return np.stack([uniforms(indices, epochs, seed, *key) for key in keys], axis=1)


def random_view(preprocess: Preprocess, augment: Augment, image: AnyImage, draws_N: np.ndarray) -> np.ndarray:
    """Crop a decoded image, resize the crop and mirror it half of the time.

    Args:
        preprocess: size, mode and filter.
        augment: how to crop, and whether to mirror.
        image: decoded.
        draws_N: a row of ``view_draws``.

    Returns:
        (Y, X, C) pixels.

    Raises:
        DataError: damaged EXIF data, or a pixel format without a defined range.
    """
    prepared = preprocess.prepare(image)
    mirrored = augment.flip and draws_N[0] < 0.5
    height, width = preprocess.height, preprocess.width
    if augment.crop == "center":
        pixels_YXC = preprocess.cover(prepared, height, width)
        return _mirror_image(pixels_YXC) if mirrored else pixels_YXC
    box = crop_box(augment, draws_N[1:], prepared.size, height, width)
    return preprocess.region(prepared, box, height, width, mirrored=mirrored)


def augmented(
    pixels_BYXC: np.ndarray, augment: Augment, indices: np.ndarray, epochs: np.ndarray, seed: int
) -> np.ndarray:
    """Mirror and move (B, Y, X, C) pixels, which are changed; each draw depends on (seed, epoch, index) alone."""
    if augment.flip:
        for i in np.flatnonzero(uniforms(indices, epochs, seed, "flip") < 0.5):
            pixels_BYXC[i] = _mirror_image(pixels_BYXC[i])
    return shifted(pixels_BYXC, augment, indices, epochs, seed)


def shifted(
    pixels_BYXC: np.ndarray, augment: Augment, indices: np.ndarray, epochs: np.ndarray, seed: int
) -> np.ndarray:
    """Move (B, Y, X, C) pixels by up to ``max_shift``; each draw depends on (seed, epoch, index) alone."""
    if not augment.max_shift:
        return pixels_BYXC
    reach = augment.max_shift
    padded = np.pad(pixels_BYXC, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = pixels_BYXC.shape[1:3]
    down, right = ((uniforms(indices, epochs, seed, axis) * (2 * reach + 1)).astype(int) for axis in ("down", "right"))
    crops = zip(padded, down, right, strict=True)
    return np.stack([image[y : y + height, x : x + width] for image, y, x in crops])


def crop_box(augment: Augment, draws_N: np.ndarray, size: tuple[int, int], height: int, width: int) -> Box:
    """The part of an image that becomes ``height`` x ``width`` pixels.

    Args:
        augment: its ``crop`` is "random" or "random_resized".
        draws_N: random numbers in [0, 1), see ``N_DRAWS``.
        size: columns and rows of the decoded image.
        height, width: of the result.
    """
    if augment.crop == "random":
        return _random_box(augment.crop_fraction, draws_N, size, height, width)
    return _resized_box(augment, draws_N, size, width / height)


def _random_box(
    fraction: tuple[float, float], draws_N: np.ndarray, size: tuple[int, int], height: int, width: int
) -> Box:
    """A window at whole pixels of the image resized to cover a bit more than ``height`` x ``width``."""
    shorter = min(height, width)
    least, most = (math.ceil(shorter / each) for each in reversed(fraction))
    side = least + int(draws_N[0] * (most - least + 1))
    scale = max(height * side / size[1], width * side / size[0]) / shorter
    resized = max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
    left = int(draws_N[1] * (resized[0] - width + 1))
    top = int(draws_N[2] * (resized[1] - height + 1))
    x, y = size[0] / resized[0], size[1] / resized[1]
    return left * x, top * y, min((left + width) * x, size[0]), min((top + height) * y, size[1])


def _resized_box(augment: Augment, draws_N: np.ndarray, size: tuple[int, int], aspect: float) -> Box:
    """A box of random area and aspect ratio; where none of ten fits, the largest one at the centre."""
    columns, rows = size
    least, most = (math.log(each * aspect) for each in augment.ratio)
    for at_area, at_ratio in draws_N[2:].reshape(_TRIES, 2):
        area = columns * rows * (augment.scale[0] + at_area * (augment.scale[1] - augment.scale[0]))
        ratio = math.exp(least + at_ratio * (most - least))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= columns and 0 < high <= rows:
            left, top = int(draws_N[0] * (columns - wide + 1)), int(draws_N[1] * (rows - high + 1))
            return left, top, left + wide, top + high
    ratio = min(max(columns / rows, math.exp(least)), math.exp(most))
    wide, high = min(columns, max(1, round(rows * ratio))), min(rows, max(1, round(columns / ratio)))
    left, top = (columns - wide) // 2, (rows - high) // 2
    return left, top, left + wide, top + high


def _mirror_image(pixels_YXC: np.ndarray) -> np.ndarray:
    """Left and right exchanged, as a copy; ``take`` moves whole pixels, which reversed slices do not."""
    return pixels_YXC.take(np.arange(pixels_YXC.shape[1])[::-1], axis=1)
