"""Sets of images that are decoded when they are used.

An image that cannot be used is found when it is met: it is listed once, with its reason, and never read again in the
run. A training example gets another image instead, which depends on the seed and the image alone, so the examples do
not depend on the process, the worker or the moment. planned = used + failed.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from foundation.arguments import require_type
from foundation.config import require
from foundation.errors import DataError
from foundation.images.augment import augmented, random_view, shifted, view_draws
from foundation.images.buckets import BucketedOrder, batches_of_one_shape, buckets_of
from foundation.images.config import Augment, DataConfig, Preprocess
from foundation.images.depth import require_white
from foundation.images.failures import Failure, failure_of, named
from foundation.images.preprocess import to_unit_range
from foundation.images.scan import scan
from foundation.images.sources import ImageSource, SubsetSource, open_sources, require_here, some_images
from foundation.images.split import held_out
from foundation.images.windowed import order_settings, windowed_order
from foundation.randomness import DataOrder, Order, uniforms
from foundation.threads import map_in_threads

_TRIES = 1000
"""images tried in place of one that is unusable"""


class ImageSet:
    """Images of one split.

    Args:
        source: where they are read from.
        preprocess: how they become pixels.
        cache_mib: memory for decoded pixels; a set that needs more is decoded at every use.
        augment: applied by ``batch`` when given.
        seed: of the augmentation and of the images that replace unusable ones.
        max_failed_share: share of unusable images, 0 to 1, beyond which reading stops.
        known_failures: images that were unusable before, by id; they are not read. Others than the set's do not count.
        window: images that are shuffled together, see ``DataConfig.shuffle_window``.

    Attributes:
        ids: names of the planned images.
        labels: (n,) class numbers, or None.
        buckets: (n,) uint8 index of each image's shape in ``preprocess.all_shapes``; None where there is one. Images
            that are read together have one shape.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocess: Preprocess,
        *,
        cache_mib: int = 4096,
        augment: Augment | None = None,
        seed: int = 0,
        max_failed_share: float = 1.0,
        known_failures: Mapping[str, Failure] | None = None,
        window: int | None = None,
    ) -> None:
        self.window = window
        self.preprocess, self.augment, self.seed = preprocess, augment or Augment(), seed
        self.ids, self.labels, self.class_names = source.ids, source.labels, source.class_names
        self._source, self._max_failed_share = source, max_failed_share
        self.buckets = buckets_of(source, preprocess.all_shapes)
        n_values = preprocess.height * preprocess.width * preprocess.n_channels  # of every shape
        kind, whole = np.dtype(preprocess.pixel_type), self.augment.crop == "center"  # another crop needs the original
        self.in_memory = whole and len(self.ids) * n_values * kind.itemsize <= cache_mib * 2**20
        self._pixels = np.empty((len(self.ids), n_values), kind) if self.in_memory else None
        self._is_decoded = np.zeros(len(self.ids) if self.in_memory else 0, bool)
        here = set(self.ids) if known_failures else ()
        self._failures = {name: each for name, each in (known_failures or {}).items() if name in here}
        self._found = deque[Failure]()  # no lock: a forked worker would keep one that a thread holds

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels in memory, which another process does not get."""
        return {**self.__dict__, "in_memory": False, "_pixels": None, "_is_decoded": np.zeros(0, bool)}

    @property
    def decodes(self) -> bool:
        """Whether ``batch`` decodes images each time."""
        return not self.in_memory

    @property
    def failures(self) -> list[Failure]:
        """The images that are known to be unusable, by name."""
        return sorted(self._failures.values(), key=lambda each: each.image_id)

    @property
    def n_usable(self) -> int:
        """How many of the images are not known to be unusable."""
        return len(self) - len(self._failures)

    def take_failures(self) -> list[Failure]:
        """The failures found since the last call: what a worker process hands to the main process."""
        return [self._found.popleft() for _ in range(len(self._found))]

    def add_failures(self, failures: Iterable[Failure]) -> None:
        """Note failures that were found elsewhere; each image is listed once.

        Raises:
            DataError: more than ``max_failed_share`` are unusable; names the first ones.
        """
        for each in failures:
            self._failures.setdefault(each.image_id, each)
        require_usable(self.failures, len(self), self._max_failed_share)

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Preprocessed, unaugmented pixels, (B, Y, X, C) uint8, or uint16 with 16 bits.

        Raises:
            DataError: an image cannot be read; names it.
        """
        known = self._known(indices)
        return np.stack(map_in_threads(self._decode_or_raise, indices)) if known is None else known

    def readable(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of the readable ones of some images, for evaluation; the others are listed.

        Returns:
            (K, Y, X, C) pixels, and (B,) bool: which of the B images they are, in order.

        Raises:
            DataError: see ``add_failures``.
        """
        known = self._known(indices)
        if known is not None:
            return known, np.ones(len(indices), bool)
        found = map_in_threads(self._decode, indices)
        kept = [each for each in found if each is not None]
        pixels = np.stack(kept) if kept else np.empty((0, *self._shape(indices)), self.preprocess.pixel_type)
        return pixels, np.array([each is not None for each in found], bool)

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """Training examples.

        Args:
            indices, epochs: (B,) which images, and in which pass over the data (it keys the augmentation).

        Returns:
            ``images`` (B, Y, X, C) uint8, or uint16 with 16 bits.

        Raises:
            DataError: see ``add_failures``.
        """
        draws = self.augment, indices, epochs, self.seed
        if self.decodes:
            views = map_in_threads(self._decode_or_replace, indices, view_draws(*draws))
            return {"images": torch.from_numpy(shifted(np.stack(views), *draws))}
        pixels_BYXC = self._known(indices)
        if pixels_BYXC is None:
            pixels_BYXC = np.stack(map_in_threads(self._decode_or_replace, indices))
        return {"images": torch.from_numpy(augmented(pixels_BYXC, *draws))}

    def some(self, indices: np.ndarray) -> ImageSet:
        """Some of the images, to be read by another process, which gets neither the list of all nor their pixels."""
        chosen = copy.copy(self)
        chosen.ids, chosen.labels = [self.ids[int(i)] for i in indices], None
        chosen.buckets = None if self.buckets is None else self.buckets[indices]
        chosen._source, chosen._max_failed_share = some_images(self._source, indices), 1.0
        chosen.in_memory, chosen._pixels, chosen._is_decoded = False, None, np.zeros(0, bool)
        chosen._failures = {name: self._failures[name] for name in chosen.ids if name in self._failures}
        chosen._found = deque()
        return chosen

    def require_here(self) -> None:
        """See ``sources.require_here``.

        Raises:
            DataError: this machine lacks what holds the images.
        """
        require_here(self._source)

    def order(self, seed: int, batch_size: int) -> Order:
        """The order of training: windowed where images lie in archives or row groups, see ``windowed_order``; of
        several shapes, each batch has one.

        Raises:
            ConfigError: several shapes of streamed images, whose batches would need all archives at once.
        """
        windowed = windowed_order(self._source, self.window, seed)
        if self.buckets is None:
            return windowed or DataOrder(len(self), seed)
        fix = "copy the images to a disk, or give one shape"
        expected = "one shape for images that are shuffled within a window"
        require(windowed is None, "data.preprocess.shapes", self.preprocess.shapes, expected, fix)
        return BucketedOrder(self.buckets, seed, batch_size)

    @property
    def order_settings(self) -> tuple[object, ...]:
        """What the order depends on beside the seed and the number of images: part of a training's identity."""
        return order_settings(self._source, self.window)

    def images(self, indices: np.ndarray) -> torch.Tensor:
        """Unaugmented images, (B, C, Y, X) float32 in [-1, 1].

        Raises:
            DataError: an image cannot be read; names it.
        """
        return to_unit_range(self.pixels(indices))

    def _known(self, indices: np.ndarray) -> np.ndarray | None:
        """Pixels of images that are all in memory, else None."""
        shape = self._shape(indices)
        if self._pixels is None or not self._is_decoded[indices].all():
            return None
        return self._pixels[indices].reshape(len(indices), *shape)

    def _shape(self, indices: np.ndarray) -> tuple[int, int, int]:
        """(Y, X, C) of images that are read together.

        Raises:
            DataError: they have several shapes.
        """
        buckets = np.zeros(1, np.uint8) if self.buckets is None or not len(indices) else self.buckets[indices]
        what, n, fix = "images of several shapes are no one batch", len(np.unique(buckets)), "read each shape alone"
        DataError.unless(n == 1, what, field="images", found=f"{n} shapes", expected="one", fix=fix)
        return (*self.preprocess.all_shapes[int(buckets[0])], self.preprocess.n_channels)

    def _preprocess_of(self, index: int) -> Preprocess:
        return self.preprocess if self.buckets is None else self.preprocess.of_shape(int(self.buckets[index]))

    def _decode_or_replace(self, index: int, draws_N: np.ndarray | None = None) -> np.ndarray:
        """Pixels of an image, or of the first usable one of a sequence of images of its shape, which depends on the
        seed and the image.
        """
        tried, alike = int(index), None
        for attempt in range(_TRIES):
            pixels = self._decode(tried, draws_N)
            if pixels is not None:
                return pixels
            drawn = uniforms(np.array([index]), np.array([attempt]), self.seed, "replacement")
            if alike is None and self.buckets is not None:
                alike = np.flatnonzero(self.buckets == self.buckets[index])
            tried = int(drawn[0] * len(self)) if alike is None else int(alike[int(drawn[0] * len(alike))])
        found = f"{_TRIES:,} images one after another"
        raise DataError("no image can be read", field="data.source", found=found, fix="check the storage")

    def _decode(self, index: int, draws_N: np.ndarray | None = None) -> np.ndarray | None:
        """Pixels of an image, or of its view with these draws; None if it is unusable: it is listed then."""
        name = self.ids[index]
        if name in self._failures and self._failures[name].code != "unavailable":  # which may pass
            return None
        try:
            return self._pixels_of(int(index), draws_N)
        except Exception as error:  # on hostile bytes a decoder raises any class
            self._note(failure_of(name, error))
            return None

    def _decode_or_raise(self, index: int) -> np.ndarray:
        with named(self.ids[index]):
            return self._pixels_of(int(index))

    def _pixels_of(self, index: int, draws_N: np.ndarray | None = None) -> np.ndarray:
        preprocess = self._preprocess_of(index)
        if draws_N is not None:
            return random_view(preprocess, self.augment, self._source.read(index), draws_N)
        if self._pixels is None:
            return preprocess(self._source.read(index))
        if self._is_decoded[index]:
            return self._pixels[index].reshape(preprocess.height, preprocess.width, preprocess.n_channels)
        pixels_YXC = preprocess(self._source.read(index))
        if get_worker_info() is None:  # a worker's memory is its own
            self._pixels[index] = pixels_YXC.reshape(-1)
            self._is_decoded[index] = True
        return pixels_YXC

    def _note(self, failure: Failure) -> None:
        if failure.image_id not in self._failures:
            self._found.append(failure)
        self.add_failures([failure])


def open_splits(config: DataConfig, known: Mapping[str, bool] | None = None) -> dict[str, ImageSource]:
    """The sources ``train`` and ``validation`` of a data configuration; no image is read.

    Args:
        config: where the images are.
        known: images that were assigned before, see ``held_out``.

    Raises:
        DataError: nothing to read, or too few images to hold one out.
    """
    arrays = not config.preprocess.is_plain
    sources = open_sources(config.source, config.max_megapixels * 10**6, config.remote_cache_gib, arrays=arrays)
    return split_sources(*sources, config, known)


def split_sources(
    train: ImageSource, validation: ImageSource | None, config: DataConfig, known: Mapping[str, bool] | None = None
) -> dict[str, ImageSource]:
    """As ``open_splits``, of sources that are open; without ``validation``, a share of ``train`` is held out."""
    if validation is None:
        held_N = held_out(train.ids, config.validation_share, train.labels, known)
        train, validation = (SubsetSource(train, np.flatnonzero(each)) for each in (~held_N, held_N))
    return {"train": train, "validation": validation}


def open_image_sets(config: DataConfig, *, augment: Augment | None = None, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """The training and validation images of a data configuration; the images of a run: ``training_images``.

    Raises:
        DataError: nothing to read, or images of 16 bits that would be nearly black.
    """
    require_type("config", config, DataConfig)
    require_type("augment", augment, (Augment, type(None)))
    sources = open_splits(config)
    require_white([scan(each, "files").shapes.brightest for each in sources.values()], config.preprocess.white_level)
    augments = {"train": augment, "validation": None}
    train, validation = (image_set(sources[name], config, augment=each, seed=seed) for name, each in augments.items())
    return train, validation


def image_set(
    source: ImageSource,
    data: DataConfig,
    *,
    augment: Augment | None = None,
    seed: int = 0,
    known_failures: Mapping[str, Failure] | None = None,
) -> ImageSet:
    """The images of a source, as a data configuration wants them read."""
    return ImageSet(
        source,
        data.preprocess,
        cache_mib=data.cache_mib,
        augment=augment,
        seed=seed,
        max_failed_share=data.max_failed_share,
        known_failures=known_failures,
        window=data.shuffle_window,
    )


def first_readable(images: ImageSet, n: int) -> np.ndarray:
    """Pixels of the first ``n`` images that can be read, or of fewer where there are no more, (N, Y, X, C).

    Of several shapes, those of the first shape that has any.
    """
    found: list[np.ndarray] = []
    for rows in batches_of_one_shape(images.buckets, np.arange(len(images)), n):
        pixels_KYXC, _ = images.readable(rows)
        if found and pixels_KYXC.shape[1:] != found[0].shape:
            break
        found.extend(pixels_KYXC)
        if len(found) >= n:
            break
    if not found:
        raise DataError("no image can be read", field="data.source", found=f"{len(images):,} images, none readable")
    return np.stack(found[:n])


def require_usable(failures: list[Failure], n_planned: int, max_failed_share: float) -> None:
    """Refuse a set of which too many images cannot be used.

    Raises:
        DataError: how many, and the first of them.
    """
    if len(failures) <= max_failed_share * n_planned:
        return
    shown = "\n".join(f"    {each.image_id}: {each.reason}" for each in failures[:10])
    raise DataError(
        "too many images cannot be used",
        field="data.max_failed_share",
        found=f"{len(failures)} of {n_planned} failed, the first of them:\n{shown}",
        expected=f"at most a share of {max_failed_share}",
        fix="repair them or move them away, or increase data.max_failed_share",
    )
