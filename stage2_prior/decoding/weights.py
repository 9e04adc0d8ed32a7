"""Inference weights of a prior: a copy that is cast once, merged, with all constant factors multiplied in.

On a CPU, oneDNN packs each weight in the order in which its kernel reads it. The kernel sums in one order for any
number of rows (from two on), so that a row's result does not depend on the other rows, to the last bit; the library
behind ``torch.mm`` does not guarantee that.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from stage2_prior.block import Block, GELUFeedForward, LayerNorm, RMSNorm
from stage2_prior.cpu_kernels import EPSILON
from stage2_prior.lora import merged
from stage2_prior.positions import Positions
from stage2_prior.prior import PriorModel

_ROWS_HINT = 32
"""number of rows for which oneDNN chooses the order; as fast with 2 rows as any other, by measurement"""
MIN_ROWS = 2
"""Fewer rows take another kernel, which sums in another order."""


class Linear(Protocol):
    """x => x W^T + b in float32; weight and bias may be kept in a narrower type, to which x is then rounded first."""

    def __call__(self, x_RK: torch.Tensor) -> torch.Tensor:
        """(R, K) float32 => (R, N) float32."""

    def add_to(self, sum_RN: torch.Tensor, x_RK: torch.Tensor) -> torch.Tensor:
        """``sum_RN`` + x W^T + b, which may overwrite ``sum_RN``."""


def prepare(weight_NK: torch.Tensor, dtype: torch.dtype, bias_N: torch.Tensor | None = None) -> Linear:
    """The weight in the form for its device and a type of weights; ``can_pack`` says which form that is."""
    form = PackedLinear if can_pack(weight_NK.device) else PlainLinear
    return form(weight_NK, dtype, bias_N)


def can_pack(device: torch.device) -> bool:
    """Whether ``PackedLinear`` works there: on a CPU, with a build of torch that has oneDNN."""
    built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return device.type == "cpu" and built


def weight_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which weights are kept: ``dtype`` where it is no slower there than float32, else float32.

    A CPU that has no instructions for products of bf16 takes several times as long for them, and none gains by
    float16.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return dtype
    fast = dtype == torch.bfloat16 and can_pack(device)
    fast = fast and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return dtype if fast else torch.float32


class PackedLinear:
    """oneDNN with a weight in its own order.

    Args:
        weight_NK: (N, K), on a CPU.
        dtype: float32 or bfloat16.
        bias_N: None for no bias.
    """

    def __init__(self, weight_NK: torch.Tensor, dtype: torch.dtype, bias_N: torch.Tensor | None = None) -> None:
        self._bias = None if bias_N is None else bias_N.detach().to(dtype, copy=True)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_NK.detach().to(dtype).contiguous(), _ROWS_HINT)
        self._narrow = None if dtype == torch.float32 else dtype
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._sum = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x_RK: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        if self._narrow is None:
            return self._product(x_RK, self._weight, self._bias, "none", [], "")
        return self._product(x_RK.to(self._narrow), self._weight, self._bias, "none", [], "").float()

    def add_to(self, sum_RN: torch.Tensor, x_RK: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        if self._narrow is None:
            return self._sum(x_RK, sum_RN, self._weight, self._bias, "add")
        return sum_RN.add_(self._product(x_RK.to(self._narrow), self._weight, self._bias, "none", [], ""))


class PlainLinear:
    """torch.mm.

    Args:
        weight_NK: (N, K).
        dtype: in which it is kept.
        bias_N: None for no bias.
    """

    def __init__(self, weight_NK: torch.Tensor, dtype: torch.dtype, bias_N: torch.Tensor | None = None) -> None:
        self._weight_KN = weight_NK.detach().to(dtype, copy=True).t()
        self._bias = None if bias_N is None else bias_N.detach().to(dtype, copy=True)

    def __call__(self, x_RK: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._product(x_RK).float()

    def add_to(self, sum_RN: torch.Tensor, x_RK: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return sum_RN.add_(self._product(x_RK))

    def _product(self, x_RK: torch.Tensor) -> torch.Tensor:
        x_RK = x_RK.to(self._weight_KN.dtype)
        return torch.mm(x_RK, self._weight_KN) if self._bias is None else torch.addmm(self._bias, x_RK, self._weight_KN)


@dataclass(frozen=True)
class LayerWeights:
    """One block.

    Attributes:
        qkv: to queries, keys and values, (3, N, K) in a row; holds weight and bias of the norm before it.
        out: back from attention.
        gate_up: to the gate, then the value, of SwiGLU, or to what GELU takes; holds weight and bias of the norm
            before it.
        down: back from the feed-forward layer.
    """

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear


class InferenceWeights:
    """The inference copy of a prior.

    Within each head of queries and keys the channels stand in another order than in the model: first those that were
    even, then those that were odd, so that a pair that rotates together is K / 2 apart.

    Args:
        prior: the model; its later changes do not reach the copy.
        packed: whether products may take ``PackedLinear``, which torch cannot compile.
        grid: of the images, an index into ``spec.grids``.

    Attributes:
        device: of all tensors.
        dtype: in which the products keep their weights.
        layers: the blocks.
        head: to logits, with weight and bias of the last norm.
        gpt: whether the norms subtract the mean and GELU replaces SwiGLU.
        cos, sin: (L, 3, 1, 1, T, K): what each layer multiplies queries, keys and values, and their partners K / 2
            channels away, by at each input's position: rotation, weights of the norms and the factor 1 / sqrt(K) of
            attention. Values are left as they are.
        class_CE: the embedding of each class, the null class last; the grid's is added.
        code_SE: the embedding of each code of each slot.
        offset_T: the row at which the slot of input t begins in ``code_SE``; None where there is one slot only.
        position_TE: embedding of input t's position, slot and target; None for none.
        grid: whose positions these are.
        eps_E, eps_K: sqrt(n * epsilon) for the norms of n channels.
        normalized_heads: whether queries and keys are normalised.
    """

    def __init__(self, prior: PriorModel, *, packed: bool = True, grid: int = 0) -> None:
        prior = merged(prior)  # adapters would be left out
        self._form = prepare if packed else PlainLinear
        _, self.n_heads, self.d_model = prior.config.shape
        self.d_head, self.normalized_heads = prior.config.d_head, prior.config.qk_norm
        self.gpt = prior.config.block == "gpt"
        self.device = device = prior.head.weight.device
        self.dtype = weight_type(prior.head.weight.dtype, device)
        self.eps_E = torch.tensor(math.sqrt(self.d_model * EPSILON), device=device)
        self.eps_K = torch.tensor(math.sqrt(self.d_head * EPSILON), device=device)
        self._order = torch.arange(self.d_head, device=device).view(-1, 2).t().flatten()  # even channels, then odd
        self.layers = [self._layer(block) for block in _blocks(prior)]
        weight, bias = self._after_norm(prior.norm, prior.head)
        self.head: Linear = self._form(weight, self.dtype, bias)
        self.code_SE = prior.code_embedding.weight.detach().float().clone()
        self._take_grid(prior, grid)

    def with_grid(self, prior: PriorModel, grid: int) -> InferenceWeights:
        """The weights for images of another grid of the same prior; the products are shared."""
        other = copy.copy(self)
        other._take_grid(merged(prior), grid)
        return other

    def _take_grid(self, prior: PriorModel, grid: int) -> None:
        """All that depends on the rows and columns of the codes."""
        device, size = self.device, (prior.n_codes, self.d_head)
        positions = prior.position_tables.of_grid(device, grid)
        self.grid = grid
        cos_TK, sin_TK = positions.rope or (torch.ones(size, device=device), torch.zeros(size, device=device))
        self._rotation = cos_TK.float(), sin_TK.float()
        rotations = [self._rotations(block) for block in _blocks(prior)]
        self.cos, self.sin = (torch.stack(each)[:, :, None, None] for each in zip(*rotations, strict=True))
        self.class_CE = prior.class_embedding.weight.detach().float().clone()
        if prior.grid_embedding is not None:
            self.class_CE += prior.grid_embedding.weight.detach().float()[grid]
        self.offset_T = None if prior.slot_embedding is None else positions.offset_T
        self.position_TE = self._input_offsets(prior, positions)

    def _layer(self, block: Block) -> LayerWeights:
        attention, feed_forward = block.attention, block.feed_forward
        inner = feed_forward.up if isinstance(feed_forward, GELUFeedForward) else feed_forward.gate_up
        qkv, qkv_bias = self._after_norm(block.attention_norm, attention.qkv)
        parts = (
            (self._reordered(qkv), None if qkv_bias is None else self._reordered(qkv_bias)),
            (attention.out.weight, attention.out.bias),
            self._after_norm(block.feed_forward_norm, inner),
            (feed_forward.down.weight, feed_forward.down.bias),
        )
        return LayerWeights(*(self._form(weight, self.dtype, bias) for weight, bias in parts))

    def _reordered(self, qkv: torch.Tensor) -> torch.Tensor:
        """The rows of a weight, or the entries of a bias, in the order of channels described above."""
        qkv = qkv.unflatten(0, (3, self.n_heads, self.d_head))
        return torch.cat([qkv[:2, :, self._order], qkv[2:]]).flatten(0, 2)

    def _after_norm(self, norm: RMSNorm | LayerNorm, linear: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias for x / hypot(|x|, eps_E), of a LayerNorm less its mean, instead of norm(x)."""
        weight_NE = linear.weight.detach().float()
        bias_N = None if linear.bias is None else linear.bias.detach().float()
        if isinstance(norm, LayerNorm):
            moved_N = weight_NE @ norm.bias.detach().float()
            bias_N = moved_N if bias_N is None else bias_N + moved_N
        return weight_NE * (norm.weight.detach().float() * math.sqrt(self.d_model)), bias_N

    def _rotations(self, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of (queries, keys, values) at each position, and of their partners: each (3, T, K)."""
        cos_TK, sin_TK = self._rotation
        factors = []
        for norm, scale in ((block.attention.q_norm, self.d_head**-0.5), (block.attention.k_norm, 1.0)):
            weight_K = torch.full_like(cos_TK[0], scale)
            if norm is not None:
                weight_K = weight_K * norm.weight.detach().float() * math.sqrt(self.d_head)
            partner_K = weight_K.view(-1, 2).flip(1).flatten()
            factors.append(((cos_TK * weight_K)[:, self._order], (sin_TK * partner_K)[:, self._order]))
        factors.append((torch.ones_like(cos_TK), torch.zeros_like(sin_TK)))
        cos, sin = zip(*factors, strict=True)
        return torch.stack(cos), torch.stack(sin)

    def _input_offsets(self, prior: PriorModel, positions: Positions) -> torch.Tensor | None:
        tables = (
            (prior.slot_embedding, positions.slot_T),
            (prior.place_embedding, positions.own_T),
            (prior.target_embedding, positions.target_T),
        )
        rows = [table.weight.detach().float()[index_T] for table, index_T in tables if table is not None]
        return torch.stack(rows).sum(0) if rows else None


def _blocks(prior: PriorModel) -> list[Block]:
    return [block for block in prior.blocks if isinstance(block, Block)]
