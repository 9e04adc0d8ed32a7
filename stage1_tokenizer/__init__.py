"""Stage 1: images <-> grids of codes."""

from importlib import import_module
from typing import Any

_HOMES = {"Tokenizer": "hub", "TokenizerConfig": "config", "TokenizerModel": "tokenizer"}
__all__ = ["Tokenizer", "TokenizerConfig", "TokenizerModel"]


def __getattr__(name: str) -> Any:  # lazily, so that importing the package does not import torch
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"stage1_tokenizer.{_HOMES[name]}"), name)
