"""Perceptual distance on EfficientNet-lite0, for small images: its early stages see a 32-pixel image as it is.

Form of the distance: Zhang et al. 2018, arXiv:1801.03924, eq. 1, with equal weights for all channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foundation.config import require
from foundation.features import lite0
from foundation.features.lite0 import MIN_SIDE, Lite0
from stage1_tokenizer.terms.base import Metrics, Seen, Term, TermContext
from stage1_tokenizer.terms.config import Lite0Config

_SMALLEST_LENGTH = 1e-6


class Lite0Distance(Term):
    """Mean over stages and positions of the squared distance of unit feature vectors, from 0 to 4."""

    judges_reconstructions = True
    config: Lite0Config

    def __init__(self, config: Lite0Config, context: TermContext) -> None:
        super().__init__(config, context)
        self.network = open_network(config.weights, config.side, context)
        self.frozen = {"lite0": self.network}

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, Metrics]:
        """See the base class."""
        with torch.no_grad():
            images = self._features(seen.images_BCYX)
        reconstructions = self._features(seen.reconstructions_BCYX)
        pairs = zip(images, reconstructions, strict=True)
        distances = [(one - other).square().sum(1).mean() for one, other in pairs]
        return torch.stack(distances).mean(), {}

    def _features(self, images_BCYX: torch.Tensor) -> list[torch.Tensor]:
        return unit_maps(self.network, images_BCYX, self.config.stages, self.config.side)


def open_network(weights: str, side: int | None, context: TermContext) -> Lite0:
    """EfficientNet-lite0 on the device of a training.

    Raises:
        ConfigError: the images are too small or have other channels than 1 or 3, or the package is not installed.
    """
    preprocess = context.model.preprocess
    shorter, fix = min(preprocess.height, preprocess.width), f"set side: {MIN_SIDE} or more, to which they are resized"
    require((side or shorter) >= MIN_SIDE, "side", side, f"{MIN_SIDE} or more for images of {shorter} pixels", fix)
    channels, expected = preprocess.n_channels, "1 or 3 channels, as EfficientNet-lite0 takes them"
    require(channels in (1, 3), "data.preprocess.mode", f"{channels} channels", expected, "leave the term out")
    if weights == "imagenet":
        network = lite0.open_lite0()
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Lite0()
    return network.to(context.accelerator.device)


def unit_maps(network: Lite0, images_BCYX: torch.Tensor, stages: Sequence[int], side: int | None) -> list[torch.Tensor]:
    """Feature maps of some stages, each position's vector scaled to length 1."""
    maps = network.maps(images_BCYX, stages, side=side)
    return [each * (each.square().sum(1, keepdim=True) + _SMALLEST_LENGTH**2).rsqrt() for each in maps]
