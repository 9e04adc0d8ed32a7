"""Aspect buckets: the shape of each image by its header, and an order of examples whose batches hold one shape."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from foundation.errors import ConfigError
from foundation.images.headers import image_size
from foundation.images.shapes import Shape, bucket_of
from foundation.images.sources import ImageSource
from foundation.randomness import permuted
from foundation.threads import map_in_threads

_BLOCK = 4096


def buckets_of(source: ImageSource, shapes: Sequence[Shape]) -> np.ndarray | None:
    """The shape of each image of a source: as the source has listed it in ``buckets``, else by the header.

    Args:
        source: see ``image_size``.
        shapes: (height, width) each.

    Returns:
        (N,) uint8; None for one shape. An image that cannot be opened takes the first shape; reading it says what is
        wrong.

    Raises:
        ConfigError: several shapes for images in a store.
    """
    listed = getattr(source, "buckets", None)
    if len(shapes) == 1 or listed is not None:
        return None if len(shapes) == 1 else listed
    is_near, fix = getattr(source, "streamed", None) is None, "copy the files to a disk, or leave shapes empty"
    what = "cannot be used with data in a store: the header of every image would be fetched"
    ConfigError.unless(is_near, what, field="data.preprocess.shapes", found=f"{len(shapes)} shapes", fix=fix)

    def of_image(index: int) -> int:
        try:
            return bucket_of(image_size(source, index), shapes)
        except Exception:  # on hostile bytes a reader raises any class
            return 0

    buckets_N = np.zeros(len(source.ids), np.uint8)
    for start in range(0, len(buckets_N), _BLOCK):
        block = range(start, min(start + _BLOCK, len(buckets_N)))
        buckets_N[start : block.stop] = map_in_threads(of_image, block)
    return buckets_N


class BucketedOrder:
    """Batches of one shape, as a pure function of (seed, position): ``foundation.randomness.DataOrder`` by bucket.

    Each bucket is an endless sequence of passes over its images, every pass another permutation, cut into batches. The
    part of a batch that the end of a pass leaves is filled by the next pass: an image comes exactly once in each pass
    over its bucket, and no image is left out. Epoch e holds the batches of all buckets that pass e completes, in a
    random order. A bucket of n images has ``floor((e + 1) n / B) - floor(e n / B)`` of them, so that epochs differ by
    at most one batch a bucket, and every bucket is seen in proportion to its size.

    Args:
        buckets_N: the bucket of each example, from 0.
        seed: of the shuffling.
        batch_size: B, examples of all processes together.
    """

    def __init__(self, buckets_N: np.ndarray, seed: int, batch_size: int) -> None:
        self.seed, self.batch_size, self.n_examples = seed, batch_size, len(buckets_N)
        self._images = [np.flatnonzero(buckets_N == bucket) for bucket in np.unique(buckets_N).tolist()]
        self._sizes = [len(each) for each in self._images]

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of the examples at ``positions`` (B,) of the endless sequence.

        The epoch of an example is the pass over its bucket. Positions ``k B .. (k + 1) B - 1`` are one batch.
        """
        indices, epochs = np.empty_like(positions), np.empty_like(positions)
        batches = positions // self.batch_size
        for batch in np.unique(batches).tolist():
            here = batches == batch
            bucket, number = self._batch(batch)
            places = number * self.batch_size + positions[here] % self.batch_size
            indices[here], epochs[here] = self._of_bucket(bucket, places)
        return indices, epochs

    def epoch_of(self, batch: int) -> int:
        """The epoch of a batch, which counts from 0 over all epochs."""
        low, high = 0, (batch + len(self._sizes)) * self.batch_size // self.n_examples + 1
        while low < high:  # the last epoch that begins at or before the batch
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._begin(middle) <= batch else (low, middle - 1)
        return low

    def _begin(self, epoch: int) -> int:
        """Batches of all epochs before this one."""
        return sum(epoch * size // self.batch_size for size in self._sizes)

    def _batch(self, batch: int) -> tuple[int, int]:
        """The bucket of a batch, and its number among all batches of that bucket."""
        epoch = self.epoch_of(batch)
        first, end = self._begin(epoch), self._begin(epoch + 1)
        slot = int(permuted(np.array([batch - first]), end - first, self.seed, "batches", epoch)[0])
        for bucket, size in enumerate(self._sizes):
            before = epoch * size // self.batch_size
            n_batches = (epoch + 1) * size // self.batch_size - before
            if slot < n_batches:
                return bucket, before + slot
            slot -= n_batches
        raise AssertionError("an epoch's batches are those of its buckets")

    def _of_bucket(self, bucket: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, size = self._images[bucket], self._sizes[bucket]
        passes, inner = np.divmod(places, size)
        chosen = np.empty_like(places)
        for each in np.unique(passes).tolist():
            here = passes == each
            chosen[here] = permuted(inner[here], size, self.seed, "order of bucket", bucket, each)
        return images[chosen], passes


def grouped(buckets_B: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each bucket that occurs, with the places where it does."""
    order = np.argsort(buckets_B, kind="stable")
    parts = itertools.groupby(order.tolist(), key=lambda i: int(buckets_B[i]))
    return [(bucket, np.array(list(places))) for bucket, places in parts]


def batches_of_one_shape(buckets_N: np.ndarray | None, order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Examples in an order, cut into batches of one shape, shape by shape; None is one shape for all."""
    parts = [order] if buckets_N is None else [order[places] for _, places in grouped(buckets_N[order])]
    for part in parts:
        yield from (part[start : start + batch_size] for start in range(0, len(part), batch_size))
