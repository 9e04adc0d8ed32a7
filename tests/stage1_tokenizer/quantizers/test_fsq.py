from __future__ import annotations

import itertools
import math

import pytest
import torch

from foundation.errors import ConfigError
from stage1_tokenizer.quantizers.base import to_rows
from stage1_tokenizer.quantizers.config import FSQConfig
from stage1_tokenizer.quantizers.fsq import FSQ, _columns, _combine, moment_distance, whitening

LEVELS = [(2,), (3,), (1000,), (2, 3), (8, 5, 5, 5), (5, 5, 5, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5), (2,) * 10]


def digits_of(fsq: FSQ, codes: torch.Tensor) -> torch.Tensor:
    """Level index of each channel, (B, C, H, W) int64."""
    steps = torch.tensor([level // 2 for level in fsq.config.levels]).view(-1, 1, 1)
    return (fsq.decode(codes) * steps).round().to(torch.int64) + steps


def combined(fsq: FSQ, codes: torch.Tensor) -> torch.Tensor:
    """Codes from the decoded values again, by the arithmetic of ``encode``."""
    columns = _columns(fsq.config.levels, codes.device)
    return _combine((fsq.decode(codes) * columns.steps).round(), columns)


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_values_are_a_bijection_over_the_whole_codebook(levels: tuple[int, ...]) -> None:
    fsq = FSQ(FSQConfig(levels=levels))
    codes = torch.arange(fsq.codebook_size).view(1, 1, -1)
    values = fsq.decode(codes)
    assert len({tuple(row) for row in values[0, :, 0].T.tolist()}) == fsq.codebook_size == math.prod(levels)
    assert torch.equal(combined(fsq, codes), codes)
    assert values.abs().max() <= 1.0


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_reached_by_some_latent(levels: tuple[int, ...]) -> None:
    fsq = FSQ(FSQConfig(levels=levels))
    even = torch.linspace(-0.99999, 0.99999, 20_001).atanh()
    ramp = torch.cat([torch.tensor([-20.0]), even, torch.tensor([20.0])])
    for channel, level in enumerate(levels):
        latents = torch.zeros(1, len(levels), 1, len(ramp))
        latents[0, channel, 0] = ramp
        digits = digits_of(fsq, fsq.encode(latents))[0, channel, 0]
        assert sorted(set(digits.tolist())) == list(range(level))
        assert (digits.diff() >= 0).all(), "a larger latent never gives a lower level"


def test_six_channels_of_five_levels_make_15625_codes() -> None:
    assert FSQ(FSQConfig(levels=(5,) * 6)).codebook_size == 15_625


def test_the_first_channel_is_the_fastest_digit() -> None:
    fsq = FSQ(FSQConfig(levels=(3, 4)))
    digits = [tuple(digits_of(fsq, torch.tensor([[[code]]])).flatten().tolist()) for code in range(12)]
    assert digits == [(a, b) for b, a in itertools.product(range(4), range(3))]


def test_the_gradient_passes_the_rounding_unchanged() -> None:
    """d out / d z equals the derivative of the bound alone, by finite differences of the bound."""
    fsq = FSQ(FSQConfig(levels=(8, 5, 4)))
    latents = torch.randn(2, 3, 4, 4, requires_grad=True)
    fsq(latents).latents_BCHW.sum().backward()
    smooth = latents.detach().double().requires_grad_(True)
    levels = torch.tensor([8.0, 5.0, 4.0]).double().view(1, -1, 1, 1)
    half = (levels - 1) * (1 - 1e-3) / 2
    offset = 0.5 * (levels % 2 == 0)
    ((torch.tanh(smooth + (offset / half).tan()) * half - offset) / (levels // 2)).sum().backward()
    assert smooth.grad is not None and latents.grad is not None
    assert torch.allclose(latents.grad.double(), smooth.grad, atol=1e-6)
    assert latents.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_input_of_equal_value_gives_equal_codes(dtype: torch.dtype) -> None:
    fsq = FSQ(FSQConfig(levels=(8, 8, 8, 6, 5)))
    low = (torch.randn(4, 5, 16, 16) * 2).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fsq(low)
    assert torch.equal(inside.codes_BHW, fsq.encode(low.float()))
    assert inside.latents_BCHW.dtype == torch.float32
    assert torch.equal(inside.latents_BCHW, fsq.decode(inside.codes_BHW))


def test_large_codebooks_use_64_bit_arithmetic() -> None:
    for levels in ((255, 257), (256, 256), (331, 198), (16, 16, 16, 16), (2,) * 18):
        fsq = FSQ(FSQConfig(levels=levels))
        codes = torch.tensor([[[0, 1, fsq.codebook_size // 2, fsq.codebook_size - 2, fsq.codebook_size - 1]]])
        assert torch.equal(combined(fsq, codes), codes)
        assert torch.isfinite(fsq.decode(codes)).all()


def test_levels_that_cannot_work_are_refused() -> None:
    for levels in ((8, 1), (), (1001,)):
        with pytest.raises(ConfigError, match="levels"):
            FSQConfig(levels=levels)


def test_a_latent_that_is_not_a_number_has_a_code_in_range_and_a_value_that_shows_it() -> None:
    fsq = FSQ(FSQConfig(levels=(5, 4)))
    latents = torch.full((1, 2, 1, 1), torch.nan)
    assert fsq.encode(latents).item() == 0
    assert fsq(latents).latents_BCHW.isnan().all()


@pytest.mark.parametrize("levels", [(4, 4, 4), (5, 3), (8, 5, 2)])
def test_evenly_used_codes_have_no_unevenness_and_anything_else_has(levels: tuple[int, ...]) -> None:
    fsq = FSQ(FSQConfig(levels=levels))
    codes = torch.arange(fsq.codebook_size).view(1, 1, -1)
    values_NC = fsq.decode(codes).flatten(2)[0].T
    assert moment_distance(values_NC, levels).item() == pytest.approx(0.0, abs=1e-10)
    assert moment_distance(values_NC[: len(values_NC) // 2], levels) > 0.05
    assert moment_distance(values_NC[:, :1].expand(-1, len(levels)), levels) > 0.05


def test_evenness_is_a_loss_whose_descent_uses_more_codes() -> None:
    torch.manual_seed(0)
    fsq = FSQ(FSQConfig(levels=(4, 4, 4), evenness=0.5))
    mixing = (torch.randn(3, 3, 1, 1) * 0.3).requires_grad_()
    optimizer = torch.optim.Adam([mixing], lr=0.05)
    latents = torch.randn(8, 1, 16, 16).expand(-1, 3, -1, -1) + 0.5 * torch.randn(8, 3, 16, 16)  # correlated
    used = []
    for _ in range(150):
        out = fsq(torch.nn.functional.conv2d(latents, mixing))
        used.append(len(out.codes_BHW.unique()))
        optimizer.zero_grad()
        out.losses["evenness"].backward()
        optimizer.step()
    assert used[0] < 40 < 60 <= used[-1] <= 64
    assert "evenness" not in FSQ(FSQConfig(levels=(4, 4)))(torch.randn(1, 2, 4, 4)).losses


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
    for channel, level in zip(digits, fsq.config.levels, strict=True):
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
