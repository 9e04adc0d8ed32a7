"""Causal attention of all tokens at once.

On a CPU the library's flash kernel is slow backwards, several times so in bf16, and masks instead of leaving out what
no query can see. Here the scores of a block of queries against the keys up to its end are plain products, kept for
the backward pass, as long as sequences are short enough to keep them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stage2_prior.arithmetic import written_out
from stage2_prior.dropout import KeepMask, draw_keep_mask

_LONGEST = 1024
"""tokens; the kept scores grow with the square"""
_QUERIES = 128
"""queries of one block"""


def causal_attention(
    q_BNTK: torch.Tensor, k_BNTK: torch.Tensor, v_BNTK: torch.Tensor, dropout: float = 0.0
) -> torch.Tensor:
    """softmax(q k' / sqrt(K)) v, each query with the keys up to its own place.

    Args:
        q_BNTK, k_BNTK, v_BNTK: queries, keys and values.
        dropout: share of attention weights that are zeroed.

    Returns:
        (B, N, T, K).
    """
    if written_out(q_BNTK) and q_BNTK.shape[2] <= _LONGEST:
        heads = (each.flatten(0, 1) for each in (q_BNTK, k_BNTK, v_BNTK))
        with torch.autocast("cpu", enabled=False):
            return _CausalAttention.apply(*heads, dropout).view_as(q_BNTK)  # type: ignore[no-any-return]
    return F.scaled_dot_product_attention(q_BNTK, k_BNTK, v_BNTK, dropout_p=dropout, is_causal=True)


class _CausalAttention(torch.autograd.Function):
    """Of M = B * N heads, (M, T, K) each."""

    @staticmethod
    def forward(
        ctx: Any, q_MTK: torch.Tensor, k_MTK: torch.Tensor, v_MTK: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        out_MTK, kept = torch.empty_like(q_MTK), []
        ctx.masks = []
        for start, end in _blocks(q_MTK.shape[1]):
            unseen = torch.full((end - start, end), -torch.inf, dtype=q_MTK.dtype).triu_(start + 1)
            scores = torch.baddbmm(unseen, q_MTK[:, start:end], k_MTK[:, :end].mT, alpha=q_MTK.shape[2] ** -0.5)
            weights = torch.softmax(scores, -1, out=scores)
            mask = draw_keep_mask(weights, dropout) if dropout else None
            out_MTK[:, start:end] = torch.bmm(_masked(weights, mask), v_MTK[:, :end])
            if any(ctx.needs_input_grad):
                kept.append(weights)
                ctx.masks.append(mask)
        ctx.save_for_backward(q_MTK, k_MTK, v_MTK, *kept)
        return out_MTK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_MTK, k_MTK, v_MTK, *kept = ctx.saved_tensors
        to_q, to_k, to_v = torch.empty_like(q_MTK), torch.zeros_like(k_MTK), torch.zeros_like(v_MTK)
        for (start, end), weights, mask in zip(_blocks(q_MTK.shape[1]), kept, ctx.masks, strict=True):
            to_out = gradient[:, start:end]
            to_v[:, :end] += torch.bmm(_masked(weights, mask).mT, to_out)
            to_weights = _masked(torch.bmm(to_out, v_MTK[:, :end].mT), mask)
            to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            to_q[:, start:end] = torch.bmm(to_scores, k_MTK[:, :end])
            to_k[:, :end] += torch.bmm(to_scores.mT, q_MTK[:, start:end])
        scale = q_MTK.shape[2] ** -0.5
        return to_q.mul_(scale), to_k.mul_(scale), to_v, None


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _QUERIES, length)) for start in range(0, length, _QUERIES)]


def _masked(x: torch.Tensor, mask: KeepMask | None) -> torch.Tensor:
    return x if mask is None else mask.apply(x)
