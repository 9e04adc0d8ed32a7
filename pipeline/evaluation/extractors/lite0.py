"""EfficientNet-lite0 as a feature extractor: ImageNet features from a package, without a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foundation.config import Choice
from foundation.features.lite0 import Lite0, open_lite0
from pipeline.evaluation.extractors.base import FeatureExtractor

_SIDES = (96, 224)
_CAVEAT = "features of EfficientNet-lite0, not of Inception: compare with figures of lite0 alone"


@dataclass(frozen=True, kw_only=True)
class Lite0Config(Choice):
    """EfficientNet-lite0 of ImageNet, 1280 features: needs no download; compares with figures of lite0 alone."""

    type_name: ClassVar[str] = "lite0"

    def build(self) -> FeatureExtractor:
        """On the CPU; raises ConfigError without the package, CheckpointError for a damaged file."""
        return Lite0Extractor(open_lite0())


class Lite0Extractor(FeatureExtractor):
    """1280 features, the mean over positions of the last stage (Tan and Le 2019, arXiv:1905.11946).

    Args:
        network: frozen, in float32.
    """

    def __init__(self, network: Lite0) -> None:
        resize = f"bilinear to a shorter side of {_SIDES[0]} pixels if it is less, of {_SIDES[1]} if it is more"
        n_classes = network.classifier.out_features
        super().__init__("lite0", network.channels[9], resize=resize, caveat=_CAVEAT, n_classes=n_classes)
        self.network = network

    def features(self, levels_BCYX: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        side = min(max(min(levels_BCYX.shape[2:]), _SIDES[0]), _SIDES[1])
        return self.network.pooled(levels_BCYX.float() / 127.5 - 1, side=side)

    def features_and_logits(self, levels_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the base class; logits of ImageNet's classes."""
        features = self.features(levels_BCYX)
        return features, self.network.classifier(features)
