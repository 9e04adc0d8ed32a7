"""Codes of one's own, on which a prior is trained without images. Imports neither torch, numpy nor Pillow."""

from __future__ import annotations

import re
from dataclasses import dataclass

from foundation.config import require
from foundation.paths import require_no_secret

CODES_ADDRESS = "codes_address.json"
"""in a run folder whose codes are at an address: where"""


@dataclass(frozen=True, kw_only=True)
class OwnCodes:
    """Codes of one's own instead of images; see ``foundation.codes.sources`` for their forms."""

    source: str
    """a token dataset, a folder saved by datasets (save_to_disk), parquet with a column codes, or .npy, .npz; or an
    address of one, such as s3://bucket/codes"""
    tokenizer: str | None = None
    """folder of the tokenizer that made the codes, or a run; null takes the one inside the source, if there is one"""
    grid: str | None = None
    """HxW, or HxWxD for D codes at each position, of codes in flat rows without a tokenizer; null takes a square"""
    codebook_size: int | None = None
    """number of different codes without a tokenizer; null takes the largest code plus one"""

    def __post_init__(self) -> None:
        require_no_secret(self.source, "codes.source")
        sound = self.grid is None or (bool(re.fullmatch(r"\d+(x\d+){1,2}", self.grid)) and min(self.sides or ()) > 0)
        require(sound, "grid", self.grid, "rows x columns such as 16x16, or 8x8x4 with 4 codes at each position")
        sound = self.codebook_size is None or self.codebook_size > 0
        require(sound, "codebook_size", self.codebook_size, "a positive whole number, or null")

    @property
    def sides(self) -> tuple[int, ...] | None:
        """``grid`` as (H, W) or (H, W, D); None without one."""
        return None if self.grid is None else tuple(int(side) for side in self.grid.split("x"))
