"""The rotation trick: another gradient estimator for the choice of a code.

Source: Fifty et al. 2024, arXiv:2410.06424, sections 4.1 and 4.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

_TINY = 1e-6  # a latent this short has no direction to rotate from


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
        turned_ND = gradient_ND - 2 * along_middle_N1 * middle_ND + 2 * along_to_N1 * from_ND
        scale_N1 = codes_ND.norm(dim=1, keepdim=True) / length_N1.clamp_min(_TINY)
        return torch.where(length_N1 > _TINY, scale_N1 * turned_ND, gradient_ND), None


def rotate_to(latents_ND: torch.Tensor, codes_ND: torch.Tensor) -> torch.Tensor:
    """The value of the codes, bit for bit; the gradient of the rotation and scaling that maps each latent to its code.

    q = s R z with R = I - 2 w w^T + 2 q^ z^T and w the unit vector halfway between the directions z^ and q^,
    s = |q| / |z|; s and R are constants for the gradient, which so is s R^T times the incoming one. A latent of
    length 0 gets the straight-through gradient.
    """
    return _Rotate.apply(latents_ND, codes_ND)  # type: ignore[no-any-return]
