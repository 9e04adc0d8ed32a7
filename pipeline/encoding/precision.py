"""Full float32 arithmetic, whatever the process is set to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TensorFloat32, no bfloat16 inside matrix products and convolutions, no choice of algorithms by
    speed, since those differ from one start to the next.
    """
    cudnn = torch.backends.cudnn
    conv: Any = getattr(cudnn, "conv", None)  # from torch 2.9 on, where the older name may no longer be mixed in
    owner, name, exact = (cudnn, "allow_tf32", False) if conv is None else (conv, "fp32_precision", "ieee")
    before = torch.get_float32_matmul_precision(), cudnn.benchmark, cudnn.deterministic, getattr(owner, name)
    _set(("highest", False, True, exact), owner, name)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _set(before, owner, name)


def _set(settings: tuple[str, bool, bool, Any], owner: Any, name: str) -> None:
    products, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, convolutions = settings
    torch.set_float32_matmul_precision(products)
    setattr(owner, name, convolutions)
