"""Rotary positions on a grid: half of each head's channels turn with the row, half with the column.

Sources: Su et al. 2021, arXiv:2104.09864, Eq. 15 (rotation by position); the split between two axes follows Heo et al.
2024, arXiv:2403.13298, section 3.1 ("axial").
"""

from __future__ import annotations

import torch


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


def rotation(angles_TA: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles => (cos, sin), each (T, d_head), in the layout that ``rotate`` uses."""
    cos = angles_TA.cos().repeat_interleave(2, dim=1)
    sin = angles_TA.sin().repeat_interleave(2, dim=1)
    sin[:, 0::2].neg_()  # channel 2i takes -sin times its partner, channel 2i + 1 takes +sin
    return cos, sin


def rotate(x_BNTK: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor) -> torch.Tensor:
    """Turn each pair of adjacent channels (2i, 2i + 1) by its token's angle i. (B, N, T, K) => the same."""
    swapped = x_BNTK.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x_BNTK * cos_TK.to(x_BNTK.dtype) + swapped * sin_TK.to(x_BNTK.dtype)
