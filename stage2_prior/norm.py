"""RMSNorm: x / rms(x) * weight; and LayerNorm, which takes the mean off first and adds a bias.

Sources: Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4; Ba et al. 2016, arXiv:1607.06450, Eq. 4. For RMSNorm, with
n = x / rms(x) and g = weight * dy, the gradient is dx = (g - n * mean(g * n)) / rms(x), and that of the weight is the
sum of dy * n.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from foundation.training.optim import no_decay
from stage2_prior.arithmetic import product_type, sum_type, written_out

EPSILON = 1e-5


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32; the result is what products read: of autocast's type if it is on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = no_decay(nn.Parameter(torch.ones(width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) => the same."""
        kind = product_type(x)
        if written_out(x):
            return _RMSNorm.apply(x, self.weight, kind)  # type: ignore[no-any-return]
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), EPSILON).to(kind)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight + bias, computed in float32; the result is what products read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = no_decay(nn.Parameter(torch.ones(width)))
        self.bias = no_decay(nn.Parameter(torch.zeros(width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) => the same."""
        wide = sum_type(x.dtype)
        normed = F.layer_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.bias.to(wide), EPSILON)
        return normed.to(product_type(x))


def normalize_(x: torch.Tensor) -> torch.Tensor:
    """Divide x by its root mean square along the last axis, in place; returns 1 / rms, (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = norm.square_().div_(x.shape[-1]).add_(EPSILON).rsqrt_()
    x.mul_(inverse)
    return inverse


def normalize_backward_(
    gradient: torch.Tensor, normed: torch.Tensor, inverse: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """From the gradient to ``normed * weight`` to that of x, in place; overwrites ``normed`` too.

    Args:
        gradient, normed: (..., M, K).
        inverse: (..., M, 1), as of ``normalize_``.
        weight: (..., K).

    Returns:
        the gradient to the weight, (..., K).
    """
    product = gradient * normed
    shared = (product @ weight.unsqueeze(-1)).div_(-normed.shape[-1])
    gradient.mul_(weight.unsqueeze(-2)).addcmul_(normed, shared).mul_(inverse)
    return product.sum(-2)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
        normed = x.to(sum_type(x.dtype), copy=True)
        ctx.save_for_backward(x, weight, normalize_(normed))
        return normed.mul_(weight).to(kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normed, kind = x * inverse, inverse.dtype
        to_x = gradient.to(kind, copy=True)
        rows, rows_normed, rows_inverse = (each.flatten(0, -2) for each in (to_x, normed, inverse))
        to_weight = normalize_backward_(rows, rows_normed, rows_inverse, weight.to(kind))
        return to_x.to(x.dtype), to_weight.to(weight.dtype), None
