"""Quantizers: latents <-> codes. One file each, one contract (``base.py``), built by typed settings (``config.py``)."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Quantized", "Quantizer", "QuantizerConfig"]


def __getattr__(name: str) -> Any:  # lazily, so that importing the settings does not import torch
    home = "config" if name.endswith("Config") else "base"
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
