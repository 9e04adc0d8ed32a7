"""Codes predicted in any order: each output sees exactly the codes before it in its own image's order."""

import pytest
import torch
from torch.nn import functional as F

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.errors import ConfigError, DataError
from foundation.images.config import Preprocess
from stage2_prior.config import PriorConfig
from stage2_prior.orders import Cells, random
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorLoss

LEVEL = CodeLevel(height=3, width=4, codebook_size=29)
T = LEVEL.n_codes


def model(levels: tuple[CodeLevel, ...] = (LEVEL,), **changes: object) -> PriorModel:
    torch.manual_seed(0)
    spec = CodeSpec(
        levels=levels, stride=8, preprocess=Preprocess(height=24, width=32), fingerprint="f", class_names=("a", "b")
    )
    settings: dict = {"d_model": 32, "n_layers": 3, "n_heads": 4, "rope_base": 100.0, "target_aware": True, **changes}
    prior = PriorModel(PriorConfig(**settings), spec).eval()
    for parameter in prior.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return prior


def examples(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    orders = torch.stack([torch.randperm(T) for _ in range(batch)])
    return torch.randint(29, (batch, T)), torch.randint(3, (batch,)), orders


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_an_output_depends_on_exactly_the_codes_before_it_in_its_order(positions: str) -> None:
    prior = model(positions=positions)
    tokens, labels, orders = examples(batch=2)
    embedded: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_(True))
        return embedded[-1]

    prior.code_embedding.register_forward_hook(keep)
    logits = prior(tokens, labels, orders)
    for image in range(2):
        for i in range(T):
            (gradient,) = torch.autograd.grad(logits[image, i].square().sum(), embedded[0], retain_graph=True)
            reached = gradient.abs().sum(-1) > 0
            assert reached[image].tolist() == [j < i for j in range(T - 1)], "the inputs are in the image's order"
            assert not reached[1 - image].any()


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_changing_a_code_changes_the_outputs_after_it_and_no_other(positions: str) -> None:
    prior = model(positions=positions)
    tokens, labels, orders = examples(batch=1)
    before = prior(tokens, labels, orders)
    for i in range(T):
        changed = tokens.clone()
        changed[0, orders[0, i]] += 1 - 2 * (changed[0, orders[0, i]] == 28).long()
        difference = (prior(changed, labels, orders) - before).abs().amax(-1)[0]
        assert (difference[: i + 1] == 0).all() and (difference[i + 1 :] > 1e-4).all()


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_the_raster_order_is_the_plain_forward(positions: str) -> None:
    prior = model(positions=positions)
    tokens, labels, _ = examples()
    raster = torch.arange(T).expand(3, T)
    assert torch.allclose(prior(tokens, labels, raster), prior(tokens, labels), atol=1e-5)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_places_go_with_their_codes(positions: str) -> None:
    """One layer's attention is over a set: the last output does not depend on how the codes before it were ordered."""
    prior = model(positions=positions, n_layers=1)
    tokens, labels, orders = examples(batch=1)
    first = prior(tokens, labels, orders)
    targets = torch.arange(T)
    prior.target_embedding.weight.data[targets] = 0  # type: ignore[union-attr]
    one = prior(tokens, labels, orders)[:, -1]
    mixed = torch.cat([orders[:, :-2].flip(1), orders[:, -2:]], 1)
    assert torch.allclose(prior(tokens, labels, mixed)[:, -1], one, atol=1e-4)
    assert not torch.allclose(first[:, -1], one, atol=1e-4)


def test_what_is_to_be_predicted_is_told() -> None:
    """Same codes so far, two different places next: two different distributions."""
    prior = model()
    tokens, labels, orders = examples(batch=1)
    swapped = orders.clone()
    swapped[0, [4, 9]] = orders[0, [9, 4]]
    difference = (prior(tokens, labels, orders) - prior(tokens, labels, swapped)).abs().amax(-1)[0]
    assert (difference[:4] == 0).all() and difference[4] > 1e-3


def test_the_loss_follows_the_orders() -> None:
    prior = model()
    tokens, labels, orders = examples()
    loss, _ = PriorLoss(prior)(tokens, labels, orders)
    logits = prior(tokens, labels, orders)
    expected = F.cross_entropy(logits.flatten(0, 1), tokens.gather(1, orders).flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    alone = [PriorLoss(prior)(tokens[i : i + 1], labels[i : i + 1], orders[i : i + 1])[0] for i in range(3)]
    assert loss.item() == pytest.approx(torch.stack(alone).mean().item(), abs=1e-5), "images do not mix"


def test_orders_need_a_prior_that_is_aware_of_its_target() -> None:
    tokens, labels, orders = examples()
    with pytest.raises(ConfigError, match=r"order(.|\n)*any, or random-to-raster"):
        model(target_aware=False)(tokens, labels, orders)
    assert model(target_aware=False, order="any")(tokens, labels, orders).shape == (3, T, 29)


DEEP = [
    (CodeLevel(height=3, width=2, codebook_size=29, depth=2),),
    (CodeLevel(height=1, width=4, codebook_size=29), CodeLevel(height=2, width=4, codebook_size=29)),
]


@pytest.mark.parametrize("levels", DEEP)
def test_codes_of_several_slots_are_predicted_in_any_order_of_their_cells(levels: tuple[CodeLevel, ...]) -> None:
    """An output depends on the codes before it; codes of one cell stay together, outermost first."""
    tokens, labels, _ = examples()
    prior = model(levels)
    cells = Cells(prior.spec)
    orders = torch.from_numpy(cells.codes(random(cells, [1, 2, 3])))
    before = prior(tokens, labels, orders)
    raster = torch.arange(T).expand(3, T)
    assert torch.allclose(prior(tokens, labels, raster), prior(tokens, labels), atol=1e-5)
    for i in range(T):
        changed = tokens.clone()
        changed[0, orders[0, i]] += 1 - 2 * (changed[0, orders[0, i]] == 28).long()
        difference = (prior(changed, labels, orders) - before).abs().amax(-1)[0]
        assert (difference[: i + 1] == 0).all() and (difference[i + 1 :] > 1e-4).all()
    with pytest.raises(DataError, match=r"orders(.|\n)*permutation"):
        prior(tokens, labels, orders.clamp_min(1))


def test_codes_of_a_cell_may_not_be_torn_apart() -> None:
    tokens, labels, _ = examples()
    with pytest.raises(DataError, match="the codes of a position together"):
        model(DEEP[0])(tokens, labels, torch.arange(T).flip(0).expand(3, T))
