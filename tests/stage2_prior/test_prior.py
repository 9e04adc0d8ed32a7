"""Causality, rotary positions, the cache, guidance, sampling: properties of the prior."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from support.random_prior import LEVELS, OPTIONS, examples, model, spec
from torch.nn import functional as F

from foundation.codes.spec import CodeLevel, code_positions
from foundation.errors import ConfigError, DataError
from stage2_prior.block import Block
from stage2_prior.config import PriorConfig, PriorTraining
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorLoss, PriorTask


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_each_output_depends_on_the_codes_before_it_and_no_other(levels: tuple[CodeLevel, ...], options: dict) -> None:
    prior = model(levels, **options)
    tokens, labels = examples(prior, batch=1)
    embedded = torch.randn(1, prior.n_codes - 1, 32).requires_grad_(True)
    prior.code_embedding.register_forward_hook(lambda *_: embedded)
    logits = prior(tokens, labels)
    for t in range(prior.n_codes):
        finite = logits[0, t][logits[0, t].isfinite()]
        (gradient,) = torch.autograd.grad(finite.square().sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached.tolist() == [i < t for i in range(prior.n_codes - 1)]


@pytest.mark.parametrize("block", ["llama", "gpt"])
def test_blocks_whose_outputs_start_at_zero_start_as_the_identity_and_learn(block: str) -> None:
    torch.manual_seed(0)
    config = PriorConfig(d_model=16, n_layers=2, n_heads=2, dropout=0.0, block=block)
    prior, training = PriorModel(config, spec(LEVELS[0], 3)), PriorTraining(residual_init="zero")
    PriorTask(prior, training, None, Accelerator(cpu=True), is_new=False)
    assert all(float(each.attention.out.weight.detach().norm()) > 0 for each in prior.blocks)
    PriorTask(prior, training, None, Accelerator(cpu=True))
    x = torch.randn(2, 6, 16)
    assert all(torch.equal(each(x, None), x) for each in prior.blocks)
    torch.nn.init.normal_(prior.head.weight)
    PriorLoss(prior)(*examples(prior))[0].backward()
    assert all(float(each.attention.out.weight.grad.norm()) > 0 for each in prior.blocks)


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


def test_training_starts_at_a_loss_of_ln_v() -> None:
    prior = PriorModel(PriorConfig(d_model=32, n_layers=2, n_heads=4), spec())
    tokens, labels = examples(prior)
    assert torch.equal(prior(tokens, labels), torch.zeros(3, 16, 29))


@pytest.mark.parametrize("changes", [{}, {"token_dropout": 0.2}, {"residual_dropout": 0.2}, {"attention_dropout": 0.2}])
def test_dropout_acts_in_training_only(changes: dict) -> None:
    """All three, and each alone."""
    prior = model(**({"dropout": 0.0, **changes} if changes else {}))
    tokens, labels = examples(prior)
    assert torch.equal(prior(tokens, labels), prior(tokens, labels))
    prior.train()
    assert not torch.equal(prior(tokens, labels), prior(tokens, labels))
    without = model(dropout=0.0).train()
    assert torch.equal(without(tokens, labels), without(tokens, labels))


def gradients(prior: PriorModel, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    prior.zero_grad()
    PriorLoss(prior)(tokens, labels)[0].backward()
    return {name: parameter.grad.clone() for name, parameter in prior.named_parameters()}  # type: ignore[union-attr]


@pytest.mark.parametrize("options", OPTIONS)
def test_cpu_kernels_and_plain_formulas_make_the_same_model(options: dict, monkeypatch: Any) -> None:
    """The plain ones are what a GPU and ``torch.compile`` run."""
    prior = model(dropout=0.0, **options).train()
    tokens, labels = examples(prior)
    ours, logits = gradients(prior, tokens, labels), prior(tokens, labels)
    monkeypatch.setattr("stage2_prior.block.use_cpu_kernels", lambda x: False)
    assert torch.allclose(prior(tokens, labels), logits, rtol=0, atol=1e-5)
    for name, gradient in gradients(prior, tokens, labels).items():
        assert torch.allclose(gradient, ours[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_checkpointing_blocks_changes_no_gradient(precision: torch.dtype) -> None:
    """With dropout: the masks of the second pass are those of the first."""
    prior = model(dropout=0.3).train()
    tokens, labels = examples(prior)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        plain = gradients(prior, tokens, labels)
        prior.gradient_checkpointing = True
        kept = gradients(prior, tokens, labels)
    assert all(torch.equal(gradient, kept[name]) for name, gradient in plain.items())


def test_compiled_blocks_keep_the_names_of_parameters_and_the_results() -> None:
    prior = model(dropout=0.0).train()
    tokens, labels = examples(prior)
    expected, names = prior(tokens, labels), prior.state_dict().keys()
    for block in prior.blocks:
        block.compile(backend="eager")
    assert prior.state_dict().keys() == names
    assert torch.allclose(prior(tokens, labels), expected, rtol=0, atol=1e-5)


def test_compile_blocks_compiles_each_block(monkeypatch: Any) -> None:
    compiled = []
    monkeypatch.setattr(Block, "compile", lambda self: compiled.append(self))
    prior = model()
    prior.compile_blocks()
    assert compiled == list(prior.blocks)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_bf16_stays_close_to_float32(positions: str) -> None:
    prior = model(dropout=0.0, positions=positions).train()
    tokens, labels = examples(prior)
    exact = gradients(prior, tokens, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gradients(prior, tokens, labels)
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32
        assert (gradient - exact[name]).norm() < 0.1 * exact[name].norm() + 1e-6, name


def test_an_unconditional_prior_has_one_class_the_null_class() -> None:
    assert model(n_classes=0).null_class == 0
    assert model(class_conditional=False).null_class == 0
    assert model(n_classes=3).class_embedding.num_embeddings == 4


@pytest.mark.parametrize("levels", [LEVELS[1], LEVELS[3], LEVELS[4]])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]])
def test_save_and_load_keep_every_parameter_buffer_and_output(
    tmp_path: Path, levels: tuple[CodeLevel, ...], options: dict
) -> None:
    from stage2_prior import Prior

    prior = model(levels, **options)
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
