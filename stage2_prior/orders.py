"""Orders in which the codes of an image are predicted, and how many of them at once.

A cell is a position of a level's grid; its codes of all depths stay together, outermost first. Imports no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from foundation.codes.spec import CodeSpec, code_positions
from foundation.randomness import permutation, uniforms

MASKED = -1
"""Marks a code that is not known, and is to be sampled."""
_HALTON_BASES = (2, 3)
_ROUNDING = 2.0**-24
"""of float32"""


class Cells:
    """The cells of a specification, of images of one shape.

    Args:
        spec: of one grid; see ``CodeSpec.of_grid``.

    Attributes:
        n_cells: P.
        depth: the largest number of codes at a cell.
        cell_T, depth_T: int64, the cell of each code, in raster order level by level, and its depth there.
    """

    def __init__(self, spec: CodeSpec) -> None:
        self.spec, positions = spec, code_positions(spec)
        self.depth_T, self.depth = positions.depth_T, max(level.depth for level in spec.levels)
        self.cell_T = np.cumsum(self.depth_T == 0) - 1
        self.n_cells = int(self.cell_T[-1]) + 1

    def codes(self, orders_BP: np.ndarray) -> np.ndarray:
        """Permutations of the cells => of the codes, (B, P) => (B, T)."""
        if self.depth == 1:
            return orders_BP
        ranks_BP = np.empty_like(orders_BP)
        np.put_along_axis(ranks_BP, orders_BP, np.arange(self.n_cells)[None], 1)
        return (ranks_BP[:, self.cell_T] * self.depth + self.depth_T).argsort(axis=1, kind="stable")


def random_orders(positions_B: np.ndarray, cells: Cells, share: float, seed: int) -> np.ndarray:
    """The order in which the codes of each training example are predicted.

    Args:
        positions_B: of each example in the data order; a row depends on its own, ``share`` and ``seed`` alone.
        cells: of the codes.
        share: of rows in random order, 0 to 1; the others are in raster order.
        seed: of the permutations.

    Returns:
        (B, T) int64, a permutation of 0..T-1 in each row.
    """
    chosen_B = uniforms(positions_B, np.zeros_like(positions_B), seed, "in random order") < share
    keys_BP = uniforms(positions_B[:, None], np.arange(cells.n_cells)[None, :], seed, "random order")
    raster_T = np.arange(len(cells.cell_T))
    return np.where(chosen_B[:, None], cells.codes(keys_BP.argsort(axis=1, kind="stable")), raster_T)


KNOWN, PREDICTED = 1, 2
"""In masks of training: a code of the context, and one whose likelihood is the loss; 0 is neither."""


def training_masks(positions_B: np.ndarray, cells: Cells, seed: int) -> np.ndarray:
    """Which codes of each training example a masked prior sees, and which ones it is to predict.

    A random share of the cells is unknown, whose cosine schedule is that of Chang et al. 2022, arXiv:2202.04200,
    section 3.2. With several codes at a cell, some of the unknown cells are known up to a random depth, as while a
    pass draws them; what comes next is predicted.

    Args:
        positions_B: of each example in the data order; a row depends on its own and ``seed`` alone.
        cells: of the codes.
        seed: of the masks.

    Returns:
        (B, T) int64: ``KNOWN``, ``PREDICTED`` or 0.
    """
    n_cells = cells.n_cells
    shares_B3 = uniforms(positions_B[:, None], np.arange(3)[None, :], seed, "mask share")
    keys_BP = uniforms(positions_B[:, None], np.arange(n_cells)[None, :], seed, "mask order")
    rank_BT = keys_BP.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")[:, cells.cell_T]
    unknown_B1 = np.ceil(n_cells * np.cos(np.pi / 2 * shares_B3[:, :1])).clip(1, n_cells).astype(np.int64)
    begun_B1 = np.ceil(unknown_B1 * shares_B3[:, 1:2]).astype(np.int64)
    depth_B1 = (shares_B3[:, 2:] * cells.depth).astype(np.int64)
    known_BT, in_pass_BT = rank_BT < n_cells - unknown_B1, rank_BT < n_cells - unknown_B1 + begun_B1
    wanted_BT = np.where(in_pass_BT, depth_B1, 0)
    unknown_BT = np.where(cells.depth_T == wanted_BT, PREDICTED, np.where(cells.depth_T < wanted_BT, KNOWN, 0))
    return np.where(known_BT, KNOWN, unknown_BT)


def raster(cells: Cells, seeds: Sequence[int]) -> np.ndarray:
    """Row by row, level by level."""
    return np.tile(np.arange(cells.n_cells), (len(seeds), 1))


def random(cells: Cells, seeds: Sequence[int]) -> np.ndarray:
    """A permutation for each image's seed."""
    orders = [permutation(cells.n_cells, "order", seed) for seed in seeds]
    return np.stack(orders) if orders else np.empty((0, cells.n_cells), np.int64)


def halton(cells: Cells, seeds: Sequence[int]) -> np.ndarray:
    """Level by level along the Halton sequence of bases 2 and 3, whose points spread evenly from the first one on.

    Source: Besnier et al. 2025, "Halton scheduler for masked generative image transformer", arXiv:2503.17076.
    """
    levels, first = [], 0
    for level in cells.spec.levels:
        levels.append(first + halton_cells(level.height, level.width))
        first += level.height * level.width
    return np.tile(np.concatenate(levels), (len(seeds), 1))


def halton_cells(height: int, width: int) -> np.ndarray:
    """The cells of a grid, by when the Halton sequence first meets them: (height * width,) int64."""
    n_cells, n_points = height * width, 4 * height * width
    while True:
        rows, columns = (radical_inverse(n_points, base) for base in _HALTON_BASES)
        met = (rows * height).astype(np.int64) * width + (columns * width).astype(np.int64)
        found, first = np.unique(met, return_index=True)
        if len(found) == n_cells:
            return found[first.argsort()]
        n_points *= 2


def radical_inverse(n_points: int, base: int) -> np.ndarray:
    """The van der Corput sequence: the digits of 0, 1, 2 ... mirrored at the point. (n_points,) float64 in [0, 1)."""
    number, value, scale = np.arange(n_points), np.zeros(n_points), 1.0
    while number.any():
        scale /= base
        number, digit = np.divmod(number, base)
        value += digit * scale
    return value


ORDERS: dict[str, Callable[[Cells, Sequence[int]], np.ndarray]] = {"raster": raster, "random": random, "halton": halton}
"""name => function from the cells and the images' seeds to permutations of the cells, (B, P) int64"""


def known_first(orders_BT: np.ndarray, known_BT: np.ndarray, cells: Cells) -> np.ndarray:
    """Orders in which the cells whose codes are all known, bool, come first; within both parts the order stays."""
    starts_P = np.flatnonzero(cells.depth_T == 0)
    whole_BT = np.logical_and.reduceat(known_BT, starts_P, axis=1)[:, cells.cell_T]
    later_BT = ~np.take_along_axis(whole_BT, orders_BT, 1)
    return np.take_along_axis(orders_BT, later_BT.argsort(axis=1, kind="stable"), 1)


def masked_after(n_unknown: int, n_passes: int) -> list[int]:
    """How many codes are still unknown after each pass, by the cosine schedule; at least one is drawn in each.

    Source: Chang et al. 2022, "MaskGIT", arXiv:2202.04200, section 3.3; the published code keeps one code for the last
    pass, and computes in float32, where a cosine of one half falls short of it.
    """
    left, counts = n_unknown, []
    for done in range(1, n_passes):
        wanted = int(n_unknown * (np.cos(np.pi / 2 * done / n_passes) - _ROUNDING))
        left = max(1, min(left - 1, wanted))
        counts.append(left)
    return [*counts, 0]


def pass_sizes(n_unknown: int, n_passes: int | None) -> list[int]:
    """How many codes each pass draws: one where ``n_passes`` is None or not below their number, else by the cosine."""
    if n_passes is None or n_passes >= n_unknown:
        return [1] * n_unknown
    left = [n_unknown, *masked_after(n_unknown, n_passes)]
    return [before - after for before, after in itertools.pairwise(left)]
