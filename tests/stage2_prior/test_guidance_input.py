"""Guidance as an input: what is trained, and that sampling takes one row of the batch for an image."""

from typing import Any

import numpy as np
import pytest
import torch
from support.random_prior import LEVELS, decode_codes, examples, model, with_norm_weights
from torch.nn import functional as F

from foundation.errors import ConfigError
from stage2_prior.config import PriorConfig
from stage2_prior.decoding.decode import stream_uniforms
from stage2_prior.decoding.engine import DecodingEngine
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel
from stage2_prior.train import Masks, PriorLoss, guidance_shares


def guided(order: str = "raster") -> PriorModel:
    prior = with_norm_weights(model(LEVELS[0], guidance_input=True, order=order))
    torch.nn.init.normal_(prior.guidance_projection.weight, std=0.5)
    return prior


def test_without_guidance_the_input_is_nothing() -> None:
    prior = guided()
    tokens, labels = examples(prior)
    before = prior(tokens, labels)
    assert torch.equal(prior.hidden_states(tokens, labels, shares_B=torch.ones(3))[0], prior.hidden(tokens, labels))
    torch.nn.init.zeros_(prior.guidance_projection.weight)
    assert torch.allclose(prior(tokens, labels), before)
    halves = guided().hidden_states(tokens, labels, shares_B=torch.full((3,), 0.5))[0]
    assert not torch.allclose(halves, guided().hidden(tokens, labels), atol=1e-3)


@pytest.mark.parametrize("order", ["raster", "any", "masked"])
def test_the_loss_and_its_gradients_are_those_of_the_formula(order: str) -> None:
    """Cross entropy of b l(class, b) + (1 - b) l(none), where the second part is a constant."""
    prior = guided(order)
    tokens, labels = examples(prior)
    shares, null = torch.tensor([0.3, 1.0, 0.6]), torch.full_like(labels, prior.null_class)
    orders = torch.stack([torch.randperm(16) for _ in range(3)]) if order == "any" else None
    masks = torch.where(torch.rand(3, 16) < 0.5, 1, 2) if order == "masked" else None
    context = tokens if masks is None else tokens.masked_fill(masks != 1, -1)
    own = F.linear(prior.hidden_states(context, labels, orders, shares_B=shares)[0], prior.head.weight)
    free = F.linear(prior.hidden(context, null, orders), prior.head.weight).detach()
    logits = shares.view(-1, 1, 1) * own + (1 - shares.view(-1, 1, 1)) * free
    targets = tokens if orders is None else tokens.gather(1, orders)
    chosen = torch.ones_like(targets, dtype=torch.bool) if masks is None else masks == 2
    expected = F.cross_entropy(logits[chosen], targets[chosen])
    wanted = torch.autograd.grad(expected, list(prior.parameters()), allow_unused=True)
    given = None if masks is None else Masks.of(masks.numpy(), masks.device)
    loss, metrics = PriorLoss(prior)(tokens, labels, orders, None, None, given, shares)
    expected = expected.detach()
    scale = 1.0 if masks is None else float(chosen.sum() / (2 / np.pi * 48))
    assert float(loss.detach()) == pytest.approx(scale * float(expected), rel=1e-4)
    found = torch.autograd.grad(loss, list(prior.parameters()), allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, scale * other, atol=1e-5)
    assert float(metrics["nll"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("order", ["raster", "any", "masked"])
def test_sampling_takes_one_row_for_an_image_and_the_scale_as_an_input(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, seen = guided(order), []
    extend = DecodingEngine.extend

    def counting(self: DecodingEngine, tokens_RQ: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        seen.append(len(tokens_RQ))
        return extend(self, tokens_RQ, *given, **named)

    monkeypatch.setattr(DecodingEngine, "extend", counting)
    labels, seeds = torch.tensor([0, 1, 2, 3]), [1, 2, 3, 4]
    given = {"labels_B": labels, "uniforms_BT": stream_uniforms(seeds, 16), "seeds": seeds}
    drawn = {scale: decode_codes(prior, **given, sampling=SamplingConfig(guidance_scale=scale)) for scale in (1.0, 4.0)}
    assert set(seen) <= {4} and not torch.equal(drawn[1.0][:3], drawn[4.0][:3])
    assert torch.equal(drawn[1.0][3], drawn[4.0][3]), "without a class there is no guidance"
    if order == "raster":
        likeliest = decode_codes(prior, **given, sampling=SamplingConfig(guidance_scale=4.0, temperature=0))
        shares = torch.tensor([0.25, 0.25, 0.25, 1.0])
        logits = prior.head(prior.hidden_states(likeliest, labels, shares_B=shares)[0])
        assert torch.equal(logits.argmax(-1), likeliest)


def test_shares_are_even_and_one_without_a_class() -> None:
    prior = guided()
    labels = torch.arange(4000) % 4
    shares = guidance_shares(np.arange(4000), labels, prior, seed=1)
    assert (shares[labels == 3] == 1).all() and 0 < shares.min() <= shares.max() <= 1
    assert float(shares[labels != 3].mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(shares[:50], guidance_shares(np.arange(50), labels[:50], prior, seed=1))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"guidance_scale": 2.0, "schedule": "linear"}, "schedule"),
        ({"guidance_scale": 2.0, "guidance_interval": (0.2, 1.0)}, "guidance_interval"),
    ],
)
def test_guidance_that_was_not_trained_is_refused(options: dict, field: str) -> None:
    prior = guided()
    with pytest.raises(ConfigError, match=field):
        decode_codes(prior, torch.tensor([0]), stream_uniforms([1], 16), SamplingConfig(**options))


def test_priors_that_cannot_take_it_are_refused() -> None:
    with pytest.raises(ConfigError, match="guidance_input"):
        PriorConfig(guidance_input=True, class_conditional=False)
    with pytest.raises(ConfigError, match="guidance_input"):
        PriorConfig(guidance_input=True, block="pixelcnn")
