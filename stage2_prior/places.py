"""What the transformer knows of its inputs before it sees them: rotation, rows of the tables, codes that may follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from foundation.code_positions import code_positions
from foundation.codes import CodeSpec
from stage2_prior.rope2d import grid_angles, rotation


@dataclass(frozen=True)
class Places:
    """Tables over T inputs, on one device. Input 0 is the class, input p is code p - 1; input p predicts code p.

    Attributes:
        rope: (cos, sin), each (T, K): the rotation by the input's own place; the class stands at (0, 0).
        offset_T: int64, the first row that the input's slot has in the table of code embeddings.
        slot_T: int64, the slot of the code that the input predicts.
        size_T: int64, the size of that slot's codebook.
    """

    rope: tuple[torch.Tensor, torch.Tensor]
    offset_T: torch.Tensor
    slot_T: torch.Tensor
    size_T: torch.Tensor

    def part(self, start: int, end: int | None) -> Places:
        """Those of inputs ``start:end`` (views)."""
        cos, sin = self.rope
        here = slice(start, end)
        return Places((cos[here], sin[here]), self.offset_T[here], self.slot_T[here], self.size_T[here])


class PlaceTables:
    """Makes ``Places``; keeps no tensor, so that models can be moved and loaded freely.

    Args:
        spec: what the codes are.
        d_head: width of a head.
        rope_base: base of the rotary frequencies.
    """

    def __init__(self, spec: CodeSpec, d_head: int, rope_base: float) -> None:
        positions = code_positions(spec)
        self.d_head, self.rope_base = d_head, rope_base
        self.size_T = positions.codebook_size_T
        sizes = [slot.codebook_size for slot in spec.slots]
        self.n_rows = sum(sizes)
        first_rows = np.cumsum([0, *sizes[:-1]])
        own = np.stack([positions.row_T, positions.column_T])[:, :-1]
        self._place_2T = np.concatenate([np.zeros((2, 1), np.float32), own], axis=1)
        offset_T = np.concatenate([[0], first_rows[positions.slot_T[:-1]]])
        self._table_3T = np.stack([offset_T, positions.slot_T, self.size_T])

    def on(self, device: torch.device) -> Places:
        """All T inputs, on a device."""
        rows, columns = torch.from_numpy(self._place_2T).to(device, non_blocking=True)
        offset_T, slot_T, size_T = torch.from_numpy(self._table_3T).to(device, non_blocking=True)
        rope = rotation(grid_angles(rows, columns, self.d_head, self.rope_base))
        return Places(rope, offset_T, slot_T, size_T)
