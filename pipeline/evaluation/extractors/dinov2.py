"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193) as a feature extractor, from the package transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from foundation.config import Choice
from foundation.errors import CheckpointError, way_out
from foundation.hardware import hide_broken_torchvision
from pipeline.evaluation.extractors.base import FeatureExtractor

_SIDE = 224
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class DinoV2Config(Choice):
    """DINOv2's CLS token: closer to human judgement than Inception's features (Stein et al., arXiv:2306.04675)."""

    type_name: ClassVar[str] = "dinov2"

    weights: str = "facebook/dinov2-large"
    """a local folder or the name of a model on the hub"""

    def build(self) -> FeatureExtractor:
        """On the CPU; raises CheckpointError for missing weights."""
        return DinoV2Extractor(self)


class DinoV2Extractor(FeatureExtractor):
    """The CLS token after the last norm; bicubic resize to 224 x 224, ImageNet's mean and standard deviation.

    Figures compare with those of Stein et al. 2023 (arXiv:2306.04675) for ViT-L/14 only; the caveat says so.
    """

    mean_CYX: torch.Tensor
    std_CYX: torch.Tensor

    def __init__(self, config: DinoV2Config) -> None:
        network = _network(config.weights)
        shape = network.config
        large = (shape.model_type, shape.hidden_size, shape.num_hidden_layers) == ("dinov2", 1024, 24)
        caveat = None if large else "published figures use DINOv2 ViT-L/14"
        super().__init__(
            "dinov2", shape.hidden_size, resize=f"bicubic to {_SIDE} x {_SIDE}, antialiased", caveat=caveat
        )
        self.network = network
        self.register_buffer("mean_CYX", torch.tensor(_MEAN).view(3, 1, 1))
        self.register_buffer("std_CYX", torch.tensor(_STD).view(3, 1, 1))

    def features(self, levels_BCYX: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        resized = F.interpolate(levels_BCYX.float(), (_SIDE, _SIDE), mode="bicubic", antialias=True)
        scaled = resized.round().clamp(0, 255) / 255
        pixels = (scaled - self.mean_CYX) / self.std_CYX
        features: torch.Tensor = self.network(pixel_values=pixels).last_hidden_state[:, 0]
        return features


def _network(weights: str) -> Any:
    hide_broken_torchvision()
    from transformers import AutoModel

    try:
        network = AutoModel.from_pretrained(weights, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        fix = (
            "one of\n"
            "    - give a local folder:       --weights FOLDER (config.json and model.safetensors)\n"
            "    - or, with a network, a name: --weights facebook/dinov2-large, without HF_HUB_OFFLINE\n"
            "    - or use no weights:         --extractor small (compares with no published figure)"
        )
        found = str(error).split("\n")[0]
        raise CheckpointError(
            "cannot load DINOv2 weights", field=weights, found=found, fix=way_out(error, fix)
        ) from error
    found, fix = network.config.model_type, "use facebook/dinov2-large or a folder that holds it"
    if not found.startswith("dinov2"):
        raise CheckpointError("is not a DINOv2 model", field=weights, found=found, expected="dinov2", fix=fix)
    return network
