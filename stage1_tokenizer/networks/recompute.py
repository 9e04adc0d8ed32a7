"""Blocks of encoders and decoders whose insides may be dropped after the forward pass, and compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from foundation.config import require

_VARIANTS = 4


class Block(nn.Module):
    """A module of (B, C, H, W) tensors that can keep only its inputs in training (Chen et al. 2016, arXiv:1604.06174).

    Attributes:
        recompute: compute the forward pass again in the backward pass, with the same dropout.
    """

    recompute = False

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """``forward``, also where the module is compiled."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False)
        return super().__call__(*inputs)


def recompute_blocks(model: nn.Module) -> None:
    """Let every block compute its forward pass again.

    Raises:
        ConfigError: the model has no blocks.
    """
    for block in _blocks(model, "checkpoint_blocks"):
        block.recompute = True


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile each block with ``torch.compile``; names of parameters stay, and copies of the model are not compiled.

    Args:
        model: with blocks of many sizes, which share the code of ``forward``. The compiler gives up on a code after a
            few variants; here it may make all, for each block with gradients or without, of two sizes of batch.
        backend: of ``torch.compile``.

    Raises:
        ConfigError: the model has no blocks.
    """
    from torch._dynamo import config  # slow to import

    blocks = _blocks(model, "compile")
    limit = config.recompile_limit + _VARIANTS * len(blocks)
    config.recompile_limit, config.accumulated_recompile_limit = limit, max(limit, config.accumulated_recompile_limit)
    for block in blocks:
        block.compile(backend=backend, dynamic=False)


def _blocks(model: nn.Module, field: str) -> list[Block]:
    found = [module for module in model.modules() if isinstance(module, Block)]
    fix = "derive the family's blocks from stage1_tokenizer.networks.recompute.Block"
    require(len(found) > 0, f"tokenizer.training.{field}", True, "false for networks without blocks", fix)
    return found
