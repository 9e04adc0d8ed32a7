"""The roof: recipes, command line, export, generation, reports."""

from typing import Any

__all__ = ["ImageGenerator"]


def __getattr__(name: str) -> Any:  # lazily, so that importing the package does not import torch
    if name == "ImageGenerator":
        from pipeline.generation.generator import ImageGenerator

        return ImageGenerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
