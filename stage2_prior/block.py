"""The transformer block: normalised attention, then a normalised feed-forward layer, each added to its input.

Two kinds: that of Llama (Touvron et al. 2023, arXiv:2302.13971, section 2.2) and that of GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from stage2_prior.attention import causal_attention
from stage2_prior.config import PriorConfig
from stage2_prior.dropout import Dropout
from stage2_prior.heads import Heads, split_heads
from stage2_prior.norm import LayerNorm, RMSNorm
from stage2_prior.positions import Rope
from stage2_prior.swiglu import swiglu


class Attention(nn.Module):
    """Causal attention with rotated queries and keys."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        _, self.n_heads, d_model = config.shape
        self.dropout, biased = config.dropouts.attention, config.block == "gpt"
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=biased)
        self.out = nn.Linear(d_model, d_model, bias=biased)
        self.q_norm = RMSNorm(config.d_head) if config.qk_norm else None
        self.k_norm = RMSNorm(config.d_head) if config.qk_norm else None

    def forward(self, x_BTE: torch.Tensor, rope: Rope | None) -> torch.Tensor:
        """All tokens at once, each attending to itself and those before it."""
        return self._merge(causal_attention(*self._heads(x_BTE, rope), self.dropout if self.training else 0.0))

    def _heads(self, x_BTE: torch.Tensor, rope: Rope | None) -> Heads:
        norms = None if self.q_norm is None or self.k_norm is None else (self.q_norm.weight, self.k_norm.weight)
        return split_heads(self.qkv(x_BTE), self.n_heads, norms, rope)

    def _merge(self, x_BNTK: torch.Tensor) -> torch.Tensor:
        return self.out(x_BNTK.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        d_model = config.shape.d_model
        self.gate_up = nn.Linear(d_model, 2 * config.feed_forward_width, bias=False)
        self.down = nn.Linear(config.feed_forward_width, d_model, bias=False)

    def forward(self, x_BTE: torch.Tensor) -> torch.Tensor:
        """(B, T, E) => (B, T, E)."""
        return self.down(swiglu(self.gate_up(x_BTE)))


class GELUFeedForward(nn.Module):
    """down(gelu(up(x))), with biases and the exact GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        d_model = config.shape.d_model
        self.up = nn.Linear(d_model, config.feed_forward_width)
        self.down = nn.Linear(config.feed_forward_width, d_model)

    def forward(self, x_BTE: torch.Tensor) -> torch.Tensor:
        """(B, T, E) => (B, T, E)."""
        return self.down(F.gelu(self.up(x_BTE)))


def stream_norm(config: PriorConfig) -> RMSNorm | LayerNorm:
    """The norm of the residual stream, before each layer and before the head."""
    kind = LayerNorm if config.block == "gpt" else RMSNorm
    return kind(config.shape.d_model)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.attention_norm = stream_norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = stream_norm(config)
        self.feed_forward = GELUFeedForward(config) if config.block == "gpt" else FeedForward(config)
        self.dropout = Dropout(config.dropouts.residual)

    def forward(self, x_BTE: torch.Tensor, rope: Rope | None) -> torch.Tensor:
        """All tokens at once."""
        x_BTE = x_BTE + self.dropout(self.attention(self.attention_norm(x_BTE), rope))
        return x_BTE + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTE)))

    def initialize(self, std: float, n_layers: int) -> None:
        """Normal weights, no biases; the two outputs into the residual stream are scaled down by the model's depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for output in (self.attention.out, self.feed_forward.down):
            nn.init.normal_(output.weight, std=std / (2 * n_layers) ** 0.5)
