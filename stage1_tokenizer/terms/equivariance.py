"""Equivariance of the decoder: the latents of a flipped, turned or smaller image are the flipped, turned or smaller
latents. Source: Kouzelis et al. 2025, arXiv:2502.09509, eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from foundation.config import require
from foundation.randomness import derive_seed
from stage1_tokenizer.objective import PIXEL_LOSSES
from stage1_tokenizer.terms.base import Metrics, Seen, Term, TermContext
from stage1_tokenizer.terms.config import EquivarianceConfig


@dataclass(frozen=True)
class Transform:
    """What is done to images and latents alike.

    Attributes:
        quarters: turns by 90 degrees, 0 to 3.
        mirrored: left and right swapped after them.
        divisor: of both sides; means of squares.
    """

    quarters: int
    mirrored: bool
    divisor: int

    def __call__(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, C, Y, X) => the transformed one."""
        x_BCYX = torch.rot90(x_BCYX, self.quarters, (2, 3))
        x_BCYX = x_BCYX.flip(3) if self.mirrored else x_BCYX
        return F.avg_pool2d(x_BCYX, self.divisor) if self.divisor > 1 else x_BCYX


class Equivariance(Term):
    """Pixel loss between decode(t z) and t x, for z the quantized latents.

    Scales take turns, so that steps cost the same on all processes; the rest of t is drawn for (seed, step, process).
    Transformations of z act on what the decoder gets: the projection before it is pointwise, so both are the same.
    """

    config: EquivarianceConfig

    def __init__(self, config: EquivarianceConfig, context: TermContext) -> None:
        super().__init__(config, context)
        self.seed, self.process = context.seed, context.accelerator.process_index
        self.pixel_loss = PIXEL_LOSSES[context.training.pixel_loss]
        every = transforms(config, *context.grid)
        of_scales = [[each for each in every if each.divisor == divisor] for divisor in config.scales]
        self.transforms = [each for each in of_scales if each]
        size, found = "{} x {}".format(*context.grid), list(config.scales)
        require(len(every) > 0, "scales", found, f"one that divides a grid of {size}, or flips or rotations")
        same = context.grid[0] == context.grid[1] and set(config.scales) == {1}
        what, fix = (
            "[1] of square images with compile: true",
            "the compiler would compile each size: set compile: false",
        )
        require(same or not context.training.compile, "scales", found, what, fix)

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, Metrics]:
        """See the base class."""
        of_scale = self.transforms[seen.step % len(self.transforms)]
        transform = of_scale[derive_seed(self.seed, "equivariance", seen.step, self.process) % len(of_scale)]
        decoded_BCYX = seen.decode(transform(seen.inputs_BCHW))
        return self.pixel_loss(decoded_BCYX, transform(seen.images_BCYX)), {}


def transforms(config: EquivarianceConfig, height: int, width: int) -> list[Transform]:
    """All but the identity that settings allow for a grid."""
    turns = range(0, 4, 1 if height == width else 2) if config.rotations else (0,)
    fitting = [each for each in config.scales if height % each == width % each == 0]
    every = [
        Transform(quarters, mirrored, divisor)
        for quarters in turns
        for mirrored in ((False, True) if config.flips else (False,))
        for divisor in fitting
    ]
    return [each for each in every if each != Transform(0, False, 1)]
