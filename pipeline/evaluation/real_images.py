"""Real images for the scores of samples: to compare with, and new ones to stand beside the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foundation.images.image_set import ImageSet
from foundation.randomness import permutation
from pipeline.evaluation.given_images import open_given
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import open_run_split
from pipeline.runs.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.evaluation.config import SampleOptions


@dataclass(frozen=True)
class RealImages:
    """Images that samples are compared with, and new ones that stand beside them.

    Attributes:
        training, held_out: sets; the same one where a reference is given.
        training_rows, held_out_rows: indices of the images that count.
        training_in_words, held_out_in_words: what they are.
        class_names: of the run's images.
    """

    training: ImageSet
    held_out: ImageSet
    training_rows: np.ndarray
    held_out_rows: np.ndarray
    training_in_words: str
    held_out_in_words: str
    class_names: tuple[str, ...]


def open_real(folder: RunFolder, recipe: Recipe, options: SampleOptions) -> RealImages:
    """The run's own images, or a reference cut in two at random; a fixed random choice where there are many.

    Args:
        folder, recipe: of the run.
        options: which reference, how many of its images, and how many samples: as many new images, if there are.

    Raises:
        DataError: nothing to read.
    """
    n, most, seed = options.n_samples, options.most_images, options.seed
    training, changes = open_run_split(folder, recipe, "train")
    if changes:
        print(f"images: {changes.sentence()}")
    names = training.class_names
    if options.reference is None:
        held_out, _ = open_run_split(folder, recipe, "validation")
        rows = chosen_rows(len(training), most, seed), chosen_rows(len(held_out), n, seed)
        return RealImages(training, held_out, *rows, "the run's training images", "the run's held-out images", names)
    images = open_given(options.reference, recipe.data, names)
    order = permutation(len(images), "parts of the reference", seed)
    half = min(n, len(images) // 2)
    rows = np.sort(order[half:][:most]), np.sort(order[:half])
    return RealImages(images, images, *rows, f"a part of {options.reference}", "another part of it", names)


def chosen_rows(n_images: int, most: int, seed: int) -> np.ndarray:
    """A fixed random choice of ``most`` of the images, in order; all where there are no more."""
    return np.sort(permutation(n_images, "images to evaluate on", seed)[:most])
