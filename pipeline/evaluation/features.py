"""Features of a set of images, computed by any engine."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from foundation.arguments import require_type, shown
from foundation.config import require
from foundation.errors import DataError
from foundation.images.preprocess import require_picture, to_unit_range
from pipeline.engines.stream import Engine, LocalEngine, Movable, Step, Stream, in_order
from pipeline.evaluation.extractors import FeatureExtractor

BATCH_SIZE = 64


@dataclass(frozen=True)
class ImageFeatures:
    """What is known of each image of a set, in one order.

    Attributes:
        features_NF: float32.
        logits_NK: of the extractor's own classes, float32; K is 0 where it has none.
        labels_N: class numbers; None where images have none.
        codes_NT: of a tokenizer, in the order of the sequence; None where they are not known.
    """

    features_NF: np.ndarray
    logits_NK: np.ndarray
    labels_N: np.ndarray | None = None
    codes_NT: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("logits_NK", "labels_N", "codes_NT"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self):
                what, expected = "are not one for each image", f"{len(self):,}, the number of feature vectors"
                raise DataError(what, field=name, found=f"{len(value):,}", expected=expected)

    def __len__(self) -> int:
        return len(self.features_NF)

    def rows(self, chosen: np.ndarray) -> ImageFeatures:
        """Some of the images."""
        labels_N, codes_NT = self.labels_N, self.codes_NT
        return ImageFeatures(
            self.features_NF[chosen],
            self.logits_NK[chosen],
            None if labels_N is None else labels_N[chosen],
            None if codes_NT is None else codes_NT[chosen],
        )

    @classmethod
    def joined(cls, features: Iterable[tuple[np.ndarray, np.ndarray]], **more: np.ndarray | None) -> ImageFeatures:
        """From batches of features and logits, in order."""
        parts = list(features)
        return cls(np.concatenate([each for each, _ in parts]), np.concatenate([each for _, each in parts]), **more)


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
    stream = Stream("features", functools.partial(open_features, Movable(extractor)), device=device_of(extractor))
    results = in_order((engine or LocalEngine()).results(stream, parts.items()), parts)
    return ImageFeatures.joined(_watched(results, len(parts)), labels_N=labels_N)


def device_of(extractor: FeatureExtractor) -> str:
    """Kind of the device that an extractor is on."""
    first = next(extractor.parameters(), None)
    return "cpu" if first is None else first.device.type


def open_features(extractor: Movable[FeatureExtractor]) -> Step:
    """(B, Y, X, 1 or 3) uint8 pixels => features and logits, both float32."""
    network = extractor.content
    first = next(network.parameters(), torch.zeros(0))

    def compute(pixels_BYXC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, logits = network.with_logits(to_unit_range(pixels_BYXC).to(first.device))
        return features.cpu().numpy(), logits.cpu().numpy()

    return compute


def _watched(results: Iterable[tuple[int, Any]], n_batches: int) -> Iterator[Any]:
    for _, result in tqdm(results, total=n_batches, desc="features", unit="batch", delay=2, leave=False):
        yield result
