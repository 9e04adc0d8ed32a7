"""Rotary positions on a grid: half of each head's channels turn with the row, half with the column.

Sources: Su et al. 2021, arXiv:2104.09864, Eq. 15 (rotation by position); the split between two axes follows Heo et al.
2024, arXiv:2403.13298, section 3.1 ("axial").
"""

from __future__ import annotations

from typing import NamedTuple

import torch


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
