"""Typed configuration of each quantizer; a recipe chooses one by its ``type`` key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from foundation.config import Choice, require


@dataclass(frozen=True, kw_only=True)
class FSQConfig(Choice):
    """Finite scalar quantization: each channel is rounded to a few levels."""

    type_name: ClassVar[str] = "fsq"

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """levels of each channel; the codebook has their product, here 1,000"""

    def __post_init__(self) -> None:
        fits = len(self.levels) > 0 and all(2 <= level <= 1000 for level in self.levels)
        require(fits, "levels", self.levels, "at least one channel, each with 2 to 1,000 levels")
        require(self.codebook_size < 2**31, "levels", self.levels, "a product below 2^31")

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    @property
    def width(self) -> int:
        """Channels that are quantized."""
        return len(self.levels)


@dataclass(frozen=True, kw_only=True)
class EMAVQConfig(Choice):
    """Vector quantization with a codebook that follows the latents by exponential averages."""

    type_name: ClassVar[str] = "ema_vq"

    codebook_size: int = 1024
    """number of codes"""
    width: int = 64
    """channels of a code vector"""
    decay: float = 0.99
    """share of the running counts and sums kept at each step, 0 to below 1"""
    commitment: float = 0.25
    """weight of the loss that pulls latents to their codes"""
    kmeans_iterations: int = 10
    """rounds of k-means that initialise the codebook from the first batch; 0 takes random latents"""
    revive_below: float = 0.05
    """a code used less than this share of uniform use is replaced by a latent of the batch; 0 never replaces"""
    revive_every: int = 10
    """optimizer steps between replacements"""

    def __post_init__(self) -> None:
        require(self.codebook_size > 1, "codebook_size", self.codebook_size, "at least 2 codes")
        require(self.width > 0, "width", self.width, "a positive number of channels")
        require(0 <= self.decay < 1, "decay", self.decay, "from 0 to below 1")
        require(self.commitment >= 0, "commitment", self.commitment, "0 or more")
        require(self.kmeans_iterations >= 0, "kmeans_iterations", self.kmeans_iterations, "0 or more")
        require(0 <= self.revive_below < 1, "revive_below", self.revive_below, "from 0 to below 1")
        require(self.revive_every > 0, "revive_every", self.revive_every, "a positive number of steps")


QuantizerConfig = FSQConfig | EMAVQConfig
