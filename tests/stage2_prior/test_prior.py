"""Causality, rotary positions, the cache, guidance, sampling: properties of the prior."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from foundation.code_positions import code_positions, require_codes
from foundation.codes import CodeLevel, CodeSpec
from foundation.errors import ConfigError, DataError
from foundation.images import Preprocess
from stage2_prior.config import PriorConfig
from stage2_prior.decode import sample_codes, sample_codes_reference, stream_uniforms
from stage2_prior.prior import PriorModel
from stage2_prior.sampling import SamplingConfig

LEVELS = [
    (CodeLevel(height=4, width=4, codebook_size=29),),
    (CodeLevel(height=3, width=5, codebook_size=29),),
    (CodeLevel(height=1, width=7, codebook_size=29),),
    (CodeLevel(height=1, width=3, codebook_size=29, depth=4),),
    (CodeLevel(height=2, width=1, codebook_size=5), CodeLevel(height=4, width=3, codebook_size=9)),
    (CodeLevel(height=1, width=2, codebook_size=9, depth=2), CodeLevel(height=2, width=2, codebook_size=5, depth=3)),
]
"""One level, a residual one, two levels, two residual levels; square and not; codebooks of unequal size."""


def spec(levels: tuple[CodeLevel, ...] = LEVELS[0], n_classes: int = 3) -> CodeSpec:
    names = tuple(f"class {i}" for i in range(n_classes))
    preprocess = Preprocess(height=8 * levels[-1].height, width=8 * levels[-1].width)
    return CodeSpec(levels=levels, stride=8, preprocess=preprocess, fingerprint="f" * 64, class_names=names)


def model(levels: tuple[CodeLevel, ...] = LEVELS[0], n_classes: int = 3, **changes: object) -> PriorModel:
    """A small prior whose head is not zero."""
    torch.manual_seed(0)
    settings: dict = {"d_model": 32, "n_layers": 3, "n_heads": 4, "rope_base": 100.0, "dropout": 0.2, **changes}
    prior = PriorModel(PriorConfig(**settings), spec(levels, n_classes)).eval()
    for parameter in prior.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return prior


def examples(prior: PriorModel, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.from_numpy(code_positions(prior.spec).codebook_size_T)
    tokens = (torch.rand(batch, prior.n_codes, generator=generator) * sizes).long()
    return tokens, torch.randint(prior.n_classes + 1, (batch,), generator=generator)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("qk_norm", [True, False])
def test_each_output_depends_on_the_codes_before_it_and_no_other(levels: tuple[CodeLevel, ...], qk_norm: bool) -> None:
    prior = model(levels, qk_norm=qk_norm)
    tokens, labels = examples(prior, batch=1)
    embedded = torch.randn(1, prior.n_codes - 1, 32).requires_grad_(True)
    prior.code_embedding.register_forward_hook(lambda *_: embedded)
    logits = prior(tokens, labels)
    for t in range(prior.n_codes):
        finite = logits[0, t][logits[0, t].isfinite()]
        (gradient,) = torch.autograd.grad(finite.square().sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached.tolist() == [i < t for i in range(prior.n_codes - 1)]


@pytest.mark.parametrize("levels", LEVELS)
def test_cached_decoding_equals_the_full_forward(levels: tuple[CodeLevel, ...]) -> None:
    prior = model(levels)
    tokens, labels = examples(prior)
    full = prior(tokens, labels).detach()
    for given in (0, 1, prior.n_codes // 2, prior.n_codes - 1):
        cache = prior.new_cache(len(tokens))
        steps = [prior.prefill(labels, tokens[:, :given], cache)]
        steps += [prior.decode_one(tokens[:, t], cache) for t in range(given, prior.n_codes - 1)]
        cached = torch.stack(steps, 1)
        assert torch.allclose(cached, full[:, given:], rtol=0, atol=1e-4)
        assert torch.equal(cached.isneginf(), full[:, given:].isneginf())
        assert torch.equal(cached.argmax(-1), full[:, given:].argmax(-1))
        with pytest.raises(DataError, match="more codes than an image has"):
            prior.decode_one(tokens[:, -1], cache)


@pytest.mark.parametrize("scale", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("levels", LEVELS)
def test_cached_and_uncached_sampling_draw_the_same_codes(levels: tuple[CodeLevel, ...], scale: float) -> None:
    prior = model(levels)
    labels = torch.tensor([0, 1, 2, prior.null_class])
    uniforms = stream_uniforms([5, 6, 7, 8], prior.n_codes)
    for sampling in (
        SamplingConfig(guidance_scale=scale),
        SamplingConfig(guidance_scale=scale, temperature=0.7, top_k=9, top_p=0.8),
        SamplingConfig(guidance_scale=scale, temperature=0.0),
    ):
        drawn = sample_codes(prior, labels, uniforms, sampling)
        assert torch.equal(drawn, sample_codes_reference(prior, labels, uniforms, sampling))
        require_codes(drawn.numpy(), prior.spec)


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_beyond_a_codebook_are_impossible_and_the_loss_is_finite(levels: tuple[CodeLevel, ...]) -> None:
    prior = model(levels).train()
    tokens, labels = examples(prior)
    logits = prior(tokens, labels)
    sizes = torch.from_numpy(code_positions(prior.spec).codebook_size_T)
    beyond = torch.arange(prior.vocab_size) >= sizes.unsqueeze(1)
    assert torch.equal(logits.isneginf(), beyond.expand_as(logits)) and not logits.isnan().any()
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    loss.backward()
    assert loss.isfinite()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_prior_of_one_slot_has_the_parameters_it_always_had() -> None:
    names = model().state_dict().keys()
    assert {name for name in names if "embedding" in name} == {"class_embedding.weight", "code_embedding.weight"}
    assert model().code_embedding.num_embeddings == 29
    two = model(LEVELS[4])
    assert two.code_embedding.num_embeddings == 14 and two.state_dict()["slot_embedding.weight"].shape == (2, 32)


@pytest.mark.parametrize("levels", LEVELS[3:])
def test_slots_have_rows_of_their_own(levels: tuple[CodeLevel, ...]) -> None:
    """The gradient of the whole loss reaches the rows of exactly those (slot, code) pairs that are inputs."""
    prior = model(levels)
    tokens, labels = examples(prior)
    prior(tokens, labels).clamp_min(-1e3).square().sum().backward()
    slot_T = code_positions(prior.spec).slot_T
    first = [0]
    for slot in prior.spec.slots:
        first.append(first[-1] + slot.codebook_size)
    rows = {first[slot_T[t]] + int(row[t]) for row in tokens for t in range(prior.n_codes - 1)}
    reached = prior.code_embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()  # type: ignore[union-attr]
    assert set(reached) == rows
    assert prior.slot_embedding is not None
    assert (prior.slot_embedding.weight.grad.abs().sum(1) > 0).all()  # type: ignore[union-attr]


def test_guidance_of_zero_is_unconditional() -> None:
    prior = model()
    uniforms = stream_uniforms([1, 2], prior.n_codes)
    without = sample_codes(prior, torch.full((2,), prior.null_class), uniforms, SamplingConfig())
    zero = sample_codes(prior, torch.tensor([0, 2]), uniforms, SamplingConfig(guidance_scale=0.0))
    assert torch.equal(without, zero)


def test_an_image_s_codes_do_not_depend_on_its_batch() -> None:
    prior = model()
    labels, seeds = torch.tensor([0, 1, 2, 1, 0]), [11, 12, 13, 14, 15]
    sampling = SamplingConfig(guidance_scale=1.7, top_p=0.9)
    together = sample_codes(prior, labels, stream_uniforms(seeds, prior.n_codes), sampling)
    for i, seed in enumerate(seeds):
        alone = sample_codes(prior, labels[i : i + 1], stream_uniforms([seed], prior.n_codes), sampling)
        assert torch.equal(alone[0], together[i])


def test_training_starts_at_a_loss_of_ln_v() -> None:
    prior = PriorModel(PriorConfig(d_model=32, n_layers=2, n_heads=4), spec())
    tokens, labels = examples(prior)
    assert torch.equal(prior(tokens, labels), torch.zeros(3, 16, 29))


def test_dropout_acts_in_training_only() -> None:
    prior = model()
    tokens, labels = examples(prior)
    assert torch.equal(prior(tokens, labels), prior(tokens, labels))
    prior.train()
    assert not torch.equal(prior(tokens, labels), prior(tokens, labels))


def test_an_unconditional_prior_has_one_class_the_null_class() -> None:
    assert model(n_classes=0).null_class == 0
    assert model(class_conditional=False).null_class == 0
    assert model(n_classes=3).class_embedding.num_embeddings == 4


@pytest.mark.parametrize("levels", [LEVELS[1], LEVELS[3], LEVELS[4]])
def test_save_and_load_keep_every_parameter_buffer_and_output(tmp_path: Path, levels: tuple[CodeLevel, ...]) -> None:
    from stage2_prior import Prior

    prior = model(levels)
    prior.save(tmp_path)
    tokens, labels = examples(prior)
    expected = prior(tokens, labels)
    for other in (PriorModel.load(tmp_path), Prior.from_pretrained(tmp_path).model):
        assert other.spec == prior.spec
        assert other.state_dict().keys() == prior.state_dict().keys()
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in prior.state_dict().items())
        assert torch.equal(other(tokens, labels), expected)


def test_more_codes_than_an_image_has_are_refused() -> None:
    prior = model()
    with pytest.raises(DataError, match=r"17(.|\n)*16"):
        prior(torch.zeros(1, 17, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("changes", [{"d_model": 30}, {"n_heads": 5}, {"n_layers": 0}, {"dropout": 1.0}])
def test_sizes_that_cannot_work_are_refused_by_name(changes: dict) -> None:
    with pytest.raises(ConfigError, match=r"n_heads|n_layers|dropout"):
        PriorConfig(**changes)
