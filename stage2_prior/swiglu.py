"""The gate of the feed-forward layer: silu(gate) * up.

Source: Shazeer 2020, arXiv:2002.05202, Eq. 6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stage2_prior.arithmetic import written_out


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2 F), the gates before the values => (..., F)."""
    if written_out(gate_up):
        return _SwiGLU.apply(gate_up)  # type: ignore[no-any-return]
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        to_both = torch.empty_like(gate_up)
        to_gate, to_up = to_both.chunk(2, dim=-1)
        torch.mul(gradient, F.silu(gate), out=to_up)
        to_gate.copy_(torch.ops.aten.silu_backward(gradient * up, gate))
        return to_both
