"""LPIPS, the learned perceptual distance: version 0.1 on VGG16.

Source: Zhang et al. 2018, arXiv:1801.03924, eq. 1. The linear weights are those that the ``lpips`` distribution
installs; its code, which needs torchvision, is not imported. On equal weights both give equal bits.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from foundation.errors import CheckpointError, DataError
from foundation.training.precision import Settled
from foundation.unpickling.torch_files import read_tensors
from stage1_tokenizer.losses.vgg16 import RANDOM, VGG16, describe_vgg16, load_vgg16

MIN_SIDE = 16
_IMAGE_SHIFT = (-0.030, -0.088, -0.188)
_IMAGE_SCALE = (0.458, 0.448, 0.450)
_NORM_EPSILON = 1e-10


class LPIPS(nn.Module):
    """Distance of reconstructions from images, 0 for equal ones. Frozen; keep it out of what is saved.

    Args:
        vgg_weights: as ``PerceptualConfig.vgg_weights``; None is the same as empty.
        precision: of VGG16's convolutions: ``bf16`` for training, ``float32`` for a metric. The rest is float32.

    Attributes:
        description: what a log or report should say, since random weights make the distance incomparable.

    Raises:
        ConfigError: VGG16's weights are not found; the message says what to do.
        CheckpointError: they are damaged, or the ``lpips`` distribution is not installed whole.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, vgg_weights: str | None = None, *, precision: Settled = "float32") -> None:
        super().__init__()
        self.precision, self.is_random = precision, vgg_weights == RANDOM
        self.description = f"LPIPS v0.1 on {describe_vgg16(vgg_weights or '')}"
        self.vgg = load_vgg16(vgg_weights or "")
        self.register_buffer("shift", torch.tensor(_IMAGE_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_IMAGE_SCALE).view(1, 3, 1, 1))
        self.linear = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in _linear_weights())
        self.eval()

    def forward(self, images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
        """Distance of each pair, (B,) float32. Gradients reach the reconstructions only.

        Args:
            images_BCYX: (B, 3|1, Y, X) in [-1, 1], sides of at least 16; of one channel, it is repeated.
            reconstructions_BCYX: the same shape and range.

        Raises:
            DataError: another shape or type, or images that require gradients (the arguments are swapped).
        """
        what = "require gradients, which LPIPS gives to reconstructions only"
        fix = "pass the images first, the reconstructions second; or detach the images"
        DataError.unless(not images_BCYX.requires_grad, what, field="images_BCYX", fix=fix)
        return self.distance(self.features(images_BCYX), reconstructions_BCYX)

    @torch.no_grad()
    def features(self, images_BCYX: torch.Tensor) -> list[torch.Tensor]:
        """The images' half of ``forward``, without a graph: five maps with unit vectors along the channels."""
        return self._unit_features(images_BCYX)

    def distance(self, features: list[torch.Tensor], reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
        """(B,) float32: ``forward`` with the images' ``features`` at hand, for several reconstructions of them.

        Raises:
            DataError: the features are of images of another shape.
        """
        with _exact(reconstructions_BCYX):
            total = torch.zeros((), device=reconstructions_BCYX.device)
            mine = self._unit_features(reconstructions_BCYX)
            for image, reconstruction, weight in zip(features, mine, self.linear, strict=True):
                same, found = image.shape == reconstruction.shape, (tuple(image.shape), tuple(reconstruction.shape))
                DataError.unless(same, "images and reconstructions differ in shape", found=f"features {found}")
                total = total + F.conv2d((image - reconstruction) ** 2, weight).mean((2, 3), keepdim=True)
            return total[:, 0, 0, 0]

    def _unit_features(self, images_BCYX: torch.Tensor) -> list[torch.Tensor]:
        _require_images(images_BCYX)
        with _exact(images_BCYX):
            x_B3YX = (images_BCYX.float().expand(-1, 3, -1, -1) - self.shift) / self.scale
            with torch.autocast(x_B3YX.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                outputs = self.vgg(x_B3YX)
            return [_unit(each.float()) for each in outputs]


def _unit(features_BCHW: torch.Tensor) -> torch.Tensor:
    """Scale each position's vector to length 1. A zero vector stays zero, with a gradient that is finite."""
    squared = torch.sum(features_BCHW**2, dim=1, keepdim=True)
    some = squared > 0
    length = torch.where(some, torch.sqrt(torch.where(some, squared, 1.0)), 0.0)
    return features_BCHW / (length + _NORM_EPSILON)


def _exact(tensor: torch.Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _require_images(images_BCYX: torch.Tensor) -> None:
    shape = tuple(images_BCYX.shape)
    sound = images_BCYX.ndim == 4 and shape[1] in (1, 3) and images_BCYX.is_floating_point()
    found, expected = f"{shape}, {images_BCYX.dtype}", "(B, 3|1, Y, X), float in [-1, 1]"
    DataError.unless(sound, "are not images", field="images_BCYX", found=found, expected=expected)
    large, expected = min(shape[2:]) >= MIN_SIDE, f"sides of at least {MIN_SIDE} pixels"
    what, fix = "are too small for LPIPS, which divides sides by 16", "use larger images, or leave LPIPS out"
    DataError.unless(large, what, field="images_BCYX", found=found, expected=expected, fix=fix)


def _linear_weights() -> list[torch.Tensor]:
    """The weight of each channel of each feature map, (1, C, 1, 1)."""
    again = "pip install --force-reinstall --no-deps lpips"
    found = importlib.util.find_spec("lpips")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    path = Path(folders[0], "weights", "v0.1", "vgg.pth") if folders else None
    if path is None or not path.is_file():
        raise CheckpointError(
            "the linear weights of LPIPS are not installed", found=path or "no lpips distribution", fix=again
        )
    tensors = read_tensors(path, again)
    weights = [tensors[f"lin{i}.model.1.weight"].float() for i in range(len(VGG16.widths))]
    assert [tuple(each.shape) for each in weights] == [(1, width, 1, 1) for width in VGG16.widths]
    return weights
