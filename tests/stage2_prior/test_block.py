import pytest
import torch

from stage2_prior.block import Dropout
from stage2_prior.cpu_kernels import sample_keep_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_is_zeroed_and_the_mean_stays(dtype: torch.dtype, share: float) -> None:
    x = torch.ones(401, 503, dtype=dtype)  # not a multiple of four values
    dropped = Dropout(share)(x)
    assert dropped.dtype == dtype
    assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=0.004)
    assert dropped.float().mean().item() == pytest.approx(1, abs=0.02)
    assert len(dropped.unique()) == 2


def test_neighbours_are_independent() -> None:
    """All four values of one draw, and draws beside each other."""
    kept = sample_keep_mask(torch.empty(200_000), 0.3).kept.float() - 0.7
    for distance in range(1, 9):
        assert abs((kept[distance:] * kept[:-distance]).mean()) < 0.21 * 0.02


def test_the_gradient_is_zero_where_the_value_was() -> None:
    x = torch.randn(1000, requires_grad=True)
    dropped = Dropout(0.4)(x)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.allclose(gradient, (dropped != 0) / 0.6, rtol=1e-4)


def test_one_seed_draws_one_mask_and_evaluation_draws_none() -> None:
    x, layer = torch.randn(50), Dropout(0.5)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(layer(x))
    assert torch.equal(*results)
    before = torch.get_rng_state()
    assert layer.eval()(x) is x and Dropout(0.0).train()(x) is x
    assert torch.equal(before, torch.get_rng_state())
