"""Priors of any order and masked ones: known codes condition all others, and passes sample what the model says."""

from typing import Any

import pytest
import torch
from support.random_prior import LEVELS, decode_codes, model, with_norm_weights

from foundation.codes.spec import CodeLevel
from foundation.errors import ConfigError, DataError
from stage2_prior.decoding.decode import MASKED, iterate_codes, stream_uniforms
from stage2_prior.decoding.probs import sample_codes
from stage2_prior.decoding.sampling import SamplingConfig, guidance_scales, guide
from stage2_prior.orders import ORDERS, Cells, known_first
from stage2_prior.prior import PriorModel

GUIDED = {"guidance_scale": 2.5, "schedule": "linear", "top_k": 9}


def inputs(prior: PriorModel, batch: int = 5) -> dict[str, Any]:
    seeds = list(range(10, 10 + batch))
    labels = torch.arange(batch) % (prior.n_classes + 1)
    return {"labels_B": labels, "uniforms_BT": stream_uniforms(seeds, prior.n_codes), "seeds": seeds}


def holes(prior: PriorModel, batch: int = 5) -> torch.Tensor:
    """Codes of which other ones are known in each image."""
    generator = torch.Generator().manual_seed(2)
    codes = (torch.rand(batch, prior.n_codes, generator=generator) * torch.from_numpy(prior.sizes_T)).long()
    return torch.where(torch.rand(batch, prior.n_codes, generator=generator) < 0.4, codes, MASKED)


@torch.no_grad()
def without_cache(
    prior: PriorModel, given: dict[str, Any], sampling: SamplingConfig, known: torch.Tensor, order: str
) -> torch.Tensor:
    """Codes one by one from two whole passes each: slow and obvious."""
    cells = Cells(prior.spec)
    orders = torch.from_numpy(known_first(cells.codes(ORDERS[order](cells, given["seeds"])), known.numpy() >= 0, cells))
    labels, tokens = given["labels_B"], known.clamp_min(0)
    null, rows = torch.full_like(labels, prior.null_class), torch.arange(len(labels))
    for i, scale in enumerate(guidance_scales(sampling, prior.n_codes)):
        at = orders[:, i]
        logits = guide(*(prior(tokens, each, orders)[:, i].float() for each in (labels, null)), scale)
        beyond = torch.arange(logits.shape[1]) >= torch.from_numpy(prior.sizes_T)[at].unsqueeze(1)
        drawn = sample_codes(logits.masked_fill(beyond, -torch.inf), given["uniforms_BT"][rows, at], sampling)
        tokens[rows, at] = torch.where(known[rows, at] < 0, drawn, known[rows, at])
    return tokens


@pytest.mark.parametrize("levels", [LEVELS[1], LEVELS[3], LEVELS[5]])
@pytest.mark.parametrize("order", ["raster", "halton", "random"])
@pytest.mark.parametrize("options", [{}, GUIDED])
def test_codes_in_any_order_are_those_of_whole_passes(levels: tuple[CodeLevel, ...], order: str, options: dict) -> None:
    prior = with_norm_weights(model(levels, order="any"))
    if order == "raster" and len(prior.spec.slots) > 1 and options:
        options = {**options, "guidance_interval": (0.3, 0.8)}
    given, sampling = inputs(prior), SamplingConfig(order=order, **options)
    for known in (torch.full((5, prior.n_codes), MASKED), holes(prior)):
        drawn = decode_codes(prior, **given, sampling=sampling, known_BT=known)
        assert torch.equal(drawn[known >= 0], known[known >= 0])
        assert torch.equal(drawn, without_cache(prior, given, sampling, known, order))
        assert torch.equal(drawn, decode_codes(prior, **given, sampling=sampling, known_BT=known, max_rows=2))


@pytest.mark.parametrize("kind", ["any", "masked"])
@pytest.mark.parametrize("order", ["auto", "raster", "halton", "random", "confidence"])
@pytest.mark.parametrize("passes", [None, 1, 5, 99])
def test_passes_keep_known_codes_and_draw_all_others_once(kind: str, order: str, passes: int | None) -> None:
    prior = with_norm_weights(model(order=kind))
    if (kind, order) == ("any", "confidence"):
        with pytest.raises(ConfigError, match=r"order(.|\n)*confidence"):
            decode_codes(prior, **inputs(prior), sampling=SamplingConfig(order=order))
        return
    given, sampling = inputs(prior), SamplingConfig(order=order, passes=passes, guidance_scale=2.0)
    for known in (torch.full((5, 16), MASKED), holes(prior)):
        codes, n_passes = known.clone(), 0
        for step in iterate_codes(prior, sampling=sampling, known_BT=known, **given):
            before = codes[step.rows].gather(1, step.positions_BK)
            assert torch.equal(step.codes_BK[before >= 0], before[before >= 0]), "what is known is never drawn again"
            codes[step.rows].scatter_(1, step.positions_BK, step.codes_BK)
            n_passes += 1
        assert int(codes.min()) >= 0
        if passes in (1, 5) and not (known >= 0).any():
            assert n_passes == min(passes + (kind == "any" and passes == 1), 16)
        drawn = decode_codes(prior, **given, sampling=sampling, known_BT=known)
        assert torch.equal(drawn[known >= 0], known[known >= 0]) and int(drawn.min()) >= 0
        for rows in (slice(0, 1), slice(2, 5)):
            part = {name: each[rows] for name, each in given.items()}
            assert torch.equal(decode_codes(prior, **part, sampling=sampling, known_BT=known[rows]), drawn[rows])


@pytest.mark.parametrize("levels", [LEVELS[3], LEVELS[5]])
@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_masked_passes_draw_codes_of_a_cell_one_after_another(levels: tuple[CodeLevel, ...], order: str) -> None:
    prior = with_norm_weights(model(levels, order="masked"))
    given, sampling = inputs(prior), SamplingConfig(order=order, passes=3)
    known, depth = torch.full((5, prior.n_codes), MASKED), torch.from_numpy(Cells(prior.spec).depth_T)
    for step in iterate_codes(prior, sampling=sampling, known_BT=known, **given):
        fresh = known.gather(1, step.positions_BK) < 0
        assert len(set(depth[step.positions_BK][fresh].tolist())) == 1
        inner_BK = fresh & (depth[step.positions_BK] > 0)
        inner, rows = step.positions_BK[inner_BK], inner_BK.nonzero()[:, 0]
        assert bool((known[rows, inner - 1] >= 0).all()), "the one before it is known"
        known.scatter_(1, step.positions_BK, step.codes_BK)
    assert bool((known >= 0).all()) and bool((known < torch.from_numpy(prior.sizes_T)).all())


def test_one_pass_samples_each_code_from_its_own_distribution() -> None:
    """Frequencies of a masked prior's single pass beside the softmax of its logits."""
    prior = with_norm_weights(model((CodeLevel(height=1, width=2, codebook_size=4),), order="masked"))
    n, seeds = 4000, list(range(4000))
    labels = torch.ones(n, dtype=torch.int64)
    drawn = decode_codes(
        prior, labels, stream_uniforms(seeds, 2), SamplingConfig(order="raster", passes=1), seeds=seeds
    )
    probs = prior(torch.full((1, 2), MASKED), labels[:1]).detach()[0].softmax(-1)
    for position in range(2):
        counts = torch.bincount(drawn[:, position], minlength=4)
        expected = probs[position] * n
        assert float(((counts - expected) ** 2 / expected).sum()) < 16.3, "chi-square of 3 degrees of freedom, 0.1 %"


def test_without_noise_the_most_confident_codes_come_first() -> None:
    prior = with_norm_weights(model(order="masked"))
    given = inputs(prior, 1)
    sampling = SamplingConfig(confidence_noise=0.0, passes=4, temperature=0)
    known = torch.full((1, 16), MASKED)
    for step in iterate_codes(prior, sampling=sampling, known_BT=known, **given):
        confidence, likeliest = prior(known, given["labels_B"]).detach().softmax(-1).max(-1)
        confidence = confidence.masked_fill(known >= 0, 0.0)
        n = step.positions_BK.shape[1]
        assert set(confidence[0].topk(n).indices.tolist()) == set(step.positions_BK[0].tolist())
        assert torch.equal(step.codes_BK, likeliest.gather(1, step.positions_BK))
        known.scatter_(1, step.positions_BK, step.codes_BK)


def test_a_code_that_is_replaced_is_what_later_ones_are_sampled_given() -> None:
    for kind in ("any", "masked"):
        prior = with_norm_weights(model(order=kind))
        given, sampling = inputs(prior), SamplingConfig(order="halton", passes=4)
        known, codes = torch.full((5, 16), MASKED), torch.full((5, 16), MASKED)
        plain = decode_codes(prior, sampling=sampling, known_BT=known, **given)
        for number, step in enumerate(iterate_codes(prior, sampling=sampling, known_BT=known, **given)):
            if number == 1:
                step.codes_BK[:] = 7
            codes.scatter_(1, step.positions_BK, step.codes_BK)
        assert not torch.equal(codes, plain)
        assert int((codes == 7).sum()) >= 5


def test_what_a_prior_cannot_do_is_refused_by_name() -> None:
    raster, any_order = model(), model(order="any")
    with pytest.raises(ConfigError, match=r"order(.|\n)*halton(.|\n)*train a prior of order any"):
        decode_codes(raster, **inputs(raster), sampling=SamplingConfig(order="halton"))
    with pytest.raises(ConfigError, match=r"passes(.|\n)*8(.|\n)*train a prior of order any"):
        decode_codes(raster, **inputs(raster), sampling=SamplingConfig(passes=8))
    given = {**inputs(any_order), "seeds": None}
    with pytest.raises(DataError, match="seeds"):
        decode_codes(any_order, **given, sampling=SamplingConfig(order="random"))
    deep = model(LEVELS[3], order="any")
    with pytest.raises(ConfigError, match=r"passes(.|\n)*several codes"):
        decode_codes(deep, **inputs(deep), sampling=SamplingConfig(passes=3))
