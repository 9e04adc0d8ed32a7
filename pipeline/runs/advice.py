"""Advice on small or poor data: what a recipe can expect of the images that were found, with a way out each.

Nothing here stops a run. Each rule has a figure and a reason; the built-in recipes give none on their own data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.runs.recipe import Recipe

PSNR_SPREAD = 2.5
"""dB, standard deviation of PSNR from image to image: 2.6 at 20.3 dB on pictograms with the folder recipe, 1.6 at
26.3 dB on the digits after 300 steps"""
_FEW_HELD_OUT = 50
"""held-out images; with fewer, two trainings that differ by 0.4 dB cannot be told apart"""
_FEW_OF_A_CLASS = 10
_MANY_EPOCHS = 100
"""passes over the codes. Repeated text is worth about as much as new text for 4 passes, and nothing after some 40:
Muennighoff et al. 2023, arXiv:2305.16264, section 6. Dropout and flips stretch that; 100 is late for any data."""
_EXAMPLES_PER_CODE = 39
"""the least number of points per centroid with which k-means of the library Faiss trains without a warning"""
_MUCH_ENLARGED = 0.2
"""share of the images"""
_MANY_COPIES = 0.05
"""share of the training images"""
_ALIKE_PSNR = 30.0
"""dB of the mean image in place of every image; pictograms and the digits have 11"""
_HIGH_DROPOUT = 0.25
_SHOWN = 4
_LEAST_SIDE = 16


@dataclass(frozen=True)
class ImageFacts:
    """What is known of a run's images after listing and scan.

    Attributes:
        n_train, n_validation: usable images.
        classes: images of each class in both splits, by name; empty without classes.
        n_decoded: images that were decoded; 0 before a scan.
        n_enlarged: those that are smaller than the recipe's size.
        median_side: the shorter side of the median image, in pixels; 0 before a scan.
        n_copies: training images with the pixels of another one.
        mean_psnr: dB of a sample's mean image in place of each image of the sample; None if not known.
    """

    n_train: int
    n_validation: int
    classes: Mapping[str, int]
    n_decoded: int = 0
    n_enlarged: int = 0
    median_side: int = 0
    n_copies: int = 0
    mean_psnr: float | None = None


def facts_in(found: Mapping[str, Any], validation_share: float) -> ImageFacts | None:
    """The facts of an inventory (``foundation.images.inventory``); None without images.

    Args:
        found: of a scan, or of a listing alone, in which the splits are planned and not yet made.
        validation_share: the recipe's, for an inventory without splits.
    """
    splits = {name: each["used"] for name, each in (found.get("splits") or {}).items()}
    n_planned = splits.pop("planned", 0)
    if n_planned:
        held = round(n_planned * validation_share)
        splits = {"train": n_planned - held, "validation": held}
    if not splits.get("train"):
        return None
    shapes = found.get("shapes") or {}
    sizes = shapes.get("sizes") or [[0, 0]]
    return ImageFacts(
        n_train=splits["train"],
        n_validation=splits.get("validation", 0),
        classes=found.get("classes") or {},
        n_decoded=sum((shapes.get("modes") or {}).values()),
        n_enlarged=shapes.get("smaller", 0),
        median_side=min(sizes[len(sizes) // 2]),
        n_copies=found.get("copies", 0),
        mean_psnr=found.get("mean_psnr"),
    )


def advice(recipe: Recipe, found: Mapping[str, Any]) -> list[str]:
    """Sentences on what a recipe can expect of its images, the most serious first; none where nothing is wrong.

    Args:
        recipe: of the run.
        found: the inventory of its images.
    """
    facts = facts_in(found, recipe.data.validation_share) if found else None
    sentences = [] if facts is None else [rule(recipe, facts) for rule in _RULES]
    return [each for each in sentences if each]


def advice_text(sentences: list[str]) -> str:
    """As lines below the table of the images; "" without any."""
    return "".join(f"\nadvice: {each}" for each in sentences)


def _alike(recipe: Recipe, facts: ImageFacts) -> str:
    if facts.mean_psnr is None or facts.mean_psnr < _ALIKE_PSNR:
        return ""
    return (
        f"all images are nearly the same: their mean in place of each gives {facts.mean_psnr:.0f} dB PSNR, where "
        "photographs give about 11; samples will all look like it. Give images that differ in --data.source.path"
    )


def _copies(recipe: Recipe, facts: ImageFacts) -> str:
    if facts.n_copies < _MANY_COPIES * facts.n_train or facts.n_copies < 2:
        return ""
    return (
        f"{facts.n_copies:,} of {facts.n_train:,} training images have the pixels of another one: each copy counts "
        "again, and samples will repeat what is copied most. Leave one of each in --data.source.path"
    )


def _codebook(recipe: Recipe, facts: ImageFacts) -> str:
    model = recipe.tokenizer.model
    if not model.is_discrete:
        return ""
    n_codes, size = facts.n_train * codes_per_image(recipe), model.quantizer.codebook_size
    if n_codes >= _EXAMPLES_PER_CODE * size:
        return ""
    fewer = 1 << max(1, int(math.log2(n_codes / _EXAMPLES_PER_CODE)))
    field = model.quantizer.size_field
    return (
        f"{facts.n_train:,} images give {n_codes:,} codes, {n_codes / size:.1f} examples for each of {size:,}: too few "
        f"to learn them. Take at most {fewer:,} codes: --tokenizer.model.quantizer.{field}"
    )


def _memorised(recipe: Recipe, facts: ImageFacts) -> str:
    model, fit = recipe.prior.model, recipe.prior.training.fit
    if recipe.codes is not None:
        return ""
    views = 10 if recipe.encode.ten_crop else 2 if recipe.encode.flip else 1
    n_examples = facts.n_train * views
    epochs, n_codes, n_weights = (
        fit.steps * fit.batch_size / n_examples,
        n_examples * codes_per_image(recipe),
        weights(recipe),
    )
    if epochs <= _MANY_EPOCHS or n_codes >= n_weights:
        return ""
    ways = [f"--prior.training.fit.steps {max(1, round(_MANY_EPOCHS * n_examples / fit.batch_size / 10) * 10):,}"]
    if model.dropout < _HIGH_DROPOUT:
        ways.append(f"--prior.model.dropout {_HIGH_DROPOUT + 0.05:g}")
    if views == 1:
        ways.append("--encode.flip true, if mirror images are as good")
    return (
        f"the prior sees each of {n_examples:,} examples {epochs:,.0f} times, and has {n_weights / 1e6:.1f} million "
        f"weights for {n_codes:,} codes: samples will repeat the training images. Try {' and '.join(ways)}"
    )


def _rare_classes(recipe: Recipe, facts: ImageFacts) -> str:
    rare = sorted((n, name) for name, n in facts.classes.items() if 0 < n < _FEW_OF_A_CLASS)
    if not rare or not recipe.prior.model.class_conditional:
        return ""
    shown = ", ".join(f"{name} {n}" for n, name in rare[:_SHOWN]) + (", ..." if len(rare) > _SHOWN else "")
    classes = "1 class has" if len(rare) == 1 else f"{len(rare):,} classes have"
    return (
        f"{classes} fewer than {_FEW_OF_A_CLASS} images ({shown}): samples of such a class will repeat them. "
        "Add images, move them into another class, or do without classes: --prior.model.class_conditional false"
    )


def _held_out(recipe: Recipe, facts: ImageFacts) -> str:
    n, total = facts.n_validation, facts.n_train + facts.n_validation
    if not 0 < n < _FEW_HELD_OUT:
        return ""
    share = min(0.3, math.ceil(100 * 2 * _FEW_HELD_OUT / total) / 100)
    way = f"Hold out more: --data.validation_share {share:g}"
    if getattr(recipe.data.source, "validation_path", None) or share <= recipe.data.validation_share:
        way = "Add images to those held out, or read differences below that as chance"
    return (
        f"{n} held-out image{'s' * (n > 1)} measure PSNR to +-{PSNR_SPREAD / math.sqrt(n):.1f} dB only (standard "
        f"error, at {PSNR_SPREAD:g} dB from image to image), and the prior's bits as loosely. {way}"
    )


def _enlarged(recipe: Recipe, facts: ImageFacts) -> str:
    if facts.n_enlarged <= _MUCH_ENLARGED * max(1, facts.n_decoded):
        return ""
    asked, multiple = recipe.data.preprocess, recipe.tokenizer.model.side_multiple
    side = facts.median_side // multiple * multiple
    known = recipe.tokenizer.pretrained is None and max(_LEAST_SIDE, multiple) <= side < min(asked.height, asked.width)
    way = f"Take their size: --data.preprocess.height {side} --data.preprocess.width {side}" if known else ""
    return (
        f"{facts.n_enlarged:,} of {facts.n_decoded:,} images are smaller than {asked.width} x {asked.height} and are "
        f"enlarged: blur is all that the added pixels hold. {way or 'Use larger originals'}"
    )


def _batches(recipe: Recipe, facts: ImageFacts) -> str:
    size = recipe.tokenizer.training.fit.batch_size
    if size <= facts.n_train:
        return ""
    way = f"--tokenizer.training.fit.batch_size {max(1, facts.n_train // 2)}"
    return f"a batch of {size} holds each of {facts.n_train:,} training images more than once. Take smaller ones: {way}"


_RULES: tuple[Callable[[Recipe, ImageFacts], str], ...] = (
    _alike,
    _copies,
    _codebook,
    _memorised,
    _rare_classes,
    _held_out,
    _enlarged,
    _batches,
)


def codes_per_image(recipe: Recipe) -> int:
    """Codes of one image at the recipe's size, of all grids and depths."""
    model, preprocess = recipe.tokenizer.model, recipe.data.preprocess
    strides = [model.stride, model.side_multiple] if model.coarse_halvings else [model.stride]
    return sum((preprocess.height // s) * (preprocess.width // s) for s in strides) * model.quantizer.depth


def weights(recipe: Recipe) -> int:
    """Weights of the prior's products and tables."""
    config = recipe.prior.model
    layers, _, width = config.shape
    of_a_block = 4 * width**2 + (2 if config.block == "gpt" else 3) * width * config.feed_forward_width
    model = recipe.tokenizer.model
    tables = (model.n_slots + 1) * width * model.quantizer.codebook_size  # of each kind of code, and one head
    return int(layers * of_a_block + tables)
