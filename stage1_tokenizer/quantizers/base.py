"""Interface of all quantizers, and the gradient estimators that pass their rounding: straight-through and rotation.

Quantizers compute in float32 with autocast off, and indices in int64, whatever the precision around them.

Sources: straight-through: Bengio et al. 2013, arXiv:1308.3432; rotation: Fifty et al. 2024, arXiv:2410.06424, sections
4.1 and 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.config import QuantizerConfig

_TINY = 1e-6  # a latent this short has no direction to rotate from


@dataclass(frozen=True)
class Quantized:
    """Result of quantizing latents.

    Attributes:
        latents_BCHW: float32 input of the decoder. Outside training, equal to ``decode(codes_BHW)`` bit for bit; in
            training too, but for relaxations (Gumbel-softmax) and noise (Gaussian). Gradients reach the input.
        codes_BHW: int64 in [0, codebook_size); (B, H, W, D) for depth D above 1. For a continuous quantizer: the
            latents that ``decode`` takes, (B, C, H, W) float32.
        losses: scalar terms to add to the training loss, already weighted.
        metrics: further scalars to log, detached.
    """

    latents_BCHW: torch.Tensor
    codes_BHW: torch.Tensor
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    metrics: Mapping[str, torch.Tensor | float] = field(default_factory=dict)


class Quantizer(nn.Module):
    """Base of all quantizers.

    Subclasses implement ``encode``, ``decode`` and ``forward``. A quantizer that learns outside the optimizer also
    implements ``initialize``, ``update`` and ``forget``; the training task calls them, so that a skipped step changes
    nothing.

    Attributes:
        config: its settings.
        width, latent_width, codebook_size, depth, is_discrete: as in the settings.
        learns_codebook: whether the codebook has entries that training places, and that can die.
        vectors_per_position: vectors of each position from which one codebook learns.
    """

    learns_codebook: bool = False
    vectors_per_position: int = 1

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config, self.is_discrete, self.depth = config, config.is_discrete, config.depth
        self.width, self.latent_width, self.codebook_size = config.width, config.latent_width, config.codebook_size

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Quantize (B, latent_width, H, W) latents of any float type."""
        raise NotImplementedError

    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, latent_width, H, W) => codes, (B, H, W) or (B, H, W, D) int64. Deterministic, also in training mode."""
        raise NotImplementedError

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """Codes => (B, width, H, W) float32. Every code must be in [0, codebook_size)."""
        raise NotImplementedError

    def schedule(self, step: int) -> None:
        """Set what changes with the optimizer step (temperature, weights) before step ``step``. Default: nothing.

        A pure function of the step, so that no state needs saving.
        """

    def projection_start(self, latents_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Map of the first batch's latents that gives this quantizer a good start. Default: none.

        Returns:
            (C, C) matrix and (C,) offset, the same on every process, to fold into the projection; or None.
        """
        return None

    def initialize(self, latents_BCHW: torch.Tensor, generator: torch.Generator) -> None:
        """Set the codebook from the first batch's latents, all processes' together. Default: nothing."""

    def update(self, step: int, generator: torch.Generator) -> None:
        """Move the codebook after a step that was taken. Default: nothing."""

    def forget(self) -> None:
        """Drop what ``forward`` remembered for ``update``, after a step that was not taken. Default: nothing."""

    def extra_repr(self) -> str:
        """The settings, shown by ``print(model)``."""
        return repr(self.config)


class _StraightThrough(torch.autograd.Function):
    """Forward: the second argument, bit for bit. Backward: the gradient goes to the first argument unchanged.

    (``z + (q - z).detach()`` rounds, so its value is not quite q.)
    """

    @staticmethod
    def forward(ctx: object, latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        return quantized.clone()

    @staticmethod
    def backward(ctx: object, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def straight_through(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Return ``quantized`` with the gradient of ``latents``."""
    return _StraightThrough.apply(latents, quantized)  # type: ignore[no-any-return]


def without_autocast(tensor: torch.Tensor) -> torch.autocast:
    """Context without autocast on ``tensor``'s device."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def to_rows(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) => (B * H * W, C), one row for each position."""
    return latents_BCHW.permute(0, 2, 3, 1).reshape(-1, latents_BCHW.shape[1])


def to_grid(rows_NC: torch.Tensor, like_BCHW: torch.Tensor) -> torch.Tensor:
    """(B * H * W, C) => (B, C, H, W) with the batch, height and width of ``like_BCHW``."""
    batch, _, height, width = like_BCHW.shape
    return rows_NC.view(batch, height, width, rows_NC.shape[1]).permute(0, 3, 1, 2)


def to_code_grid(codes_N: torch.Tensor, like_BCHW: torch.Tensor) -> torch.Tensor:
    """(B * H * W,) or (B * H * W, D) => (B, H, W) or (B, H, W, D) with the sizes of ``like_BCHW``."""
    return codes_N.view(like_BCHW.shape[0], *like_BCHW.shape[2:], *codes_N.shape[1:])


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents_ND: torch.Tensor, codes_ND: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(latents_ND, codes_ND)
        return codes_ND.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        latents_ND, codes_ND = ctx.saved_tensors
        gradient_ND = gradients[0]
        length_N1 = latents_ND.norm(dim=1, keepdim=True)
        from_ND, to_ND = F.normalize(latents_ND, dim=1), F.normalize(codes_ND, dim=1)
        middle_ND = F.normalize(from_ND + to_ND, dim=1)
        along_middle_N1 = (middle_ND * gradient_ND).sum(1, keepdim=True)
        along_to_N1 = (to_ND * gradient_ND).sum(1, keepdim=True)
        rotated_ND = gradient_ND - 2 * along_middle_N1 * middle_ND + 2 * along_to_N1 * from_ND
        scale_N1 = codes_ND.norm(dim=1, keepdim=True) / length_N1.clamp_min(_TINY)
        return torch.where(length_N1 > _TINY, scale_N1 * rotated_ND, gradient_ND), None


def rotate_to(latents_ND: torch.Tensor, codes_ND: torch.Tensor) -> torch.Tensor:
    """Return the codes unchanged, with the gradient of the rotation and scaling that maps each latent to its code.

    q = s R z with R = I - 2 w w^T + 2 q^ z^T and w the unit vector halfway between the directions z^ and q^,
    s = |q| / |z|; s and R are constants, so that the gradient is s R^T times the incoming one. A latent of
    length 0 gets the straight-through gradient.
    """
    return _Rotate.apply(latents_ND, codes_ND)  # type: ignore[no-any-return]
