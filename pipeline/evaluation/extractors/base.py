"""Feature extractor: images => feature vectors."""

from __future__ import annotations

import torch
from torch import nn

from foundation.errors import DataError


class FeatureExtractor(nn.Module):
    """Images in [-1, 1] => features. Images are rounded to 8-bit RGB first, as in a saved file.

    Args:
        name: suffix of the metrics, ``rfid_<name>``.
        n_features: length F of a feature vector.
        resize: how images reach the network's size, in words.
        caveat: why figures do not compare with published ones; None if they do.
        n_classes: classes that the network tells apart itself, for the Inception score; 0 for none.
    """

    def __init__(self, name: str, n_features: int, *, resize: str, caveat: str | None, n_classes: int = 0) -> None:
        super().__init__()
        self.name, self.n_features, self.resize, self.caveat = name, n_features, resize, caveat
        self.n_classes = n_classes

    @torch.no_grad()
    def forward(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, 3|1, Y, X) in [-1, 1] => (B, F) float32; values outside are clamped, grey is repeated.

        Raises:
            DataError: another shape, or values that are not finite.
        """
        levels = _levels(images_BCYX)
        with torch.autocast(levels.device.type, enabled=False):
            return self.features(levels).float()

    @torch.no_grad()
    def with_logits(self, images_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same images => features (B, F) and logits of the network's own classes (B, n_classes), float32.

        Raises:
            DataError: see ``forward``.
        """
        levels = _levels(images_BCYX)
        with torch.autocast(levels.device.type, enabled=False):
            features, logits = self.features_and_logits(levels)
        return features.float(), logits.float()

    def features_and_logits(self, levels_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, Y, X) uint8 => (B, F), (B, n_classes); of a network without classes the latter is (B, 0)."""
        features = self.features(levels_BCYX)
        return features, features.new_zeros(len(features), 0)

    def features(self, levels_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, 3, Y, X) uint8 => (B, F)."""
        raise NotImplementedError


def _levels(images_BCYX: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] => (B, 3, Y, X) uint8."""
    if images_BCYX.ndim != 4 or images_BCYX.shape[1] not in (1, 3):
        shape = tuple(images_BCYX.shape)
        raise DataError("not a batch of images", field="images", found=shape, expected="(B, 3 or 1, Y, X)")
    if not torch.isfinite(images_BCYX).all():
        fix = "look for NaN in the weights of the model"
        raise DataError("holds NaN or infinity", field="images", expected="values in [-1, 1]", fix=fix)
    levels = images_BCYX.float().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
    return levels.expand(-1, 3, -1, -1).contiguous()
