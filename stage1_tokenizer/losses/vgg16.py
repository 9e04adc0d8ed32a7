"""VGG16's convolutions as a frozen feature extractor; the names of its weights are torchvision's.

Source: Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, column D.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from foundation.errors import CheckpointError
from foundation.storage.durable import file_sha256
from foundation.storage.serialization import load_tensors, load_weights
from foundation.unpickling.torch_files import read_tensors
from stage1_tokenizer.losses.vgg16_file import FILE_NAME, SHA256_START, locate_vgg16

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_RANDOM_SEED = 0


class VGG16(nn.Module):
    """The outputs of relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    Attributes:
        features: convolutions, ReLUs and poolings, numbered as in torchvision, up to relu5_3.
        widths: channels of each output.
    """

    widths = tuple(stage[-1] for stage in _STAGES)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        channels = 3
        for i, stage in enumerate(_STAGES):
            if i > 0:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            self._ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x_B3YX: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, Y, X), normalised, sides of at least 16 => five feature maps, each of half the former's size."""
        outputs = []
        for i, layer in enumerate(self.features):
            x_B3YX = layer(x_B3YX)
            if i in self._ends:
                outputs.append(x_B3YX)
        return outputs


def load_vgg16(weights: str) -> VGG16:
    """A frozen VGG16. The process's random numbers are left as they were.

    Args:
        weights: as ``PerceptualConfig.vgg_weights``: a file, empty to look for it, or ``"random"``.

    Raises:
        ConfigError: the file is not found; the message names the remedies.
        CheckpointError: the file is damaged or holds another model.
    """
    path = locate_vgg16(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        vgg = VGG16()
        if path is None:
            _randomize(vgg)
    if path is not None:
        load_weights(vgg, _read(path), str(path))
    return vgg.eval().requires_grad_(False)


def _randomize(vgg: VGG16) -> None:
    """Weights that keep the size of activations from layer to layer (He et al. 2015, arXiv:1502.01852, eq. 10)."""
    for layer in vgg.features:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors under ``features.``; the classifier's are left out."""
    again = f"delete it, and put {FILE_NAME} there anew"
    if path.name == FILE_NAME:
        found = file_sha256(path)
        if not found.startswith(SHA256_START):
            raise CheckpointError("is damaged", field=str(path), found=f"SHA-256 {found[:16]}...",
                                  expected=f"SHA-256 {SHA256_START}...", fix=again)  # fmt: skip
    tensors = load_tensors(path) if path.suffix == ".safetensors" else read_tensors(path, again)
    features = {name: value for name, value in tensors.items() if name.startswith("features.")}
    bad = [name for name, value in features.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise CheckpointError("has weights that are not finite", field=str(path), found=bad[0], fix=again)
    return features
