"""The networks of Open-MAGVIT2: no attention, kernels without bias, and a decoder whose norms follow the codes.

Source: Luo et al. 2024 (Open-MAGVIT2), arXiv:2409.04410, section 3.1, after Yu et al. 2023 (MAGVIT-v2),
arXiv:2310.05737, section 3.2 and appendix A: strided convolutions down, depth to space up, adaptive GroupNorm.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from stage1_tokenizer.networks.blocks import ResidualBlock, fast_layout, group_norm
from stage1_tokenizer.networks.config import Magvit2Networks
from stage1_tokenizer.networks.fused_norm import norm_silu_conv

_EPSILON = 1e-6


def _blocks(channels_in: int, channels_out: int, n_blocks: int, config: Magvit2Networks) -> list[ResidualBlock]:
    widths = [channels_in] + [channels_out] * (n_blocks - 1)
    settings = {"groups": config.norm_groups, "dropout": config.dropout}
    return [ResidualBlock(each, channels_out, conv_bias=False, **settings) for each in widths]  # type: ignore[arg-type]


class Magvit2Encoder(nn.Module):
    """pixels => latents: levels from full to lowest resolution, then residual blocks; a 1 x 1 convolution ends it."""

    def __init__(self, config: Magvit2Networks, image_channels: int, channels_out: int) -> None:
        super().__init__()
        widths = config.widths
        n_blocks, last = config.n_res_blocks, len(widths) - 1
        self.conv_in = nn.Conv2d(image_channels, config.base_width, 3, padding=1, bias=False)
        self.levels = nn.Sequential()
        for i, (above, width) in enumerate(pairwise([config.base_width, *widths])):
            blocks = nn.Sequential(*_blocks(above, width, n_blocks, config))
            down = nn.Conv2d(width, width, 3, stride=2, padding=1) if i < last else nn.Identity()
            self.levels.append(nn.Sequential(OrderedDict(blocks=blocks, resample=down)))
        self.middle = nn.Sequential(*_blocks(widths[-1], widths[-1], n_blocks, config))
        self.norm_out = group_norm(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 1)

    def forward(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, 3|1, Y, X) => (B, channels_out, H, W)."""
        hidden = self.middle(self.levels(self.conv_in(fast_layout(images_BCYX))))
        return norm_silu_conv(self.norm_out, self.conv_out, hidden)


class Magvit2Decoder(nn.Module):
    """latents => pixels: residual blocks, then levels from lowest to full resolution. No final tanh or clamp."""

    def __init__(self, config: Magvit2Networks, channels_in: int, image_channels: int) -> None:
        super().__init__()
        widths = config.widths
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(channels_in, widths[-1], 3, padding=1)
        self.middle = nn.Sequential(*_blocks(widths[-1], widths[-1], config.n_res_blocks, config))
        self.levels = nn.ModuleList(
            UpLevel(widths[min(i + 1, last)], widths[i], channels_in, config, last=i == 0)
            for i in reversed(range(len(widths)))
        )
        self.norm_out = group_norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], image_channels, 3, padding=1)

    def forward(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, H, W) => (B, 3|1, Y, X)."""
        latents_BCHW = fast_layout(latents_BCHW.to(self.conv_in.weight.dtype))
        hidden = self.middle(self.conv_in(latents_BCHW))
        for level in self.levels:
            hidden = level(hidden, latents_BCHW)
        return norm_silu_conv(self.norm_out, self.conv_out, hidden)


class UpLevel(nn.Module):
    """A norm that follows the codes, residual blocks at one resolution, and doubling it but in the last level."""

    def __init__(
        self, channels_in: int, channels_out: int, latent_channels: int, config: Magvit2Networks, *, last: bool
    ) -> None:
        super().__init__()
        self.norm = AdaptiveNorm(channels_in, latent_channels, groups=config.norm_groups)
        self.blocks = nn.Sequential(*_blocks(channels_in, channels_out, config.n_res_blocks, config))
        self.resample = nn.Identity() if last else DepthToSpace(channels_out)

    def forward(self, x_BCHW: torch.Tensor, latents_BZHW: torch.Tensor) -> torch.Tensor:
        """(B, C_in, Y, X) and the decoder's input => (B, C_out, Y', X')."""
        out: torch.Tensor = self.resample(self.blocks(self.norm(x_BCHW, latents_BZHW)))
        return out


class AdaptiveNorm(nn.Module):
    """GroupNorm whose scale and shift are made of the latents' deviation and mean over all positions."""

    def __init__(self, channels: int, latent_channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=_EPSILON, affine=False)
        self.gamma = nn.Linear(latent_channels, channels)
        self.beta = nn.Linear(latent_channels, channels)

    def forward(self, x_BCHW: torch.Tensor, latents_BZHW: torch.Tensor) -> torch.Tensor:
        """(B, C, Y, X) and the decoder's input, (B, latent_channels, H, W) => (B, C, Y, X)."""
        latents_BZT = latents_BZHW.flatten(2)
        variance_BZ = latents_BZT.var(2, correction=min(1, latents_BZT.shape[2] - 1))  # of one position: 0
        scale_BC, shift_BC = self.gamma((variance_BZ + _EPSILON).sqrt()), self.beta(latents_BZT.mean(2))
        return self.norm(x_BCHW) * scale_BC[:, :, None, None] + shift_BC[:, :, None, None]


class DepthToSpace(nn.Module):
    """Double the resolution: a 3 x 3 convolution to four times the channels, which become 2 x 2 pixels.

    The channels are ordered (row offset, column offset, channel), the offsets most significant.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) => (B, C, 2H, 2W)."""
        pixels = self.conv1(x_BCHW).unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
        return F.pixel_shuffle(pixels, 2)
