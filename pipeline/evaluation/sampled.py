"""Samples of a run with their features: drawn, decoded and judged in one stream, by any engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foundation.errors import DataError
from foundation.images.buckets import batches_of_one_shape
from foundation.images.preprocess import to_pixels
from foundation.images.preview import visible
from pipeline.engines.stream import Engine, Movable, Step, Stream, in_order
from pipeline.evaluation.class_balance import class_draws, shape_draws
from pipeline.evaluation.extractors import FeatureExtractor
from pipeline.evaluation.features import FeatureNetwork, ImageFeatures, watched
from pipeline.generation.base import BaseGenerator
from pipeline.generation.drawing import SampleRequest, draw
from pipeline.generation.groups import Group
from pipeline.generation.requests import image_seed
from stage2_prior.decoding.sampling import SamplingConfig

GROUP_SIZE = 64
"""images sampled together"""
OnPixels = Callable[[np.ndarray], None]


@dataclass(frozen=True)
class SamplePlan:
    """Which samples are drawn: classes and shapes as often as the data has them, seeds from one number.

    Attributes:
        labels_N: class numbers; the null class for none.
        seeds: of each sample's random stream.
        grids_N: shape of each, an index into the generator's shapes.
    """

    labels_N: np.ndarray
    seeds: list[int]
    grids_N: np.ndarray

    @classmethod
    def of(cls, generator: BaseGenerator, n: int, shares_K: np.ndarray, seed: int) -> SamplePlan:
        """The samples of a generator.

        Args:
            generator: draws.
            n: how many.
            shares_K: how often the data has each class; empty for a prior without classes.
            seed: of classes, shapes and random streams.
        """
        null = generator.prior.null_class
        labels_N = np.array(class_draws(shares_K, n, seed)) if len(shares_K) else np.full(n, null)
        return cls(labels_N, [image_seed(seed, i) for i in range(n)], shape_draws(generator, n, seed))

    def groups(self) -> Iterator[tuple[np.ndarray, Group]]:
        """Indices of the samples that are drawn together, of one shape, and what to draw."""
        several = self.grids_N if len(np.unique(self.grids_N)) > 1 else None
        for rows in batches_of_one_shape(several, np.arange(len(self.seeds)), GROUP_SIZE):
            seeds = [self.seeds[i] for i in rows]
            yield rows, Group(self.labels_N[rows].tolist(), seeds, int(self.grids_N[rows[0]]))


def draw_features(
    generator: BaseGenerator,
    plan: SamplePlan,
    extractor: FeatureExtractor,
    engine: Engine,
    on_pixels: OnPixels | None = None,
) -> tuple[ImageFeatures, np.ndarray]:
    """Draw all samples of a plan with the generator's default settings.

    Args:
        generator: draws and decodes.
        plan: which samples.
        extractor: on the generator's device.
        engine: does the work.
        on_pixels: gets (B, Y, X, 1 or 3) uint8, as networks for colour pictures see them; of one shape in the order of
            the plan.

    Returns:
        features and labels, and the (N, T) codes, in the order of the plan.

    Raises:
        DataError: a group does not fit in memory, or samples are missing in the end.
    """
    groups = list(plan.groups())
    generator.require_memory(min(GROUP_SIZE, len(plan.seeds)), generator.settings({"output_type": "pt"}))
    compute = functools.partial(_open_sampler, Movable(generator), generator.defaults, Movable(extractor))
    stream = Stream("samples", compute, device=generator.device.type)
    results = engine.results(stream, ((number, group) for number, (_, group) in enumerate(groups)))
    parts, codes = [], []
    for features, codes_BT, pixels_BYXC in watched(in_order(results, range(len(groups))), len(groups), stream.what):
        parts.append(features)
        codes.append(codes_BT)
        if on_pixels is not None:
            on_pixels(pixels_BYXC)
    n = sum(len(each) for each in codes)
    DataError.unless(n == len(plan.seeds), "are missing", field="samples", found=n, expected=len(plan.seeds))
    places_N = np.argsort(np.concatenate([rows for rows, _ in groups]))
    has_classes = generator.prior.null_class not in plan.labels_N
    drawn = ImageFeatures.joined(parts, None).rows(places_N)
    labels_N = plan.labels_N if has_classes else None
    return ImageFeatures(drawn.features_NF, drawn.logits_NK, labels_N), np.concatenate(codes)[places_N]


def _open_sampler(
    movable: Movable[BaseGenerator], sampling: SamplingConfig, extractor: Movable[FeatureExtractor]
) -> Step:
    """A ``Group`` => features and logits, (B, T) codes, and the pixels that the extractor sees."""
    generator = movable.content
    preprocess, network = generator.spec.preprocess, FeatureNetwork(extractor.content)

    @torch.no_grad()
    def sample(group: Group) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
        how: dict[str, Any] = {"sampling": sampling, "grid": group.grid}
        codes_BT = draw(
            generator.prior, SampleRequest(labels=group.labels, seeds=group.seeds, **how), show_progress=False
        )
        images_BCYX = generator.decode(generator.spec.grid(codes_BT, group.grid))
        pixels_BYXC = to_pixels(visible(images_BCYX, preprocess), 8)
        return network.of_pixels(pixels_BYXC), codes_BT.cpu().numpy(), pixels_BYXC

    return sample
