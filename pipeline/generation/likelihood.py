"""How likely images are under a tokenizer and a prior: the log-likelihood of their codes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from foundation.errors import ConfigError, DataError, nearest
from foundation.images.preprocess import to_unit_range
from pipeline.generation.inputs import Images, is_codes, pixels_of, read_codes
from pipeline.image_files import read_pixels
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.prior import PriorModel

Unit = Literal["bits", "nats"]


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
    """Log-likelihoods of the codes of some images.

    What the tokenizer loses has no probability, so that this is no likelihood of the pixels: compare images under one
    generator, not generators.

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
    if unit not in ("bits", "nats"):
        raise ConfigError("is not one of the choices", field="unit", found=repr(unit),
                          fix=nearest(str(unit), ["bits", "nats"]))  # fmt: skip
    given = (
        _whole(read_codes(images, prior.spec), prior) if is_codes(images) else pixels_of(images, tokenizer.preprocess)
    )
    if len(labels) not in (1, len(given)):
        raise DataError("are as many neither as one nor as the images", field="class_labels", found=len(labels),
                        expected=f"1 or {len(given)}")  # fmt: skip
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


def _whole(codes_BP: torch.Tensor, prior: PriorModel) -> torch.Tensor:
    if codes_BP.shape[1] != prior.n_codes:
        raise DataError("are not all codes of each image", field="images", found=codes_BP.shape[1],
                        expected=prior.n_codes)  # fmt: skip
    return codes_BP


@dataclass(frozen=True)
class ScoredImage:
    """One image file and how likely it is.

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
        What could be read, and a line for each file that could not.
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
    """Names and (B, Y, X, C) uint8 pixels of the readable files; reasons for the others go to ``failed``."""
    names: list[str] = []
    pixels: list[np.ndarray] = []
    for path in tqdm(paths, desc="scoring", unit="img", delay=2):
        try:
            pixels.append(read_pixels(tokenizer, path, keep_size=False)[0])
            names.append(str(path))
        except (DataError, OSError, ValueError) as error:
            failed.append(f"{path}: {error}")
        if len(names) == batch_size:
            yield names, np.stack(pixels)
            names, pixels = [], []
    if names:
        yield names, np.stack(pixels)
