"""What turns images into the features whose distributions are compared: a choice, and what all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from foundation.config import Choice, require
from foundation.errors import DataError


@dataclass(frozen=True, kw_only=True)
class InceptionConfig(Choice):
    """InceptionV3 of the FID's authors, 2048 features: what papers report as FID and KID (arXiv:1706.08500)."""

    type_name: ClassVar[str] = "inception"

    weights: str | None = None
    """file of the weights, .pth or .safetensors; null takes the cached file, or downloads it"""


@dataclass(frozen=True, kw_only=True)
class DinoV2Config(Choice):
    """DINOv2, the CLS token's features: closer to human judgement than Inception's (Stein et al., arXiv:2306.04675)."""

    type_name: ClassVar[str] = "dinov2"

    weights: str = "facebook/dinov2-large"
    """a local folder or the name of a model on the hub"""


@dataclass(frozen=True, kw_only=True)
class SmallConfig(Choice):
    """A small random network: needs no file, tells better from worse, and compares with no published figure."""

    type_name: ClassVar[str] = "small"

    seed: int = 0
    """of the weights; figures compare only where it is equal"""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to below 2^63")


ExtractorConfig = InceptionConfig | DinoV2Config | SmallConfig


class FeatureExtractor(nn.Module):
    """Base: images in [-1, 1] => features. Images become 8-bit RGB first, as if they had been saved and read again.

    Args:
        name: names the figures, ``rfid_<name>``.
        n_features: length F of a feature vector.
        resize: how images are brought to the network's size, in words.
        caveat: why figures do not compare with published ones; None when they do.
    """

    def __init__(self, name: str, n_features: int, *, resize: str, caveat: str | None) -> None:
        super().__init__()
        self.name, self.n_features, self.resize, self.caveat = name, n_features, resize, caveat

    @torch.no_grad()
    def forward(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, 3|1, Y, X) in [-1, 1] => (B, F) float32; values outside are clamped, grey is repeated.

        Raises:
            DataError: another shape, or values that are not finite.
        """
        if images_BCYX.ndim != 4 or images_BCYX.shape[1] not in (1, 3):
            raise DataError("not a batch of images", field="images", found=tuple(images_BCYX.shape),
                            expected="(B, 3, Y, X) or (B, 1, Y, X)")  # fmt: skip
        if not torch.isfinite(images_BCYX).all():
            raise DataError("holds values that are not finite", field="images", found="NaN or infinity",
                            expected="values in [-1, 1]", fix="look for NaN in the weights of the model")  # fmt: skip
        levels = images_BCYX.float().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
        levels = levels.expand(-1, 3, -1, -1).contiguous()
        with torch.autocast(levels.device.type, enabled=False):
            return self.features(levels).float()

    def features(self, levels_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, 3, Y, X) uint8 => (B, F)."""
        raise NotImplementedError


def build_extractor(config: ExtractorConfig) -> FeatureExtractor:
    """The extractor that a configuration describes, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: its weights are missing or damaged.
        ConfigError: it needs a package that is not installed.
    """
    extractor: FeatureExtractor
    if isinstance(config, InceptionConfig):
        from pipeline.evaluation.extractors.inception import InceptionExtractor

        extractor = InceptionExtractor(config)
    elif isinstance(config, DinoV2Config):
        from pipeline.evaluation.extractors.dinov2 import DinoV2Extractor

        extractor = DinoV2Extractor(config)
    else:
        from pipeline.evaluation.small import SmallExtractor

        extractor = SmallExtractor(config)
    return extractor.requires_grad_(False).eval()
