"""Causality, rotary positions, the cache, guidance, sampling: properties of the prior."""

from pathlib import Path

import pytest
import torch

from foundation.codes import CodeLevel, CodeSpec
from foundation.errors import ConfigError, ContractError
from foundation.images import Preprocess
from stage2_prior.config import PriorConfig
from stage2_prior.decode import sample_codes, sample_codes_reference, stream_uniforms
from stage2_prior.prior import PriorModel
from stage2_prior.sampling import SamplingConfig

GRIDS = [(4, 4), (3, 5), (1, 7)]


def spec(height: int, width: int, n_classes: int = 3) -> CodeSpec:
    level = CodeLevel(height=height, width=width, codebook_size=29)
    names = tuple(f"class {i}" for i in range(n_classes))
    preprocess = Preprocess(height=8 * height, width=8 * width)
    return CodeSpec(levels=(level,), stride=8, preprocess=preprocess, fingerprint="f" * 64, class_names=names)


def model(height: int = 4, width: int = 4, n_classes: int = 3, **changes: object) -> PriorModel:
    """A small prior whose head is not zero."""
    torch.manual_seed(0)
    settings: dict = {"d_model": 32, "n_layers": 3, "n_heads": 4, "rope_base": 100.0, "dropout": 0.2, **changes}
    prior = PriorModel(PriorConfig(**settings), spec(height, width, n_classes)).eval()
    for parameter in prior.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return prior


def examples(prior: PriorModel, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(prior.vocab_size, (batch, prior.n_codes), generator=generator)
    return tokens, torch.randint(prior.n_classes + 1, (batch,), generator=generator)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("qk_norm", [True, False])
def test_each_output_depends_on_the_codes_before_it_and_no_other(grid: tuple[int, int], qk_norm: bool) -> None:
    prior = model(*grid, qk_norm=qk_norm)
    tokens, labels = examples(prior, batch=1)
    embedded = prior.code_embedding(tokens).detach().requires_grad_(True)
    prior.code_embedding.register_forward_hook(lambda *_: embedded[:, : prior.n_codes - 1])
    logits = prior(tokens, labels)
    for t in range(prior.n_codes):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached.tolist() == [i < t for i in range(prior.n_codes)]


@pytest.mark.parametrize("grid", GRIDS)
def test_cached_decoding_equals_the_full_forward(grid: tuple[int, int]) -> None:
    prior = model(*grid)
    tokens, labels = examples(prior)
    full = prior(tokens, labels).detach()
    for given in (0, 1, prior.n_codes - 1):
        cache = prior.new_cache(len(tokens))
        steps = [prior.prefill(labels, tokens[:, :given], cache)]
        steps += [prior.decode_one(tokens[:, t], cache) for t in range(given, prior.n_codes - 1)]
        cached = torch.stack(steps, 1)
        assert (cached - full[:, given:]).abs().max() <= 1e-4
        assert torch.equal(cached.argmax(-1), full[:, given:].argmax(-1))


@pytest.mark.parametrize("scale", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("grid", GRIDS)
def test_cached_and_uncached_sampling_draw_the_same_codes(grid: tuple[int, int], scale: float) -> None:
    prior = model(*grid)
    labels = torch.tensor([0, 1, 2, prior.null_class])
    uniforms = stream_uniforms([5, 6, 7, 8], prior.n_codes)
    for sampling in (
        SamplingConfig(guidance_scale=scale),
        SamplingConfig(guidance_scale=scale, temperature=0.7, top_k=9, top_p=0.8),
        SamplingConfig(guidance_scale=scale, temperature=0.0),
    ):
        drawn = sample_codes(prior, labels, uniforms, sampling)
        assert torch.equal(drawn, sample_codes_reference(prior, labels, uniforms, sampling))
        assert drawn.min() >= 0 and drawn.max() < prior.vocab_size


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
    prior = PriorModel(PriorConfig(d_model=32, n_layers=2, n_heads=4), spec(4, 4))
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


def test_save_and_load_keep_every_parameter_buffer_and_output(tmp_path: Path) -> None:
    from stage2_prior import Prior

    prior = model(3, 5)
    prior.save(tmp_path)
    tokens, labels = examples(prior)
    expected = prior(tokens, labels)
    for other in (PriorModel.load(tmp_path), Prior.from_pretrained(tmp_path).model):
        assert other.spec == prior.spec
        assert other.state_dict().keys() == prior.state_dict().keys()
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in prior.state_dict().items())
        assert torch.equal(other(tokens, labels), expected)


def test_codes_it_cannot_model_are_refused() -> None:
    level = CodeLevel(height=4, width=4, codebook_size=8, depth=2)
    deep = CodeSpec(levels=(level,), stride=8, preprocess=Preprocess(height=32, width=32), fingerprint="f")
    with pytest.raises(ContractError, match="one grid of one code"):
        PriorModel(PriorConfig(), deep)


@pytest.mark.parametrize("changes", [{"d_model": 30}, {"n_heads": 5}, {"n_layers": 0}, {"dropout": 1.0}])
def test_sizes_that_cannot_work_are_refused_by_name(changes: dict) -> None:
    with pytest.raises(ConfigError, match=r"n_heads|n_layers|dropout"):
        PriorConfig(**changes)
