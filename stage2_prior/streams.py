"""Codes while they are drawn, a row of the grid at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from foundation.codes.spec import CodeSpec
from stage2_prior.decode import DecodedCode


class DecodedRow(NamedTuple):
    """A row of one level's grid.

    Attributes:
        level: 0 is the coarsest.
        row: from the top.
        rows: which images of the call the codes belong to.
        codes: int64, (B, W), or (B, W, D) for a level of depth D.
    """

    level: int
    row: int
    rows: slice
    codes: torch.Tensor


def iterate_rows(steps: Iterable[DecodedCode], spec: CodeSpec) -> Iterator[DecodedRow]:
    """Gather the steps of ``decode.iterate_codes`` into rows, each as soon as its last code is there.

    Where the first step is not the first code of a row, that row is left out.
    """
    last = {}  # the last position of a row => (level, row, width, depth)
    end = 0
    for i, level in enumerate(spec.levels):
        for row in range(level.height):
            end += level.width * level.depth
            last[end - 1] = (i, row, level.width, level.depth)
    gathered: list[torch.Tensor] = []
    for step in steps:
        gathered.append(step.codes_B)
        if step.position not in last:
            continue
        i, row, width, depth = last[step.position]
        if len(gathered) == width * depth:
            codes = torch.stack(gathered, 1)
            yield DecodedRow(i, row, step.rows, codes if depth == 1 else codes.unflatten(1, (width, depth)))
        gathered = []
