"""In which types the transformer computes, and where it takes the steps written out for a CPU.

On a GPU and under ``torch.compile`` the plain formulas are fast; on a CPU the library's backward passes of attention,
normalisation and gating move several times the memory they need, so that they are written out (``attention.py``,
``heads.py``, ``norm.py``, ``swiglu.py``): one autograd step each, which keeps little and computes the rest again.
"""

from __future__ import annotations

import torch


def product_type(x: torch.Tensor) -> torch.dtype:
    """The type of matrix products on x: autocast's where autocast is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The type of sums and of functions such as exp: float32 for types of 16 bits."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def written_out(x: torch.Tensor) -> bool:
    """Whether to take the steps written out for a CPU."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
