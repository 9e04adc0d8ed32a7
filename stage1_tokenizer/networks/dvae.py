"""The networks of DALL-E's discrete VAE: residual bottlenecks without norms, pooling down, nearest neighbour up.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.1 and appendix A.1 (networks), A.3 (pixels are mapped into
[0.1, 0.9], where the logit-Laplace distribution is well behaved).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from stage1_tokenizer.networks.blocks import fast_layout
from stage1_tokenizer.networks.config import DVAENetworks
from stage1_tokenizer.networks.recompute import Block

_MARGIN = 0.1


class DVAEBlock(Block):
    """Four times ReLU and convolution with a quarter of the channels inside, times ``scale``; plus the input.

    Args:
        channels_in, channels_out: of the block; a 1 x 1 convolution brings the input along when they differ.
        sides: of the four kernels.
        scale: factor of the residual path, 1 / n_layers^2.
    """

    def __init__(self, channels_in: int, channels_out: int, *, sides: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self.scale = scale
        widths = [channels_in, *([channels_out // 4] * (len(sides) - 1)), channels_out]
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(one, other, side, padding=side // 2)
            for (one, other), side in zip(pairwise(widths), sides, strict=True)
        )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) => (B, C_out, H, W)."""
        hidden = x_BCHW
        for conv in self.convs:
            hidden = conv(F.relu(hidden))
        return self.shortcut(x_BCHW) + self.scale * hidden


def _group(channels_in: int, channels_out: int, config: DVAENetworks, sides: tuple[int, ...]) -> nn.Sequential:
    n_layers = len(config.width_multipliers) * config.n_res_blocks
    widths = [channels_in] + [channels_out] * config.n_res_blocks
    return nn.Sequential(
        *(DVAEBlock(one, other, sides=sides, scale=1 / n_layers**2) for one, other in pairwise(widths))
    )


class DVAEEncoder(nn.Module):
    """pixels => logits of the codes: groups of blocks, each but the last followed by 2 x 2 maximum pooling."""

    def __init__(self, config: DVAENetworks, image_channels: int, channels_out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(image_channels, config.base_width, 7, padding=3)
        self.groups = nn.ModuleList(
            _group(one, other, config, (3, 3, 3, 1)) for one, other in pairwise([config.base_width, *config.widths])
        )
        self.conv_out = nn.Conv2d(config.widths[-1], channels_out, 1)

    def forward(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, 3|1, Y, X) in [-1, 1] => (B, channels_out, H, W)."""
        drawn_in = (1 - 2 * _MARGIN) * (images_BCYX + 1) / 2 + _MARGIN
        hidden = self.conv_in(fast_layout(drawn_in))
        for i, group in enumerate(self.groups):
            hidden = group(hidden if i == 0 else F.max_pool2d(hidden, 2))
        logits: torch.Tensor = self.conv_out(F.relu(hidden))
        return logits


class DVAEDecoder(nn.Module):
    """Code vectors => pixels in [-1, 1]: groups of blocks, each but the last followed by doubling the resolution."""

    def __init__(self, config: DVAENetworks, channels_in: int, image_channels: int) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.groups = nn.ModuleList(
            _group(one, other, config, (1, 3, 3, 3)) for one, other in pairwise([channels_in, *widths])
        )
        self.conv_out = nn.Conv2d(widths[-1], 2 * image_channels, 1)

    def forward(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, H, W) => (B, 3|1, Y, X): the location of each pixel's distribution, clamped."""
        location_BCYX = self.stats(latents_BCHW).chunk(2, 1)[0].sigmoid()
        return ((location_BCYX - _MARGIN) / (1 - 2 * _MARGIN)).clamp(0, 1) * 2 - 1

    def stats(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, H, W) => (B, 6|2, Y, X): locations before the sigmoid, then logarithms of the scales."""
        hidden = fast_layout(latents_BCHW.to(self.conv_out.weight.dtype))
        for i, group in enumerate(self.groups):
            hidden = group(hidden if i == 0 else F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        stats: torch.Tensor = self.conv_out(F.relu(hidden))
        return stats
