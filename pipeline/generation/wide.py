"""Larger images than trained: a window of the trained size slides over the grid in raster order.

Each code is sampled given the codes of a window of the trained size, as centred on it as the image's edges allow
(Esser, Rombach and Ommer 2021, arXiv:2012.09841, section 3.3). Along a row the window moves by a quarter of its width
instead of one code, so that a row takes a quarter of the passes; a code still sees half a window to its left, or all
there is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from tqdm import tqdm

from foundation.codes.spec import CodeSpec
from foundation.errors import ConfigError
from foundation.images.preprocess import MAX_PIXELS
from foundation.training.linear import packed_weights
from pipeline.generation.drawing import SampleRequest, steps
from pipeline.generation.requests import shown, whole
from stage2_prior.decoding.cache import images_that_fit
from stage2_prior.decoding.decode import MASKED, stream_uniforms
from stage2_prior.prior import PriorModel

_MAX_SIDE = 16_384


class Span(NamedTuple):
    """Placement of the window for some codes of a row.

    Attributes:
        row: of the large grid.
        first, last: columns of the large grid, the last one excluded.
        top, left: the window's first row and column.
    """

    row: int
    first: int
    last: int
    top: int
    left: int


def wide_grid(spec: CodeSpec, height: object, width: object) -> tuple[int, int] | None:
    """Rows and columns of the grid of an image of this size; None for the size that the prior was trained on.

    Args:
        spec: what the prior was trained on, of images of one shape.
        height, width: in pixels; None takes the trained one.

    Raises:
        ConfigError: no multiple of the stride, smaller than the trained size, too large, or a prior of several grids.
    """
    sides = []
    for name, value, trained in (("height", height, spec.preprocess.height), ("width", width, spec.preprocess.width)):
        side = trained if value is None else whole(value)
        if side < trained or side % spec.stride or side > _MAX_SIDE:
            found, expected = shown(value), f"a multiple of {spec.stride} from {trained} to {_MAX_SIDE}"
            raise ConfigError("cannot be a side of an image", field=name, found=found, expected=expected)
        sides.append(side)
    fits, found, most = sides[0] * sides[1] <= MAX_PIXELS, f"{sides[0]} x {sides[1]} pixels", f"at most {MAX_PIXELS:,}"
    ConfigError.unless(fits, "is too large an image", field="height", found=found, expected=f"{most} pixels")
    if sides == [spec.preprocess.height, spec.preprocess.width]:
        return None
    if len(spec.levels) > 1:
        problem, found = "larger images need codes of one grid", f"{len(spec.levels)} grids"
        raise ConfigError(problem, field="height", found=found, fix="leave height and width out")
    return sides[0] // spec.stride, sides[1] // spec.stride


def draw_wide(
    prior: PriorModel, request: SampleRequest, grid: tuple[int, int], *, show_progress: bool = True
) -> torch.Tensor:
    """Sample grids at least as large as the trained one; guidance schedules act on the position in the window.

    Args:
        prior: of one grid of codes.
        request: labels, seeds and sampling settings.
        grid: rows and columns to sample.
        show_progress: show a bar, if it takes longer than two seconds.

    Returns:
        (B, rows, columns) int64 codes, or (B, rows, columns, D) for depth D.
    """
    level, (n_rows, n_columns) = prior.spec.of_grid(request.grid).levels[0], grid
    per_image = 2 if request.sampling.guidance_scale != 1 else 1
    size = request.max_rows or images_that_fit(prior, per_image)
    parts, total = [], len(request.labels) * n_rows * n_columns
    in_order = dataclasses.replace(request.sampling, order="raster", passes=None, window=1)
    request = dataclasses.replace(request, sampling=in_order)
    with (
        packed_weights(prior),
        tqdm(total=total, desc="sampling", unit="position", delay=2, disable=not show_progress) as progress,
    ):
        for start in range(0, len(request.labels), size):
            part = slice(start, start + size)
            labels, seeds = request.labels[part], request.seeds[part]
            one = dataclasses.replace(request, labels=labels, seeds=seeds, max_rows=len(labels))
            uniforms = stream_uniforms(seeds, n_rows * n_columns * level.depth)
            uniforms_BHWD = uniforms.view(-1, n_rows, n_columns, level.depth)
            codes_BHWD = torch.full(uniforms_BHWD.shape, MASKED, device=prior.head.weight.device)
            for span in spans(grid, (level.height, level.width)):
                _sample_span(prior, one, span, codes_BHWD, uniforms_BHWD)
                progress.update(len(labels) * (span.last - span.first))
            parts.append(codes_BHWD)
    codes = torch.cat(parts)
    return codes if level.depth > 1 else codes[..., 0]


def spans(grid: tuple[int, int], window: tuple[int, int]) -> Iterator[Span]:
    """Placement of the window for each code of a grid, in raster order."""
    (n_rows, n_columns), (height, width) = grid, window
    stride = max(1, width // 4)
    lefts = [min(max(0, c - width // 2) // stride * stride, n_columns - width) for c in range(n_columns)]
    for row in range(n_rows):
        top = min(max(0, row - height // 2), n_rows - height)
        first = 0
        for column in range(1, n_columns + 1):
            if column == n_columns or lefts[column] != lefts[first]:
                yield Span(row, first, column, top, lefts[first])
                first = column


def _sample_span(
    prior: PriorModel, request: SampleRequest, span: Span, codes_BHWD: torch.Tensor, uniforms_BHWD: torch.Tensor
) -> None:
    """Sample the codes of a span, given the codes before them in the window."""
    level = prior.spec.of_grid(request.grid).levels[0]
    rows, columns = slice(span.top, span.top + level.height), slice(span.left, span.left + level.width)
    before = ((span.row - span.top) * level.width + span.first - span.left) * level.depth
    n_codes = (span.last - span.first) * level.depth
    known_BT = codes_BHWD[:, rows, columns].flatten(1).clone()
    known_BT[:, before:] = MASKED
    uniforms_BT = uniforms_BHWD[:, rows, columns].flatten(1)
    piece = dataclasses.replace(request, known_BT=known_BT, start=before, uniforms_BT=uniforms_BT)
    sampled_BN = torch.cat([step.codes_BK for step in islice(steps(prior, piece), n_codes)], 1)
    codes_BHWD[:, span.row, span.first : span.last] = sampled_BN.view(len(sampled_BN), -1, level.depth)
