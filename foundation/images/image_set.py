"""Sets of usable images: scanned once, split deterministically, read in batches.

A scan decodes every image and lists each failure with its reason: planned = usable + failed.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

from foundation.config import digest
from foundation.errors import DataError
from foundation.images.config import Augment, DataConfig, Preprocess
from foundation.images.depth import brightest, require_white
from foundation.images.failures import Failure, failure_of, named
from foundation.images.preprocess import to_unit_range
from foundation.images.sources import ImageSource, SubsetSource, open_sources
from foundation.randomness import permutation, uniforms

_SCAN_BLOCK = 1024


class ImageSet:
    """Usable images of one split.

    Args:
        source: where they are read from.
        preprocess: how they become pixels.
        cache_mib: memory for decoded pixels.
        augment: applied by ``batch`` when given.
        seed: of the augmentation.
        name: shown in the progress bar.

    Attributes:
        brightest: see ``depth.brightest``, of all images.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocess: Preprocess,
        *,
        cache_mib: int = 4096,
        augment: Augment | None = None,
        seed: int = 0,
        name: str = "images",
    ) -> None:
        self.preprocess, self.augment, self.seed = preprocess, augment or Augment(), seed
        self.class_names = source.class_names
        shape = (preprocess.height, preprocess.width, preprocess.n_channels)
        fits = len(source.ids) * int(np.prod(shape)) <= cache_mib * 2**20
        pixels = np.empty((len(source.ids), *shape), np.uint8) if fits else None
        deep: list[int] = []
        results = _scan(source, preprocess, pixels, name, deep)
        self.brightest = max(deep, default=None)
        good = np.flatnonzero([isinstance(each, int) for each in results])
        self.failures = [each for each in results if isinstance(each, Failure)]
        self._checksums = [results[i] for i in good]
        self.n_planned = len(source.ids)
        self._source = SubsetSource(source, good)
        self.ids, self.labels = self._source.ids, self._source.labels
        self._pixels = pixels if pixels is None or len(good) == len(pixels) else pixels[good]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content(self) -> str:
        """Hash of the usable images: their ids and their pixels as they were when the set was opened."""
        return digest([self.ids, self._checksums])

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Preprocessed, unaugmented pixels, (B, Y, X, C) uint8."""
        if self._pixels is not None:
            return self._pixels[indices]
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(self._decode, indices)))

    def _decode(self, index: int) -> np.ndarray:
        with named(self.ids[index]):
            return self.preprocess(self._source.read(int(index)))

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """Training examples.

        Args:
            indices, epochs: (B,) which images, and in which pass over the data (it keys the augmentation).

        Returns:
            ``images`` (B, C, Y, X) float32 in [-1, 1].
        """
        pixels_BYXC = augmented(self.pixels(indices), self.augment, indices, epochs, self.seed)
        return {"images": to_unit_range(pixels_BYXC)}

    def images(self, indices: np.ndarray) -> torch.Tensor:
        """Unaugmented images, (B, C, Y, X) float32 in [-1, 1]."""
        return to_unit_range(self.pixels(indices))


def open_splits(config: DataConfig) -> dict[str, ImageSource]:
    """The sources ``train`` and ``validation`` of a data configuration; no image is read.

    Raises:
        DataError: nothing to read.
    """
    train, validation = open_sources(config.source, config.max_megapixels * 10**6)
    if validation is None:
        train, validation = _split(train, config.validation_share)
    return {"train": train, "validation": validation}


def open_image_sets(config: DataConfig, *, augment: Augment | None = None, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """The training and validation images of a data configuration.

    Raises:
        DataError: nothing to read, or more unusable images than ``max_failed_share`` allows.
    """
    sources = open_splits(config)
    cache, preprocess = config.cache_mib, config.preprocess
    train = ImageSet(sources["train"], preprocess, cache_mib=cache, augment=augment, seed=seed, name="train images")
    validation = ImageSet(sources["validation"], preprocess, cache_mib=cache, name="validation images")
    for each in (train, validation):
        _require_usable(each, config.max_failed_share)
    require_white([train.brightest, validation.brightest], preprocess.white_level)
    return train, validation


def augmented(
    pixels_BYXC: np.ndarray, augment: Augment, indices: np.ndarray, epochs: np.ndarray, seed: int
) -> np.ndarray:
    """Apply ``augment`` to (B, Y, X, C) pixels; each image's draw depends on (seed, epoch, index) alone."""
    if augment.flip:
        mirrored = uniforms(indices, epochs, seed, "flip") < 0.5
        pixels_BYXC = np.where(mirrored[:, None, None, None], pixels_BYXC[:, :, ::-1], pixels_BYXC)
    if augment.max_shift:
        reach = augment.max_shift
        padded = np.pad(pixels_BYXC, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        height, width = pixels_BYXC.shape[1:3]
        down, right = (
            (uniforms(indices, epochs, seed, axis) * (2 * reach + 1)).astype(int) for axis in ("down", "right")
        )
        crops = zip(padded, down, right, strict=True)
        pixels_BYXC = np.stack([image[y : y + height, x : x + width] for image, y, x in crops])
    return pixels_BYXC


def _scan(
    source: ImageSource, preprocess: Preprocess, pixels: np.ndarray | None, name: str, deep: list[int]
) -> list[Failure | int]:
    """Decode every image once. Returns, for each, a checksum of its pixels or its failure; extends ``deep``."""

    def attempt(index: int) -> Failure | int:
        try:
            image = source.read(index)
            largest = brightest(image)
            decoded = preprocess(image)
        except Exception as error:  # on hostile bytes a decoder raises any class
            return failure_of(source.ids[index], error)
        if largest is not None:
            deep.append(largest)
        if pixels is not None:
            pixels[index] = decoded
        return zlib.crc32(decoded.data)

    results: list[Failure | int] = []
    n = len(source.ids)
    with ThreadPoolExecutor() as pool, tqdm(total=n, desc=f"reading {name}", delay=2, unit="img") as progress:
        for start in range(0, n, _SCAN_BLOCK):  # in blocks: a future per image would cost gigabytes for millions
            block = list(pool.map(attempt, range(start, min(start + _SCAN_BLOCK, n))))
            results += block
            progress.update(len(block))
    return results


def _split(source: ImageSource, share: float) -> tuple[ImageSource, ImageSource]:
    """Training and validation images: a uniform draw, equal on every machine; each part keeps the file order."""
    n = len(source.ids)
    n_validation = max(1, round(share * n))
    if n_validation >= n:
        expected = "at least 2, better 1,000"
        raise DataError("too few images for a validation part", field="data.source", found=n, expected=expected)
    order = permutation(n, "held-out split")  # the key of every run so far: it decides which images they are
    return SubsetSource(source, np.sort(order[n_validation:])), SubsetSource(source, np.sort(order[:n_validation]))


def _require_usable(images: ImageSet, max_failed_share: float) -> None:
    n_failed = len(images.failures)
    if len(images) and n_failed <= max_failed_share * images.n_planned:
        return
    shown = "\n".join(f"    {each.image_id}: {each.reason}" for each in images.failures[:10])
    raise DataError(
        "too many images cannot be used",
        field="data.max_failed_share",
        found=f"{n_failed} of {images.n_planned} failed, the first of them:\n{shown}",
        expected=f"at most a share of {max_failed_share}",
        fix="repair or remove them, or increase data.max_failed_share",
    )
