"""Stage 2: a GPT over grids of codes. It never sees a pixel."""

from importlib import import_module
from typing import Any

_HOMES = {"Prior": "hub", "PriorConfig": "config", "PriorModel": "prior", "SamplingConfig": "decoding.sampling"}
__all__ = ["Prior", "PriorConfig", "PriorModel", "SamplingConfig"]


def __getattr__(name: str) -> Any:  # lazily, so that importing the package does not import torch
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"stage2_prior.{_HOMES[name]}"), name)
