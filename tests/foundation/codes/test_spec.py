"""Specifications of several levels and depths: order, split and join, places in the image."""

import numpy as np
import pytest
import torch

from foundation.codes.spec import CodeLevel, CodeSpec, code_positions, require_codes
from foundation.errors import ConfigError, DataError
from foundation.images.config import Preprocess


def spec(*levels: CodeLevel) -> CodeSpec:
    return CodeSpec(levels=levels, stride=4, preprocess=Preprocess(height=32, width=32), fingerprint="f")


FLAT = spec(CodeLevel(height=2, width=3, codebook_size=7))
DEEP = spec(CodeLevel(height=2, width=3, codebook_size=7, depth=4))
TWO = spec(CodeLevel(height=2, width=3, codebook_size=5), CodeLevel(height=4, width=6, codebook_size=9))
BOTH = spec(
    CodeLevel(height=1, width=2, codebook_size=5, depth=2), CodeLevel(height=3, width=2, codebook_size=9, depth=3)
)
SPECS = [FLAT, DEEP, TWO, BOTH]


@pytest.mark.parametrize("each", SPECS)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_join_is_the_inverse_of_split(each: CodeSpec, batch: int) -> None:
    codes = np.random.default_rng(0).integers(0, 5, (batch, each.n_codes))
    grids = each.split(codes)
    assert [grid.shape for grid in grids] == [(batch, *level.shape) for level in each.levels]
    assert np.array_equal(each.join(grids), codes)
    assert np.array_equal(each.grid(codes).reshape(batch, each.n_codes), codes)
    tensors = each.split(torch.from_numpy(codes))
    assert all(np.array_equal(tensor.numpy(), grid) for tensor, grid in zip(tensors, grids, strict=True))
    assert torch.equal(each.join(tensors), torch.from_numpy(codes))


def test_a_sequence_is_level_by_level_raster_with_depth_innermost() -> None:
    assert [each.shape for each in SPECS] == [(2, 3), (2, 3, 4), (30,), (22,)]
    coarse, fine = BOTH.split(np.arange(22)[None])
    assert coarse[0].tolist() == [[[0, 1], [2, 3]]]
    assert fine[0, 1, 0].tolist() == [10, 11, 12] and fine[0, 0, 1].tolist() == [7, 8, 9]


@pytest.mark.parametrize("each", SPECS)
def test_tables_of_positions_agree_with_split(each: CodeSpec) -> None:
    """The n-th position belongs to the slot, row and column at which ``split`` puts the number n."""
    positions, slots = code_positions(each), each.slots
    finest = each.levels[-1]
    for level, grid in enumerate(each.split(np.arange(each.n_codes)[None])):
        shape = each.levels[level]
        for (row, column, depth), t in np.ndenumerate(grid[0].reshape(shape.height, shape.width, shape.depth)):
            slot = slots[positions.slot_T[t]]
            assert (slot.level, slot.depth) == (level, depth) == (positions.level_T[t], positions.depth_T[t])
            assert positions.codebook_size_T[t] == slot.codebook_size == shape.codebook_size
            block = finest.height // shape.height, finest.width // shape.width
            covered = [np.arange(i * n, (i + 1) * n).mean() for i, n in zip((row, column), block, strict=True)]
            assert [positions.row_T[t], positions.column_T[t]] == pytest.approx(covered)
    assert sum(slot.n_codes for slot in slots) == each.n_codes


def test_a_single_grid_stands_at_whole_rows_and_columns() -> None:
    positions = code_positions(spec(CodeLevel(height=7, width=11, codebook_size=2)))
    assert positions.row_T.tolist() == [t // 11 for t in range(77)]
    assert positions.column_T.tolist() == [t % 11 for t in range(77)]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"29(.|\n)*30"):
        TWO.split(np.zeros((2, 29), int))
    with pytest.raises(DataError, match="do not fit"):
        TWO.grid(torch.zeros(2, 5, 6))
    coarse, fine = TWO.split(np.zeros((2, 30), int))
    for wrong in ([fine, coarse], [coarse], [], [coarse, fine[:1]], [coarse, fine.reshape(2, 24)]):
        with pytest.raises(DataError, match="grids do not fit"):
            TWO.join(wrong)
    with pytest.raises(ConfigError, match=r"levels\[1\](.|\n)*coarse to fine"):
        spec(*reversed(TWO.levels))


def test_each_code_must_be_in_the_codebook_of_its_position() -> None:
    codes = np.full((2, 30), 8)
    codes[:, :6] = 4
    require_codes(codes, TWO)
    require_codes(codes[:0], TWO)
    for t, level, bound in ((5, 0, 4), (6, 1, 8)):
        wrong = codes.copy()
        wrong[1, t] += 1
        with pytest.raises(DataError, match=rf"position {t} \(level {level}, depth 0\)(.|\n)*0\.\.{bound}"):
            require_codes(wrong, TWO)
        wrong[1, t] = -1
        with pytest.raises(DataError, match="outside the codebook"):
            require_codes(wrong, TWO)
    with pytest.raises(DataError, match="not whole"):
        require_codes(codes.astype(float), TWO)


def test_codebooks_are_named_by_what_tells_them_apart() -> None:
    assert FLAT.slot_names == ("",)
    assert DEEP.slot_names == ("depth 1", "depth 2", "depth 3", "depth 4")
    assert TWO.slot_names == ("2 x 3 grid", "4 x 6 grid")
    assert BOTH.slot_names[1:3] == ("1 x 2 grid, depth 2", "3 x 2 grid, depth 1")
