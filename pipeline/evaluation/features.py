"""Features of a set of images, computed by any engine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from foundation.arguments import require_type, shown
from foundation.config import require
from foundation.errors import DataError
from foundation.images.buckets import batches_of_one_shape
from foundation.images.config import Preprocess
from foundation.images.image_set import ImageSet
from foundation.images.preprocess import require_picture, to_unit_range
from foundation.images.preview import visible
from pipeline.engines.stream import Engine, LocalEngine, Movable, Step, Stream, in_order
from pipeline.evaluation.extractors import FeatureExtractor
from pipeline.evaluation.reading import ReadImages, note_failures, open_reader

BATCH_SIZE = 64


@dataclass(frozen=True)
class ImageFeatures:
    """What is known of each image of a set, in one order.

    Attributes:
        features_NF: float32.
        logits_NK: of the extractor's own classes, float32; K is 0 where it has none.
        labels_N: class numbers; None where images have none.
    """

    features_NF: np.ndarray
    logits_NK: np.ndarray
    labels_N: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("logits_NK", "labels_N"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self):
                what, expected = "are not one for each image", f"{len(self):,}, the number of feature vectors"
                raise DataError(what, field=name, found=f"{len(value):,}", expected=expected)

    def __len__(self) -> int:
        return len(self.features_NF)

    def rows(self, chosen: np.ndarray) -> ImageFeatures:
        """Some of the images."""
        labels_N = None if self.labels_N is None else self.labels_N[chosen]
        return ImageFeatures(self.features_NF[chosen], self.logits_NK[chosen], labels_N)

    @classmethod
    def joined(cls, parts: Sequence[tuple[np.ndarray, np.ndarray]], labels_N: np.ndarray | None) -> ImageFeatures:
        """From batches of features and logits, in order."""
        features_NF, logits_NK = (np.concatenate([part[i] for part in parts]) for i in range(2))
        return cls(features_NF, logits_NK, labels_N)


def features_of(
    images_NYXC: np.ndarray,
    labels_N: np.ndarray | None,
    extractor: FeatureExtractor,
    *,
    batch_size: int = BATCH_SIZE,
    engine: Engine | None = None,
) -> ImageFeatures:
    """Features of images in memory.

    Args:
        images_NYXC: uint8, 1 or 3 channels; 1 image or more.
        labels_N: class numbers, or None.
        extractor: on any device.
        batch_size: images in a batch.
        engine: computes the batches; None computes them in this process.

    Raises:
        DataError: no such pixels, or labels of another number.
        ConfigError: a batch size below 1, or something else than an extractor.
    """
    require_picture("images", images_NYXC, 4)
    require_type("extractor", extractor, FeatureExtractor, 'give named_extractor("lite0", None), for example')
    require(batch_size >= 1, "batch_size", batch_size, "1 image or more")
    if labels_N is not None:
        labels_N = np.asarray(labels_N)
        whole = labels_N.shape == (len(images_NYXC),) and np.issubdtype(labels_N.dtype, np.integer)
        expected = f"{len(images_NYXC):,} whole numbers, one for each image"
        DataError.unless(whole, "are not classes", field="labels", found=shown(labels_N), expected=expected)
    parts = {i: images_NYXC[i * batch_size : (i + 1) * batch_size] for i in range(-(-len(images_NYXC) // batch_size))}
    stream = Stream("features", functools.partial(_open_features, Movable(extractor)), device=device_of(extractor))
    results = in_order((engine or LocalEngine()).results(stream, parts.items()), parts)
    return ImageFeatures.joined(list(watched(results, len(parts), stream.what)), labels_N)


def features_of_set(
    images: ImageSet, chosen: np.ndarray, extractor: FeatureExtractor, engine: Engine
) -> tuple[ImageFeatures, np.ndarray]:
    """Features of images that are read when they are needed; of what ``visible`` shows of them.

    Args:
        images: the set; images that cannot be read are noted there and left out.
        chosen: (N,) indices of the images that count.
        extractor: on any device.
        engine: reads images and computes features.

    Returns:
        the features, in the order of the returned indices of readable images.

    Raises:
        DataError: no image can be read, or too many cannot.
    """
    batches = list(batches_of_one_shape(images.buckets, chosen, BATCH_SIZE))
    compute = functools.partial(_open_seen_features, Movable(extractor), images.preprocess)
    stream = Stream("features", compute, read=open_reader, device=device_of(extractor))
    numbered = ((number, images.some(rows)) for number, rows in enumerate(batches))
    results = in_order(engine.results(stream, numbered), range(len(batches)))
    parts, kept = [], []
    for rows, (features, read) in zip(batches, watched(results, len(batches), stream.what), strict=True):
        note_failures(read.failures, images, rows)
        if features is not None:
            parts.append(features)
            kept.append(rows[read.kept_B])
    DataError.unless(len(parts) > 0, "cannot be read", field="images", found=f"none of {len(chosen):,}")
    indices_N = np.concatenate(kept)
    labels_N = None if images.labels is None else np.asarray(images.labels)[indices_N]
    return ImageFeatures.joined(parts, labels_N), indices_N


def device_of(extractor: FeatureExtractor) -> str:
    """Kind of the device that an extractor is on."""
    first = next(extractor.parameters(), None)
    return "cpu" if first is None else first.device.type


class FeatureNetwork:
    """An extractor on its device, for pixels.

    Args:
        extractor: in evaluation mode.
        preprocess: of the images; None for grey or RGB pixels of 8 bits.
    """

    def __init__(self, extractor: FeatureExtractor, preprocess: Preprocess | None = None) -> None:
        self._extractor, self._preprocess = extractor, preprocess
        self._device = next((each.device for each in extractor.parameters()), torch.device("cpu"))

    def of_pixels(self, pixels_BYXC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, Y, X, C) uint8 or uint16 => features and logits, both float32."""
        return self.of_images(to_unit_range(pixels_BYXC))

    def of_images(self, images_BCYX: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(B, C, Y, X) in [-1, 1] => features and logits, both float32."""
        seen_BCYX = images_BCYX if self._preprocess is None else visible(images_BCYX, self._preprocess)
        features, logits = self._extractor.with_logits(seen_BCYX.to(self._device))
        return features.cpu().numpy(), logits.cpu().numpy()


def _open_features(extractor: Movable[FeatureExtractor]) -> Step:
    """(B, Y, X, 1 or 3) uint8 pixels => features and logits."""
    return FeatureNetwork(extractor.content).of_pixels


def _open_seen_features(extractor: Movable[FeatureExtractor], preprocess: Preprocess) -> Step:
    """``ReadImages`` => features and logits, None where no image was readable; and what was read, without pixels."""
    network = FeatureNetwork(extractor.content, preprocess)

    def compute(read: ReadImages) -> tuple[tuple[np.ndarray, np.ndarray] | None, ReadImages]:
        features = network.of_pixels(read.pixels_KYXC) if read.kept_B.any() else None
        return features, dataclasses.replace(read, pixels_KYXC=read.pixels_KYXC[:0])

    return compute


def watched(results: Iterable[tuple[int, Any]], n_batches: int, what: str) -> Iterator[Any]:
    """Results without their numbers, below a bar if they take longer than two seconds."""
    for _, result in tqdm(results, total=n_batches, desc=what, unit="batch", delay=2, leave=False):
        yield result
