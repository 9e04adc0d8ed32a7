"""reAR: which codes are replaced, what is aligned with what, and that nothing of it is left in the prior."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.random_prior import LEVELS, examples, model
from support.tiny_prior import STEPS, code_vectors, dataset, fit_config, rows, tiny_task, train
from torch.nn import functional as F

from foundation.codes.spec import code_positions
from foundation.errors import ConfigError
from foundation.training.checkpoints import latest_checkpoint
from foundation.training.config import Falling, OptimConfig
from foundation.training.lengths import Rates, Schedule
from stage2_prior.config import PriorTraining, Regularizer
from stage2_prior.regularizer import Alignment, build_alignment, context_noise, require_one_slot
from stage2_prior.train import PriorLoss, PriorTask

SIZES = np.array([5, 5, 30, 30, 30, 30])


def test_each_image_has_a_share_of_its_own_and_codes_are_of_their_position() -> None:
    noise = context_noise(np.arange(20_000), SIZES, 0.8, seed=1).numpy()
    replaced = noise >= 0
    shares = replaced.mean(axis=1)
    assert abs(replaced.mean() - 0.4) < 0.01 and shares.min() == 0 and shares.max() == 1
    assert shares.std() > 0.25, "binomial counts of one share would have 0.2"
    for t, size in enumerate(SIZES):
        found = np.bincount(noise[:, t][replaced[:, t]], minlength=size)
        assert len(found) == size
        expected = found.sum() / size
        assert ((found - expected) ** 2 / expected).sum() < size + 5 * (2 * size) ** 0.5, "chi-square, five deviations"


def test_noise_depends_on_its_own_position_and_the_seed_alone() -> None:
    whole = context_noise(np.arange(100), SIZES, 0.5, seed=1)
    parts = [context_noise(part, SIZES, 0.5, seed=1) for part in np.split(np.arange(100), 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, context_noise(np.arange(100), SIZES, 0.5, seed=2))
    assert (context_noise(np.arange(100), SIZES, 0.0, seed=1) == -1).all()


def test_noise_falls_to_nothing_over_its_share_of_the_steps() -> None:
    strength = Regularizer(noise=0.8, noise_until=0.5).strength
    assert [strength.value(step, 100) for step in (0, 25, 50, 99)] == pytest.approx([0.8, 0.4, 0.0, 0.0])


def test_a_length_acts_through_the_noise_too() -> None:
    rates = Rates(OptimConfig(warmup_steps=4, schedule="wsd"))
    for lengths in ((20, 21), (20, 40), (1000, 1001)):
        schedule = Schedule(lengths[0], (rates, Falling(1.0, 0.75)))
        assert not schedule.has_plateau and schedule.shared_steps(lengths[1]) == 1
        assert "falls from the first step on" in schedule.note(10, lengths[1])
    assert Schedule(20, (rates, Falling(0.0, 0.75))).shared_steps(40) == Schedule(20, (rates,)).shared_steps(40)


@pytest.mark.parametrize("levels", LEVELS)
def test_noise_changes_the_context_and_not_what_is_predicted(levels: Any) -> None:
    prior = model(levels, dropout=0.0)
    tokens, labels = examples(prior)
    noise = context_noise(np.arange(len(tokens)), code_positions(prior.spec).codebook_size_T, 1.0, seed=0)
    context = torch.where(noise < 0, tokens, noise)
    assert not torch.equal(context, tokens)
    found = PriorLoss(prior)(tokens, labels, None, None, noise)[1]["nll"]
    expected = F.cross_entropy(prior(context, labels).flatten(0, 1), tokens.flatten())
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("noisy", [True, False])
def test_the_alignment_is_its_formula_and_reaches_the_prior(in_order: bool, noisy: bool) -> None:
    prior = model(LEVELS[0], dropout=0.0, n_layers=4, target_aware=not in_order)
    tokens, labels = examples(prior)
    vectors = torch.randn(prior.vocab_size, 7)
    torch.manual_seed(0)
    alignment = Alignment(prior.config, Regularizer(current_weight=0.5, target_weight=2.0), vectors)
    orders = None if in_order else torch.stack([torch.randperm(prior.n_codes) for _ in tokens])
    noise = context_noise(np.arange(len(tokens)), code_positions(prior.spec).codebook_size_T, 1.0, seed=0)
    noise = noise if noisy else torch.full_like(noise, -1)
    states: dict[int, torch.Tensor] = {}
    for i in (0, 2):
        prior.blocks[i].register_forward_hook(lambda _, __, out, i=i: states.update({i + 1: out}))
    given = noise if noisy else None
    loss, metrics = PriorLoss(prior, alignment=alignment)(tokens, labels, orders, None, given)
    own = tokens if orders is None else tokens.gather(1, orders)
    stays = (noise if orders is None else noise.gather(1, orders))[:, :-1] < 0
    current = F.cosine_similarity(alignment.current(states[1][:, 1:]), vectors[own[:, :-1]], dim=-1) * stays
    target = F.cosine_similarity(alignment.target(states[3]), vectors[own], dim=-1)
    expected = metrics["nll"] - 0.5 * current.mean() - 2.0 * target.mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert metrics["alignment_current"].item() == pytest.approx(current.mean().item(), abs=1e-5)
    assert metrics["alignment_target"].item() == pytest.approx(target.mean().item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(-target.mean(), prior.blocks[0].attention.qkv.weight)
    assert gradient.norm() > 0


def test_a_network_of_weight_zero_is_left_out_and_a_code_of_length_zero_has_no_gradient() -> None:
    prior = model(LEVELS[0], dropout=0.0)
    tokens, labels = examples(prior)
    alignment = Alignment(prior.config, Regularizer(current_weight=0.0), torch.zeros(prior.vocab_size, 3))
    assert alignment.current is None
    loss, metrics = PriorLoss(prior, alignment=alignment)(tokens, labels)
    assert loss == metrics["nll"] and "alignment_current" not in metrics
    loss.backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in prior.parameters())


def test_without_alignment_the_noise_needs_no_vectors() -> None:
    regularizer = Regularizer(current_weight=0.0, target_weight=0.0)
    prior = model(LEVELS[0])
    assert build_alignment(prior.config, PriorTraining(regularizer=regularizer), None, 0) is None
    require_one_slot(PriorTraining(regularizer=regularizer), 4)
    task = PriorTask(prior, PriorTraining(regularizer=regularizer), None, Accelerator(cpu=True))
    assert task.learner.state_dict().keys() == {"model", "average", "optimizer", "guard"}


def test_what_cannot_be_aligned_is_refused_by_name() -> None:
    aligned = PriorTraining(regularizer=Regularizer())
    with pytest.raises(ConfigError, match=r"prior\.training\.regularizer\.current_weight"):
        PriorTask(model(LEVELS[0]), aligned, None, Accelerator(cpu=True))
    with pytest.raises(ConfigError, match=r"prior\.training\.regularizer(.|\n)*codes of 2 slots"):
        require_one_slot(aligned, 2)
    for wrong in ({"noise": 1.5}, {"noise_until": 0.0}, {"target_weight": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Regularizer(**wrong)  # type: ignore[arg-type]


def test_a_prior_is_saved_without_the_networks_and_a_checkpoint_holds_them(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    task = train(tmp_path, tiny_task(accelerator, regularizer=Regularizer()), accelerator)
    plain = tiny_task(accelerator)
    assert task.exported().state_dict().keys() == plain.exported().state_dict().keys()
    state = latest_checkpoint(tmp_path / "checkpoints").state["task"]
    assert state["model"].keys() == plain.state_dict()["model"].keys()
    networks = {name.split(".")[1] for name in state["objective_parameters"]}
    assert networks == {"current", "target"} and not any("vectors" in name for name in state["objective_parameters"])
    logged = rows(tmp_path, "train")
    assert logged[0]["context_noise"] == 1.0 and logged[-1]["context_noise"] == 0.0
    assert logged[-1]["alignment_target"] > logged[0]["alignment_target"] + 0.2, "the networks learn"


def test_another_length_goes_on_with_its_own_noise(tmp_path: Path) -> None:
    accelerator, training = Accelerator(cpu=True), {"regularizer": Regularizer()}
    train(tmp_path, tiny_task(accelerator, **training), accelerator)
    longer = dataclasses.replace(fit_config(), steps=2 * STEPS)
    task = train(tmp_path, tiny_task(accelerator, fit=longer, **training), accelerator)
    assert min(task.seen) == STEPS
    assert rows(tmp_path, "train")[STEPS]["context_noise"] == pytest.approx(1 - STEPS / (1.5 * STEPS))


def test_random_numbers_and_weights_are_those_of_a_training_without_while_its_weights_are_zero(tmp_path: Path) -> None:
    accelerator, results = Accelerator(cpu=True), []
    for i, training in enumerate(({}, {"regularizer": Regularizer(noise=0.0, current_weight=0.0, target_weight=0.0)})):
        (tmp_path / str(i)).mkdir()
        results.append(train(tmp_path / str(i), tiny_task(accelerator, dropout=0.2, **training), accelerator))
    pairs = zip(*(each.exported().parameters() for each in results), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert len(code_vectors()) > dataset().codes_NT.max()
