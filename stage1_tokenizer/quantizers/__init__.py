"""Quantizers: latents <-> codes. One file each, one contract (``base.py``), chosen by a typed config."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage1_tokenizer.quantizers.base import Quantizer
    from stage1_tokenizer.quantizers.config import QuantizerConfig

_HOMES = {
    "base": ("Quantized", "Quantizer"),
    "config": (
        "FSQConfig",
        "GumbelConfig",
        "IBQConfig",
        "KLConfig",
        "LFQConfig",
        "QuantizerConfig",
        "ResidualConfig",
        "VQConfig",
    ),
    "fsq": ("FSQ",),
    "gumbel": ("Gumbel",),
    "ibq": ("IBQ",),
    "kl": ("GaussianLatent",),
    "lfq": ("LFQ",),
    "residual": ("ResidualVQ",),
    "vq": ("VQ",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_BUILDERS = {
    "FSQConfig": "FSQ",
    "GumbelConfig": "Gumbel",
    "IBQConfig": "IBQ",
    "KLConfig": "GaussianLatent",
    "LFQConfig": "LFQ",
    "ResidualConfig": "ResidualVQ",
    "VQConfig": "VQ",
}

__all__ = [*sorted(_HOME_OF), "build_quantizer"]


def __getattr__(name: str) -> Any:  # lazily, so that importing a config does not import torch
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that a configuration describes."""
    quantizer: Quantizer = __getattr__(_BUILDERS[type(config).__name__])(config)
    return quantizer
