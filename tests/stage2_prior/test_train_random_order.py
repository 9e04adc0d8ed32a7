import numpy as np
import pytest
import torch

from foundation.errors import ConfigError
from stage2_prior.config import RandomOrder
from stage2_prior.train import sample_orders


def test_the_share_is_one_then_falls_to_zero() -> None:
    order = RandomOrder(until_step=10, zero_step=20)
    assert [order.share(step) for step in (0, 9, 10, 15, 19, 20, 99)] == [1, 1, 1, 0.5, pytest.approx(0.1), 0, 0]
    assert [RandomOrder(until_step=3, zero_step=3).share(step) for step in (2, 3)] == [1, 0]


def test_a_schedule_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero_step"):
        RandomOrder(until_step=5, zero_step=4)


def test_rows_are_permutations_and_the_share_is_kept() -> None:
    orders = sample_orders(np.arange(4000), 7, 0.25, seed=1)
    raster = torch.arange(7).expand(4000, 7)
    assert torch.equal(orders.sort(dim=1).values, raster)
    random = (orders != raster).any(dim=1)
    assert 0.22 < random.double().mean() < 0.28
    assert torch.equal(sample_orders(np.arange(50), 7, 0.0, seed=1), raster[:50])


def test_every_place_comes_first_equally_often() -> None:
    first = sample_orders(np.arange(7000), 7, 1.0, seed=1)[:, 0]
    counts = np.bincount(first.numpy(), minlength=7)
    assert ((counts - 1000) ** 2 / 1000).sum() < 22.5, "chi-square of 6 degrees of freedom, 0.1 %"


def test_an_order_depends_on_its_own_place_and_the_seed_alone() -> None:
    whole = sample_orders(np.arange(100), 9, 0.5, seed=1)
    shares = torch.cat([sample_orders(part, 9, 0.5, seed=1) for part in np.split(np.arange(100), 4)])
    assert torch.equal(whole, shares)
    assert not torch.equal(whole, sample_orders(np.arange(100), 9, 0.5, seed=2))
    assert not torch.equal(whole, sample_orders(np.arange(100, 200), 9, 0.5, seed=1))
