"""The prior of continuous latents: densities that integrate to one, samples that follow them, guidance, any order."""

import dataclasses
from typing import Any

import pytest
import torch
from support.random_prior import decode_codes, spec

from foundation.codes.latents import codes_of, latents_of, values_of
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.errors import ConfigError, DataError
from stage2_prior.config import PriorConfig
from stage2_prior.decoding.decode import MASKED, stream_uniforms
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.mixture import Mixture, MixturePrior
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorLoss


def latents_spec(height: int = 2, width: int = 3, channels: int = 2) -> CodeSpec:
    level = CodeLevel(height=height, width=width, codebook_size=1 << 16, depth=channels)
    return dataclasses.replace(spec((level,)), latents=True)


def model(of: CodeSpec | None = None, **changes: object) -> MixturePrior:
    torch.manual_seed(0)
    settings: dict = {"d_model": 32, "n_layers": 2, "n_heads": 4, "dropout": 0.2, "mixtures": 3, **changes}
    prior = PriorModel(PriorConfig(**settings), of or latents_spec()).eval()
    assert isinstance(prior, MixturePrior)
    for parameter in prior.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return prior


def codes(prior: MixturePrior, batch: int = 4) -> torch.Tensor:
    level = prior.spec.levels[0]
    generator = torch.Generator().manual_seed(1)
    return codes_of(torch.randn(batch, level.depth, level.height, level.width, generator=generator)).flatten(1)


def inputs(prior: MixturePrior, batch: int = 5) -> dict[str, Any]:
    seeds = list(range(20, 20 + batch))
    return {
        "labels_B": torch.arange(batch) % 4,
        "uniforms_BT": stream_uniforms(seeds, prior.n_codes),
        "seeds": seeds,
    }


def test_codes_are_float16_numbers_and_back() -> None:
    latents = torch.randn(2, 3, 4, 5) * 7
    found = codes_of(latents)
    assert (
        found.shape == (2, 4, 5, 3) and found.dtype == torch.int64 and 0 <= int(found.min()) <= int(found.max()) < 65536
    )
    assert torch.allclose(latents_of(found), latents, rtol=1e-3) and torch.equal(codes_of(latents_of(found)), found)
    with pytest.raises(DataError, match=r"latents(.|\n)*beyond float16"):
        codes_of(torch.full((1, 1, 1, 1), 1e6))
    with pytest.raises(DataError, match="no finite latents"):
        latents_of(torch.full((1, 1, 1, 1), 0x7C00))


def test_a_mixture_s_density_integrates_to_one_and_its_samples_follow_it() -> None:
    torch.manual_seed(0)
    mixture = Mixture(torch.randn(1, 3).log_softmax(1), 2 * torch.randn(1, 3, 1), torch.randn(1, 3, 1) * 0.4 - 0.5)
    at = torch.linspace(-12, 12, 20001)
    density = mixture.log_density(at.view(1, -1, 1)).exp()[0]
    assert float(torch.trapezoid(density, at)) == pytest.approx(1, abs=1e-4)
    drawn = mixture.sample(torch.rand(1, 20000, 2, dtype=torch.float64), 1.0).flatten()
    cumulative = torch.cumulative_trapezoid(density, at)
    expected = cumulative[torch.searchsorted(at[1:], drawn.sort().values).clamp_max(len(cumulative) - 1)]
    distance = (expected - torch.linspace(0, 1, 20000)).abs().max()
    assert distance < 1.95 / 20000**0.5, "Kolmogorov and Smirnov, 0.1 %"
    likeliest = mixture.sample(torch.rand(1, 4, 2, dtype=torch.float64), 0.0)
    assert torch.equal(likeliest, mixture.means_NKC[:, mixture.log_weights_NK.argmax()].expand(1, 4, 1))


@pytest.mark.parametrize("order", ["raster", "any"])
def test_a_step_depends_on_the_positions_before_it(order: str) -> None:
    prior = model(order=order)
    tokens, labels = codes(prior), torch.tensor([0, 1, 2, 3])
    orders = None
    if order == "any":
        cells = torch.stack([torch.randperm(6) for _ in range(4)])
        orders = (cells.unsqueeze(2) * 2 + torch.arange(2)).flatten(1)
    before = prior.hidden(tokens, labels, orders)
    assert before.shape == (4, 6, 32)
    sequence = torch.arange(12).expand(4, 12) if orders is None else orders
    for step in range(6):
        changed = tokens.clone()
        changed[:, sequence[:, 2 * step + 1]] = 0x3C00
        changed = torch.where(
            torch.zeros(4, 12, dtype=torch.bool).scatter_(1, sequence[:, 2 * step + 1, None], True), 0x3C00, tokens
        )
        difference = (prior.hidden(changed, labels, orders) - before).abs().amax((0, 2))
        assert (difference[: step + 1] == 0).all() and (difference[step + 1 :] > 1e-4).all()


def test_the_likelihood_is_that_of_the_latents_as_they_are() -> None:
    """A density changes with the scale: standardised or not, log p dz is the same."""
    prior = model()
    tokens, labels = codes(prior), torch.zeros(4, dtype=torch.int64)
    prior.standardize(tokens)
    nats = prior.nll(tokens, labels)
    assert nats.shape == tokens.shape
    values = prior.values(prior.in_steps(tokens))
    hidden = prior.hidden(tokens, labels)
    log_p = prior.mixture(hidden.flatten(0, 1)).log_density(values.flatten(0, 1).unsqueeze(1)).view(4, 6)
    expected = -(log_p - prior.scale_C.log().sum())
    assert torch.allclose(nats.view(4, 6, 2).sum(2), expected, atol=1e-5)
    standard = values.flatten(0, 1)
    assert torch.allclose(standard.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(standard.std(0, correction=0), torch.ones(2), atol=1e-4)
    loss, metrics = PriorLoss(prior)(tokens, labels)
    assert float(loss) == pytest.approx(float(nats.mean()), abs=1e-5) and "bits_per_code" in metrics


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 3.0, "temperature": 0.7}, {"order": "halton", "passes": 3}])
def test_an_image_does_not_depend_on_its_batch(options: dict) -> None:
    prior = model(order="any" if "order" in options else "raster")
    given, sampling = inputs(prior), SamplingConfig(**options)
    drawn = decode_codes(prior, **given, sampling=sampling)
    assert bool(values_of(drawn).isfinite().all())
    for rows in (slice(0, 1), slice(2, 5)):
        part = {name: each[rows] for name, each in given.items()}
        again = decode_codes(prior, **part, sampling=sampling)
        assert torch.allclose(values_of(again), values_of(drawn[rows]), atol=0.02)
    known = torch.full_like(drawn, MASKED)
    known[:, 4:8] = drawn[:, 4:8]
    kept = decode_codes(prior, **given, sampling=sampling, known_BT=known)
    assert torch.equal(kept[:, 4:8], drawn[:, 4:8])


def test_cached_steps_are_the_full_forward_s() -> None:
    """At temperature 0 each latent is the mean of the heaviest Gaussian, given those before it."""
    prior = model()
    given = inputs(prior)
    drawn = decode_codes(prior, **given, sampling=SamplingConfig(temperature=0))
    mixture = prior.mixture(prior.hidden(drawn, given["labels_B"]).flatten(0, 1))
    best = mixture.log_weights_NK.argmax(1)
    means = mixture.means_NKC[torch.arange(len(best)), best].view(5, 12)
    assert torch.allclose(values_of(drawn), means, atol=5e-3)


def test_guidance_moves_latents_towards_what_the_class_makes_likelier() -> None:
    prior = model(latents_spec(1, 1, 1))
    torch.nn.init.normal_(prior.class_embedding.weight, std=2.0)
    labels, null = torch.zeros(2000, dtype=torch.int64), torch.full((2000,), 3)
    seeds = list(range(2000))
    given = {"labels_B": labels, "uniforms_BT": stream_uniforms(seeds, 1), "seeds": seeds}

    def gain(**options: Any) -> float:
        drawn = decode_codes(prior, **given, sampling=SamplingConfig(**options))
        return float((prior.nll(drawn, null) - prior.nll(drawn, labels)).mean())

    gains = [gain(), gain(guidance_scale=2.0), gain(guidance_scale=5.0)]
    assert gains[0] < gains[1] < gains[2]


def test_what_latents_cannot_have_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"order(.|\n)*masked(.|\n)*raster or any"):
        model(order="masked")
    prior = model()
    with pytest.raises(ConfigError, match=r"top_k(.|\n)*null for latents"):
        decode_codes(prior, **inputs(prior), sampling=SamplingConfig(top_k=4))
    with pytest.raises(DataError, match="seeds"):
        decode_codes(prior, **{**inputs(prior), "seeds": None}, sampling=SamplingConfig())


def test_a_folder_opens_as_a_prior_of_latents(tmp_path) -> None:
    prior = model()
    prior.standardize(codes(prior))
    prior.save(tmp_path)
    loaded = PriorModel.load(tmp_path)
    assert isinstance(loaded, MixturePrior) and torch.equal(loaded.scale_C, prior.scale_C)
