"""What a report says of a continuous tokenizer's latents: their moments, and images of random ones."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from foundation.codes.dataset import TokenDataset
from foundation.images.preprocess import image_grid
from pipeline.generation.normal import normal_images
from stage1_tokenizer.tokenizer import TokenizerModel

NORMAL = (
    "Decoded from latents of the normal distribution, as a variational autoencoder samples. The farther the latents of "
    "images are from it, the less such pictures show; the prior learns where latents lie."
)
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


def normal_picture(tokenizer: TokenizerModel) -> Image.Image:
    """Images of latents from N(0, 1)."""
    images = tokenizer.preview.of_images(normal_images(tokenizer, _SHOWN, seed=0))
    return image_grid(images, _COLUMNS, scale=max(1, _SMALL // max(images.shape[1:3])))


def latent_rows(codes: TokenDataset) -> list[tuple[str, str]]:
    """Rows of a table: what latents of images are, and how far from N(0, 1)."""
    level = codes.spec.levels[0]
    mean_C, variance_C = latent_moments(codes)
    return [
        ("latent values per image", f"{codes.spec.n_codes:,} ({level.height} x {level.width} x {level.depth})"),
        ("standard deviation", f"{math.sqrt(float(variance_C.mean())):.3g}"),
        ("distance from N(0, 1), nats per value", f"{aggregate_kl(mean_C, variance_C):.3g}"),
    ]
