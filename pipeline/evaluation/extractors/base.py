"""Configurations and base class of feature extractors, images => feature vectors.

Small random convolutional network as a feature extractor without weight files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

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
    """DINOv2's CLS token: closer to human judgement than Inception's features (Stein et al., arXiv:2306.04675)."""

    type_name: ClassVar[str] = "dinov2"

    weights: str = "facebook/dinov2-large"
    """a local folder or the name of a model on the hub"""


@dataclass(frozen=True, kw_only=True)
class SmallConfig(Choice):
    """A small random network: needs no file, ranks reconstructions, compares with no published figure."""

    type_name: ClassVar[str] = "small"

    seed: int = 0
    """seed of the weights; figures compare only at one seed"""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to below 2^63")


ExtractorConfig = InceptionConfig | DinoV2Config | SmallConfig


class FeatureExtractor(nn.Module):
    """Images in [-1, 1] => features. Images are rounded to 8-bit RGB first, as in a saved file.

    Args:
        name: suffix of the metrics, ``rfid_<name>``.
        n_features: length F of a feature vector.
        resize: how images reach the network's size, in words.
        caveat: why figures do not compare with published ones; None if they do.
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
            shape = tuple(images_BCYX.shape)
            raise DataError("not a batch of images", field="images", found=shape, expected="(B, 3 or 1, Y, X)")
        if not torch.isfinite(images_BCYX).all():
            fix = "look for NaN in the weights of the model"
            raise DataError("holds NaN or infinity", field="images", expected="values in [-1, 1]", fix=fix)
        levels = images_BCYX.float().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
        levels = levels.expand(-1, 3, -1, -1).contiguous()
        with torch.autocast(levels.device.type, enabled=False):
            return self.features(levels).float()

    def features(self, levels_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, 3, Y, X) uint8 => (B, F)."""
        raise NotImplementedError


_WIDTHS = (16, 16, 32)


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
