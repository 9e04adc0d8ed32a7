"""Arithmetic of products and convolutions on a device for a while: exact float32, TensorFloat32 or bf16."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch

Arithmetic = Literal["float32", "tf32", "bf16"]


@contextlib.contextmanager
def arithmetic(device: torch.device, precision: Arithmetic = "float32") -> Iterator[None]:
    """Compute float32 tensors in this precision, with algorithms that give the same result each time.

    Args:
        device: of the tensors.
        precision: float32 is exact; tf32 rounds factors to 10 bits where the device can, and changes nothing on others;
            bf16 computes what autocast thinks safe in 16 bits.
    """
    cudnn = torch.backends.cudnn
    conv: Any = getattr(cudnn, "conv", None)  # torch 2.9 and later, which refuse to mix old and new names
    lower = precision == "tf32"
    owner, name = (cudnn, "allow_tf32") if conv is None else (conv, "fp32_precision")
    wanted: Any = lower if conv is None else "tf32" if lower else "ieee"
    before = torch.get_float32_matmul_precision(), cudnn.benchmark, cudnn.deterministic, getattr(owner, name)
    # On a CPU "high" may mean bf16 factors, which is not TF32.
    products = "high" if lower and device.type == "cuda" else "highest"
    _set((products, False, True, wanted), owner, name)
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        _set(before, owner, name)


def _set(settings: tuple[str, bool, bool, Any], owner: Any, name: str) -> None:
    products, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, convolutions = settings
    torch.set_float32_matmul_precision(products)
    setattr(owner, name, convolutions)
