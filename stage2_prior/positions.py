"""Positions of a sequence of codes: rotary embeddings on a grid, and tables of targets, slots and codebook sizes.

Half of each head's channels rotate with the row, half with the column. Sources: Su et al. 2021, arXiv:2104.09864,
Eq. 15 (rotation by position); the split between two axes follows Heo et al. 2024, arXiv:2403.13298, section 3.1
("axial").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from foundation.codes.spec import CodeSpec, code_positions
from foundation.errors import DataError
from stage2_prior.config import PriorConfig


class Rope(NamedTuple):
    """Rotations of T tokens, as ``rotate`` uses them.

    Attributes:
        cos, sin: (T, K), or (B, 1, T, K) for positions that differ between images. Of a pair of channels
            (2i, 2i + 1) both have the same cos; the first takes -sin times its partner, the second +sin.
        turns: complex64, (T, K / 2) or (B, 1, T, K / 2): what each pair, as one complex number, is multiplied by.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    turns: torch.Tensor

    def part(self, start: int, end: int | None) -> Rope:
        """Tokens ``start:end`` (views)."""
        n_tokens = (self.cos.shape[-2] if end is None else end) - start
        return Rope(*[each.narrow(-2, start, n_tokens) for each in self])

    def of(self, rows_BT: torch.Tensor) -> Rope:
        """Tokens of each image by their rows of these tables, (B, 1, T, K)."""
        return Rope(*(each[rows_BT].unsqueeze(1) for each in self))

    def of_image(self, index: int) -> Rope:
        """Of positions that differ between images, one image's."""
        return Rope(*(each[index, 0] for each in self))


def grid_angles(rows: torch.Tensor, columns: torch.Tensor, d_head: int, base: float) -> torch.Tensor:
    """Rotation angles of tokens at these positions.

    Args:
        rows, columns: (T,), whole or fractional; a prefix token is at (0, 0), where the rotation is the
            identity.
        d_head: width of a head, a multiple of 4.
        base: frequency j is ``base ** (-2 j / (d_head / 2))``.

    Returns:
        (T, d_head / 2) float32 angles: the row's, then the column's.
    """
    quarter = d_head // 4
    exponents = torch.arange(quarter, dtype=torch.float32, device=rows.device) * (-2.0 / (d_head / 2))
    frequencies = torch.full((), base, dtype=torch.float32, device=rows.device) ** exponents
    positions_T2 = torch.stack([rows, columns], dim=1).to(torch.float32)
    return (positions_T2.unsqueeze(2) * frequencies).flatten(1)


def rotation(angles_TA: torch.Tensor) -> Rope:
    """The rotations by these angles, A = K / 2."""
    cos = angles_TA.cos().repeat_interleave(2, dim=1)
    sin = angles_TA.sin().repeat_interleave(2, dim=1)
    sin[:, 0::2].neg_()
    return Rope(cos, sin, torch.polar(torch.ones_like(angles_TA), angles_TA))


def rotate(x_BNTK: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Rotate each pair of channels (2i, 2i + 1) by its token's angle i, in float32. (B, N, T, K) => the same."""
    cos, sin, _ = rope
    swapped = x_BNTK.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x_BNTK * cos + swapped * sin).to(x_BNTK.dtype)


class Positions(NamedTuple):
    """Tables over T inputs, on one device. Input 0 is the class; in raster order input p is code p - 1, and predicts
    code p.

    Attributes:
        rope: rotations by the input's own position; the class is at (0, 0). None for no rotation. With an order per
            image, it and the next two have an axis B in front.
        own_T: int64, the input's own position: 0 for the class, 1 + t for code t; T more for each grid of the
            specification before the image's own.
        target_T: int64, the position of the code that the input predicts, counted on in the same way.
        offset_T: int64, the first row that the input's slot has in the table of code embeddings. With an order per
            image, it and the next two have an axis B in front where there are several slots.
        slot_T: int64, the slot of the code that the input predicts.
        size_T: int64, the size of that slot's codebook.
    """

    rope: Rope | None
    own_T: torch.Tensor
    target_T: torch.Tensor
    offset_T: torch.Tensor
    slot_T: torch.Tensor
    size_T: torch.Tensor

    def part(self, start: int, end: int | None) -> Positions:
        """Inputs ``start:end`` of raster order (views)."""
        rope, *tables = self
        n_inputs = (self.own_T.shape[-1] if end is None else end) - start
        return Positions(rope and rope.part(start, end), *[table.narrow(-1, start, n_inputs) for table in tables])

    def at(self, inputs_Q: torch.Tensor, targets_Q: torch.Tensor | None = None) -> Positions:
        """Some inputs, by number, int64, with what others predict; None for what they themselves predict."""
        rope, own_T, target_T, offset_T, slot_T, size_T = self
        targets_Q = inputs_Q if targets_Q is None else targets_Q
        return Positions(
            None if rope is None else Rope(*(each.index_select(-2, inputs_Q) for each in rope)),
            own_T.index_select(-1, inputs_Q),
            target_T.index_select(-1, targets_Q),
            offset_T.index_select(-1, inputs_Q),
            slot_T.index_select(-1, targets_Q),
            size_T.index_select(-1, targets_Q),
        )

    def rows(self, first: int, last: int) -> Positions:
        """Images ``first:last``, where positions differ between images; else all (views)."""
        rope, *tables = self
        if rope is not None and rope.cos.ndim == 4:
            rope = Rope(*(each[first:last] for each in rope))
        return Positions(rope, *(each[first:last] if each.ndim == 2 else each for each in tables))

    def repeat(self, times: int) -> Positions:
        """All images again, ``times`` times, where positions differ between images."""
        rope, *tables = self
        if rope is not None and rope.cos.ndim == 4:
            rope = Rope(*(each.repeat(times, 1, 1, 1) for each in rope))
        return Positions(rope, *(each.repeat(times, 1) if each.ndim == 2 else each for each in tables))

    def of_image(self, index: int) -> Positions:
        """Of an order or grid per image, one image's."""
        rope, own_T, target_T, *shared = self
        rope = None if rope is None else rope.of_image(index)
        return Positions(rope, own_T[index], target_T[index], *shared)


class PositionTables:
    """Builds ``Positions`` once for each device. The tables are no buffers, so that a model can be moved and loaded
    freely.

    With G grids, one for each shape of images, tables of positions have 1 + G T rows: the class, and the codes of each
    grid.

    Args:
        spec: of the codes.
        config: of the prior.
    """

    def __init__(self, spec: CodeSpec, config: PriorConfig) -> None:
        of_grids = [code_positions(spec.of_grid(grid)) for grid in range(spec.n_grids)]
        positions = of_grids[0]
        self.n_grids = len(of_grids)
        self.size_T = positions.codebook_size_T + config.extra_codes
        self.n_codes, self.n_slots, self._config = spec.n_codes, len(spec.slots), config
        sizes = [slot.codebook_size + config.extra_codes for slot in spec.slots]
        self.n_rows = sum(sizes)
        first_rows = np.cumsum([0, *sizes[:-1]])
        own_2P = np.concatenate([np.stack([each.row_T, each.column_T]) for each in of_grids], axis=1)
        self._position_2P = np.concatenate([np.zeros((2, 1), np.float32), own_2P], axis=1)  # P = 1 + G T: class, codes
        self.depth_T, self.first_row_T = positions.depth_T, first_rows[positions.slot_T]
        offset_T = np.concatenate([[0], self.first_row_T[:-1]])
        self._table_4T = np.stack([np.arange(self.n_codes), offset_T, positions.slot_T, self.size_T])
        self._made: dict[torch.device, tuple[Positions, Rope | None]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> PositionTables:
        """Copies of a model share the tables, which nobody changes."""
        return self

    def on(self, device: torch.device) -> Positions:
        """All T inputs of the first grid in raster order, on a device: shared tensors, to be read only."""
        return self._on(device)[0]

    def of_grid(self, device: torch.device, grid: int) -> Positions:
        """All T inputs of one grid in raster order, on a device."""
        return self.of_grids(torch.full((1,), grid, device=device)).of_image(0) if grid else self.on(device)

    def of_grids(self, grids_B: torch.Tensor) -> Positions:
        """All T inputs in raster order, for the grid of each image; int64, on the model's device."""
        raster, rope = self._on(grids_B.device)
        first_B1 = (grids_B * self.n_codes).unsqueeze(1)
        own_BT = torch.where(raster.own_T > 0, raster.own_T + first_B1, 0)
        rope = None if rope is None else rope.of(own_BT)
        return raster._replace(rope=rope, own_T=own_BT, target_T=raster.target_T + first_B1)

    def ordered(self, orders_BT: torch.Tensor, n_images: int, grids_B: torch.Tensor | None = None) -> Positions:
        """All T inputs, predicted in an order per image.

        Args:
            orders_BT: int64, on the model's device: entry i is the position that is predicted i-th.
            n_images: B.
            grids_B: int64, the grid of each image; None for one grid.

        Raises:
            DataError: not a permutation of the T positions, or codes of one place that are not together, outermost
                first (both checked on a CPU only).
        """
        raster, rope = self._on(orders_BT.device)
        self._require_orders(orders_BT, n_images)
        targets_BT = orders_BT if grids_B is None else orders_BT + (grids_B * self.n_codes).unsqueeze(1)
        own_BT = torch.cat([torch.zeros_like(orders_BT[:, :1]), targets_BT[:, :-1] + 1], dim=1)
        rope = None if rope is None else rope.of(own_BT)
        positions = raster._replace(rope=rope, own_T=own_BT, target_T=targets_BT)
        if self.n_slots == 1:
            return positions
        first_row_T = self.first_row_on(orders_BT.device)
        offset_BT = torch.cat([torch.zeros_like(orders_BT[:, :1]), first_row_T[orders_BT[:, :-1]]], dim=1)
        slot_BT, size_BT = raster.slot_T[orders_BT], raster.size_T[orders_BT]
        return positions._replace(offset_T=offset_BT, slot_T=slot_BT, size_T=size_BT)

    def first_row_on(self, device: torch.device) -> torch.Tensor:
        """(T,) int64, the first row that each code's slot has in the table of code embeddings."""
        offset_T, last = self.on(device).offset_T, self.first_row_T[-1:]
        return torch.cat([offset_T[1:], torch.from_numpy(last).to(device)])

    def whole(self, device: torch.device, grids_B: torch.Tensor | None = None) -> tuple[Rope | None, torch.Tensor]:
        """Of the class and all T codes in raster order: rotations, and positions as ``Positions.own_T``, (1 + T,).

        With the grid of each image, int64, both have an axis B in front.
        """
        own_T, rope = torch.arange(1 + self.n_codes, device=device), self._on(device)[1]
        if grids_B is None:
            return None if rope is None else rope.part(0, 1 + self.n_codes), own_T
        own_BT = torch.where(own_T > 0, own_T + (grids_B * self.n_codes).unsqueeze(1), 0)
        return None if rope is None else rope.of(own_BT), own_BT

    def _require_orders(self, orders_BT: torch.Tensor, n_images: int) -> None:
        right = orders_BT.shape == (n_images, self.n_codes)
        if right and orders_BT.device.type == "cpu":  # elsewhere the comparison would wait for the device
            right = torch.equal(orders_BT.sort(1).values, torch.arange(self.n_codes).expand_as(orders_BT))
            right = right and self._keep_cells(orders_BT)
        if not right:
            found, expected = f"shape {tuple(orders_BT.shape)}", f"{n_images} rows with each of 0..{self.n_codes - 1}"
            together = ", the codes of a position together" if self.depth_T.any() else ""
            raise DataError(
                "is not a permutation of the positions", field="orders", found=found, expected=expected + together
            )

    def _keep_cells(self, orders_BT: torch.Tensor) -> bool:
        """Whether each code that is not the outermost of its position comes after the one before it there."""
        inner_BT = torch.from_numpy(self.depth_T > 0)[orders_BT]
        follows_BT = torch.nn.functional.pad(orders_BT.diff(dim=1) == 1, (1, 0))
        return bool((follows_BT | ~inner_BT).all())

    def _on(self, device: torch.device) -> tuple[Positions, Rope | None]:
        """All T inputs of the first grid in raster order, and the rotations of the class and all codes of all grids."""
        if device not in self._made:
            with torch.inference_mode(False):  # tables made while sampling also serve training
                rope = self._rope(device)
                target_T, offset_T, slot_T, size_T = torch.from_numpy(self._table_4T).to(device)
                of_inputs = None if rope is None else rope.part(0, self.n_codes)
                self._made[device] = Positions(of_inputs, target_T, target_T, offset_T, slot_T, size_T), rope
        return self._made[device]

    def _rope(self, device: torch.device) -> Rope | None:
        """Rotations of the class and the codes of all grids, (1 + G T, K) each."""
        if self._config.positions == "learned":
            return None
        rows, columns = torch.from_numpy(self._position_2P).to(device)
        rope = rotation(grid_angles(rows, columns, self._config.d_head, self._config.rope_base))
        if self._config.class_rotation == "zero":
            for table in rope:
                table[0] = 0.0
        return rope
