"""The prior as a transformers model: found by AutoModel, trained by its own loss, with or without checkpointing."""

from pathlib import Path

import pytest
import torch
from support.random_prior import examples, model
from transformers import AutoConfig, AutoModel

from foundation.storage.serialization import load_tensors
from stage2_prior import Prior
from stage2_prior.block import Block
from stage2_prior.hub import PriorHubConfig, PriorOutput
from stage2_prior.train import PriorLoss


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model(dropout=0.3).save(tmp_path)
    return tmp_path


def gradients(prior: Prior, tokens: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(7)
    prior.zero_grad()
    prior(tokens, labels, targets_BT=tokens).loss.backward()
    return [parameter.grad.clone() for parameter in prior.parameters()]


def test_auto_classes_open_a_folder_and_saving_keeps_its_keys(folder: Path, tmp_path: Path) -> None:
    prior = AutoModel.from_pretrained(folder)
    assert isinstance(prior, Prior) and isinstance(AutoConfig.from_pretrained(folder), PriorHubConfig)
    prior.save_pretrained(tmp_path / "again")
    before, after = (load_tensors(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_output_is_the_model_s_logits_and_the_loss_of_training(folder: Path) -> None:
    prior = AutoModel.from_pretrained(folder)
    tokens, labels = examples(prior.model)
    output = prior(tokens, labels, targets_BT=tokens)
    assert isinstance(output, PriorOutput) and torch.equal(output.logits, prior.model(tokens, labels))
    assert torch.allclose(output.loss, PriorLoss(prior.model)(tokens, labels)[0], rtol=1e-5)
    assert prior(tokens, labels).loss is None
    (logits,) = prior(tokens, return_dict=False)
    assert torch.equal(logits, prior.model(tokens, torch.full_like(labels, prior.model.null_class)))


def test_targets_of_minus_100_do_not_count(folder: Path) -> None:
    prior = AutoModel.from_pretrained(folder)
    tokens, labels = examples(prior.model)
    first = torch.where(torch.arange(tokens.shape[1]) < 1, tokens, -100)
    expected = prior.model.nll(tokens, labels)[:, 0].mean()
    assert torch.allclose(prior(tokens, labels, targets_BT=first).loss, expected, rtol=1e-5)


def test_checkpointing_changes_no_gradient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = AutoModel.from_pretrained(folder).train()
    tokens, labels = examples(prior.model)
    passes: list[Block] = []
    real = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *given: passes.append(self) or real(self, *given))
    plain, n_plain = gradients(prior, tokens, labels), len(passes)
    getattr(prior, "activation_checkpointing_enable", prior.gradient_checkpointing_enable)()
    again = gradients(prior, tokens, labels)
    assert n_plain == len(prior.model.blocks) and len(passes) == 3 * n_plain  # each block forward twice
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_blocks_are_not_split_between_devices() -> None:
    assert Prior._no_split_modules == [Block.__name__]


def test_a_plain_loop_trains_it(folder: Path) -> None:
    """Calls of keyword arguments that return a loss first: what transformers' trainer does."""
    prior = AutoModel.from_pretrained(folder).train()
    tokens, labels = examples(prior.model)
    optimizer, losses = torch.optim.AdamW(prior.parameters(), lr=1e-2), []
    for _ in range(40):
        loss, *_rest = prior(**{"tokens_BT": tokens, "labels_B": labels, "targets_BT": tokens}).to_tuple()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
