"""Losses beyond pixels: perceptual distance (LPIPS) and adversarial training. Each is off unless its weight is set."""

from typing import Any

__all__ = ["LPIPS", "AdversarialConfig", "Adversary", "PerceptualConfig"]


def __getattr__(name: str) -> Any:  # lazily, so that a recipe without these losses does not load them
    if name in ("AdversarialConfig", "PerceptualConfig"):
        from stage1_tokenizer.losses import config

        return getattr(config, name)
    if name == "LPIPS":
        from stage1_tokenizer.losses.lpips import LPIPS

        return LPIPS
    if name == "Adversary":
        from stage1_tokenizer.losses.adversary import Adversary

        return Adversary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
