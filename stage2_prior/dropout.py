"""Dropout: zero a share of the values in training and scale the rest up (Srivastava et al. 2014).

On a CPU drawing one random number per value costs more than the rest of a layer. There, one draw of 64 bits decides
four values, each by 16 bits of its own: shares are whole multiples of 1 / 65,536.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from stage2_prior.arithmetic import written_out

_LEVELS = 1 << 16


@dataclass(frozen=True)
class KeepMask:
    """Which values of a tensor are kept.

    Attributes:
        kept: int8, 1 or 0.
        scale: what the kept values are multiplied by, so that the mean stays.
    """

    kept: torch.Tensor
    scale: float

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros, and scaled values."""
        kept = (
            self.kept if x.dtype.itemsize < 4 else self.kept.to(x.dtype)
        )  # products of mixed types: fast in bf16 only
        return (x * kept).mul_(self.scale)


def draw_keep_mask(x: torch.Tensor, share: float) -> KeepMask:
    """A mask for a tensor on the CPU, from torch's global generator; ``share`` of it is zero."""
    n_dropped = round(share * _LEVELS)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = (levels >= n_dropped - _LEVELS // 2).view(torch.int8)
    return KeepMask(kept, _LEVELS / (_LEVELS - n_dropped))


class Dropout(nn.Module):
    """Drops in training, does nothing in evaluation.

    Args:
        share: of the values, 0 to below 1.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape => the same."""
        if not self.training or self.share == 0:
            return x
        return draw_keep_mask(x, self.share).apply(x) if written_out(x) else F.dropout(x, self.share)
