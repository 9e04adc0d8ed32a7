"""A small random network as a feature extractor that needs no file."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.evaluation.extractors.build import FeatureExtractor, SmallConfig

_WIDTHS = (16, 16, 32)


class SmallExtractor(FeatureExtractor):
    """Three convolutions with seeded random weights, 64 features: each channel's mean after its ReLU, at every scale.

    Random filters answer to edges, colours and texture, so that blur, noise and wrong colours move the features. Equal
    seeds give equal weights in every process and on every machine. Images keep their size.
    """

    def __init__(self, config: SmallConfig) -> None:
        caveat = "a random network: compares only with other figures of extractor small, at the same seed and size"
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
