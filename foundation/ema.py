"""Exponential moving average of a model's weights: what users load is the average, not the last step."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Averages parameters in float32 and copies buffers.

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that early averages are not held back by the
    initial weights.

    Args:
        model: the module whose weights are averaged.
        decay: share of the old average kept at each step; 0 keeps the last weights only.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards ``model`` after optimizer step ``step`` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [each.detach() for each in self.model.parameters()]
        weights = [each.detach() for each in model.parameters()]
        torch._foreach_lerp_(averages, weights, 1.0 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
