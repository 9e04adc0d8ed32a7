"""Sections of a report for a continuous tokenizer: figures of its latents, and images of random ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from foundation.codes.dataset import TokenDataset
from foundation.images.preprocess import image_grid
from pipeline.generation.normal import normal_images
from pipeline.report.plots import picture
from stage1_tokenizer.tokenizer import TokenizerModel

_SHOWN, _COLUMNS, _MOST = 32, 16, 4096
_SMALL = 64
"""pixels; smaller images are shown larger"""


def latent_moments(codes: TokenDataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel over some images, (C,) float64 each."""
    rows = np.asarray(codes.codes_NT[:_MOST]).astype(np.uint16).view(np.float16).astype(np.float64)
    values = rows.reshape(-1, codes.spec.levels[0].depth)
    return values.mean(0), values.var(0)


def aggregate_kl(mean_C: np.ndarray, variance_C: np.ndarray) -> float:
    """KL(N(mean, variance) || N(0, 1)) in nats per latent value: how far the aggregate posterior's moments are from the
    normal distribution that a variational autoencoder samples from.
    """
    floor = np.maximum(variance_C, np.finfo(np.float64).tiny)
    return float(0.5 * (np.square(mean_C) + floor - 1 - np.log(floor)).mean())


def normal_section(tokenizer: TokenizerModel, codes: TokenDataset) -> str:
    """Images of latents from N(0, 1), and how far the tokenizer's own latents are from it."""
    mean_C, variance_C = latent_moments(codes)
    images = tokenizer.preview.of_images(normal_images(tokenizer, _SHOWN, seed=0))
    scale = max(1, _SMALL // max(images.shape[1:3]))
    nats = aggregate_kl(mean_C, variance_C)
    caption = (
        "Decoded from latents of the normal distribution, as a variational autoencoder samples. The latents of images "
        f"have a standard deviation of {math.sqrt(float(variance_C.mean())):.3g}, {nats:.3g} nats per value away from "
        "it: the farther, the less such pictures show. The prior above learns where latents lie."
    )
    return picture(image_grid(images, _COLUMNS, scale=scale), caption)


def latent_rows(last: dict[str, Any], codes: TokenDataset) -> list[tuple[str, str]]:
    """Rows of the table of figures, from the last evaluation of the prior."""
    level = codes.spec.levels[0]
    mean_C, variance_C = latent_moments(codes)
    return [
        ("Latent values per image", f"{codes.spec.n_codes:,} ({level.height} x {level.width} x {level.depth})"),
        ("Latents' distance from N(0, 1), nats per value", f"{aggregate_kl(mean_C, variance_C):.3g}"),
        ("Prior, validation bits per value (density)", f"{last['bits_per_code']:.3f}"),
        ("&nbsp;&nbsp;a Gaussian of each channel needs", f"{last['unigram_bits_per_code']:.3f}"),
    ]
