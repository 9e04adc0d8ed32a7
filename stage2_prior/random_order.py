"""Training in random order that anneals to raster order.

Source: Yu et al. 2024, "Randomized autoregressive visual generation", arXiv:2411.00776, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from foundation.config import require
from foundation.randomness import uniforms


@dataclass(frozen=True, kw_only=True)
class RandomOrder:
    """How many training images are predicted in random order: all, then linearly fewer, then none."""

    until_step: int
    """every image is in random order before this optimizer step"""
    zero_step: int
    """no image is from this optimizer step on"""

    def __post_init__(self) -> None:
        require(self.until_step >= 0, "until_step", self.until_step, "0 or a number of steps")
        require(
            self.zero_step >= self.until_step, "zero_step", self.zero_step, f"until_step, {self.until_step}, or later"
        )

    def share(self, step: int) -> float:
        """Share of images in random order at an optimizer step (from 0)."""
        if step < self.until_step:
            return 1.0
        if step >= self.zero_step:
            return 0.0
        return (self.zero_step - step) / (self.zero_step - self.until_step)


def draw_orders(positions_B: np.ndarray, length: int, share: float, seed: int) -> torch.Tensor:
    """The order in which the codes of each sample are predicted.

    Args:
        positions_B: places in the sequence of samples; an order depends on its own place, ``share`` and ``seed`` alone.
        length: T, codes per image.
        share: of rows in random order, 0 to 1; the others are in raster order.
        seed: of the draws.

    Returns:
        (B, T) int64 on the CPU, a permutation of 0..T-1 in each row.
    """
    chosen_B = uniforms(positions_B, np.zeros_like(positions_B), seed, "in random order") < share
    places_T = np.arange(length)
    keys_BT = uniforms(positions_B[:, None], places_T[None, :], seed, "random order")
    orders_BT = np.where(chosen_B[:, None], keys_BT.argsort(axis=1, kind="stable"), places_T)
    return torch.from_numpy(orders_BT)
