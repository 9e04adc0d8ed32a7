"""Rules for sizes that a recipe leaves open."""

import dataclasses

import pytest

from foundation.codes.spec import CodeSpec
from foundation.images.config import Preprocess
from pipeline.planning.sizes import (
    MOST_PASSES,
    choose_prior,
    choose_tokenizer,
    dropout_for,
    prior_cost,
    tokenizer_flops,
)
from pipeline.planning.times import Counts
from stage1_tokenizer.quantizers.config import VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig

MANY = Counts(train=50_000, validation=500, classes=10)


def spec(side: int = 64, flops: float = 1e14) -> CodeSpec:
    sizes = choose_tokenizer(flops, MANY, 3, side, fixed=True)
    return TokenizerModel(sizes.model, Preprocess(height=side, width=side)).layout


def test_more_compute_never_makes_anything_smaller() -> None:
    chosen = [choose_tokenizer(10.0**power, MANY, 3, 512) for power in range(11, 19)]
    assert [each.side for each in chosen] == sorted(each.side for each in chosen)
    assert [each.flops for each in chosen] == sorted(each.flops for each in chosen)
    assert chosen[0].side == 32 and chosen[-1].side == 256
    layout = spec()
    costs = [
        prior_cost(choose_prior(10.0**power, MANY, 2, layout, PriorConfig()), layout)[0] for power in range(11, 19)
    ]
    assert costs == sorted(costs) and costs[0] < costs[-1]


def test_pictures_are_not_enlarged() -> None:
    for side, expected in ((28, 32), (40, 32), (72, 64), (120, 128), (500, 256)):
        assert choose_tokenizer(1e18, MANY, 3, side).side == expected


def test_a_given_resolution_is_kept() -> None:
    for side in (48, 96, 256):
        sizes = choose_tokenizer(1e13, MANY, 3, side, fixed=True)
        assert sizes.side == side and side % sizes.model.stride == 0


@pytest.mark.parametrize(("n_images", "n_codes"), [(300, 256), (5000, 1024)])
def test_few_pictures_get_few_codes(n_images: int, n_codes: int) -> None:
    counts = dataclasses.replace(MANY, train=n_images)
    quantizer = choose_tokenizer(1e13, counts, 3, 72).model.quantizer
    assert isinstance(quantizer, VQConfig) and quantizer.codebook_size == n_codes


def test_few_pictures_get_a_small_prior_with_dropout() -> None:
    layout, few = spec(), Counts(500, 50, 3)
    small, large = (choose_prior(1e15, counts, 2, layout, PriorConfig()) for counts in (few, MANY))
    assert small.shape.d_model < large.shape.d_model and small.dropout == 0.3 > large.dropout
    assert dropout_for(1) == 0.0 and dropout_for(MOST_PASSES) == 0.3


def test_flops_are_those_of_the_model() -> None:
    sizes = choose_tokenizer(1e13, MANY, 1, 32, fixed=True)
    twice = dataclasses.replace(sizes.model.networks, width=2 * sizes.model.networks.width)  # type: ignore[type-var]
    wider = tokenizer_flops(dataclasses.replace(sizes.model, networks=twice), 1, 32)
    assert 3 * sizes.flops < wider < 4 * sizes.flops
