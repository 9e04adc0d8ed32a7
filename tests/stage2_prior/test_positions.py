from __future__ import annotations

import torch
from support.random_prior import examples, model

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.images.config import Preprocess
from stage2_prior.config import PriorConfig
from stage2_prior.positions import PositionTables, grid_angles, rotate, rotation

LEVELS = (CodeLevel(height=1, width=2, codebook_size=5), CodeLevel(height=2, width=4, codebook_size=9, depth=2))
SPEC = CodeSpec(levels=LEVELS, stride=4, preprocess=Preprocess(height=8, width=16), fingerprint="f")


def test_an_input_stands_where_its_own_code_does_and_predicts_the_next() -> None:
    """The class at (0, 0); two coarse codes at the centres of their 2 x 2 blocks; fine codes at their own positions."""
    positions = PositionTables(SPEC, PriorConfig(d_model=8, n_heads=1, rope_base=100.0)).on(torch.device("cpu"))
    rows = torch.tensor([0, 0.5, 0.5, *[0] * 8, *[1] * 7])
    columns = torch.tensor([0, 0.5, 2.5, *[0, 0, 1, 1, 2, 2, 3, 3] * 2])[:18]
    for found, expected in zip(positions.rope, rotation(grid_angles(rows, columns, 8, 100.0)), strict=True):
        assert torch.equal(found, expected)
    assert positions.slot_T.tolist() == [0, 0, *[1, 2] * 8]
    assert positions.offset_T.tolist() == [0, 0, 0, *([5, 14] * 8)[:15]]
    assert positions.size_T.tolist() == [5, 5, *[9] * 16]
    part = positions.part(3, 5)
    assert part.slot_T.tolist() == [2, 1] and torch.equal(part.rope[0], positions.rope[0][3:5])


def test_what_was_made_while_drawing_also_serves_a_training() -> None:
    prior = model().train()
    tokens, labels = examples(prior)
    with torch.inference_mode():
        prior(tokens, labels)
    prior(tokens, labels).sum().backward()
    assert prior.blocks[0].attention.qkv.weight.grad.abs().sum() > 0


def rotated(x: torch.Tensor, row: int, column: int) -> torch.Tensor:
    rope = rotation(grid_angles(torch.tensor([row]), torch.tensor([column]), x.shape[-1], 100.0))
    return rotate(x.view(1, 1, 1, -1), rope).flatten()


def test_scores_depend_on_row_and_column_differences_only() -> None:
    q, k = torch.randn(16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    for rows, columns in ((2, 5), (-3, 1), (0, 4), (1, 0)):
        scores = [
            rotated(q, row + rows, column + columns) @ rotated(k, row, column)
            for row, column in ((0, 0), (3, 7), (11, 2))
        ]
        assert max(scores) - min(scores) < 1e-4
    assert abs(rotated(q, 1, 0) @ k - rotated(q, 0, 1) @ k) > 1e-3, "rows and columns are told apart"


def test_the_prefix_is_not_rotated_and_norms_are_kept() -> None:
    x = torch.randn(8)
    assert torch.equal(rotated(x, 0, 0), x)
    assert torch.allclose(rotated(x, 5, 9).norm(), x.norm())


def test_each_pair_rotates_by_its_own_angle() -> None:
    """Row 1, base 100, head of 8: angles are 1 and 100^(-2/4) = 0.1 for rows, then the same for columns."""
    x = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0])
    angles = torch.tensor([1.0, 0.1, 2.0, 0.2])
    expected = torch.stack([angles.cos(), angles.sin()], 1).flatten()
    assert torch.allclose(rotated(x, 1, 2), expected, atol=1e-6)


def test_lower_precision_is_kept() -> None:
    rope = rotation(grid_angles(torch.arange(3), torch.arange(3), 8, 100.0))
    assert rotate(torch.randn(1, 2, 3, 8, dtype=torch.bfloat16), rope).dtype == torch.bfloat16
