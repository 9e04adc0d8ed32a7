"""Probabilities and inverse-CDF sampling: every code at its frequency, each row for itself."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from stage2_prior.decoding.probs import probabilities, sample_codes, sample_from
from stage2_prior.decoding.sampling import SamplingConfig, guide


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 40),
    temperature=st.floats(0.01, 10),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(1e-6, 1),
    min_p=st.none() | st.floats(0, 1),
)
def test_probabilities_sum_to_one_and_never_are_empty(
    seed: int, size: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)) * 5
    probs = probabilities(logits, SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    assert torch.allclose(probs.sum(1), torch.ones(3), atol=1e-5)
    assert (probs >= 0).all()
    assert torch.equal(probs.argmax(1), logits.argmax(1))
    if top_k is not None:
        assert ((probs > 0).sum(1) <= top_k).all()


def test_the_smallest_set_that_reaches_p_is_kept() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = [int((probabilities(logits, SamplingConfig(top_p=p)) > 0).sum()) for p in (0.3, 0.5, 0.6, 0.8, 0.9, 1.0)]
    assert kept == [1, 1, 2, 2, 3, 4]
    again = probabilities(logits, SamplingConfig(top_p=0.6))
    assert torch.allclose(again, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))


def test_limits_are_argmax_and_no_filter() -> None:
    logits = torch.stack([torch.randperm(50) for _ in range(4)]).float()
    best = torch.nn.functional.one_hot(logits.argmax(1), 50).float()
    assert torch.equal(probabilities(logits, SamplingConfig(temperature=0)), best)
    assert torch.equal(probabilities(logits, SamplingConfig(top_k=1)), best)
    assert torch.allclose(probabilities(logits, SamplingConfig(temperature=1e-3)), best, atol=1e-3)
    plain = logits.softmax(1)
    assert torch.allclose(probabilities(logits, SamplingConfig(top_p=1.0, top_k=50)), plain, atol=1e-7)


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e-5, 1e30, 1e300])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_extreme_settings_still_give_a_distribution(temperature: float, scale: float) -> None:
    logits = guide(torch.randn(4, 50) * 1e4, torch.randn(4, 50) * 1e4, scale)
    probs = probabilities(logits, SamplingConfig(temperature=temperature, guidance_scale=scale))
    assert torch.allclose(probs.sum(1), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("size", [30, 300])
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.2}, {"temperature": 0.5, "top_k": 25, "top_p": 0.9}]
)
def test_frequencies_match_probabilities(size: int, options: dict) -> None:
    """Chi-square over 40,000 draws; a right sampler exceeds the 99.9 % quantile at one seed in 1,000."""
    from scipy.stats import chi2

    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(3))
    probs, n = probabilities(logits, SamplingConfig(**options)), 40_000
    uniforms = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    counts = torch.bincount(sample_from(probs.expand(n, -1).contiguous(), uniforms), minlength=size).double()
    possible = probs[0] > 0
    assert counts[~possible].sum() == 0
    expected = probs[0][possible].double() * n
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(0.999, int(possible.sum()) - 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 400),
    spread=st.floats(0, 30),
    holes=st.floats(0, 0.99),
    uniform=st.sampled_from([0.0, 2.0**-53, 0.5, 1 - 2.0**-30, 1 - 2.0**-53]) | st.floats(0, 1, exclude_max=True),
)
def test_every_drawn_code_is_possible_and_is_the_one_at_its_cumulative_probability(
    seed: int, size: int, spread: float, holes: float, uniform: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = (torch.randn(3, size, generator=generator) * spread).softmax(1)
    probs = probs * (torch.rand(3, size, generator=generator) >= holes)
    probs[:, int(torch.randint(size, (), generator=generator))] += 1e-3
    code = sample_from(probs, torch.full((3,), uniform, dtype=torch.float64)).unsqueeze(1)
    assert (probs.gather(1, code) > 0).all()
    cumulative = probs.double().cumsum(1)
    end = (cumulative.gather(1, code) / cumulative[:, -1:]).squeeze(1)
    begin = end - (probs.double().gather(1, code) / cumulative[:, -1:]).squeeze(1)
    assert (begin <= uniform + 1e-6).all() and (uniform <= end + 1e-6).all()


def test_a_row_is_drawn_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(20, 500, generator=generator), torch.rand(20, dtype=torch.float64)
    for sampling in (SamplingConfig(), SamplingConfig(temperature=0.7, top_k=50, top_p=0.9), SamplingConfig(min_p=0.1)):
        together = sample_codes(logits, uniforms, sampling)
        alone = torch.cat([sample_codes(logits[i : i + 1], uniforms[i : i + 1], sampling) for i in range(20)])
        assert torch.equal(together, alone)


def test_the_ends_of_the_unit_interval_draw_possible_codes() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    for uniform, code in ((0.0, 1), (0.2499, 1), (0.25, 3), (1 - 2**-53, 3)):
        assert sample_from(probs, torch.tensor([uniform], dtype=torch.float64)).item() == code


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 300), spread=st.floats(0, 20), p=st.floats(0, 1))
def test_min_p_is_the_filter_of_transformers(seed: int, size: int, spread: float, p: float) -> None:
    from transformers import MinPLogitsWarper

    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)) * spread
    expected = MinPLogitsWarper(p)(None, logits).softmax(1)
    found = probabilities(logits, SamplingConfig(min_p=p))
    assert torch.equal(found > 0, expected > 0)
    assert torch.allclose(found, expected, atol=1e-6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 300), spread=st.floats(0.01, 20), p=st.floats(0.01, 0.99))
def test_typical_p_is_the_filter_of_transformers(seed: int, size: int, spread: float, p: float) -> None:
    from transformers import TypicalLogitsWarper

    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)) * spread
    expected, probs = TypicalLogitsWarper(p)(None, logits).softmax(1), logits.softmax(1)
    found = probabilities(logits, SamplingConfig(typical_p=p))
    away = (probs.log() + torch.special.entr(probs).sum(1, keepdim=True)).abs()
    furthest = away.masked_fill(expected == 0, 0.0).amax(1, keepdim=True)
    tied = (away - furthest).abs() < 1e-5  # all of them stay here
    assert torch.equal((found > 0) | tied, (expected > 0) | tied)
    alike = ((found > 0) == (expected > 0)).all(1)
    assert torch.allclose(found[alike], expected[alike], atol=1e-6)


def test_codes_that_are_equally_typical_stay_together() -> None:
    even, uneven = torch.zeros(1, 7), torch.tensor([[0.9, 0.05, 0.05, 0.0]]).log()
    assert (probabilities(even, SamplingConfig(typical_p=0.3)) > 0).all()
    assert (probabilities(uneven, SamplingConfig(typical_p=0.5)) > 0).tolist() == [[True, False, False, False]]
    assert torch.equal(probabilities(uneven, SamplingConfig(typical_p=1.0)), uneven.softmax(1))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    spread=st.floats(0, 30),
    rise=st.floats(0, 3),
    decay=st.floats(0.1, 5),
    least=st.floats(0.01, 2),
)
def test_a_temperature_of_the_entropy_is_its_formula(
    seed: int, spread: float, rise: float, decay: float, least: float
) -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * spread
    entropy = torch.special.entr(logits.double().softmax(1)).sum(1, keepdim=True)
    expected = (logits / (rise * torch.exp(-entropy / decay) + least)).softmax(1).float()
    found = probabilities(logits, SamplingConfig(entropy_temperature=(rise, decay, least)))
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_temperature_of_the_entropy_acts_after_the_other_and_before_the_filters() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -4.0]])
    plain = SamplingConfig(temperature=0.5, entropy_temperature=(0.0, 1.0, 2.0), top_k=2)
    assert torch.allclose(probabilities(logits, plain), probabilities(logits, SamplingConfig(top_k=2)))
