"""CPU kernels of the transformer block: formulas of ``block.py``, and in which types they run.

On a GPU and under ``torch.compile`` the plain formulas are fast. On a CPU the library's backward passes of attention
and of normalised, rotated heads move several times the memory that they need; each step here keeps little and
recomputes the rest. ``scripts/bench_kernels.py`` measures what each gives. Norms are here for drawing alone, where an
operation of the library costs as much as what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stage2_prior.positions import Rope

EPSILON = 1e-5
"""of all norms"""
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
LONGEST_ATTENTION = 1024
"""tokens; the weights that ``attention`` keeps grow with the square"""
_QUERIES = 128
"""queries of one block of attention"""
_MANY_QUERIES = 48
"""rows times heads, from which on plain products are faster for one query each"""
_LEVELS = 1 << 16
"""of a dropout mask's random numbers"""


def use_cpu_kernels(x: torch.Tensor) -> bool:
    """Whether the block computes x with the kernels of this file instead of the plain formulas."""
    return x.is_cpu and not torch.compiler.is_compiling()


def product_type(x: torch.Tensor, otherwise: torch.dtype | None = None) -> torch.dtype:
    """The type of matrix products on x: autocast's where autocast is on, else that of x, or a given one."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else otherwise or x.dtype


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The type of sums and of functions such as exp: float32 for types of 16 bits."""
    return torch.float32 if dtype.itemsize < 4 else dtype


@dataclass(frozen=True)
class KeepMask:
    """Dropout mask of a tensor.

    Attributes:
        kept: int8, 1 or 0.
        scale: factor of the kept values, so that the mean stays.
    """

    kept: torch.Tensor
    scale: float

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros, and scaled values."""
        narrow = x.dtype.itemsize < 4  # products of mixed types are fast in bf16 only
        return (x * (self.kept if narrow else self.kept.to(x.dtype))).mul_(self.scale)


def sample_keep_mask(x: torch.Tensor, share: float) -> KeepMask:
    """A mask for a tensor on the CPU, from torch's global generator; ``share`` of it is zero.

    One random number per value costs more than the rest of a layer. Here 64 random bits decide four values by 16 bits
    each, so that shares are multiples of 1 / 65,536.
    """
    n_dropped = round(share * _LEVELS)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = bits.view(torch.int16)[: x.numel()].view(x.shape)
    kept = (levels >= n_dropped - _LEVELS // 2).view(torch.int8)
    return KeepMask(kept, _LEVELS / (_LEVELS - n_dropped))


def dropout(x: torch.Tensor, share: float) -> torch.Tensor:
    """Zero a share of the values and scale the rest."""
    return sample_keep_mask(x, share).apply(x)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """X / rms(x) * weight, computed in 32 bits or more, as ``kind``; without gradients."""
    wide = x if x.dtype == torch.float32 else x.to(sum_type(x.dtype))
    normed = (wide * _inverse_rms(wide)).mul_(weight)
    return normed if kind == normed.dtype else normed.to(kind)


def split_heads(
    qkv_BTF: torch.Tensor, n_heads: int, norms_K: tuple[torch.Tensor, torch.Tensor] | None, rope: Rope | None
) -> Heads:
    """As ``block.split_heads``."""
    q_weight, k_weight = norms_K or (None, None)
    if torch.is_grad_enabled():
        return _SplitHeads.apply(qkv_BTF, n_heads, q_weight, k_weight, rope)  # type: ignore[no-any-return]
    return _heads(qkv_BTF, n_heads, q_weight, k_weight, rope)[0]


def attention(
    q_BNTK: torch.Tensor, k_BNTK: torch.Tensor, v_BNTK: torch.Tensor, dropout: float, causal: bool
) -> torch.Tensor:
    """As ``block.attention``.

    The library's flash kernel is slow backwards, several times so in bf16, and masks what no query can see. Here the
    scores of a block of queries against the keys up to its end are plain products, kept for the backward pass.
    """
    heads = (each.flatten(0, 1) for each in (q_BNTK, k_BNTK, v_BNTK))
    with torch.autocast("cpu", enabled=False):
        return _Attention.apply(*heads, dropout, causal).view_as(q_BNTK)  # type: ignore[no-any-return]


def attend_once(q_BN1K: torch.Tensor, k_BNTK: torch.Tensor, v_BNTK: torch.Tensor, *, exactly: bool) -> torch.Tensor:
    """As ``block.attention`` of one query a row over all keys, in float32 without gradients.

    Args:
        q_BN1K, k_BNTK, v_BNTK: queries, keys and values.
        exactly: whether a row has the same bits among any others. The library's attention, which is faster for few
            rows, sums in an order that depends on their number: where its result is rounded to 16 bits, codes would
            too.
    """
    if not exactly and q_BN1K.shape[:2].numel() < _MANY_QUERIES:
        return F.scaled_dot_product_attention(q_BN1K, k_BNTK, v_BNTK)
    q_M1K, k_MTK, v_MTK = (each.flatten(0, 1) for each in (q_BN1K, k_BNTK, v_BNTK))
    scores = torch.baddbmm(q_M1K.new_empty(1), q_M1K, k_MTK.mT, beta=0, alpha=q_M1K.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), v_MTK).view_as(q_BN1K)


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_BTF: torch.Tensor,
        n_heads: int,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
        rope: Rope | None,
    ) -> Heads:
        heads, inverse = _heads(qkv_BTF, n_heads, q_weight, k_weight, rope)
        ctx.rope, ctx.n_heads, ctx.shape = rope, n_heads, qkv_BTF.shape
        ctx.save_for_backward(q_weight, k_weight, inverse, None if inverse is None else qkv_BTF)
        return heads

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
            to_weights = tuple(_normalize_backward_(rows, rows_normed, rows_inverse, weights_2K).to(q_weight.dtype))
        to_qkv_BTF = to_q.new_empty(ctx.shape)
        to_qkv = to_qkv_BTF.unflatten(-1, (3, ctx.n_heads, -1)).permute(2, 0, 3, 1, 4)
        to_qkv[:2], to_qkv[2] = to_both, to_v
        return to_qkv_BTF, None, *to_weights, None


def _heads(
    qkv_BTF: torch.Tensor,
    n_heads: int,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    rope: Rope | None,
) -> tuple[Heads, torch.Tensor | None]:
    """Queries, keys and values, and 1 / rms of the first two.

    Queries and keys go through norm and rotation together, in one buffer (2, B, N, T, K) of float32.
    """
    qkv = qkv_BTF.view(*qkv_BTF.shape[:2], 3, n_heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, N, T, K)
    both, inverse = _copy(qkv[:2]), None
    q, k = both.unbind(0)
    if q_weight is not None and k_weight is not None:
        inverse = _inverse_rms(both)
        both.mul_(inverse)
        q.mul_(q_weight)
        k.mul_(k_weight)
    if rope is not None:
        rotate_(both, rope)
    if both.dtype != qkv_BTF.dtype:
        q, k = both.to(qkv_BTF.dtype).unbind(0)
    return (q, k, qkv[2].contiguous()), inverse


def _copy(x: torch.Tensor) -> torch.Tensor:
    """In contiguous memory, float32 where x has 16 bits."""
    return x.new_empty(x.shape, dtype=sum_type(x.dtype)).copy_(x)


def _normalize_backward_(
    gradient: torch.Tensor, normed: torch.Tensor, inverse: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """From the gradient to ``normed * weight`` to that of x, in place; overwrites ``normed`` too.

    Args:
        gradient, normed: (..., M, K).
        inverse: (..., M, 1), 1 / rms.
        weight: (..., K).

    Returns:
        the gradient to the weight, (..., K).
    """
    product = gradient * normed
    shared = (product @ weight.unsqueeze(-1)).div_(-normed.shape[-1])
    gradient.mul_(weight.unsqueeze(-2)).addcmul_(normed, shared).mul_(inverse)
    return product.sum(-2)


def rotate_(x_BNTK: torch.Tensor, rope: Rope, *, back: bool = False) -> torch.Tensor:
    """``positions.rotate`` in place, or its inverse: each pair of channels is one complex number.

    Without gradients, for contiguous tensors of 32 or 64 bits, of any number of leading axes.
    """
    pairs = torch.view_as_complex(x_BNTK.view(*x_BNTK.shape[:-1], -1, 2))
    pairs.mul_(rope.turns.conj() if back else rope.turns)
    return x_BNTK


def _inverse_rms(x: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    epsilon = norm.new_full((), EPSILON)  # torch takes as long to wrap a number as for the operation
    return torch.addcmul(epsilon, norm, norm, value=1 / x.shape[-1]).rsqrt_()


class _Attention(torch.autograd.Function):
    """Over M = B * N heads: queries, keys and values are (M, T, K)."""

    @staticmethod
    def forward(
        ctx: Any, q_MTK: torch.Tensor, k_MTK: torch.Tensor, v_MTK: torch.Tensor, dropout: float, causal: bool
    ) -> torch.Tensor:
        out_MTK, kept, scale = torch.empty_like(q_MTK), [], q_MTK.shape[2] ** -0.5
        ctx.masks, ctx.causal = [], causal
        for start, end, seen in _blocks(q_MTK.shape[1], causal):
            unseen = torch.full((end - start, seen), -torch.inf, dtype=q_MTK.dtype).triu_(start + 1)
            scores = torch.baddbmm(unseen, q_MTK[:, start:end], k_MTK[:, :seen].mT, beta=int(causal), alpha=scale)
            weights = torch.softmax(scores, -1, out=scores)
            mask = sample_keep_mask(weights, dropout) if dropout else None
            out_MTK[:, start:end] = torch.bmm(_masked(weights, mask), v_MTK[:, :seen])
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
        blocks = _blocks(q_MTK.shape[1], ctx.causal)
        for (start, end, seen), weights, mask in zip(blocks, kept, ctx.masks, strict=True):
            to_out = gradient[:, start:end]
            to_v[:, :seen] += torch.bmm(_masked(weights, mask).mT, to_out)
            to_weights = _masked(torch.bmm(to_out, v_MTK[:, :seen].mT), mask)
            to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            to_q[:, start:end] = torch.bmm(to_scores, k_MTK[:, :seen])
            to_k[:, :seen] += torch.bmm(to_scores.mT, q_MTK[:, start:end])
        scale = q_MTK.shape[2] ** -0.5
        return to_q.mul_(scale), to_k.mul_(scale), to_v, None, None


def _blocks(length: int, causal: bool) -> list[tuple[int, int, int]]:
    """Of queries: first, end, and how many keys they see."""
    ends = [(start, min(start + _QUERIES, length)) for start in range(0, length, _QUERIES)]
    return [(start, end, end if causal else length) for start, end in ends]


def _masked(x: torch.Tensor, mask: KeepMask | None) -> torch.Tensor:
    return x if mask is None else mask.apply(x)
