"""The transformer block in plain formulas: normalised attention, then a normalised feed-forward layer, each residual.

Two kinds: that of Llama (Touvron et al. 2023, arXiv:2302.13971, section 2.2) and that of GPT-2 (Radford et al. 2019).
On a CPU ``cpu_kernels.py`` computes some of the same formulas, where ``use_cpu_kernels`` says so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from foundation.training.linear import Linear
from foundation.training.muon import hidden_matrix
from foundation.training.optim import no_decay
from stage2_prior import cpu_kernels
from stage2_prior.config import PriorConfig
from stage2_prior.cpu_kernels import EPSILON, Heads, product_type, sum_type, use_cpu_kernels
from stage2_prior.positions import Rope, rotate


class RMSNorm(nn.Module):
    """x / rms(x) * weight in float32, returned in the type of the products that follow.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = no_decay(nn.Parameter(torch.ones(width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) => the same."""
        weight = self.weight
        kind = product_type(x, weight.dtype)
        drawing = use_cpu_kernels(x) and not torch.is_grad_enabled()
        return cpu_kernels.rms_norm(x, weight, kind) if drawing else _rms_norm(x, weight, kind)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight + bias in float32, returned in the type of the products that follow.

    Source: Ba et al. 2016, arXiv:1607.06450, Eq. 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = no_decay(nn.Parameter(torch.ones(width)))
        self.bias = no_decay(nn.Parameter(torch.zeros(width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) => the same."""
        wide = sum_type(x.dtype)
        normed = F.layer_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.bias.to(wide), EPSILON)
        return normed.to(product_type(x, self.weight.dtype))


class Dropout(nn.Module):
    """Zero a share of the values in training and scale the rest (Srivastava et al. 2014); nothing in evaluation.

    Args:
        share: 0 to below 1.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape => the same."""
        if not self.training or self.share == 0:
            return x
        return cpu_kernels.dropout(x, self.share) if use_cpu_kernels(x) else F.dropout(x, self.share)


def split_heads(
    qkv_BTF: torch.Tensor, n_heads: int, norms_K: tuple[torch.Tensor, torch.Tensor] | None, rope: Rope | None
) -> Heads:
    """Queries, keys and values of each head: split, normalise and rotate queries and keys.

    Source: normalised queries and keys: Dehghani et al. 2023, arXiv:2302.05442, section 2.

    Args:
        qkv_BTF: F = 3 * N * K: queries, then keys, then values of all heads.
        n_heads: N.
        norms_K: weights of the norms of queries and keys; None for no norms.
        rope: rotations of the T tokens; None for none.

    Returns:
        three of (B, N, T, K).
    """
    if use_cpu_kernels(qkv_BTF):
        return cpu_kernels.split_heads(qkv_BTF, n_heads, norms_K, rope)
    q, k, v = qkv_BTF.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, T, 3, N, K) => 3 of (B, N, T, K)
    if norms_K is not None:
        q, k = (_rms_norm(x, weight, x.dtype) for x, weight in zip((q, k), norms_K, strict=True))
    return (q, k, v) if rope is None else (rotate(q, rope), rotate(k, rope), v)


class LayerCache(NamedTuple):
    """Keys and values of one block's earlier inputs, and where new ones belong.

    Attributes:
        keys_BNTK, values_BNTK: memory of the T inputs that may be attended to, the new ones included.
        new: the memory of the Q new inputs' keys and values, (2, B, N, Q, K); or their positions among the T, int64
            (Q,).
        mask_QT: which of the T each new input attends to, bool; None for all.
        causal: whether there are no earlier inputs, so that each new one attends to those up to itself.
    """

    keys_BNTK: torch.Tensor
    values_BNTK: torch.Tensor
    new: torch.Tensor
    mask_QT: torch.Tensor | None
    causal: bool

    def attend(self, q_BNQK: torch.Tensor, k_BNQK: torch.Tensor, v_BNQK: torch.Tensor) -> torch.Tensor:
        """Append keys and values; each query's mean of the values it attends to, (B, N, Q, K)."""
        keys, values, new, _, _ = self
        if new.ndim == 1:
            keys.index_copy_(2, new, k_BNQK.to(keys.dtype))
            values.index_copy_(2, new, v_BNQK.to(keys.dtype))
        else:
            new[0].copy_(k_BNQK)
            new[1].copy_(v_BNQK)
        return self.attended(q_BNQK)

    def attended(self, q_BNQK: torch.Tensor) -> torch.Tensor:
        """As ``attend``, where the keys and values of the new inputs are in the memory."""
        keys, values, _, mask_QT, causal = self
        q, dtype = q_BNQK.to(keys.dtype), q_BNQK.dtype
        if keys.dtype == torch.float32 and q.shape[2] == 1 and mask_QT is None and use_cpu_kernels(q):
            return cpu_kernels.attend_once(q, keys, values, exactly=dtype.itemsize < 4).to(dtype)
        return F.scaled_dot_product_attention(q, keys, values, mask_QT, is_causal=causal).to(dtype)


def attention(
    q_BNTK: torch.Tensor, k_BNTK: torch.Tensor, v_BNTK: torch.Tensor, dropout: float = 0.0, *, causal: bool = True
) -> torch.Tensor:
    """softmax(q k' / sqrt(K)) v; ``dropout`` of the weights. Causal: each query with the keys up to its own position.

    (B, N, T, K) => the same.
    """
    if use_cpu_kernels(q_BNTK) and q_BNTK.shape[2] <= cpu_kernels.LONGEST_ATTENTION:
        return cpu_kernels.attention(q_BNTK, k_BNTK, v_BNTK, dropout, causal)
    return F.scaled_dot_product_attention(q_BNTK, k_BNTK, v_BNTK, dropout_p=dropout, is_causal=causal)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up; (..., 2 F), the gates first => (..., F). Source: Shazeer 2020, arXiv:2002.05202, Eq. 6."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate = F.silu(gate)
    return gate * up if torch.is_grad_enabled() else gate.mul_(up)


class Attention(nn.Module):
    """Attention with rotated queries and keys, causal but for a masked prior."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        _, self.n_heads, d_model = config.shape
        self.dropout, biased = config.dropouts.attention, config.block == "gpt"
        self.causal = config.order != "masked"
        self.qkv = Linear(d_model, 3 * d_model, bias=biased)
        self.out = Linear(d_model, d_model, bias=biased)
        hidden_matrix(self.qkv.weight, 3)
        hidden_matrix(self.out.weight)
        self.q_norm = RMSNorm(config.d_head) if config.qk_norm else None
        self.k_norm = RMSNorm(config.d_head) if config.qk_norm else None

    def forward(self, x_BTE: torch.Tensor, rope: Rope | None, cache: LayerCache | None = None) -> torch.Tensor:
        """Each token attends to itself and those before it, or all; with a cache, to those in it too."""
        norms = None if self.q_norm is None or self.k_norm is None else (self.q_norm.weight, self.k_norm.weight)
        q, k, v = split_heads(self.qkv(x_BTE), self.n_heads, norms, rope)
        if cache is not None:
            attended_BNTK = cache.attend(q, k, v)
        else:
            attended_BNTK = attention(q, k, v, self.dropout if self.training else 0.0, causal=self.causal)
        return self.out(attended_BNTK.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        d_model = config.shape.d_model
        self.gate_up = Linear(d_model, 2 * config.feed_forward_width, bias=False)
        self.down = Linear(config.feed_forward_width, d_model, bias=False)
        hidden_matrix(self.gate_up.weight, 2)
        hidden_matrix(self.down.weight)

    def forward(self, x_BTE: torch.Tensor) -> torch.Tensor:
        """(B, T, E) => (B, T, E)."""
        return self.down(swiglu(self.gate_up(x_BTE)))


class GELUFeedForward(nn.Module):
    """down(gelu(up(x))), with biases and the exact GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        d_model = config.shape.d_model
        self.up = Linear(d_model, config.feed_forward_width)
        self.down = Linear(config.feed_forward_width, d_model)
        hidden_matrix(self.up.weight)
        hidden_matrix(self.down.weight)

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

    def forward(self, x_BTE: torch.Tensor, rope: Rope | None, cache: LayerCache | None = None) -> torch.Tensor:
        """Tokens that follow those in the cache, or all tokens."""
        x_BTE = x_BTE + self.dropout(self.attention(self.attention_norm(x_BTE), rope, cache))
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

    def zero_outputs(self) -> None:
        """Make the two outputs into the residual stream zero, so that the block is the identity (arXiv:1706.02677,
        section 5.1, for convolutional networks).
        """
        for output in (self.attention.out, self.feed_forward.down):
            nn.init.zeros_(output.weight)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    wide = sum_type(x.dtype)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), EPSILON).to(kind)
