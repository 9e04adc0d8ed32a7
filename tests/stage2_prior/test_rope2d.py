import torch

from stage2_prior.rope2d import grid_angles, rotate, rotation


def turned(x: torch.Tensor, row: int, column: int) -> torch.Tensor:
    rope = rotation(grid_angles(torch.tensor([row]), torch.tensor([column]), x.shape[-1], 100.0))
    return rotate(x.view(1, 1, 1, -1), rope).flatten()


def test_scores_depend_on_row_and_column_differences_only() -> None:
    q, k = torch.randn(16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    for rows, columns in ((2, 5), (-3, 1), (0, 4), (1, 0)):
        scores = [
            turned(q, row + rows, column + columns) @ turned(k, row, column)
            for row, column in ((0, 0), (3, 7), (11, 2))
        ]
        assert max(scores) - min(scores) < 1e-4
    assert abs(turned(q, 1, 0) @ k - turned(q, 0, 1) @ k) > 1e-3, "rows and columns are told apart"


def test_the_prefix_is_not_turned_and_norms_are_kept() -> None:
    x = torch.randn(8)
    assert torch.equal(turned(x, 0, 0), x)
    assert torch.allclose(turned(x, 5, 9).norm(), x.norm())


def test_each_pair_turns_by_its_own_angle() -> None:
    """Row 1, base 100, head of 8: angles are 1 and 100^(-2/4) = 0.1 for rows, then the same for columns."""
    x = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0])
    angles = torch.tensor([1.0, 0.1, 2.0, 0.2])
    expected = torch.stack([angles.cos(), angles.sin()], 1).flatten()
    assert torch.allclose(turned(x, 1, 2), expected, atol=1e-6)


def test_lower_precision_is_kept() -> None:
    rope = rotation(grid_angles(torch.arange(3), torch.arange(3), 8, 100.0))
    assert rotate(torch.randn(1, 2, 3, 8, dtype=torch.bfloat16), rope).dtype == torch.bfloat16
