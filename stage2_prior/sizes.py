"""Named sizes of the transformer: one word instead of three numbers.

``tiny`` and ``small`` are ours, for a CPU. The others are those of LlamaGen (Sun et al. 2024, arXiv:2406.06525,
Table 1, and its released code).
"""

from __future__ import annotations

from typing import NamedTuple


class TransformerShape(NamedTuple):
    """Blocks, attention heads and width."""

    n_layers: int
    n_heads: int
    d_model: int


class NamedSize(NamedTuple):
    """A shape, and about how many parameters it has in all with 16,384 codes and 1,000 classes."""

    shape: TransformerShape
    parameters: float


SIZES = {
    "tiny": NamedSize(TransformerShape(4, 4, 128), 5.13e6),
    "small": NamedSize(TransformerShape(6, 4, 256), 13.5e6),
    "gpt-b": NamedSize(TransformerShape(12, 12, 768), 111e6),
    "gpt-l": NamedSize(TransformerShape(24, 16, 1024), 338e6),
    "gpt-xl": NamedSize(TransformerShape(36, 20, 1280), 753e6),
    "gpt-xxl": NamedSize(TransformerShape(48, 24, 1536), 1.41e9),
    "gpt-3b": NamedSize(TransformerShape(24, 32, 3200), 3.06e9),
}
"""name => size; n_layers, n_heads, d_model, parameters"""

UNNAMED = SIZES["small"].shape
"""what a field takes where neither it nor a size is given"""
