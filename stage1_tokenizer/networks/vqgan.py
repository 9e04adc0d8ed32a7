"""VQGAN's convolutional encoder and decoder, mirror images of each other.

Source: Esser, Rombach and Ommer 2021, arXiv:2012.09841, appendix A.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from stage1_tokenizer.networks.blocks import (
    AttentionBlock,
    Downsample,
    ResidualBlock,
    Upsample,
    fast_layout,
    group_norm,
)
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.networks.fused_norm import norm_silu_conv


class Encoder(nn.Module):
    """pixels => latents: levels from full to lowest resolution, then the middle."""

    def __init__(self, config: VQGANNetworks, image_channels: int, channels_out: int) -> None:
        super().__init__()
        widths = config.widths
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(image_channels * config.patch_size**2, config.base_width, 3, padding=1)
        levels = []
        for i, (above, width) in enumerate(pairwise([config.base_width, *widths])):
            resample = Downsample(width) if i < len(widths) - 1 else nn.Identity()
            levels.append(Level(config, i, above, config.n_res_blocks, resample))
        self.levels = nn.Sequential(*levels)
        self.middle = _middle(config)
        self.norm_out = group_norm(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 3, padding=1)

    def forward(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, 3|1, Y, X) => (B, channels_out, H, W)."""
        patches = F.pixel_unshuffle(images_BCYX, self.patch_size)
        hidden = self.middle(self.levels(self.conv_in(fast_layout(patches))))
        return norm_silu_conv(self.norm_out, self.conv_out, hidden)


class Decoder(nn.Module):
    """latents => pixels: the middle, then levels from lowest to full resolution. No final tanh or clamp."""

    def __init__(self, config: VQGANNetworks, channels_in: int, image_channels: int) -> None:
        super().__init__()
        widths = config.widths
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(channels_in, widths[-1], 3, padding=1)
        self.middle = _middle(config)
        levels = []
        for i, below in reversed([*enumerate([*widths[1:], widths[-1]])]):
            resample = Upsample(widths[i]) if i > 0 else nn.Identity()
            levels.append(Level(config, i, below, config.n_res_blocks + 1, resample))
        self.levels = nn.Sequential(*levels)
        self.norm_out = group_norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], image_channels * config.patch_size**2, 3, padding=1)

    def forward(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, H, W) => (B, 3|1, Y, X)."""
        latents_BCHW = latents_BCHW.to(self.conv_in.weight.dtype)  # straight from a float32 quantizer they may be finer
        hidden = self.levels(self.middle(self.conv_in(fast_layout(latents_BCHW))))
        return F.pixel_shuffle(norm_silu_conv(self.norm_out, self.conv_out, hidden), self.patch_size)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if the level has any, then resampling."""

    def __init__(self, config: VQGANNetworks, index: int, channels_in: int, n_blocks: int, resample: nn.Module) -> None:
        super().__init__()
        channels, groups = config.widths[index], config.norm_groups
        self.blocks = nn.ModuleList(
            ResidualBlock(one, other, groups=groups, dropout=config.dropout)
            for one, other in pairwise([channels_in] + [channels] * n_blocks)
        )
        attends = index in config.attention_levels
        self.attentions = nn.ModuleList(
            AttentionBlock(channels, groups=groups) if attends else nn.Identity() for _ in range(n_blocks)
        )
        self.resample = resample

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) => (B, C_out, H', W')."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x_BCHW = attention(block(x_BCHW))
        return self.resample(x_BCHW)


def _middle(config: VQGANNetworks) -> nn.Sequential:
    """Residual block, attention, residual block, at the lowest resolution."""
    channels, groups = config.widths[-1], config.norm_groups
    return nn.Sequential(
        ResidualBlock(channels, channels, groups=groups, dropout=config.dropout),
        AttentionBlock(channels, groups=groups) if config.middle_attention else nn.Identity(),
        ResidualBlock(channels, channels, groups=groups, dropout=config.dropout),
    )
