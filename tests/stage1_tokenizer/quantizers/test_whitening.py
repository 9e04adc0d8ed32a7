import math

import torch

from stage1_tokenizer.quantizers import FSQ, FSQConfig
from stage1_tokenizer.quantizers.base import to_rows
from stage1_tokenizer.quantizers.whitening import whitening


def repeating(n: int) -> torch.Tensor:
    """(N, 4) rows of four channels that nearly repeat one another."""
    torch.manual_seed(0)
    return 3 * torch.randn(n, 1) + 0.01 * torch.randn(n, 4) + torch.tensor([0.0, 5.0, -5.0, 100.0])


def test_channels_become_uncorrelated_with_the_deviation_asked_for() -> None:
    rows = repeating(5000)
    matrix, offset = whitening(rows, 0.9)
    placed = rows.double() @ matrix.T.double() + offset.double()
    assert torch.allclose(placed.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(placed.T.cov(correction=0), 0.81 * torch.eye(4, dtype=torch.float64), atol=1e-2)


def test_rows_without_any_variation_give_a_finite_map() -> None:
    matrix, offset = whitening(torch.full((10, 3), 2.0), 1.0)
    assert torch.isfinite(matrix).all() and torch.isfinite(offset).all()


def test_fsq_asks_for_latents_that_use_all_levels_of_a_channel_and_most_codes() -> None:
    fsq = FSQ(FSQConfig(levels=(4, 4, 4, 5)))
    latents = repeating(20_000).T.view(1, 4, 100, 200)
    before = len(fsq.encode(latents).unique())
    wanted = fsq.projection_start(latents)
    assert wanted is not None
    rows = to_rows(latents) @ wanted[0].T + wanted[1]
    placed = rows.T.view(1, 4, 100, 200)
    after = len(fsq.encode(placed).unique())
    assert before < 0.2 * fsq.codebook_size
    assert after > 0.95 * fsq.codebook_size
    digits = fsq.decode(fsq.encode(placed))[0].flatten(1)
    for channel, level in zip(digits, fsq.levels, strict=True):
        shares = channel.unique(return_counts=True)[1] / channel.numel()
        assert len(shares) == level and shares.min() > 0.5 / level, "no level is left over"


def test_a_random_start_asks_for_nothing() -> None:
    assert FSQ(FSQConfig(levels=(4, 4), initial="random")).projection_start(torch.randn(1, 2, 4, 4)) is None


def test_even_levels_and_odd_levels_are_centred_where_their_rounding_is() -> None:
    fsq = FSQ(FSQConfig(levels=(4, 5)))
    wanted = fsq.projection_start(torch.randn(2, 2, 50, 50))
    assert wanted is not None
    assert wanted[1][1].abs() < 0.1, "an odd number of levels has its middle at 0"
    assert abs(wanted[1][0] + math.tan(0.5 / (1.5 * 0.999))) < 0.1
