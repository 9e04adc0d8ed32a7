"""A transformer prior in the plainest torch: what the speed of our own is compared with.

The layers, sizes and dropout of ours, written as one would from the papers: a norm, a product, ``torch``'s attention,
``F.dropout``, SwiGLU, rotations of queries and keys by row and column; its loss is ``F.cross_entropy`` on all logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Sizes(NamedTuple):
    """Of the transformer.

    Attributes:
        width, depth, heads, hidden: of the stream, in blocks, of attention, of the feed-forward layer.
        vocab_size: codes, of which ``side`` x ``side`` are an image.
        dropout: share of the embedding, of each layer's output and of the attention weights.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    vocab_size: int
    side: int
    dropout: float


class PlainBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.share = sizes.heads, sizes.dropout
        d_head = sizes.width // sizes.heads
        self.attention_norm, self.feed_forward_norm = _norm(sizes.width), _norm(sizes.width)
        self.q_norm, self.k_norm = _norm(d_head), _norm(d_head)
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)
        self.gate_up = nn.Linear(sizes.width, 2 * sizes.hidden, bias=False)
        self.down = nn.Linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x_BTE: torch.Tensor, turns_TA: torch.Tensor) -> torch.Tensor:
        """(B, T, E) => the same; ``turns_TA`` as complex numbers, A pairs of a head's channels."""
        q, k, v = self.qkv(self.attention_norm(x_BTE)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (_rotate(norm(each), turns_TA) for norm, each in ((self.q_norm, q), (self.k_norm, k)))
        attended = F.scaled_dot_product_attention(q, k, v.to(q.dtype), dropout_p=self.share, is_causal=True)
        x_BTE = x_BTE + F.dropout(self.out(attended.transpose(1, 2).flatten(2)), self.share)
        gate, up = self.gate_up(self.feed_forward_norm(x_BTE)).chunk(2, dim=-1)
        return x_BTE + F.dropout(self.down(F.silu(gate) * up), self.share)


class PlainTransformer(nn.Module):
    """The loss of (B, T) codes; a code before the first stands in for the class."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.share = sizes.dropout
        self.codes = nn.Embedding(sizes.vocab_size, sizes.width)
        self.blocks = nn.ModuleList(PlainBlock(sizes) for _ in range(sizes.depth))
        self.norm = _norm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        self.register_buffer("turns_TA", _turns(sizes.side, sizes.width // sizes.heads), persistent=False)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """The mean loss of the codes."""
        x = F.dropout(self.codes(tokens_BT.roll(1, 1)), self.share)
        for block in self.blocks:
            x = block(x, self.turns_TA)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), tokens_BT.flatten())


def _norm(width: int) -> nn.RMSNorm:
    return nn.RMSNorm(width, eps=1e-5)


def _turns(side: int, d_head: int) -> torch.Tensor:
    """Rotations of each place: half of a head's pairs by its row, half by its column."""
    frequencies = 10000.0 ** (-torch.arange(d_head // 4) / (d_head // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles_TA = torch.cat([place.reshape(-1, 1) * frequencies for place in (rows, columns)], dim=1)
    return torch.polar(torch.ones_like(angles_TA), angles_TA)


def _rotate(x_BNTK: torch.Tensor, turns_TA: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x_BNTK.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns_TA).flatten(-2).to(x_BNTK.dtype)
