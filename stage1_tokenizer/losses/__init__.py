"""Losses beyond pixels: perceptual distance (LPIPS) and adversarial training. Each is off unless its weight is set."""

from importlib import import_module
from typing import Any

_HOMES = {"AdversarialConfig": "config", "Adversary": "adversary", "LPIPS": "lpips", "PerceptualConfig": "config"}
__all__ = ["LPIPS", "AdversarialConfig", "Adversary", "PerceptualConfig"]


def __getattr__(name: str) -> Any:  # lazily, so that a recipe without these losses does not load them
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"stage1_tokenizer.losses.{_HOMES[name]}"), name)
