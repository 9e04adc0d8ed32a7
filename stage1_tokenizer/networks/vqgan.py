"""The convolutional encoder; ``decoder.py`` is its mirror image.

The convolutional decoder; ``encoder.py`` is its mirror image.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from stage1_tokenizer.networks.blocks import Downsample, Level, Upsample, fast_layout, group_norm, middle
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.networks.fused_norm import norm_silu_conv


class Encoder(nn.Module):
    """pixels => latents: levels from full to lowest resolution, then the middle."""

    def __init__(self, config: VQGANNetworks, image_channels: int, channels_out: int) -> None:
        super().__init__()
        widths, groups, dropout = config.widths, config.norm_groups, config.dropout
        last = len(widths) - 1
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(image_channels * config.patch_size**2, config.base_width, 3, padding=1)
        self.levels = nn.Sequential(
            *(
                Level(
                    config.base_width if i == 0 else widths[i - 1],
                    width,
                    n_blocks=config.n_res_blocks,
                    attention=i in config.attention_levels,
                    resample=Downsample(width) if i < last else None,
                    groups=groups,
                    dropout=dropout,
                )
                for i, width in enumerate(widths)
            )
        )
        self.middle = middle(widths[-1], attention=config.middle_attention, groups=groups, dropout=dropout)
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
        widths, groups, dropout = config.widths, config.norm_groups, config.dropout
        last = len(widths) - 1
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(channels_in, widths[-1], 3, padding=1)
        self.middle = middle(widths[-1], attention=config.middle_attention, groups=groups, dropout=dropout)
        self.levels = nn.Sequential(
            *(
                Level(
                    widths[min(i + 1, last)],
                    widths[i],
                    n_blocks=config.n_res_blocks + 1,
                    attention=i in config.attention_levels,
                    resample=Upsample(widths[i]) if i > 0 else None,
                    groups=groups,
                    dropout=dropout,
                )
                for i in reversed(range(len(widths)))
            )
        )
        self.norm_out = group_norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], image_channels * config.patch_size**2, 3, padding=1)

    def forward(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, H, W) => (B, 3|1, Y, X)."""
        latents_BCHW = latents_BCHW.to(self.conv_in.weight.dtype)  # straight from a float32 quantizer they may be finer
        hidden = self.levels(self.middle(self.conv_in(fast_layout(latents_BCHW))))
        return F.pixel_shuffle(norm_silu_conv(self.norm_out, self.conv_out, hidden), self.patch_size)
