"""Blocks of a prior that draws on a CPU: the operations of ``block.py``, without its calls of modules.

For a row or a few, calling modules costs as much as what they compute. What is done here reads the weights of the
modules and gives their results, up to the rounding of rotations. ``plain_blocks`` tells whether a module is not what it
was built as, such as one with a hook or an adapter: then the modules run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_modules

from foundation.training.linear import Linear
from stage2_prior.block import Attention, Block, Dropout, FeedForward, LayerCache, RMSNorm
from stage2_prior.cpu_kernels import EPSILON, sum_type
from stage2_prior.positions import Rope
from stage2_prior.transformer import TransformerPrior

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_compiled_call_impl")


def plain_blocks(prior: TransformerPrior) -> list[PlainBlock] | None:
    """What computes the same as a prior's blocks do now; None where only they themselves do."""
    plain = type(prior).extend is TransformerPrior.extend and not _has_hooks()
    plain = plain and all(type(each) is nn.Parameter and each.is_cpu for each in prior.parameters())
    plain = plain and len({each.dtype for each in prior.parameters()}) == 1
    plain = plain and all(_is_plain(*part) for block in prior.blocks for part in _parts(block))
    return [PlainBlock(block) for block in prior.blocks] if plain else None  # type: ignore[arg-type]


def _has_hooks() -> bool:
    """Whether torch calls something for every module."""
    return bool(torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks)


def _parts(block: Any) -> Iterator[tuple[nn.Module, type[nn.Module]]]:
    """The modules of a block, each with its class; what is found to be of another class has no parts to ask for."""
    yield block, Block
    attention, feed_forward = block.attention, block.feed_forward
    yield from ((attention, Attention), (feed_forward, FeedForward), (block.dropout, Dropout))
    yield from ((norm, RMSNorm) for norm in (block.attention_norm, block.feed_forward_norm))
    yield from ((layer, Linear) for layer in (attention.qkv, attention.out, feed_forward.gate_up, feed_forward.down))
    norms = attention.q_norm, attention.k_norm
    yield from () if norms == (None, None) else ((norm, RMSNorm) for norm in norms)


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module is the forward function of this class, in evaluation, and no more."""
    if type(module) is not kind or module.training or "forward" in module.__dict__:
        return False
    return not any(getattr(module, name) for name in _HOOKS)


class PlainBlock:
    """A block in evaluation, without gradients and autocast, of which all weights have one type.

    Args:
        block: on a CPU; its norms of queries and keys are read now, other weights at each call.
    """

    def __init__(self, block: Block) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        assert isinstance(feed_forward, FeedForward)
        self._norms = block.attention_norm.weight, block.feed_forward_norm.weight
        self._qkv, self._out, self._n_heads = attention.qkv.forward, attention.out.forward, attention.n_heads
        self._gate_up, self._down = feed_forward.gate_up.forward, feed_forward.down.forward
        norms = [each.weight.detach() for each in (attention.q_norm, attention.k_norm) if each is not None]
        self._norms_2111K = torch.stack(norms)[:, None, None, None] if norms else None
        dtype = self._norms[0].dtype
        self._epsilon, self._is_wide = torch.full((), EPSILON, dtype=sum_type(dtype)), sum_type(dtype) == dtype

    def __call__(self, x_BQE: torch.Tensor, rope: Rope | None, cache: LayerCache) -> torch.Tensor:
        """As ``Block.forward``, of x in 32 bits or more."""
        attention_norm, feed_forward_norm = self._norms
        x_BQE = x_BQE + self._attention(self._normed(x_BQE, attention_norm), rope, cache)
        gate, up = self._gate_up(self._normed(x_BQE, feed_forward_norm)).chunk(2, -1)
        return x_BQE.add_(self._down(F.silu(gate).mul_(up)))

    def _attention(self, x_BQE: torch.Tensor, rope: Rope | None, cache: LayerCache) -> torch.Tensor:
        n_images, n_inputs, _ = x_BQE.shape
        qkv = self._qkv(x_BQE).view(n_images, n_inputs, 3, self._n_heads, -1).permute(2, 0, 3, 1, 4)
        both = qkv[:2] if self._is_wide else qkv[:2].to(self._epsilon.dtype)
        if self._norms_2111K is not None:
            both.mul_(self._inverse_rms(both)).mul_(self._norms_2111K)
        if rope is not None:
            torch.view_as_complex(both.unflatten(-1, (-1, 2))).mul_(rope.turns)
        if not self._is_wide:
            qkv[:2].copy_(both)
        cache.new.copy_(qkv[1:])
        return self._out(cache.attended(qkv[0]).transpose(1, 2).flatten(2))

    def _normed(self, x_BQE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        normed = (x_BQE * self._inverse_rms(x_BQE)).mul_(weight_E)
        return normed if self._is_wide else normed.to(weight_E.dtype)

    def _inverse_rms(self, x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcmul(self._epsilon, norm, norm, value=1 / x.shape[-1]).rsqrt_()
