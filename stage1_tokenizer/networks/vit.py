"""Transformers over patches of pixels as encoder and decoder; nearly all of the work is products of matrices.

Sources: Yu et al. 2022, arXiv:2110.04627, section 3.1 (patches in, patches out); He et al. 2022, arXiv:2111.06377,
appendix A.1 (fixed sines and cosines for rows and columns).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from foundation.training.linear import Linear
from foundation.training.muon import hidden_matrix
from stage1_tokenizer.networks.blocks import attend, fast_layout
from stage1_tokenizer.networks.config import ViTNetworks
from stage1_tokenizer.networks.recompute import Block

_BASE = 100.0
"""the longest wavelength is 2 pi times it, in patches"""
_AMPLITUDE = 0.5


class ViTEncoder(nn.Module):
    """pixels => latents: each patch a token, then blocks."""

    def __init__(self, config: ViTNetworks, image_channels: int, channels_out: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(image_channels * config.patch_size**2, config.width, 1)
        self.blocks = _blocks(config, config.encoder_layers)
        self.norm_out = nn.LayerNorm(config.width)
        self.conv_out = nn.Conv2d(config.width, channels_out, 1)

    def forward(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, 3|1, Y, X) => (B, channels_out, H, W)."""
        hidden = self.conv_in(fast_layout(F.pixel_unshuffle(images_BCYX, self.patch_size)))
        latents: torch.Tensor = self.conv_out(_transformed(hidden, self.blocks, self.norm_out))
        return latents


class ViTDecoder(nn.Module):
    """latents => pixels: blocks, then each token a patch, or one of twice the side. No final tanh or clamp."""

    def __init__(self, config: ViTNetworks, channels_in: int, image_channels: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(channels_in, config.width, 1)
        self.blocks = _blocks(config, config.decoder_layers)
        self.norm_out = nn.LayerNorm(config.width)
        self.overlap = config.overlap
        n_parts = 4 if config.overlap else 1
        self.conv_out = nn.Conv2d(config.width, n_parts * image_channels * config.patch_size**2, 1)

    def forward(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, H, W) => (B, 3|1, Y, X)."""
        latents_BCHW = latents_BCHW.to(self.conv_in.weight.dtype)  # straight from a float32 quantizer they may be finer
        hidden = _transformed(self.conv_in(fast_layout(latents_BCHW)), self.blocks, self.norm_out)
        patches = self.conv_out(hidden)
        return overlapped(patches, self.patch_size) if self.overlap else F.pixel_shuffle(patches, self.patch_size)


def overlapped(patches: torch.Tensor, side: int) -> torch.Tensor:
    """Blocks of twice the side around each place of a grid, their weighted mean where they overlap.

    Weights fall linearly from a block's centre to its border.

    Args:
        patches: (B, 4 * C * side^2, H, W): upper left, upper right, lower left and lower right quarter of each block.
        side: of a place in pixels, even.

    Returns:
        (B, C, H * side, W * side).
    """
    n_rows, n_columns = (n * side for n in patches.shape[2:])
    rising = (torch.arange(side, dtype=patches.dtype, device=patches.device) + 0.5) / side
    weights_2S = torch.stack([rising, rising.flip(0)])
    total, covered = None, None
    for i, quarter in enumerate(patches.chunk(4, 1)):
        down, across = weights_2S[i // 2].repeat(n_rows // side), weights_2S[i % 2].repeat(n_columns // side)
        weight_YX = down.unsqueeze(1) * across
        around = (i % 2 * side, (1 - i % 2) * side, i // 2 * side, (1 - i // 2) * side)
        drawn, weight_YX = F.pad(F.pixel_shuffle(quarter, side) * weight_YX, around), F.pad(weight_YX, around)
        total = drawn if total is None else total + drawn
        covered = weight_YX if covered is None else covered + weight_YX
    assert total is not None and covered is not None
    inner = (slice(side // 2, side // 2 + n_rows), slice(side // 2, side // 2 + n_columns))
    return total[:, :, *inner] / covered[inner]


class ViTBlock(Block):
    """Attention over all tokens, then two layers on each; norms before them, the input added after them.

    The last matrices start at zero, so that every block starts as its input.
    """

    def __init__(self, width: int, *, n_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.attention_out = Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = Linear(width, mlp_ratio * width)
        self.mlp_out = Linear(mlp_ratio * width, width)
        hidden_matrix(self.qkv.weight, n_stacked=3)
        for layer in (self.attention_out, self.mlp_in, self.mlp_out):
            hidden_matrix(layer.weight)
        for layer in (self.attention_out, self.mlp_out):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.mlp_out.bias)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """(B, T, C) => (B, T, C)."""
        heads_B3HTD = self.qkv(self.attention_norm(x_BTC)).unflatten(2, (3, self.n_heads, -1)).permute(0, 2, 3, 1, 4)
        attended_BHTD = attend(*heads_B3HTD.unbind(1))
        x_BTC = x_BTC + self.attention_out(attended_BHTD.transpose(1, 2).flatten(2))
        out: torch.Tensor = x_BTC + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x_BTC)), approximate="tanh"))
        return out


def _blocks(config: ViTNetworks, n_layers: int) -> nn.Sequential:
    settings = {"n_heads": config.n_heads, "mlp_ratio": config.mlp_ratio}
    return nn.Sequential(*(ViTBlock(config.width, **settings) for _ in range(n_layers)))


def _transformed(hidden_BCHW: torch.Tensor, blocks: nn.Sequential, norm: nn.LayerNorm) -> torch.Tensor:
    """Blocks and a norm over the positions of a grid, whose place is added before."""
    height, width = hidden_BCHW.shape[2:]
    tokens_BTC = hidden_BCHW.flatten(2).transpose(1, 2)
    tokens_BTC = tokens_BTC + positions(height, width, hidden_BCHW.shape[1], hidden_BCHW.device).to(hidden_BCHW.dtype)
    out: torch.Tensor = norm(blocks(tokens_BTC)).transpose(1, 2).unflatten(2, (height, width))
    return out


def positions(height: int, width: int, channels: int, device: torch.device | None = None) -> torch.Tensor:
    """(height * width, channels): sines and cosines of row and column, a fourth of the channels each.

    Args:
        height, width: of the grid.
        channels: a multiple of 4.
        device: where they are computed.
    """
    n_waves = channels // 4
    waves_F = _BASE ** -(torch.arange(n_waves, device=device, dtype=torch.float32) / n_waves)
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) for n in (height, width))
    places_2T = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)
    angles_2TF = places_2T[..., None] * waves_F
    return _AMPLITUDE * torch.cat([*angles_2TF.sin(), *angles_2TF.cos()], 1)
