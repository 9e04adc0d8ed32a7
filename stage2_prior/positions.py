"""What the transformer knows of its inputs before it sees them: places, rows of the tables, codes that may follow.

Rotary positions on a grid: half of each head's channels turn with the row, half with the column.

Sources: Su et al. 2021, arXiv:2104.09864, Eq. 15 (rotation by position); the split between two axes follows Heo et al.
2024, arXiv:2403.13298, section 3.1 ("axial").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from foundation.codes.spec import CodeSpec, code_positions
from foundation.errors import DataError


class Rope(NamedTuple):
    """Rotations of T tokens, as ``rotate`` uses them.

    Attributes:
        cos, sin: (T, K), or (B, 1, T, K) where the tokens of images stand at different places. Of a pair of channels
            (2i, 2i + 1) both have the same cos; the first takes -sin times its partner, the second +sin.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def part(self, start: int, end: int | None) -> Rope:
        """Those of tokens ``start:end`` (views)."""
        return Rope(self.cos[..., start:end, :], self.sin[..., start:end, :])

    def of(self, rows_BT: torch.Tensor) -> Rope:
        """Of T tokens per image, each named by its row of these tables: (B, 1, T, K)."""
        return Rope(self.cos[rows_BT].unsqueeze(1), self.sin[rows_BT].unsqueeze(1))


def grid_angles(rows: torch.Tensor, columns: torch.Tensor, d_head: int, base: float) -> torch.Tensor:
    """Rotation angles of tokens at given places.

    Args:
        rows, columns: (T,) places, whole or fractional; a prefix token stands at (0, 0), where the rotation is the
            identity.
        d_head: width of a head, a multiple of 4.
        base: frequency j is ``base ** (-2 j / (d_head / 2))``.

    Returns:
        (T, d_head / 2) float32 angles: the row's, then the column's.
    """
    quarter = d_head // 4
    exponents = torch.arange(quarter, dtype=torch.float32, device=rows.device) * (-2.0 / (d_head / 2))
    frequencies = torch.full((), base, dtype=torch.float32, device=rows.device) ** exponents
    places_T2 = torch.stack([rows, columns], dim=1).to(torch.float32)
    return (places_T2.unsqueeze(2) * frequencies).flatten(1)


def rotation(angles_TA: torch.Tensor) -> Rope:
    """The rotations by these angles, A = K / 2."""
    cos = angles_TA.cos().repeat_interleave(2, dim=1)
    sin = angles_TA.sin().repeat_interleave(2, dim=1)
    sin[:, 0::2].neg_()
    return Rope(cos, sin)


def rotate(x_BNTK: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Turn each pair of adjacent channels (2i, 2i + 1) by its token's angle i, in float32. (B, N, T, K) => the same."""
    cos, sin = rope
    swapped = x_BNTK.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x_BNTK * cos + swapped * sin).to(x_BNTK.dtype)


def rotate_(x_BNTK: torch.Tensor, rope: Rope, *, back: bool = False) -> torch.Tensor:
    """``rotate`` in place, or its inverse (which is its transpose): each pair of channels is one complex number.

    Without gradients, for contiguous tensors of 32 or 64 bits, of any number of leading axes.
    """
    cos, sin = (each[..., 1::2].to(x_BNTK.dtype) for each in rope)
    torch.view_as_complex(x_BNTK.unflatten(-1, (-1, 2))).mul_(torch.complex(cos, -sin if back else sin))
    return x_BNTK


@dataclass(frozen=True)
class Places:
    """Tables over T inputs, on one device. Input 0 is the class; in raster order input p is code p - 1, and predicts
    code p.

    Attributes:
        rope: the rotation by the input's own place; the class stands at (0, 0). None where nothing is rotated.
            Where images have orders of their own, it and the next two have an axis B in front.
        own_T: int64, the input's own place: 0 for the class, 1 + t for code t.
        target_T: int64, the position of the code that the input predicts.
        offset_T: int64, the first row that the input's slot has in the table of code embeddings.
        slot_T: int64, the slot of the code that the input predicts.
        size_T: int64, the size of that slot's codebook.
    """

    rope: Rope | None
    own_T: torch.Tensor
    target_T: torch.Tensor
    offset_T: torch.Tensor
    slot_T: torch.Tensor
    size_T: torch.Tensor

    def part(self, start: int, end: int | None) -> Places:
        """Those of inputs ``start:end`` of raster order (views)."""
        here = slice(start, end)
        rope = None if self.rope is None else self.rope.part(start, end)
        return Places(rope, self.own_T[here], self.target_T[here], self.offset_T[here], self.slot_T[here],
                      self.size_T[here])  # fmt: skip


class PlaceTables:
    """Makes ``Places``, once for each device: tables that are no part of a model, so that it can be moved and loaded
    freely, and are not sent to a GPU again with every batch.

    Args:
        spec: what the codes are.
        d_head: width of a head.
        rope_base: base of the rotary frequencies; None for no rotation.
        zero_class: multiply queries and keys of the class by 0 in place of rotating them.
        extra_codes: codes that each slot has beyond its codebook.
    """

    def __init__(
        self,
        spec: CodeSpec,
        d_head: int,
        rope_base: float | None,
        *,
        zero_class: bool = False,
        extra_codes: int = 0,
    ) -> None:
        positions = code_positions(spec)
        self.d_head, self.rope_base, self.zero_class = d_head, rope_base, zero_class
        self.size_T = positions.codebook_size_T + extra_codes
        self.n_codes, self.n_slots = spec.n_codes, len(spec.slots)
        sizes = [slot.codebook_size + extra_codes for slot in spec.slots]
        self.n_rows = sum(sizes)
        first_rows = np.cumsum([0, *sizes[:-1]])
        own_2P = np.stack([positions.row_T, positions.column_T])
        self._place_2P = np.concatenate([np.zeros((2, 1), np.float32), own_2P], axis=1)  # P = 1 + T: class, codes
        offset_T = np.concatenate([[0], first_rows[positions.slot_T[:-1]]])
        self._table_4T = np.stack([np.arange(self.n_codes), offset_T, positions.slot_T, self.size_T])
        self._made: dict[torch.device, tuple[Places, Rope | None]] = {}

    def on(self, device: torch.device) -> Places:
        """All T inputs in raster order, on a device. Not to be changed: all callers get the same tensors."""
        return self._on(device)[0]

    def ordered(self, orders_BT: torch.Tensor, n_images: int) -> Places:
        """All T inputs of images that are predicted in orders of their own.

        Args:
            orders_BT: int64, on the model's device: entry i is the position that is predicted i-th.
            n_images: B.

        Raises:
            DataError: not a permutation of the T positions, or codes of several slots: a code of a coarser level or
                of a smaller depth says what the finer ones refine, so that only their own order is meaningful.
        """
        if self.n_slots > 1:
            raise DataError("codes of several levels or depths have one order only", field="orders",
                            found=f"{self.n_slots} slots", expected="1 slot", fix="train in raster order")  # fmt: skip
        raster, rope = self._on(orders_BT.device)
        right = orders_BT.shape == (n_images, self.n_codes)
        if not right or not torch.equal(orders_BT.sort(1).values, raster.target_T.expand_as(orders_BT)):
            raise DataError("is not a permutation of the positions of each image", field="orders",
                            found=f"a tensor of shape {tuple(orders_BT.shape)}",
                            expected=f"{n_images} rows with each of 0..{self.n_codes - 1} once")  # fmt: skip
        own_BT = torch.cat([torch.zeros_like(orders_BT[:, :1]), orders_BT[:, :-1] + 1], dim=1)
        rope = None if rope is None else rope.of(own_BT)
        return Places(rope, own_BT, orders_BT, raster.offset_T, raster.slot_T, raster.size_T)

    def _on(self, device: torch.device) -> tuple[Places, Rope | None]:
        """All T inputs in raster order, and the rotations of the class and all T codes."""
        if device not in self._made:
            with torch.inference_mode(False):  # what is made while drawing also serves a training
                rope = self._rope(device)
                target_T, offset_T, slot_T, size_T = torch.from_numpy(self._table_4T).to(device)
                of_inputs = None if rope is None else rope.part(0, -1)
                self._made[device] = Places(of_inputs, target_T, target_T, offset_T, slot_T, size_T), rope
        return self._made[device]

    def _rope(self, device: torch.device) -> Rope | None:
        """Of the class and all T codes, (1 + T, K) each."""
        if self.rope_base is None:
            return None
        rows, columns = torch.from_numpy(self._place_2P).to(device)
        rope = rotation(grid_angles(rows, columns, self.d_head, self.rope_base))
        if self.zero_class:
            rope.cos[0], rope.sin[0] = 0.0, 0.0
        return rope
