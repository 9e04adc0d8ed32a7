"""Log-likelihood of images: that of their codes under a prior."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from foundation.errors import DataError
from foundation.images.preprocess import to_unit_range
from pipeline.generation.inputs import Images, is_codes, pixels_of, read_codes
from pipeline.generation.parts import GeneratorParts, Labels
from pipeline.generation.requests import require_choice, require_one_or_all
from pipeline.image_files import read_pixels, readable
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.prior import PriorModel

Unit = Literal["bits", "nats"]


def score(parts: GeneratorParts, images: Images, class_labels: Labels = None, *, unit: Unit = "bits") -> torch.Tensor:
    """Log-likelihood of each image's codes, log2 p or, for "nats", ln p: (B,) float64, 0 or less.

    Args:
        parts: the generator.
        images: a Pillow image, a list of them, (B, C, Y, X) in [-1, 1] of the tokenizer's size, or all their codes.
        class_labels: one of all images, one for each, or None for the null class (see ``score_images``).
        unit: bits or nats.

    Raises:
        DataError, ConfigError: see ``score_images``; no class, of a prior that was trained with classes alone.
    """
    labels = parts.label_ids(class_labels)
    parts.require_labels(labels)
    return score_images(parts.tokenizer, parts.prior, images, labels, unit=unit)


@torch.no_grad()
def score_images(
    tokenizer: TokenizerModel,
    prior: PriorModel,
    images: Images,
    labels: Sequence[int],
    *,
    unit: Unit = "bits",
    batch_size: int = 64,
) -> torch.Tensor:
    """Log-likelihoods of the codes of images.

    What the tokenizer loses has no probability, so that this is no likelihood of the pixels: it compares images under
    one generator, not generators.

    Args:
        tokenizer, prior: that belong together.
        images: a Pillow image, a list of them, (B, C, Y, X) in [-1, 1] of the tokenizer's size, or all their codes.
        labels: one class number for all images, or one for each; ``prior.null_class`` for none, which a
            class-conditional prior knows only from label dropout in training.
        unit: ``bits`` for log2 p, ``nats`` for ln p.
        batch_size: images encoded and scored at once.

    Returns:
        (B,) float64 on the CPU, 0 or less.

    Raises:
        DataError: images of another shape, type or range, or another number of labels.
        ConfigError: another unit.
    """
    require_choice("unit", unit, ("bits", "nats"))
    given = _all_codes(images, prior) if is_codes(images) else pixels_of(images, tokenizer.preprocess)
    require_one_or_all("class_labels", len(labels), len(given))
    device = prior.head.weight.device
    labels_B = torch.tensor(labels, device=device).expand(len(given))
    parts = []
    for start in range(0, len(given), batch_size):
        part = slice(start, start + batch_size)
        batch = given[part] if isinstance(given, torch.Tensor) else to_unit_range(np.stack(given[part]))
        batch = batch.to(device)
        tokens_BT = tokenizer.encode(batch.float()).flatten(1) if batch.is_floating_point() else batch
        parts.append(-prior.nll(tokens_BT, labels_B[part]).double().sum(1).cpu())
    return torch.cat(parts) / (math.log(2) if unit == "bits" else 1.0)


def _all_codes(images: Any, prior: PriorModel) -> torch.Tensor:
    codes_BP = read_codes(images, prior.spec)
    if codes_BP.shape[1] != prior.n_codes:
        found, expected = codes_BP.shape[1], prior.n_codes
        raise DataError("are not all codes of each image", field="images", found=found, expected=expected)
    return codes_BP


@dataclass(frozen=True)
class ScoredImage:
    """One image file and its likelihood.

    Attributes:
        image_id: its path.
        bits: -log2 of the probability of its codes: the fewer, the likelier.
        bits_per_code: the same by code.
    """

    image_id: str
    bits: float
    bits_per_code: float


def score_files(
    tokenizer: TokenizerModel, prior: PriorModel, paths: Sequence[Path], label: int, *, batch_size: int = 64
) -> tuple[list[ScoredImage], list[str]]:
    """Score image files, the least likely first.

    Args:
        tokenizer, prior: that belong together.
        paths: of files.
        label: class number of all of them; ``prior.null_class`` for none.
        batch_size: images at a time: memory does not grow with the number of files.

    Returns:
        The readable ones, and a line for each other file.
    """
    failed: list[str] = []
    scored: list[ScoredImage] = []
    for names, pixels_BYXC in _batches(tokenizer, paths, batch_size, failed):
        log2_B = score_images(tokenizer, prior, to_unit_range(pixels_BYXC), [label], batch_size=batch_size)
        pairs = zip(names, (-log2_B).tolist(), strict=True)
        scored += [ScoredImage(name, bits, bits / prior.n_codes) for name, bits in pairs]
    return sorted(scored, key=lambda each: -each.bits), failed


def _batches(
    tokenizer: TokenizerModel, paths: Sequence[Path], batch_size: int, failed: list[str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and (B, Y, X, C) uint8 pixels of the readable files; ``failed`` gets a line for each other one."""
    names: list[str] = []
    pixels: list[np.ndarray] = []
    read = partial(read_pixels, tokenizer, keep_size=False)
    for path, pixels_1YXC in readable(paths, read, failed, desc="scoring"):
        pixels.append(pixels_1YXC[0])
        names.append(str(path))
        if len(names) == batch_size:
            yield names, np.stack(pixels)
            names, pixels = [], []
    if names:
        yield names, np.stack(pixels)
