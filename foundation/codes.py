"""The contract between the two stages: what grids of codes a tokenizer makes.

A ``CodeSpec`` travels with the tokenizer, the token dataset, the prior and the run. Parts whose specs differ are
refused, and the message names the fields.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from foundation.config import differences, digest, require
from foundation.errors import ContractError
from foundation.images import Preprocess


@dataclass(frozen=True, kw_only=True)
class CodeLevel:
    """One grid of codes."""

    height: int
    """rows"""
    width: int
    """columns"""
    codebook_size: int
    """number of different codes"""
    depth: int = 1
    """codes at each position; more than 1 for residual quantizers"""

    def __post_init__(self) -> None:
        for name in ("height", "width", "codebook_size", "depth"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive whole number")

    @property
    def n_codes(self) -> int:
        """Codes in one grid: height * width * depth."""
        return self.height * self.width * self.depth

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W), or (H, W, D) when depth is more than 1."""
        return (self.height, self.width) if self.depth == 1 else (self.height, self.width, self.depth)


@dataclass(frozen=True, kw_only=True)
class CodeSpec:
    """What the codes of one image are, and which tokenizer made them.

    Sequence order: level by level, raster (row by row) within a level, depth innermost.
    """

    levels: tuple[CodeLevel, ...]
    """the grids, coarse to fine; one for all tokenizers but hierarchical ones"""
    stride: int
    """pixels per code along each side, at the finest level"""
    preprocess: Preprocess
    """how an image became pixels before it was encoded"""
    fingerprint: str
    """SHA-256 of the tokenizer's configuration and weights"""
    class_names: tuple[str, ...] = ()
    """names of the labels, in label order; empty when there are none"""

    def __post_init__(self) -> None:
        require(len(self.levels) > 0, "levels", self.levels, "at least one level")

    @property
    def n_codes(self) -> int:
        """Codes of one image, all levels together: the length T of its sequence."""
        return sum(level.n_codes for level in self.levels)

    @property
    def codebook_size(self) -> int:
        """Number of different codes; the largest over the levels."""
        return max(level.codebook_size for level in self.levels)

    @property
    def contract(self) -> str:
        """SHA-256 of the whole specification."""
        return digest(self)

    def with_classes(self, class_names: tuple[str, ...]) -> CodeSpec:
        """The same codes for a labelled set of images."""
        return dataclasses.replace(self, class_names=tuple(class_names))

    def grid(self, codes_BT: np.ndarray) -> np.ndarray:
        """(B, T) sequences => (B, H, W) or (B, H, W, D) grids; for specifications with one level."""
        (level,) = self.levels
        return codes_BT.reshape(len(codes_BT), *level.shape)


def require_same_codes(expected: CodeSpec, found: CodeSpec, *, owner: str, other: str) -> None:
    """Refuse to combine two parts whose codes mean different things.

    Args:
        expected: the specification of ``owner``.
        found: the specification of ``other``. Class names are compared only where both have some.
        owner, other: how the message calls them, e.g. ``"the prior"`` and ``"the tokenizer"``.

    Raises:
        ContractError: naming each field that differs, with both values.
    """
    if not expected.class_names or not found.class_names:
        expected, found = expected.with_classes(()), found.with_classes(())
    rows = differences(expected, found)
    if not rows:
        return
    shown = "".join(f"\n    {name}: {owner} has {one!r}, {other} has {another!r}" for name, one, another in rows)
    raise ContractError(
        f"{owner} and {other} do not belong together; they differ in:{shown}",
        fix=f"use {other} that {owner} was made with, or make {owner} anew from {other}",
    )
