"""Likelihood in an order, by enumeration of all grids of a few codes."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from support.random_prior import LEVELS, examples, model, with_norm_weights

from foundation.codes.spec import CodeLevel
from foundation.errors import ConfigError
from stage2_prior.likelihood import next_codes
from stage2_prior.orders import Cells
from stage2_prior.prior import PriorModel

SMALL = (CodeLevel(height=2, width=2, codebook_size=3),)
DEEP = (CodeLevel(height=1, width=2, codebook_size=3, depth=2),)
UNEQUAL = (CodeLevel(height=1, width=2, codebook_size=(3, 2), depth=2), CodeLevel(height=1, width=2, codebook_size=2))


def small(levels: tuple[CodeLevel, ...], order: str) -> PriorModel:
    """A prior whose distribution is far from uniform."""
    prior = with_norm_weights(model(levels, n_classes=2, order=order))
    torch.nn.init.normal_(prior.head.weight, std=0.5)
    return prior


def every_image(prior: PriorModel) -> torch.Tensor:
    return torch.tensor(list(product(*(range(size) for size in prior.sizes_T.tolist()))))


@pytest.mark.parametrize("levels", [SMALL, DEEP, UNEQUAL])
@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("raster", "raster"),
        ("random-to-raster", "raster"),
        *((k, o) for k in ("any", "masked") for o in ("raster", "halton")),
    ],
)
def test_the_probs_of_all_images_sum_to_one(kind: str, order: str, levels: tuple[CodeLevel, ...]) -> None:
    prior = small(levels, kind)
    images = every_image(prior)
    for label in range(3):
        nats = prior.nll(images, torch.full((len(images),), label), order=order).double().sum(1)
        assert float(torch.exp(-nats).sum()) == pytest.approx(1, abs=1e-5)


def test_each_random_order_is_a_distribution_too() -> None:
    prior = small(SMALL, "any")
    images = every_image(prior)
    for order in permutations(range(4)):
        orders = torch.tensor(order).expand(len(images), 4)
        logits = prior(images, torch.zeros(len(images), dtype=torch.int64), orders)
        log_p = logits.detach().log_softmax(-1).gather(2, images.gather(1, orders).unsqueeze(2)).sum((1, 2))
        assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_nll_in_random_orders_is_the_forward_s() -> None:
    prior = with_norm_weights(model(order="any"))
    tokens, labels = examples(prior)
    nats = prior.nll(tokens, labels, order="random", seed=4)
    again, other = prior.nll(tokens, labels, order="random", seed=4), prior.nll(tokens, labels, order="random", seed=5)
    assert torch.equal(nats, again) and not torch.allclose(nats, other, atol=1e-3)
    halton = prior.nll(tokens, labels, order="halton")
    assert halton.shape == tokens.shape and not torch.allclose(halton, prior.nll(tokens, labels), atol=1e-3)


@pytest.mark.parametrize("levels", [SMALL, DEEP])
def test_the_estimate_of_a_masked_prior_is_its_mean_over_orders(levels: tuple[CodeLevel, ...]) -> None:
    prior = small(levels, "masked")
    cells = Cells(prior.spec)
    image, label = every_image(prior)[37:38], torch.tensor([1])
    exact = []
    for cell_order in permutations(range(cells.n_cells)):
        order = cells.codes(np.array([cell_order]))[0]
        known, nats = torch.full_like(image, -1), 0.0
        for position in order:
            log_p = prior(known, label).detach()[0, position].log_softmax(-1)
            nats -= float(log_p[image[0, position]])
            known[0, position] = image[0, position]
        exact.append(nats)
    many = image.expand(4096, -1)
    found = torch.cat([prior.nll(many, label.expand(4096), order="random", seed=i).sum(1) for i in range(3)])
    error = float(found.std()) / len(found) ** 0.5
    assert float(found.mean()) == pytest.approx(np.mean(exact), abs=4 * error) and error < 0.005 * np.mean(exact)


def test_what_may_come_next() -> None:
    cells = Cells(model((CodeLevel(height=1, width=3, codebook_size=5, depth=2),)).spec)
    order = cells.codes(np.array([[2, 0, 1]]))
    known, following = next_codes(cells, np.repeat(order, 4, 0), np.array([0, 1, 2, 5]))
    assert known.astype(int).tolist() == [[0] * 6, [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1], [1, 1, 1, 0, 1, 1]]
    assert following.astype(int).tolist() == [
        [1, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
        [1, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ]


def test_an_order_that_a_prior_does_not_know_is_refused() -> None:
    prior = model()
    tokens, labels = examples(prior)
    with pytest.raises(ConfigError, match=r"order(.|\n)*halton(.|\n)*raster(.|\n)*train a prior of order any"):
        prior.nll(tokens, labels, order="halton")
    with pytest.raises(ConfigError, match=r"order(.|\n)*spiral"):
        model(order="any").nll(tokens, labels, order="spiral")


@pytest.mark.parametrize("levels", LEVELS)
def test_a_masked_prior_sees_known_codes_alone(levels: tuple[CodeLevel, ...]) -> None:
    prior = with_norm_weights(model(levels, order="masked"))
    tokens, labels = examples(prior)
    known = tokens.clone()
    known[:, ::2] = -1
    logits = prior(known, labels)
    assert torch.allclose(prior(known, labels), logits)
    changed = known.clone()
    changed[:, 1] = (changed[:, 1] + 1) % int(prior.sizes_T[1])
    difference = (prior(changed, labels) - logits).nan_to_num().abs().amax(-1)
    assert bool((difference > 1e-5).all()), "every output depends on every known code, before and after it"
    with pytest.raises(Exception, match=r"tokens_BT(.|\n)*all \d+ codes"):
        prior(tokens[:, :-1], labels)
