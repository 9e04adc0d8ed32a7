"""Images before preprocessing, made by arithmetic alone: what a tokenizer's preprocessing does to them is stored too.

They are larger than what they become, by other factors in height and width, with stripes as fine as a pixel (which
filters treat differently), tiles of pure red, green and blue, grey ramps, and transparency.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from foundation.images.preprocess import Preprocess


def source_images(preprocess: Preprocess) -> np.ndarray:
    """Two images, (2, Y, X, 4) uint8, red, green, blue and opacity, for a preprocessing of any size."""
    height, width = preprocess.height * 7 // 5 + 3, preprocess.width * 9 // 5 + 5
    y, x = np.mgrid[0:height, 0:width]
    stripes = np.stack([(x + y) % 2 * 255, (x // 2 + y) % 3 * 127, x * 255 // width], -1)
    tiles = np.stack([((y * 4 // height + x * 4 // width) % 3 == i) * 255 for i in range(3)], -1)
    opacity = np.stack([np.full_like(x, 255), 255 * y // height])
    return np.concatenate([np.stack([stripes, tiles]), opacity[..., None]], -1).astype(np.uint8)


def preprocessed(sources_BYXC: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """What ``source_images`` become, (B, Y, X, C) uint8."""
    return np.stack([preprocess(Image.fromarray(each)) for each in sources_BYXC])
