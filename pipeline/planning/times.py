"""Seconds of each part of a run, from measured speeds and the number of images."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.images.scan import SAMPLED, SMALL_IMAGES
from foundation.training.config import FitConfig
from pipeline.planning.measure import PriorSpeed, TokenizerSpeed
from pipeline.runs.recipe import Recipe

TRAIN_TOKENIZER, TRAIN_PRIOR = "training the tokenizer", "training the prior"
EVALUATE_TOKENIZER, EVALUATE_PRIOR = "evaluating the tokenizer", "evaluating the prior"
START, READ, ENCODE, SAMPLE, REPORT = "start", "listing the images", "encoding", "sampling", "gallery and report"
DECODE = "decoding the images"
FIRST_STAGE = (START, READ, DECODE, TRAIN_TOKENIZER, EVALUATE_TOKENIZER)
"""parts of stage 1; all others are of stage 2"""
_START, _REPORT = 6.0, 6.0
"""imports, opening the folder; plots and page"""
_GALLERY = 160
"""images of the report's gallery, about: six images, their completions, inpaintings, variations and other classes"""
_PLANNED = 1e-5
"""seconds for an image's name, class and part"""
_LISTING = 2e-5
"""seconds for an image's row in the plan, the parquet files and the listing"""


@dataclass(frozen=True)
class Counts:
    """Numbers of images.

    Attributes:
        train, validation: images of each split.
        classes: 0 without labels.
    """

    train: int
    validation: int
    classes: int


@dataclass(frozen=True)
class Speeds:
    """Measured speeds; None for a part that the run does not have.

    Attributes:
        tokenizer, prior: of each stage.
        read: seconds to read and preprocess an image.
    """

    tokenizer: TokenizerSpeed | None
    prior: PriorSpeed
    read: float


def run_times(recipe: Recipe, counts: Counts, speeds: Speeds) -> dict[str, float]:
    """Seconds of each part of the whole run, in its order."""
    times = {START: _START}
    tokenizer, prior = speeds.tokenizer, speeds.prior
    n_images = counts.train + counts.validation
    if recipe.codes is None:
        times[READ] = n_images * _PLANNED + speeds.read * (n_images if n_images <= SMALL_IMAGES else 2 * SAMPLED)
    if recipe.codes is None and recipe.tokenizer.pretrained is None and tokenizer is not None:
        training = recipe.tokenizer.training
        starts = training.adversarial.start_step if training.adversarial.weight > 0 else 0
        times[TRAIN_TOKENIZER] = tokenizer.training(training.fit.steps, starts)
        times[TRAIN_TOKENIZER] += training.fit.steps * reading_of_a_step(recipe, counts, speeds.read)
        if stays_in_memory(recipe, counts):
            times[DECODE] = n_images * speeds.read
        evaluation = evaluation_seconds(training.fit, counts, tokenizer.score, tokenizer.score)
        times[EVALUATE_TOKENIZER] = training.fit.n_evaluations * evaluation
    views = n_views(recipe)
    if recipe.codes is None and tokenizer is not None:
        n_encoded = counts.train * views + counts.validation
        times[ENCODE] = n_encoded * (tokenizer.encode + _LISTING) + n_images * speeds.read
    fit = recipe.prior.training.fit
    times[TRAIN_PRIOR] = fit.steps * prior.step
    decode = 0.0 if tokenizer is None else tokenizer.decode
    evaluation = evaluation_seconds(fit, counts, prior.score, prior.sample + decode)
    times[EVALUATE_PRIOR] = fit.n_evaluations * evaluation
    times[SAMPLE] = n_samples(recipe, counts) * (prior.sample + decode)
    drawn = 0.0 if recipe.codes is not None else _GALLERY * (prior.sample + decode)
    times[REPORT] = _REPORT + drawn + counts.validation * prior.score
    return times


def stays_in_memory(recipe: Recipe, counts: Counts) -> bool:
    """Whether the training images are decoded once, and then kept."""
    size = recipe.data.preprocess
    if recipe.tokenizer.training.augment.crop != "center":  # such a crop needs the original
        return False
    return counts.train * size.height * size.width * size.n_channels <= recipe.data.cache_mib << 20


def reading_of_a_step(recipe: Recipe, counts: Counts, read: float) -> float:
    """Seconds in which a step's images are decoded, where they are decoded at every use."""
    return 0.0 if stays_in_memory(recipe, counts) else recipe.tokenizer.training.fit.batch_size * read


def evaluation_seconds(fit: FitConfig, counts: Counts, score: float, preview: float) -> float:
    """Seconds of one evaluation in training: ``score`` for each image that it takes, ``preview`` for each one shown."""
    return fit.n_evaluated(counts.validation) * score + fit.preview_images * preview


def n_views(recipe: Recipe) -> int:
    """Stored views of a training image."""
    return 10 if recipe.encode.ten_crop else 2 if recipe.encode.flip else 1


def n_samples(recipe: Recipe, counts: Counts) -> int:
    """Images of the sample grid at the end."""
    samples = recipe.samples
    if counts.classes and recipe.prior.model.class_conditional:
        return min(counts.classes, samples.max_classes) * samples.images_per_class
    return samples.unconditional_images
