"""Sets of usable images: scanned once, read in batches.

A scan decodes every image and lists each failure with its reason: planned = usable + failed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping

import numpy as np
import torch
from tqdm import tqdm

from foundation.arguments import require_type
from foundation.config import digest
from foundation.errors import DataError
from foundation.images.config import Augment, DataConfig, Preprocess
from foundation.images.depth import require_white
from foundation.images.failures import BadImage, Failure, failure_of, named
from foundation.images.inventory import Shapes
from foundation.images.preprocess import to_unit_range
from foundation.images.sources import ImageSource, SubsetSource, open_sources
from foundation.images.split import held_out
from foundation.randomness import uniforms
from foundation.threads import map_in_threads

_SCAN_BLOCK = 1024


class ImageSet:
    """Usable images of one split.

    Args:
        source: where they are read from. If it has ``checksums`` (see ``ListedSource``), an image with other pixels is
            a failure.
        preprocess: how they become pixels.
        cache_mib: memory for decoded pixels.
        augment: applied by ``batch`` when given.
        seed: of the augmentation.
        name: shown in the progress bar.
        known_failures: images that were unusable when a run began, by id; they stay unusable.
        apart_from: images whose pixels must not be in this set, e.g. the training images: checksum => id.

    Attributes:
        checksums: (n_planned,) uint64 of each image's pixels, 0 if it failed.
        shapes: sizes and modes of the decoded images.
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
        known_failures: Mapping[str, Failure] | None = None,
        apart_from: Mapping[int, str] | None = None,
    ) -> None:
        self.preprocess, self.augment, self.seed = preprocess, augment or Augment(), seed
        self.class_names = source.class_names
        shape, kind = (preprocess.height, preprocess.width, preprocess.n_channels), np.dtype(preprocess.pixel_type)
        fits = len(source.ids) * int(np.prod(shape)) * kind.itemsize <= cache_mib * 2**20
        pixels = np.empty((len(source.ids), *shape), kind) if fits else None
        self.shapes = Shapes()
        results = _scan(_Reading(source, preprocess, pixels, known_failures or {}, apart_from or {}, self.shapes), name)
        self.failures = [each for each in results if isinstance(each, Failure)]
        self.checksums = np.array([each if isinstance(each, int) else 0 for each in results], np.uint64)
        self.n_planned, self.planned_ids, self.planned_labels = len(source.ids), source.ids, source.labels
        good = np.flatnonzero([isinstance(each, int) for each in results])
        self._source = SubsetSource(source, good)
        self.ids, self.labels = self._source.ids, self._source.labels
        self._pixels = pixels if pixels is None or len(good) == len(pixels) else pixels[good]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content(self) -> str:
        """Hash of the usable images: their ids and their pixels as they were when the set was opened."""
        return digest([self.ids, self.checksums[self.checksums > 0].tolist()])

    @property
    def n_copies(self) -> int:
        """How many usable images have the pixels of another one that comes before."""
        return len(self) - len(self.by_checksum())

    def by_checksum(self) -> dict[int, str]:
        """Ids of the usable images by the checksum of their pixels."""
        return {int(each): name for each, name in zip(self.checksums, self.planned_ids, strict=True) if each}

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Preprocessed, unaugmented pixels, (B, Y, X, C) uint8, or uint16 with 16 bits."""
        if self._pixels is not None:
            return self._pixels[indices]
        return np.stack(map_in_threads(self._decode, indices))

    def readable(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pixels of those of some images that can be read, for evaluation.

        Returns:
            (K, Y, X, C) pixels, and (B,) bool: which of the B images they are, in order.
        """
        return self.pixels(indices), np.ones(len(indices), bool)

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


def open_splits(config: DataConfig, known: Mapping[str, bool] | None = None) -> dict[str, ImageSource]:
    """The sources ``train`` and ``validation`` of a data configuration; no image is read.

    Args:
        config: where the images are.
        known: images that were assigned before, see ``held_out``.

    Raises:
        DataError: nothing to read, or too few images to hold one out.
    """
    return split_sources(
        *open_sources(config.source, config.max_megapixels * 10**6, arrays=not config.preprocess.is_plain),
        config,
        known,
    )


def split_sources(
    train: ImageSource, validation: ImageSource | None, config: DataConfig, known: Mapping[str, bool] | None = None
) -> dict[str, ImageSource]:
    """As ``open_splits``, of sources that are open; without ``validation``, a share of ``train`` is held out."""
    if validation is None:
        held_N = held_out(train.ids, config.validation_share, train.labels, known)
        train, validation = (SubsetSource(train, np.flatnonzero(each)) for each in (~held_N, held_N))
    return {"train": train, "validation": validation}


def open_image_sets(config: DataConfig, *, augment: Augment | None = None, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """The training and validation images of a data configuration; the images of a run: ``open_run_images``.

    Raises:
        DataError: nothing to read, or more unusable images than ``max_failed_share`` allows.
    """
    require_type("config", config, DataConfig)
    require_type("augment", augment, (Augment, type(None)))
    sets = scan_splits(open_splits(config), config, augment=augment, seed=seed)
    for each in sets:
        require_usable(each, config.max_failed_share)
    return sets


def scan_splits(
    sources: Mapping[str, ImageSource],
    config: DataConfig,
    *,
    augment: Augment | None = None,
    seed: int = 0,
    known_failures: Mapping[str, Mapping[str, Failure]] | None = None,
) -> tuple[ImageSet, ImageSet]:
    """The usable images of ``train`` and ``validation``; a held-out copy of a training image is unusable."""
    preprocess, cache, known = config.preprocess, config.cache_mib, known_failures or {}
    train = ImageSet(
        sources["train"],
        preprocess,
        cache_mib=cache,
        augment=augment,
        seed=seed,
        name="train images",
        known_failures=known.get("train"),
    )
    validation = ImageSet(
        sources["validation"],
        preprocess,
        cache_mib=cache,
        name="validation images",
        known_failures=known.get("validation"),
        apart_from=train.by_checksum(),
    )
    require_white([train.shapes.brightest, validation.shapes.brightest], preprocess.white_level)
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


def pixel_checksum(pixels: np.ndarray) -> int:
    """64-bit checksum of pixels, above 0."""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).digest(), "little") or 1


class _Reading:
    """Reads one image of a scan: its checksum, or the reason why it cannot be used."""

    def __init__(
        self,
        source: ImageSource,
        preprocess: Preprocess,
        pixels: np.ndarray | None,
        known_failures: Mapping[str, Failure],
        apart_from: Mapping[int, str],
        shapes: Shapes,
    ) -> None:
        self.source, self._preprocess, self._pixels = source, preprocess, pixels
        self._known_failures, self._apart_from, self._shapes = known_failures, apart_from, shapes
        self._expected = getattr(source, "checksums", None)
        self._counting = threading.Lock()

    def __call__(self, index: int) -> Failure | int:
        name = self.source.ids[index]
        if name in self._known_failures:
            return self._known_failures[name]
        try:
            return self._read(index)
        except Exception as error:  # on hostile bytes a decoder raises any class
            return failure_of(name, error)

    def _read(self, index: int) -> int:
        image = self.source.read(index)
        with self._counting:
            self._shapes.add(image)
        decoded = self._preprocess(image)
        checksum = pixel_checksum(decoded)
        if self._expected is not None:
            require_unchanged(checksum, int(self._expected[index]))
        if checksum in self._apart_from:
            raise BadImage("duplicate", f"has the pixels of the training image {self._apart_from[checksum]}")
        if self._pixels is not None:
            self._pixels[index] = decoded
        return checksum


def require_unchanged(found: int, expected: int) -> None:
    """Refuse an image whose pixels are not the ones that a run began with.

    Raises:
        BadImage: the checksums differ; ``expected`` 0 is not known, and accepts any.
    """
    if expected not in (0, found):
        raise BadImage("changed", "has other pixels than when the run began")


def _scan(reading: _Reading, name: str) -> list[Failure | int]:
    """Decode every image once. Returns, for each, a checksum of its pixels or its failure."""
    results: list[Failure | int] = []
    n = len(reading.source.ids)
    with tqdm(total=n, desc=f"reading {name}", delay=2, unit="img") as progress:
        for start in range(0, n, _SCAN_BLOCK):  # in blocks: a future per image would cost gigabytes for millions
            block = map_in_threads(reading, range(start, min(start + _SCAN_BLOCK, n)))
            results += block
            progress.update(len(block))
    return results


def require_usable(images: ImageSet, max_failed_share: float) -> None:
    """Refuse a set of which too many images cannot be used; copies of training images do not count.

    Raises:
        DataError: how many, and the first of them.
    """
    n_failed = sum(each.code != "duplicate" for each in images.failures)
    if len(images) and n_failed <= max_failed_share * images.n_planned:
        return
    shown = "\n".join(f"    {each.image_id}: {each.reason}" for each in images.failures[:10])
    if not n_failed:
        raise DataError(
            "every held-out image has the pixels of a training image",
            field="data.source",
            found=f"{images.n_planned} copies, the first of them:\n{shown}",
            fix="give other images for validation, or move the copies away",
        )
    raise DataError(
        "too many images cannot be used",
        field="data.max_failed_share",
        found=f"{len(images.failures)} of {images.n_planned} failed, the first of them:\n{shown}",
        expected=f"at most a share of {max_failed_share}",
        fix="repair them or move them away, or increase data.max_failed_share",
    )
