"""Products with fixed weights in the fastest form that the machine has, for drawing codes.

On a CPU, oneDNN keeps a weight in the order in which its kernel reads it. It sums in one order whatever the number of
rows (from two rows on), so that a row's result does not depend on the other rows, to the last bit; the library behind
``torch.mm`` gives no such promise.
"""

from __future__ import annotations

from typing import Protocol

import torch

_ROWS_HINT = 32  # for which the order is chosen; measured to be as fast with 2 rows as any other
MIN_ROWS = 2
"""Fewer rows take another kernel, which sums in another order."""


class Linear(Protocol):
    """x => x W^T + b in float32; weight and bias may be kept in a narrower type, to which x is then rounded first."""

    def __call__(self, x_RK: torch.Tensor) -> torch.Tensor:
        """(R, K) float32 => (R, N) float32."""

    def add_to(self, sum_RN: torch.Tensor, x_RK: torch.Tensor) -> torch.Tensor:
        """The sum and x W^T + b together, which may take the place of ``sum_RN``."""


def prepare(weight_NK: torch.Tensor, dtype: torch.dtype, bias_N: torch.Tensor | None = None) -> Linear:
    """The weight in the form for its device and a type of weights; ``can_pack`` says which form that is."""
    form = PackedLinear if can_pack(weight_NK.device) else PlainLinear
    return form(weight_NK, dtype, bias_N)


def can_pack(device: torch.device) -> bool:
    """Whether ``PackedLinear`` works there: on a CPU, with a build of torch that has oneDNN."""
    built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return device.type == "cpu" and built


def weight_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which weights are kept: ``dtype`` where it is no slower there than float32, else float32.

    A CPU that has no instructions for products of bf16 takes several times as long for them, and none gains by
    float16.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return dtype
    fast = dtype == torch.bfloat16 and can_pack(device)
    fast = fast and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return dtype if fast else torch.float32


class PackedLinear:
    """oneDNN with a weight in its own order.

    Args:
        weight_NK: (N, K), on a CPU.
        dtype: float32 or bfloat16.
        bias_N: None for no bias.
    """

    def __init__(self, weight_NK: torch.Tensor, dtype: torch.dtype, bias_N: torch.Tensor | None = None) -> None:
        self._bias = None if bias_N is None else bias_N.detach().to(dtype, copy=True)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_NK.detach().to(dtype).contiguous(), _ROWS_HINT)
        self._narrow = None if dtype == torch.float32 else dtype
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._sum = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x_RK: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        if self._narrow is None:
            return self._product(x_RK, self._weight, self._bias, "none", [], "")
        return self._product(x_RK.to(self._narrow), self._weight, self._bias, "none", [], "").float()

    def add_to(self, sum_RN: torch.Tensor, x_RK: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        if self._narrow is None:
            return self._sum(x_RK, sum_RN, self._weight, self._bias, "add")
        return sum_RN.add_(self._product(x_RK.to(self._narrow), self._weight, self._bias, "none", [], ""))


class PlainLinear:
    """torch.mm.

    Args:
        weight_NK: (N, K).
        dtype: in which it is kept.
        bias_N: None for no bias.
    """

    def __init__(self, weight_NK: torch.Tensor, dtype: torch.dtype, bias_N: torch.Tensor | None = None) -> None:
        self._weight_KN = weight_NK.detach().to(dtype, copy=True).t()
        self._bias = None if bias_N is None else bias_N.detach().to(dtype, copy=True)

    def __call__(self, x_RK: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._product(x_RK).float()

    def add_to(self, sum_RN: torch.Tensor, x_RK: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return sum_RN.add_(self._product(x_RK))

    def _product(self, x_RK: torch.Tensor) -> torch.Tensor:
        x_RK = x_RK.to(self._weight_KN.dtype)
        return torch.mm(x_RK, self._weight_KN) if self._bias is None else torch.addmm(self._bias, x_RK, self._weight_KN)
