"""Grids of codes larger than those a prior was trained on: the trained window slides over them in raster order.

Each code is drawn given the codes of a window of the trained size that lies as far as possible around it, as Esser,
Rombach and Ommer 2021, arXiv:2012.09841, section 3.3, do. The window moves by a quarter of its width along a row, not
by one code, so that a row takes a quarter of the passes; a code still sees half a window to its left, or all there is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from tqdm import tqdm

from foundation.codes.spec import CodeSpec
from foundation.errors import ConfigError
from foundation.images.preprocess import MAX_PIXELS, MAX_SIDE
from pipeline.generation.drawing import Order, steps
from pipeline.generation.requests import whole
from stage2_prior.decoding.decode import DRAW, stream_uniforms
from stage2_prior.decoding.engine import engine_for, images_that_fit
from stage2_prior.prior import PriorModel


class Run(NamedTuple):
    """Codes of one row that are drawn with the window at one place.

    Attributes:
        row: of the large grid.
        first, last: columns of the large grid, the last one excluded.
        top, left: where the window's first row and column are.
    """

    row: int
    first: int
    last: int
    top: int
    left: int


def wide_grid(spec: CodeSpec, height: object, width: object) -> tuple[int, int] | None:
    """Rows and columns of the grid of an image of this size; None for the size that the prior was trained on.

    Args:
        spec: what the prior was trained on.
        height, width: in pixels; None takes the trained one.

    Raises:
        ConfigError: no multiple of the stride, smaller than the trained size, too large, or a prior of several grids.
    """
    sides = []
    for name, value, trained in (("height", height, spec.preprocess.height), ("width", width, spec.preprocess.width)):
        side = trained if value is None else whole(value)
        if side < trained or side % spec.stride or side > MAX_SIDE:
            raise ConfigError("cannot be a side of an image", field=name, found=repr(value)[:200],
                              expected=f"a multiple of {spec.stride} from {trained} to {MAX_SIDE}")  # fmt: skip
        sides.append(side)
    if sides[0] * sides[1] > MAX_PIXELS:
        raise ConfigError("is too large an image", field="height", found=f"{sides[0]} x {sides[1]} pixels",
                          expected=f"at most {MAX_PIXELS:,} pixels")  # fmt: skip
    if sides == [spec.preprocess.height, spec.preprocess.width]:
        return None
    if len(spec.levels) > 1:
        raise ConfigError("larger images need codes of one grid", field="height", found=f"{len(spec.levels)} grids",
                          fix="leave height and width out")  # fmt: skip
    return sides[0] // spec.stride, sides[1] // spec.stride


def draw_wide(prior: PriorModel, order: Order, grid: tuple[int, int], *, show_progress: bool = True) -> torch.Tensor:
    """Draw grids that are at least as large as the trained one; guidance schedules act on the place in the window.

    Args:
        prior: of one grid of codes.
        order: labels, seeds and sampling settings.
        grid: rows and columns to draw.
        show_progress: show a bar, if it takes longer than two seconds.

    Returns:
        (B, rows, columns) int64 codes, or (B, rows, columns, D) for depth D.
    """
    level, (n_rows, n_columns) = prior.spec.levels[0], grid
    per_image = 2 if order.sampling.guidance_scale != 1 else 1
    size = order.max_rows or images_that_fit(engine_for(prior), per_image)
    parts = []
    total = len(order.labels) * n_rows * n_columns
    with tqdm(total=total, desc="sampling", unit="place", delay=2, disable=not show_progress) as progress:
        for start in range(0, len(order.labels), size):
            part = slice(start, start + size)
            labels, seeds = order.labels[part], order.seeds[part]
            one = dataclasses.replace(order, labels=labels, seeds=seeds, max_rows=len(labels))
            uniforms = stream_uniforms(seeds, n_rows * n_columns * level.depth)
            uniforms_BHWD = uniforms.view(-1, n_rows, n_columns, level.depth)
            codes_BHWD = torch.full(uniforms_BHWD.shape, DRAW, device=prior.head.weight.device)
            for run in runs(grid, (level.height, level.width)):
                _draw_run(prior, one, run, codes_BHWD, uniforms_BHWD)
                progress.update(len(labels) * (run.last - run.first))
            parts.append(codes_BHWD)
    codes = torch.cat(parts)
    return codes if level.depth > 1 else codes[..., 0]


def runs(grid: tuple[int, int], window: tuple[int, int]) -> Iterator[Run]:
    """Where the window is for each code of a grid, in raster order."""
    (n_rows, n_columns), (height, width) = grid, window
    stride = max(1, width // 4)
    lefts = [min(max(0, c - width // 2) // stride * stride, n_columns - width) for c in range(n_columns)]
    for row in range(n_rows):
        top = min(max(0, row - height // 2), n_rows - height)
        first = 0
        for column in range(1, n_columns + 1):
            if column == n_columns or lefts[column] != lefts[first]:
                yield Run(row, first, column, top, lefts[first])
                first = column


def _draw_run(prior: PriorModel, order: Order, run: Run, codes_BHWD: torch.Tensor, uniforms_BHWD: torch.Tensor) -> None:
    """Fill in the codes of a run, given those before them in the window."""
    level = prior.spec.levels[0]
    rows, columns = slice(run.top, run.top + level.height), slice(run.left, run.left + level.width)
    before = ((run.row - run.top) * level.width + run.first - run.left) * level.depth
    n_codes = (run.last - run.first) * level.depth
    known_BT = codes_BHWD[:, rows, columns].flatten(1).clone()
    known_BT[:, before:] = DRAW
    uniforms_BT = uniforms_BHWD[:, rows, columns].flatten(1)
    piece = dataclasses.replace(order, known_BT=known_BT, start=before, uniforms_BT=uniforms_BT)
    drawn = []
    for step in steps(prior, piece):
        drawn.append(step.codes_B)
        if len(drawn) == n_codes:
            break
    drawn_BN = torch.stack(drawn, 1)
    codes_BHWD[:, run.row, run.first : run.last] = drawn_BN.view(len(drawn_BN), -1, level.depth)
