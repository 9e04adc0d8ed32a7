"""Stage 1: images <-> grids of codes."""

from typing import Any

__all__ = ["Tokenizer", "TokenizerConfig", "TokenizerModel"]


def __getattr__(name: str) -> Any:  # lazily, so that importing the package does not import torch
    if name == "Tokenizer":
        from stage1_tokenizer.hub import Tokenizer

        return Tokenizer
    if name == "TokenizerConfig":
        from stage1_tokenizer.config import TokenizerConfig

        return TokenizerConfig
    if name == "TokenizerModel":
        from stage1_tokenizer.tokenizer import TokenizerModel

        return TokenizerModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
