"""The convolutional decoder; ``encoder.py`` is its mirror image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from stage1_tokenizer.blocks import Level, Upsample, fast_layout, group_norm, middle
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.fused_norm import norm_silu_conv
from stage1_tokenizer.networks import DecoderNetwork


class Decoder(DecoderNetwork):
    """latents => pixels: the middle, then levels from lowest to full resolution. No final tanh or clamp."""

    def __init__(self, config: TokenizerConfig, image_channels: int) -> None:
        super().__init__()
        widths = [config.base_width * multiplier for multiplier in config.width_multipliers]
        groups, dropout = config.norm_groups, config.dropout
        last = len(widths) - 1
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
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
        """(B, latent_channels, H, W) => (B, 3|1, Y, X)."""
        latents_BCHW = latents_BCHW.to(self.conv_in.weight.dtype)  # straight from a float32 quantizer they may be finer
        hidden = self.levels(self.middle(self.conv_in(fast_layout(latents_BCHW))))
        return F.pixel_shuffle(norm_silu_conv(self.norm_out, self.conv_out, hidden), self.patch_size)
