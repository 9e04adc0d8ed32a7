"""Groups of images that are sampled and decoded together, as a stream for any engine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foundation.images.config import Preprocess
from foundation.images.image_bytes import file_content
from foundation.images.preprocess import to_pixels
from foundation.threads import map_in_threads
from pipeline.engines.stream import Movable, Step, Stream
from pipeline.generation.base import BaseGenerator
from pipeline.generation.drawing import SampleRequest, draw_best
from pipeline.generation.requests import DrawSettings


@dataclass(frozen=True)
class Group:
    """Images that are sampled together.

    Attributes:
        labels: class numbers.
        seeds: of each image's random stream.
        grid: their shape, an index into the generator's shapes.
    """

    labels: list[int]
    seeds: list[int]
    grid: int


def sampling_stream(generator: BaseGenerator, settings: DrawSettings) -> Stream:
    """A ``Group`` => contents of the image files, and (B, T) codes."""
    return Stream(
        "sampling",
        functools.partial(_open_sampler, Movable(generator), settings),
        finish=functools.partial(_open_compression, generator.spec.preprocess),
        device=generator.device.type,
    )


def _open_sampler(movable: Movable[BaseGenerator], settings: DrawSettings) -> Step:
    """A ``Group`` => (Y, X, C) pixels of its images, and their (B, T) codes."""
    generator = movable.content

    @torch.no_grad()
    def sample(group: Group) -> tuple[list[np.ndarray], np.ndarray]:
        how: dict[str, Any] = {"sampling": settings.sampling, "grid": group.grid}
        request = SampleRequest(labels=group.labels, seeds=group.seeds, **how)
        codes_BT, _ = draw_best(generator.prior, request, settings.best_of, show_progress=False)
        images_BCYX = generator.decode(generator.spec.grid(codes_BT, group.grid))
        return list(to_pixels(images_BCYX, generator.spec.preprocess.bits)), codes_BT.cpu().numpy()

    return sample


def _open_compression(preprocess: Preprocess) -> Step:
    """Pixels of images, and their codes => contents of image files, and the codes."""

    def compress(sampled: tuple[list[np.ndarray], np.ndarray]) -> tuple[list[bytes], np.ndarray]:
        pixels, codes_BT = sampled
        return map_in_threads(lambda pixels_YXC: file_content(pixels_YXC, preprocess), pixels), codes_BT

    return compress
