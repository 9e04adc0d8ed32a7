"""The discriminator: one logit for each of many overlapping patches.

Source: Isola et al. 2017, arXiv:1611.07004, appendix 6.1.2, with the choices of arXiv:2012.09841; blurred subsampling:
Zhang 2019, arXiv:1904.11486.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from foundation.errors import ConfigError
from stage1_tokenizer.losses.config import DiscriminatorConfig

_SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """(B, C, Y, X) images => (B, 1, h, w) logits, positive where a patch looks real.

    There is no BatchNorm, which pix2pix has: its statistics would differ between processes and between batches of real
    images, of reconstructions and of both, and DDP would overwrite them with one process's. GroupNorm sees each image
    alone, so the logits of an image do not depend on what it is batched with.

    Args:
        config: the architecture.
        image_channels: 3 or 1.
    """

    def __init__(self, config: DiscriminatorConfig, image_channels: int) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * min(2**i, 8) for i in range(config.n_layers + 1)]
        layers: list[nn.Module] = []
        for i, width in enumerate(widths[:-1]):
            channels_in = image_channels if i == 0 else widths[i - 1]
            layers += _halving(channels_in, width, config, normed=i > 0)
        layers += [_convolution(widths[-2], widths[-1], config, kernel=4), *_norm(widths[-1], config, present=True)]
        layers += [nn.LeakyReLU(_SLOPE), _convolution(widths[-1], 1, config, kernel=4)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1, h, w) of images in [-1, 1].

        Raises:
            ConfigError: the images are too small for this many layers.
        """
        require_patches(self.config, *images_BCYX.shape[-2:])
        return self.layers(images_BCYX)


def patch_grid(config: DiscriminatorConfig, side: int) -> int:
    """Logits along a side of ``side`` pixels; 0 or less when the image is too small."""
    return side // 2**config.n_layers - 2


def require_patches(config: DiscriminatorConfig, height: int, width: int) -> None:
    """Raise ``ConfigError`` unless images of this size, in pixels, have at least one patch."""
    side = min(height, width)
    if patch_grid(config, side) >= 1:
        return
    most = max(0, int(math.log2(max(side, 3) / 3)))
    raise ConfigError(
        "has more layers than the images have patches",
        field="adversarial.discriminator.n_layers",
        found=f"{config.n_layers} with images of {height} x {width} pixels",
        expected=f"sides of at least {3 * 2**config.n_layers} pixels",
        fix=f"set n_layers to {most} at most" if most else "use images of at least 6 x 6 pixels",
    )


class BlurredHalving(nn.Module):
    """Halve the resolution after a 4 x 4 binomial blur, so that a shift by one pixel changes little."""

    kernel: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(row, row))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) => (B, C, H // 2, W // 2); sides of at least 2."""
        channels = x_BCHW.shape[1]
        kernels = self.kernel.expand(channels, 1, 4, 4)
        return F.conv2d(F.pad(x_BCHW, (1, 1, 1, 1), mode="reflect"), kernels, stride=2, groups=channels)


def _halving(channels_in: int, channels_out: int, config: DiscriminatorConfig, *, normed: bool) -> list[nn.Module]:
    tail = [*_norm(channels_out, config, present=normed), nn.LeakyReLU(_SLOPE)]
    if config.blur:
        return [_convolution(channels_in, channels_out, config, kernel=3), *tail, BlurredHalving()]
    return [_convolution(channels_in, channels_out, config, kernel=4, stride=2), *tail]


def _norm(channels: int, config: DiscriminatorConfig, *, present: bool) -> list[nn.Module]:
    grouped = present and config.norm == "group"
    return [nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)] if grouped else []


def _convolution(
    channels_in: int, channels_out: int, config: DiscriminatorConfig, *, kernel: int, stride: int = 1
) -> nn.Module:
    layer = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=1)
    return spectral_norm(layer) if config.spectral_norm else layer
