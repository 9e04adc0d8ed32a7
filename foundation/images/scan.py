"""Scan of a source before its first use: what it holds, as far as that is cheap.

Of a large set only a sample of 64 images is decoded. A small set is decoded once: the hashes of its pixels find copies
and later changes. Whether an image can be used is found when it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from foundation.images.array_image import AnyImage
from foundation.images.config import Identity
from foundation.images.inventory import Shapes
from foundation.images.sources import ImageSource
from foundation.threads import map_in_threads

SAMPLED = 64
SMALL_IMAGES = 16_384
_SMALL_BYTES = 64 * 2**20
_BLOCK = 1024


@dataclass(frozen=True)
class Scan:
    """What is known of a source's images before they are used.

    Attributes:
        contents: (n,) uint64, ``content_of`` each image, 0 for one that cannot be read; None if only a sample was read.
        shapes: sizes and modes of the images that were read.
    """

    contents: np.ndarray | None
    shapes: Shapes


def scan(source: ImageSource, identity: Identity = "auto", name: str = "images") -> Scan:
    """Look at a source.

    Args:
        source: what to look at.
        identity: ``content`` reads every image, ``files`` a sample; ``auto`` reads every image of a set of at most
            16,384 images and 64 MiB of pixels.
        name: of the images, in the progress bar.
    """
    n_images, sample = len(source.ids), Shapes()
    _look(source, sample_of(n_images), sample)
    if not _reads_all(identity, n_images, sample):
        return Scan(None, sample)
    shapes, contents = Shapes(), list[int]()
    with tqdm(total=n_images, desc=f"reading {name}", delay=2, unit="img") as progress:
        for start in range(0, n_images, _BLOCK):  # in blocks: a future for each image would cost gigabytes for millions
            block = range(start, min(start + _BLOCK, n_images))
            contents += _look(source, block, shapes)
            progress.update(len(block))
    return Scan(np.array(contents, np.uint64), shapes)


def sample_of(n_images: int) -> list[int]:
    """Up to 64 images, evenly spread."""
    return np.unique(np.linspace(0, n_images - 1, min(SAMPLED, n_images)).round().astype(int)).tolist()


def content_of(image: AnyImage) -> int:
    """64-bit hash of a decoded image's pixels, above 0."""
    hashed = hashlib.blake2b(f"{image.mode} {image.size} ".encode(), digest_size=8)
    hashed.update(image.tobytes())
    return int.from_bytes(hashed.digest(), "little") or 1


def _reads_all(identity: Identity, n_images: int, sample: Shapes) -> bool:
    if identity != "auto":
        return identity == "content"
    pixels = sum(width * height * count for (width, height), count in sample.sizes.items())
    mean = pixels / max(1, sample.sizes.total())
    channels = 3 if any(mode not in ("1", "L", "P", "I;16") for mode in sample.modes) else 1
    return n_images <= SMALL_IMAGES and n_images * mean * channels <= _SMALL_BYTES


def _look(source: ImageSource, indices: Iterable[int], shapes: Shapes) -> list[int]:
    """Hashes of some images; their sizes and modes are counted."""

    def look(index: int) -> tuple[int, Shapes]:
        found = Shapes()
        try:
            image = source.read(index)
            found.add(image)
            return content_of(image), found
        except Exception:  # on hostile bytes a decoder raises any class; the first use lists the image
            return 0, Shapes()

    looks = map_in_threads(look, indices)
    for _, each in looks:
        shapes.merge(each)
    return [content for content, _ in looks]
