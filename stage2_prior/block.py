"""The transformer block: RMSNorm, rotary attention, SwiGLU.

Sources: RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4; SwiGLU: Shazeer 2020, arXiv:2002.05202, Eq. 6;
normalised queries and keys: Dehghani et al. 2023, arXiv:2302.05442, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from foundation.optim import no_decay
from stage2_prior.config import PriorConfig
from stage2_prior.places import Places
from stage2_prior.rope2d import rotate

_EPSILON = 1e-5


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = no_decay(nn.Parameter(torch.ones(width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) => the same."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, _EPSILON).to(x.dtype)


@dataclass
class KVCache:
    """Keys and values of the tokens so far, one buffer per layer.

    >>> cache = KVCache.empty(n_layers=1, batch=2, n_heads=1, length=3, d_head=4)
    >>> k, v = cache.append(0, torch.ones(2, 1, 1, 4), torch.ones(2, 1, 1, 4))
    >>> k.shape
    torch.Size([2, 1, 1, 4])

    ``filled`` is the number of tokens held; the model advances it once all layers have appended. ``places`` are those
    of all tokens to come: kept here, so that a step need not compute its own.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    places: Places | None = None
    filled: int = 0

    @classmethod
    def empty(
        cls,
        *,
        n_layers: int,
        batch: int,
        n_heads: int,
        length: int,
        d_head: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        places: Places | None = None,
    ) -> KVCache:
        """Room for ``length`` tokens."""
        shape = (batch, n_heads, length, d_head)
        keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(n_layers)]
        return cls(keys, [torch.empty_like(each) for each in keys], places)

    def append(self, layer: int, k_BNTK: torch.Tensor, v_BNTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens of one layer; returns all keys and values of that layer so far (views)."""
        end = self.filled + k_BNTK.shape[2]
        self.keys[layer][:, :, self.filled : end] = k_BNTK
        self.values[layer][:, :, self.filled : end] = v_BNTK
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class Attention(nn.Module):
    """Causal attention with rotated queries and keys."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.n_heads, self.d_head, self.dropout = config.n_heads, config.d_head, config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.q_norm = RMSNorm(config.d_head) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.d_head) if config.qk_norm else nn.Identity()

    def forward(self, x_BTE: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """All tokens at once, each attending to itself and those before it."""
        q, k, v = self._project(x_BTE, rope)
        dropout = self.dropout if self.training else 0.0
        return self._merge(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True))

    def extend(
        self, x_BTE: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], cache: KVCache, layer: int
    ) -> torch.Tensor:
        """New tokens that attend to the cache and, causally, to each other."""
        q, k, v = self._project(x_BTE, rope)
        keys, values = cache.append(layer, k, v)
        if q.shape[2] == 1:
            return self._merge(F.scaled_dot_product_attention(q, keys, values))
        assert cache.filled == 0, "several tokens are only accepted into an empty cache"
        return self._merge(F.scaled_dot_product_attention(q, keys, values, is_causal=True))

    def _project(self, x_BTE: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        qkv = self.qkv(x_BTE).unflatten(-1, (3, self.n_heads, self.d_head))  # (B, T, 3, N, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, N, T, K)
        return rotate(self.q_norm(q), *rope), rotate(self.k_norm(k), *rope), v

    def _merge(self, x_BNTK: torch.Tensor) -> torch.Tensor:
        return self.out(x_BNTK.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.feed_forward_width, bias=False)
        self.down = nn.Linear(config.feed_forward_width, config.d_model, bias=False)

    def forward(self, x_BTE: torch.Tensor) -> torch.Tensor:
        """(B, T, E) => (B, T, E)."""
        gate, up = self.gate_up(x_BTE).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTE: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """All tokens at once."""
        x_BTE = x_BTE + self.dropout(self.attention(self.attention_norm(x_BTE), rope))
        return x_BTE + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTE)))

    def initialize(self, std: float, n_layers: int) -> None:
        """Normal weights; the two outputs into the residual stream are scaled down by the depth of the model."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
        for output in (self.attention.out, self.feed_forward.down):
            nn.init.normal_(output.weight, std=std / (2 * n_layers) ** 0.5)

    def extend(
        self, x_BTE: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], cache: KVCache, layer: int
    ) -> torch.Tensor:
        """New tokens after those in the cache; no dropout."""
        x_BTE = x_BTE + self.attention.extend(self.attention_norm(x_BTE), rope, cache, layer)
        return x_BTE + self.feed_forward(self.feed_forward_norm(x_BTE))
