"""From the joint projection to the queries, keys and values of each head: split, normalise, rotate.

Normalised queries and keys: Dehghani et al. 2023, arXiv:2302.05442, section 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stage2_prior.arithmetic import sum_type, written_out
from stage2_prior.norm import EPSILON, normalize_, normalize_backward_
from stage2_prior.positions import Rope, rotate, rotate_

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def split_heads(
    qkv_BTF: torch.Tensor, n_heads: int, norms_K: tuple[torch.Tensor, torch.Tensor] | None, rope: Rope | None
) -> Heads:
    """Queries, keys and values, each (B, N, T, K).

    Args:
        qkv_BTF: the projections of all heads, F = 3 * N * K: queries, then keys, then values.
        n_heads: N.
        norms_K: the weights by which normalised queries and keys are multiplied; None to leave them as they are.
        rope: rotations of the T tokens; None to leave them as they are.
    """
    if written_out(qkv_BTF):
        q_weight, k_weight = norms_K or (None, None)
        return _SplitHeads.apply(qkv_BTF, n_heads, q_weight, k_weight, rope)  # type: ignore[no-any-return]
    q, k, v = qkv_BTF.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, T, 3, N, K) => 3 of (B, N, T, K)
    if norms_K is not None:
        q, k = (_normed(x, weight) for x, weight in zip((q, k), norms_K, strict=True))
    return (q, k, v) if rope is None else (rotate(q, rope), rotate(k, rope), v)


def _normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x.float(), weight.shape, weight.float(), EPSILON).to(x.dtype)


class _SplitHeads(torch.autograd.Function):
    """Queries and keys go through norm and rotation together, in one buffer (2, B, N, T, K) of float32."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv_BTF: torch.Tensor,
        n_heads: int,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
        rope: Rope | None,
    ) -> Heads:
        qkv = qkv_BTF.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, N, T, K)
        both, inverse = _copy(qkv[:2]), None
        if q_weight is not None and k_weight is not None:
            inverse = normalize_(both)
            both.mul_(torch.stack([q_weight, k_weight]).view(2, 1, 1, 1, -1))
        if rope is not None:
            rotate_(both, rope)
        ctx.rope, ctx.n_heads, ctx.shape = rope, n_heads, qkv_BTF.shape
        ctx.save_for_backward(q_weight, k_weight, inverse, None if inverse is None else qkv_BTF)
        q, k = both.to(qkv_BTF.dtype)
        return q, k, qkv[2].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_q: torch.Tensor, to_k: torch.Tensor, to_v: torch.Tensor) -> tuple[Any, ...]:
        q_weight, k_weight, inverse, qkv_BTF = ctx.saved_tensors
        to_both = to_q.new_empty((2, *to_q.shape), dtype=sum_type(to_q.dtype))
        to_both[0], to_both[1] = to_q, to_k
        if ctx.rope is not None:
            rotate_(to_both, ctx.rope, back=True)
        to_weights: tuple[Any, Any] = (None, None)
        if inverse is not None:
            normed = _copy(qkv_BTF.unflatten(-1, (3, ctx.n_heads, -1)).permute(2, 0, 3, 1, 4)[:2]).mul_(inverse)
            rows, rows_normed, rows_inverse = (each.flatten(1, 3) for each in (to_both, normed, inverse))
            weights_2K = torch.stack([q_weight, k_weight]).to(normed.dtype)
            to_weights = tuple(normalize_backward_(rows, rows_normed, rows_inverse, weights_2K).to(q_weight.dtype))
        to_qkv_BTF = to_q.new_empty(ctx.shape)
        to_qkv = to_qkv_BTF.unflatten(-1, (3, ctx.n_heads, -1)).permute(2, 0, 3, 1, 4)
        to_qkv[:2], to_qkv[2] = to_both, to_v
        return to_qkv_BTF, None, *to_weights, None


def _copy(x: torch.Tensor) -> torch.Tensor:
    """In contiguous memory, float32 where x has 16 bits."""
    return x.new_empty(x.shape, dtype=sum_type(x.dtype)).copy_(x)
