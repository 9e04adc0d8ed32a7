"""The contract that every quantizer fills.

Quantizers compute in float32 with autocast off and index arithmetic in int64, whatever the precision around them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of latents.

    Attributes:
        latents_BCHW: float32, equal to ``decode(codes_BHW)`` bit for bit; gradients pass straight to the input.
        codes_BHW: int64 in [0, codebook_size); (B, H, W, D) for depth D above 1.
        losses: scalar terms to add to the training loss, already weighted.
    """

    latents_BCHW: torch.Tensor
    codes_BHW: torch.Tensor
    losses: dict[str, torch.Tensor] = field(default_factory=dict)


class Quantizer(nn.Module):
    """Base of all quantizers.

    Subclasses set ``width`` (channels), ``codebook_size`` and ``depth`` and implement ``encode``, ``decode`` and
    ``forward``. A quantizer that learns outside the optimizer also implements ``initialize`` and ``update``; the
    training task calls them, so that a skipped step changes nothing.
    """

    width: int
    codebook_size: int
    depth: int = 1

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Quantize (B, C, H, W) latents of any float type."""
        raise NotImplementedError

    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) => codes, (B, H, W) int64."""
        raise NotImplementedError

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """Codes => (B, C, H, W) float32. Every code must be in [0, codebook_size)."""
        raise NotImplementedError

    def initialize(self, latents_BCHW: torch.Tensor, generator: torch.Generator) -> None:
        """Set the codebook from the first batch's latents, all processes' together. Default: nothing."""

    def update(self, step: int, generator: torch.Generator) -> None:
        """Move the codebook after a step that was taken. Default: nothing."""

    def forget(self) -> None:
        """Drop what ``forward`` remembered for ``update``, after a step that was not taken. Default: nothing."""


class _StraightThrough(torch.autograd.Function):
    """Forward: the second argument, bit for bit. Backward: the gradient goes to the first argument unchanged.

    Source: Bengio et al. 2013, arXiv:1308.3432. (``z + (q - z).detach()`` rounds, so its value is not quite q.)
    """

    @staticmethod
    def forward(ctx: object, latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        return quantized.clone()

    @staticmethod
    def backward(ctx: object, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def straight_through(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """The value of ``quantized`` with the gradient of ``latents``."""
    return _StraightThrough.apply(latents, quantized)  # type: ignore[no-any-return]


def without_autocast(tensor: torch.Tensor) -> torch.autocast:
    """A context in which arithmetic on ``tensor``'s device is not silently lowered."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)
