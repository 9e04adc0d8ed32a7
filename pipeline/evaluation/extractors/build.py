"""Extractors by name, and a small random network that needs no weight file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import nn
from torch.nn import functional as F

from foundation.config import Choice, from_dict, require
from foundation.errors import ConfigError, nearest
from foundation.features.lite0 import INSTALL
from foundation.images.config import Preprocess
from pipeline.evaluation.extractors.base import FeatureExtractor
from pipeline.evaluation.extractors.dinov2 import DinoV2Config
from pipeline.evaluation.extractors.inception import InceptionConfig
from pipeline.evaluation.extractors.lite0 import Lite0Config

_WIDTHS = (16, 16, 32)
_LEAST_SIDE = 32
"""of grey images that a network of photographs is asked about, pixels"""


@dataclass(frozen=True, kw_only=True)
class SmallConfig(Choice):
    """A small random network: needs no file, ranks reconstructions, compares with no published figure."""

    type_name: ClassVar[str] = "small"

    seed: int = 0
    """seed of the weights; figures compare only at one seed"""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to below 2^63")

    def build(self) -> FeatureExtractor:
        """On the CPU."""
        return SmallExtractor(self)


class SmallExtractor(FeatureExtractor):
    """Three convolutions with seeded random weights; 64 features, the mean of each channel after its ReLU.

    Random filters respond to edges, colours and texture, so blur, noise and wrong colours move the features. Equal
    seeds give equal weights on every machine. Images keep their size.
    """

    def __init__(self, config: SmallConfig) -> None:
        caveat = "a random network: compares only with extractor small at one seed and size"
        super().__init__("small", sum(_WIDTHS), resize="none", caveat=caveat)
        generator = torch.Generator().manual_seed(config.seed)
        self.layers = nn.ModuleList()
        width_in = 3
        for width in _WIDTHS:
            layer = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
            weights = torch.randn(layer.weight.shape, generator=generator) * (2 / (9 * width_in)) ** 0.5
            layer.load_state_dict({"weight": weights})
            self.layers.append(layer)
            width_in = width

    def features(self, levels_BCYX: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        maps = levels_BCYX.float() / 127.5 - 1
        means = []
        for layer in self.layers:
            maps = F.relu(layer(maps))
            means.append(maps.mean((2, 3)))
            maps = F.avg_pool2d(maps, 2, ceil_mode=True)
        return torch.cat(means, 1)


ExtractorConfig = InceptionConfig | DinoV2Config | Lite0Config | SmallConfig


def build_extractor(config: ExtractorConfig) -> FeatureExtractor:
    """Build an extractor in evaluation mode on the CPU; see the ``build`` of its settings."""
    return config.build().requires_grad_(False).eval()


def named_extractor(name: str, weights: str | None) -> FeatureExtractor | None:
    """Build the extractor that ``--extractor`` names; None for ``none``.

    Raises:
        ConfigError: no such extractor, or weights for an extractor without a weight file.
        CheckpointError: its weights are missing or damaged.
    """
    configs = {each.type_name: each for each in get_args(ExtractorConfig)}
    if name not in (*configs, "none"):
        fix = nearest(name, [*configs, "none"])
        raise ConfigError("is not a choice", field="--extractor", found=repr(name), fix=fix)
    if weights is not None and name in ("none", "small", "lite0"):
        raise ConfigError(f"has no use with --extractor {name}", field="--weights", found=weights, fix="leave it out")
    if name == "none":
        return None
    return build_extractor(from_dict(configs[name], {} if weights is None else {"weights": weights}, "--extractor"))


def choose_extractor(name: str, weights: str | None, preprocess: Preprocess) -> FeatureExtractor | None:
    """As ``named_extractor``; ``auto`` is lite0 where its package is installed, and small of tiny grey images.

    Args:
        name: of the extractor.
        weights: see ``named_extractor``.
        preprocess: of the images.

    Raises:
        ConfigError, CheckpointError: see ``named_extractor``.
    """
    if name != "auto":
        return named_extractor(name, weights)
    given, fix = weights is not None, "name its extractor: --extractor inception"
    ConfigError.unless(not given, "need an extractor that takes them", field="--weights", found=weights, fix=fix)
    if preprocess.n_channels == 1 and max(preprocess.height, preprocess.width) < _LEAST_SIDE:
        return build_extractor(SmallConfig())
    try:
        return build_extractor(Lite0Config())
    except ConfigError as error:
        print(f"extractor small: {str(error).splitlines()[0]}; {INSTALL}")
        return build_extractor(SmallConfig())
