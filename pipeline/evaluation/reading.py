"""Images of a set, read by any engine for an evaluation: pixels, which images these are, and failures of the others."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from foundation.images.config import Preprocess
from foundation.images.failures import Failure
from foundation.images.image_set import ImageSet
from foundation.images.preview import shown_channels
from pipeline.engines.same_images import require_lost_here_too
from pipeline.engines.stream import Step


@dataclass(frozen=True)
class ReadImages:
    """Some images of a set.

    Attributes:
        pixels_KYXC: of the readable ones.
        kept_B: which of the images these are.
        failures: of the others.
    """

    pixels_KYXC: np.ndarray
    kept_B: np.ndarray
    failures: list[Failure]


def open_reader() -> Step:
    """Some images, see ``ImageSet.some`` => ``ReadImages``."""

    def read(some: ImageSet) -> ReadImages:
        some.require_here()
        pixels_KYXC, kept_B = some.readable(np.arange(len(some)))
        return ReadImages(pixels_KYXC, kept_B, some.take_failures())

    return read


def note_failures(failures: list[Failure], images: ImageSet, indices: np.ndarray) -> None:
    """Add what a reader could not read to the set's failures.

    Raises:
        EngineError: only another machine cannot read an image.
        DataError: see ``ImageSet.add_failures``.
    """
    index_of = {images.ids[int(i)]: i for i in indices} if failures else {}
    for each in failures:
        require_lost_here_too(each, functools.partial(images.pixels, np.array([index_of[each.image_id]])))
    images.add_failures(failures)


def print_left_out(images: ImageSet) -> None:
    """Print the unusable images of a set, ten of them at most."""
    for failure in images.failures[:10]:
        print(f"  left out: {failure.image_id}: {failure.reason}")
    if len(images.failures) > 10:
        print(f"  ... and {len(images.failures) - 10:,} more")


def seen_in_words(preprocess: Preprocess) -> str | None:
    """What networks for colour pictures see of images of other channels, see ``visible``; None of RGB and grey."""
    if preprocess.mode == "RGBA":
        return "colours on middle grey"
    shown = ", ".join(map(str, shown_channels(preprocess)))
    return f"the shown channels {shown}" if preprocess.mode == "channels" else None
