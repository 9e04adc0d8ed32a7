"""Stage 2: a GPT over grids of codes. It never sees a pixel."""

from typing import Any

__all__ = ["Prior", "PriorConfig", "PriorModel"]


def __getattr__(name: str) -> Any:  # lazily, so that importing the package does not import torch
    if name == "Prior":
        from stage2_prior.hub import Prior

        return Prior
    if name == "PriorConfig":
        from stage2_prior.config import PriorConfig

        return PriorConfig
    if name == "PriorModel":
        from stage2_prior.prior import PriorModel

        return PriorModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
