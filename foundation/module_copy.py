"""Copies of a module that share its code and not its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def copy_with(module: M, value: Callable[[torch.Tensor], torch.Tensor]) -> M:
    """A copy in evaluation mode whose parameters and buffers are ``value`` of the original ones, without gradients.

    What ``value`` returns is held as it is: the identity shares memory with the original, ``torch.clone`` does not.
    """
    new: dict[int, torch.Tensor] = {id(each): value(each) for each in module.buffers()}
    for each in module.parameters():
        new[id(each)] = nn.Parameter(value(each.detach()), requires_grad=False)
    return copy.deepcopy(module, new).eval()  # deepcopy looks up what has been copied already


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """Its shape and type without memory."""
    return torch.empty_like(tensor, device="meta")
