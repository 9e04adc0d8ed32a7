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
    """latents => pixels: blocks, then each token a patch. No final tanh or clamp."""

    def __init__(self, config: ViTNetworks, channels_in: int, image_channels: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(channels_in, config.width, 1)
        self.blocks = _blocks(config, config.decoder_layers)
        self.norm_out = nn.LayerNorm(config.width)
        self.conv_out = nn.Conv2d(config.width, image_channels * config.patch_size**2, 1)

    def forward(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, H, W) => (B, 3|1, Y, X)."""
        latents_BCHW = latents_BCHW.to(self.conv_in.weight.dtype)  # straight from a float32 quantizer they may be finer
        hidden = _transformed(self.conv_in(fast_layout(latents_BCHW)), self.blocks, self.norm_out)
        return F.pixel_shuffle(self.conv_out(hidden), self.patch_size)


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
