"""Linear layers of the transformer, whose weights can be packed on a CPU for the time of a drawing.

oneDNN packs a weight in the order in which its kernel reads it. Whether that pays depends on what stands behind
``torch.mm``: MKL keeps its code for AVX512 to processors of Intel, and torch's product of bf16 packs again at each
call. ``scripts/bench_sampling.py`` measures both.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

_ROWS_HINT = 32
"""number of rows for which oneDNN chooses the order; as fast with 2 rows as any other, by measurement"""
_LEAST_ROWS_UNPACKED = 16
"""rows from which on oneDNN's float32 product is the faster one without packing too, by measurement"""
_CPUINFO = Path("/proc/cpuinfo")
_KEPT: weakref.WeakKeyDictionary[Linear, PackedWeight] = weakref.WeakKeyDictionary()


class Linear(nn.Linear):
    """As torch's, with a weight that ``packed_weights`` may hold in another form."""

    packed: PackedWeight | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) => (..., N)."""
        packed = self.packed
        if packed is not None and not torch.is_grad_enabled():
            return packed(x, self)
        return linear(x, self.weight, self.bias)

    def train(self, mode: bool = True) -> Linear:
        """As torch's; training gives back the memory of the packed weight."""
        if mode:
            _KEPT.pop(self, None)
        return super().train(mode)


def linear(x: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """X W^T + b, (..., K) => (..., N), by oneDNN where torch's product leaves half of the processor unused."""
    if not prefers_onednn(x, weight_NK):
        return F.linear(x, weight_NK, bias_N)
    if torch.is_grad_enabled():
        y: torch.Tensor = _Product.apply(x, weight_NK)
        return y if bias_N is None else y + bias_N
    return product(x.reshape(-1, x.shape[-1]), weight_NK, bias_N).view(*x.shape[:-1], -1)


def product(x_RK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """X W^T + b by oneDNN, without gradients, of any strides."""
    y_RN: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_RK, weight_NK, bias_N, "none", [], "")
    return y_RN


class _Product(torch.autograd.Function):
    """x W^T by oneDNN; its gradients are such products too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight_NK)
        return product(x.reshape(-1, x.shape[-1]), weight_NK).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, to_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight_NK = ctx.saved_tensors
        to_y_RN, x_RK = _dense(to_y.reshape(-1, to_y.shape[-1])), x.reshape(-1, x.shape[-1])
        return linear(to_y_RN, weight_NK.t()).view_as(x), _transposed_product(to_y_RN, x_RK)


def _dense(x_RK: torch.Tensor) -> torch.Tensor:
    """A copy of an expanded tensor, such as the gradient of a sum: oneDNN takes hundreds of times as long for it."""
    return x_RK.contiguous() if 0 in x_RK.stride() else x_RK


def _transposed_product(a_RN: torch.Tensor, b_RK: torch.Tensor) -> torch.Tensor:
    """A^T B, (N, K). oneDNN copies the first factor of a product that is transposed: the narrower one goes first."""
    if a_RN.shape[1] <= b_RK.shape[1]:
        return linear(a_RN.t(), b_RK.t())
    return linear(b_RK.t(), a_RN.t()).t()


def prefers_onednn(x: torch.Tensor, weight_NK: torch.Tensor) -> bool:
    """Whether ``linear`` takes oneDNN: float32 on a processor whose AVX512 torch's product does not use."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight_NK.dtype != torch.float32:
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not can_pack(x.device):
        return False
    if _get_current_dispatch_mode() is not None:  # what counts operations knows torch's products
        return False
    return _has_slow_products() and x.numel() >= _LEAST_ROWS_UNPACKED * x.shape[-1]


class PackedWeight:
    """A copy of a layer's weight and bias, packed at the first product.

    Packing takes as long as tens of products with one row: what was packed stays until the layer is trained, beside a
    plain copy by which a change is seen.

    Args:
        dtype: of the copy, float32 or bfloat16.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._made = dtype, False

    def __call__(self, x: torch.Tensor, layer: Linear) -> torch.Tensor:
        """(..., K) => (..., N), of the type of x; a later change of the layer does not reach the copy."""
        if not self._made:
            self._pack(layer)
        if x.dtype == self._dtype == torch.float32:
            return self._product(x, self._packed, self._bias, "none", [], "")
        narrow = x.to(self._dtype)
        if x.numel() > x.shape[-1]:
            y: torch.Tensor = self._product(narrow, self._packed, self._bias, "none", [], "")
        else:  # alone, a row would be summed in another order than among others
            twice = narrow.expand(2, *narrow.shape[1:])
            y = self._product(twice, self._packed, self._bias, "none", [], "").narrow(0, 0, 1)
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def is_of(self, layer: Linear, dtype: torch.dtype) -> bool:
        """Whether it is what would be packed now, to the bit."""
        if dtype != self._dtype or not self._made:
            return dtype == self._dtype
        return all(map(_same_bits, self._plain, (layer.weight, layer.bias)))

    def _pack(self, layer: Linear) -> None:
        weight, bias = (None if each is None else each.detach().clone() for each in (layer.weight, layer.bias))
        assert weight is not None
        self._plain = weight, bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(self._dtype).contiguous(), _ROWS_HINT)
        self._bias = None if bias is None else bias.to(self._dtype)
        self._product, self._made = torch.ops.mkldnn._linear_pointwise.default, True


def _same_bits(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    bits = torch.uint8 if a.shape[-1] * a.itemsize % 8 else torch.int64
    return torch.equal(a.contiguous().view(bits), b.detach().contiguous().view(bits))


@contextlib.contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Pack the weights of linear layers where that is faster; changes of a weight within are not seen."""
    layers = [each for each in model.modules() if type(each) is Linear and each.packed is None]
    using = {layer: _packed(layer, dtype) for layer in layers if (dtype := _packed_type(layer.weight)) is not None}
    for layer, packed in using.items():
        layer.packed = packed
    try:
        yield
    finally:
        for layer, packed in using.items():
            if layer.packed is packed:
                layer.packed = None


def _packed(layer: Linear, dtype: torch.dtype) -> PackedWeight:
    """What is kept for a layer, or an empty one if the layer has changed."""
    kept = _KEPT.get(layer)
    if kept is None or not kept.is_of(layer, dtype):
        kept = _KEPT[layer] = PackedWeight(dtype)
    return kept


def _packed_type(weight: torch.Tensor) -> torch.dtype | None:
    """The type to pack a weight in; None to leave it as it is.

    A CPU that has no instructions for products of bf16 takes several times as long for them, and none gains by float16.
    """
    if not can_pack(weight.device) or weight.dtype == torch.float64:
        return None
    if weight.dtype == torch.float32:
        return torch.float32 if _has_slow_products() else None
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast and weight.dtype == torch.bfloat16 else torch.float32


def can_pack(device: torch.device) -> bool:
    """Whether weights can be packed there: on a CPU, with a build of torch that has oneDNN."""
    built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return device.type == "cpu" and built


@functools.cache
def _has_slow_products() -> bool:
    """Whether ``torch.mm`` leaves the processor's AVX512 unused, as MKL does on those that Intel did not make."""
    if not (torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"):
        return False
    try:
        return "GenuineIntel" not in _CPUINFO.read_text(encoding="utf-8")
    except OSError:  # no Linux
        return False
