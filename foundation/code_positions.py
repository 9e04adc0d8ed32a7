"""What each position of a sequence of codes stands for: its codebook, and its place in the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundation.codes import CodeSpec
from foundation.errors import DataError


@dataclass(frozen=True)
class CodePositions:
    """Tables over the T positions of a sequence.

    Attributes:
        slot_T: int64, index into ``spec.slots``.
        level_T, depth_T: int64, the slot's level and depth.
        row_T, column_T: float32, the code's place in units of the finest grid's rows and columns. A code of a coarser
            level stands at the centre of the block that it covers: of a 4 x 4 grid over an 8 x 8 one, row 0 is at 0.5.
        codebook_size_T: int64, the number of codes that may stand there.
    """

    slot_T: np.ndarray
    level_T: np.ndarray
    depth_T: np.ndarray
    row_T: np.ndarray
    column_T: np.ndarray
    codebook_size_T: np.ndarray


def code_positions(spec: CodeSpec) -> CodePositions:
    """The tables of a specification, in sequence order: level by level, raster within a level, depth innermost."""
    height, width = (max(getattr(level, side) for level in spec.levels) for side in ("height", "width"))
    places = [np.indices((each.height, each.width, each.depth)).reshape(3, -1) for each in spec.levels]
    level_T = np.repeat(np.arange(len(spec.levels)), [each.n_codes for each in spec.levels])
    rows = [_centres(place[0], each.height, height) for each, place in zip(spec.levels, places, strict=True)]
    columns = [_centres(place[1], each.width, width) for each, place in zip(spec.levels, places, strict=True)]
    depth_T = np.concatenate([place[2] for place in places])
    first_slots = np.cumsum([0] + [each.depth for each in spec.levels[:-1]])
    slot_T = first_slots[level_T] + depth_T
    sizes = np.array([slot.codebook_size for slot in spec.slots])
    return CodePositions(slot_T, level_T, depth_T, np.concatenate(rows), np.concatenate(columns), sizes[slot_T])


def require_codes(codes_BT: np.ndarray, spec: CodeSpec, field: str = "codes") -> None:
    """Refuse sequences that ``spec`` cannot mean.

    Args:
        codes_BT: (B, T); B may be 0.
        spec: what they should be.
        field: how the message calls them.

    Raises:
        DataError: another length, numbers that are not whole, or a code outside the codebook of its position.
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
        raise DataError(f"holds a code outside the codebook, at position {t} (level {slot.level}, depth {slot.depth})",
                        field=field, found=f"{lowest_T[t]}..{highest_T[t]}", expected=f"0..{slot.codebook_size - 1}",
                        fix="encode the images again")  # fmt: skip


def _centres(index: np.ndarray, n: int, n_finest: int) -> np.ndarray:
    return ((index + 0.5) * (n_finest / n) - 0.5).astype(np.float32)
