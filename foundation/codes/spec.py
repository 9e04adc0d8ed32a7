"""``CodeSpec``: the contract between the two stages about the grids of codes.

It travels with the tokenizer, the token dataset, the prior and the run. Parts that differ in it are refused, and the
message names the fields. ``code_positions`` gives the codebook, row and column of each code of a sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from foundation.config import check_types, differences, digest, require, require_range
from foundation.config_fields import added_later, without_defaults
from foundation.errors import ContractError, DataError
from foundation.images.config import Preprocess

if TYPE_CHECKING:
    import torch


Codes = TypeVar("Codes", np.ndarray, "torch.Tensor")


@dataclass(frozen=True)
class CodeSlot:
    """One codebook of a specification: the codes of one depth of one level index it.

    Attributes:
        level: 0 is the coarsest.
        depth: 0 is the outermost residual step.
        codebook_size: number of different codes.
        n_codes: codes of one image that index it, H * W.
    """

    level: int
    depth: int
    codebook_size: int
    n_codes: int


@dataclass(frozen=True, kw_only=True)
class CodeLevel:
    """One grid of codes."""

    height: int
    """rows"""
    width: int
    """columns"""
    codebook_size: int | tuple[int, ...]
    """number of different codes; a list where the depths differ in it"""
    depth: int = 1
    """codes at each position; more than 1 for residual quantizers"""

    def __post_init__(self) -> None:
        check_types(self)
        require_range(self, "above 0", "height", "width", "depth")
        size, depth = self.codebook_size, self.depth
        require(len(self.sizes) == depth, "codebook_size", size, f"one number, or {depth}, one for each depth")
        require(min(self.sizes) > 0, "codebook_size", size, "above 0")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of different codes at each depth."""
        size = self.codebook_size
        return size if isinstance(size, tuple) else (size,) * self.depth

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
    """The grids of codes of one image, and the tokenizer that makes them.

    Sequence order: level by level, raster (row by row) within a level, depth innermost. Images of several shapes have
    one grid each of the same number of codes, in raster order of their own rows and columns: see ``grids``.
    """

    levels: tuple[CodeLevel, ...]
    """the grids, coarse to fine; one for all tokenizers but hierarchical ones"""
    stride: int
    """pixels per code along each side, at the finest level"""
    preprocess: Preprocess
    """how an image became pixels before it was encoded"""
    fingerprint: str
    """SHA-256 of the tokenizer's configuration and weights; empty where the tokenizer is not known"""
    class_names: tuple[str, ...] = ()
    """names of the labels, in label order; empty when there are none"""
    latents: bool = added_later(False)
    """whether codes are the bits of float16 numbers, channels of a continuous tokenizer's latent, one at each depth"""

    def __post_init__(self) -> None:
        check_types(self)
        require(len(self.levels) > 0, "levels", self.levels, "at least one level")
        for i, (coarse, fine) in enumerate(zip(self.levels, self.levels[1:], strict=False), start=1):
            ordered = coarse.height <= fine.height and coarse.width <= fine.width
            expected = f"at least levels[{i - 1}]'s {coarse.height} x {coarse.width}: coarse to fine"
            require(ordered, f"levels[{i}]", f"{fine.height} x {fine.width}", expected)
        if self.preprocess.shapes:
            self._require_shapes()

    def _require_shapes(self) -> None:
        """Refuse several shapes for several levels, and shapes that are not whole numbers of codes."""
        n_levels, fix = len(self.levels), "leave data.preprocess.shapes empty"
        require(n_levels == 1, "preprocess.shapes", f"{n_levels} levels of codes", "one level for several shapes", fix)
        stride, level = self.stride, self.levels[0]
        for i, (height, width) in enumerate(self.preprocess.all_shapes):
            fits = height % stride == width % stride == 0 and height // stride * (width // stride) * level.depth
            expected = f"sides that are multiples of {stride}, and {level.n_codes} codes"
            require(fits == level.n_codes, f"preprocess.shapes[{i - 1}]", f"{height} x {width}", expected)

    @property
    def n_grids(self) -> int:
        """Number of grids that an image's codes may form, one for each shape of the preprocess."""
        return len(self.preprocess.all_shapes)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of the (finest) level for each shape of images; all have the same number of codes."""
        finest, stride = self.levels[-1], self.stride
        others = ((height // stride, width // stride) for height, width in self.preprocess.shapes)
        return ((finest.height, finest.width), *others)

    def of_grid(self, index: int) -> CodeSpec:
        """What the codes of images of one shape are, by its index in ``grids``: a specification of one grid."""
        if self.n_grids == 1:
            return self
        height, width = self.grids[index]
        level = dataclasses.replace(self.levels[0], height=height, width=width)
        return dataclasses.replace(self, levels=(level,), preprocess=self.preprocess.of_shape(index))

    def find_grid(self, sides: Sequence[int]) -> int | None:
        """The grid with these (rows, columns) or (rows, columns, depth); None if there is none."""
        depth = self.levels[-1].depth
        shapes: list[tuple[int, ...]] = [(*each, depth) if depth > 1 else each for each in self.grids]
        return shapes.index(tuple(sides)) if tuple(sides) in shapes and len(self.levels) == 1 else None

    @property
    def n_codes(self) -> int:
        """Codes of one image, all levels together: the length T of its sequence."""
        return sum(level.n_codes for level in self.levels)

    @property
    def codebook_size(self) -> int:
        """Number of different codes; the largest over levels and depths."""
        return max(size for level in self.levels for size in level.sizes)

    @property
    def knows_images(self) -> bool:
        """Whether stride and preprocess describe images; codes without a known tokenizer have neither."""
        return bool(self.fingerprint)

    @property
    def contract(self) -> str:
        """SHA-256 of the whole specification."""
        return digest(without_defaults(self))

    def with_classes(self, class_names: tuple[str, ...]) -> CodeSpec:
        """The same codes for a labelled set of images."""
        return dataclasses.replace(self, class_names=class_names)

    @property
    def slots(self) -> tuple[CodeSlot, ...]:
        """The codebooks, one for each depth of each level, in sequence order."""
        return tuple(
            CodeSlot(i, depth, size, level.height * level.width)
            for i, level in enumerate(self.levels)
            for depth, size in enumerate(level.sizes)
        )

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names that distinguish ``slots``; an empty one if there is one slot."""
        grids = [f"{level.height} x {level.width} grid" if len(self.levels) > 1 else "" for level in self.levels]
        depths = [f"depth {slot.depth + 1}" if self.levels[slot.level].depth > 1 else "" for slot in self.slots]
        named = ((grids[slot.level], depth) for slot, depth in zip(self.slots, depths, strict=True))
        return tuple(", ".join(part for part in parts if part) for parts in named)

    @property
    def shape(self) -> tuple[int, ...]:
        """One image's codes: (H, W) or (H, W, D) for one level, the flat (T,) for several."""
        return self.levels[0].shape if len(self.levels) == 1 else (self.n_codes,)

    def grid(self, codes_BT: Codes, index: int = 0) -> Codes:
        """(B, T) sequences => a tokenizer's layout, ``shape`` for each image; ``flatten(1)`` is the inverse.

        Args:
            codes_BT: of images of one shape.
            index: of their grid in ``grids``.

        Raises:
            DataError: sequences of another length.
        """
        self.require_length(codes_BT)
        return codes_BT.reshape(len(codes_BT), *self.of_grid(index).shape)

    def split(self, codes_BT: Codes) -> list[Codes]:
        """(B, T) sequences => each level's grid, (B, H, W) or (B, H, W, D), coarse to fine; ``join`` is the inverse.

        Raises:
            DataError: sequences of another length.
        """
        self.require_length(codes_BT)
        ends = np.cumsum([level.n_codes for level in self.levels]).tolist()
        return [
            codes_BT[:, end - level.n_codes : end].reshape(len(codes_BT), *level.shape)
            for level, end in zip(self.levels, ends, strict=True)
        ]

    def join(self, grids: Sequence[Codes]) -> Codes:
        """Each level's grid, (B, H, W) or (B, H, W, D), coarse to fine => (B, T) sequences.

        Raises:
            DataError: another number of grids, or one of another shape.
        """
        known = isinstance(grids, (list, tuple)) and all(
            isinstance(getattr(each, "shape", None), tuple) for each in grids
        )
        found = [tuple(grid.shape) for grid in grids] if known else type(grids).__name__
        expected = [level.shape for level in self.levels]
        if not known or [shape[1:] for shape in found] != expected or len({shape[:1] for shape in found}) != 1:
            what, sides = "the grids do not fit the levels, or differ in length", f"(B, ...) with sides {expected}"
            raise DataError(what, field="codes", found=found, expected=sides)
        flat = [grid.reshape(len(grid), level.n_codes) for grid, level in zip(grids, self.levels, strict=True)]
        if isinstance(flat[0], np.ndarray):
            return np.concatenate(flat, axis=1)
        import torch

        return torch.cat(flat, dim=1)

    def require_length(self, codes_BT: Codes, field: str = "codes") -> None:
        """Refuse anything but (B, T) sequences.

        Raises:
            DataError: naming ``field`` and both shapes.
        """
        shape = getattr(codes_BT, "shape", None)
        if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != self.n_codes:
            found = tuple(shape) if isinstance(shape, tuple) else type(codes_BT).__name__
            expected = ("B", self.n_codes)
            raise DataError("codes do not fit the specification", field=field, found=found, expected=expected)


def require_same_codes(expected: CodeSpec, found: CodeSpec, *, owner: str, other: str) -> None:
    """Refuse to combine two parts whose codes mean different things.

    Args:
        expected: the specification of ``owner``.
        found: the specification of ``other``. Class names are compared only where both have some.
        owner, other: their names in the message, e.g. ``"the prior"`` and ``"the tokenizer"``.

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
        fix=f"use {other} that {owner} was made with, or make {owner} again from {other}",
    )


@dataclass(frozen=True)
class CodePositions:
    """Tables over the T positions of a sequence.

    Attributes:
        slot_T: int64, index into ``spec.slots``.
        level_T, depth_T: int64, the slot's level and depth.
        row_T, column_T: float32, the code's coordinates in rows and columns of the finest grid. A code of a coarser
            level is at the centre of the block that it covers: of a 4 x 4 grid over an 8 x 8 one, row 0 is at 0.5.
        codebook_size_T: int64, size of the codebook at that position.
    """

    slot_T: np.ndarray
    level_T: np.ndarray
    depth_T: np.ndarray
    row_T: np.ndarray
    column_T: np.ndarray
    codebook_size_T: np.ndarray


def code_positions(spec: CodeSpec) -> CodePositions:
    """The tables of a specification, in sequence order: level by level, raster within a level, depth innermost.

    With several shapes of images, of the first one; for another: ``code_positions(spec.of_grid(index))``.
    """
    height, width = (max(getattr(level, side) for level in spec.levels) for side in ("height", "width"))
    indices = [np.indices((each.height, each.width, each.depth)).reshape(3, -1) for each in spec.levels]
    level_T = np.repeat(np.arange(len(spec.levels)), [each.n_codes for each in spec.levels])
    rows = [_centres(index[0], each.height, height) for each, index in zip(spec.levels, indices, strict=True)]
    columns = [_centres(index[1], each.width, width) for each, index in zip(spec.levels, indices, strict=True)]
    depth_T = np.concatenate([index[2] for index in indices])
    first_slots = np.cumsum([0] + [each.depth for each in spec.levels[:-1]])
    slot_T = first_slots[level_T] + depth_T
    sizes = np.array([slot.codebook_size for slot in spec.slots])
    return CodePositions(slot_T, level_T, depth_T, np.concatenate(rows), np.concatenate(columns), sizes[slot_T])


def require_codes(
    codes_BT: np.ndarray, spec: CodeSpec, field: str = "codes", fix: str = "encode the images again"
) -> None:
    """Refuse sequences that do not fit ``spec``.

    Args:
        codes_BT: (B, T); B may be 0.
        spec: grids and codebooks.
        field: names them in the message.
        fix: what to do about a code outside its codebook.

    Raises:
        DataError: another length, numbers that are not integers, or a code outside the codebook of its position.
    """
    spec.require_length(codes_BT, field)
    if not np.issubdtype(codes_BT.dtype, np.integer):
        raise DataError("codes are not whole numbers", field=field, found=codes_BT.dtype, expected="an integer type")
    if not len(codes_BT):
        return
    positions, lowest_T, highest_T = code_positions(spec), codes_BT.min(0), codes_BT.max(0)
    wrong = np.flatnonzero((lowest_T < 0) | (highest_T >= positions.codebook_size_T))
    if len(wrong):
        t = int(wrong[0])
        slot = spec.slots[positions.slot_T[t]]
        what = f"holds a code outside the codebook, at position {t} (level {slot.level}, depth {slot.depth})"
        found, expected = f"{lowest_T[t]}..{highest_T[t]}", f"0..{slot.codebook_size - 1}"
        raise DataError(what, field=field, found=found, expected=expected, fix=fix)


def _centres(index: np.ndarray, n: int, n_finest: int) -> np.ndarray:
    return ((index + 0.5) * (n_finest / n) - 0.5).astype(np.float32)
