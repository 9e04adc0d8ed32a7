"""Exponential moving average of a model's weights: what users load is the average, not the last step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foundation.module_copy import copy_with
from foundation.parallel import is_sharded, local, sharded_like, whole


class WeightAverage:
    """Averages parameters in float32 and copies buffers.

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that early averages are not held back by the
    initial weights. With a decay of 0 the average is the weights themselves, in the same memory.

    Args:
        model: the module whose weights are averaged; its parameters may be sharded.
        decay: share of the old average kept at each step; 0 keeps the last weights only.
        shell: for sharded parameters, ``copy_with(model, on_meta)`` from before they were; else None.

    Attributes:
        model: a module with the averaged weights, in evaluation mode, sharded like the one it follows.
    """

    def __init__(self, model: nn.Module, decay: float, shell: nn.Module | None = None) -> None:
        self.decay = decay
        keep = torch.clone if decay > 0 else _itself
        if shell is None:
            self.model = copy_with(model, keep)
        else:
            shell.load_state_dict({name: keep(each) for name, each in model.state_dict().items()}, assign=True)
            self.model = shell

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards ``model`` after optimizer step ``step`` (counted from 0)."""
        if self.decay > 0:
            decay = min(self.decay, (1 + step) / (10 + step))
            averages = [local(each.detach()) for each in self.model.parameters()]
            weights = [local(each.detach()) for each in model.parameters()]
            torch._foreach_lerp_(averages, weights, 1.0 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def exported(self) -> nn.Module:
        """A plain module with the averaged weights, whole on every process; every process calls it.

        It is ``model`` itself unless that is sharded: then a copy, joined from all processes.
        """
        if any(is_sharded(each) for each in self.model.parameters()):
            return copy_with(self.model, whole)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """The averages by name; nothing where they are the weights themselves."""
        return dict(self.model.state_dict()) if self.decay > 0 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``, whole or sharded."""
        if self.decay > 0:
            load_whole(self.model, state)


def load_whole(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load whole tensors into a model whose parameters may be sharded; every process calls it."""
    own = model.state_dict()
    model.load_state_dict({name: sharded_like(value, own.get(name, value)) for name, value in state.items()})


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
