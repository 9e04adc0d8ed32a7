"""Building blocks of the VQGAN family's encoder and decoder.

Source: Esser, Rombach and Ommer 2021, arXiv:2012.09841, appendix A; Ho et al. 2020, arXiv:2006.11239, appendix B.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from stage1_tokenizer.networks.fused_norm import norm_silu_conv, type_of_products
from stage1_tokenizer.networks.recompute import Block

_CHANNELS_FIRST = "mps"
"""the device whose convolutions want no other layout"""
_FEW_TOKENS = 256
"""up to here the T x T matrix of attention scores is small beside the activations"""


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the family's epsilon of 1e-6."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


def fast_layout(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Memory layout of the networks: channels last where convolutions are faster in it.

    That is a CPU, and the 16-bit products of a GPU, which would otherwise transpose around each convolution.
    """
    device = x_BCHW.device.type
    fast = device == "cpu" or (type_of_products(x_BCHW).itemsize == 2 and device != _CHANNELS_FIRST)
    return x_BCHW.contiguous(memory_format=torch.channels_last) if fast else x_BCHW


class ResidualBlock(Block):
    """norm, swish, 3 x 3 convolution, twice; plus the input, projected by 1 x 1 when the channels change.

    The second kernel starts at zero, so that every block starts as its shortcut (Goyal et al. 2017, arXiv:1706.02677,
    section 5.1): short trainings gain 1 dB.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, groups: int, dropout: float, conv_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=conv_bias)
        self.norm2 = group_norm(channels_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=conv_bias)
        nn.init.zeros_(self.conv2.weight)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, bias=conv_bias)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) => (B, C_out, H, W)."""
        hidden = norm_silu_conv(self.norm1, self.conv1, x_BCHW)
        if self.training and self.dropout.p > 0:
            hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        else:
            hidden = norm_silu_conv(self.norm2, self.conv2, hidden)
        return self.shortcut(x_BCHW) + hidden


class AttentionBlock(Block):
    """One head of attention over all positions, plus the input."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) => (B, C, H, W)."""
        normed = self.norm(x_BCHW)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = attend(q, k, v).transpose(1, 2).unflatten(2, x_BCHW.shape[2:])
        return x_BCHW + self.proj_out(attended)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of (..., T, C) queries, keys and values over all T; the leading axes are one batch or batch and heads.

    The library's fused backward on a CPU is 3 to 4 times slower for few tokens.
    """
    if q.device.type != "cpu" or q.shape[-2] > _FEW_TOKENS:
        one_head = q.dim() == 3
        q, k, v = (each[:, None] if one_head else each for each in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return attended[:, 0] if one_head else attended
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype) @ v


class Downsample(nn.Module):
    """Halve the resolution by a strided 3 x 3 convolution that is padded right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) => (B, C, H/2, W/2)."""
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a 3 x 3 convolution.

    Computed as one transposed convolution, which reads each input pixel once instead of four equal copies: 4 products
    per output and channel instead of 9, and the large repeated image is never stored.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) => (B, C, 2H, 2W)."""
        assert self.conv.bias is not None
        upsampled = F.conv_transpose2d(x_BCHW, _transposed_kernel(self.conv.weight), stride=2, padding=1)
        # The bias is added separately: inside, its gradient takes as long as image's and kernel's together.
        return upsampled + self.conv.bias[:, None, None].to(upsampled.dtype)


def _transposed_kernel(kernel_OI33: torch.Tensor) -> torch.Tensor:
    """(O, I, 3, 3) => (I, O, 4, 4): of stride 2, it does what the kernel does after each pixel was doubled."""
    flipped = kernel_OI33.flip(2, 3)
    wide = F.pad(flipped, (0, 1)) + F.pad(flipped, (1, 0))
    kernel_OI44 = F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))
    return kernel_OI44.transpose(0, 1)
