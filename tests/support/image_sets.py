"""Image sets of which every image was met."""

from __future__ import annotations

import numpy as np

from foundation.images.image_set import ImageSet


def met(images: ImageSet) -> ImageSet:
    """The set, after each of its images was read."""
    images.readable(np.arange(len(images)))
    return images


def usable(images: ImageSet) -> list[str]:
    """Names of the images that can be read."""
    _, kept = images.readable(np.arange(len(images)))
    return [name for name, good in zip(images.ids, kept, strict=True) if good]
