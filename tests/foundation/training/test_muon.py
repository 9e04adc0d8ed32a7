"""Muon: singular values, agreement with torch's, kernels and stacks, skipped steps, and its part of a learner."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from foundation.errors import ConfigError
from foundation.training.config import OptimConfig
from foundation.training.learner import Learner
from foundation.training.muon import Muon, hidden_matrix, is_hidden_matrix, orthogonalized
from foundation.training.optim import adamw, muon
from foundation.training.parallel import keeping_tags

SHAPES = [(8, 8), (24, 8), (8, 40), (8, 8), (24, 8)]


def parameters(shapes: list[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [hidden_matrix(nn.Parameter(torch.randn(shape, generator=generator))) for shape in shapes]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], n_steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        for each in parameters:
            each.grad = torch.randn(each.shape, generator=generator)
        optimizer.step()


def test_singular_values_come_near_one_and_directions_stay() -> None:
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    made = orthogonalized(matrices)
    assert all(0.6 < value < 1.25 for value in torch.linalg.svdvals(made).flatten().tolist())
    for matrix, one in zip(matrices, made, strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        inside = u.T @ one @ v.T
        assert torch.allclose(inside, torch.diag(inside.diag()), atol=1e-4)


def test_a_matrix_of_zeros_has_no_step() -> None:
    assert torch.equal(orthogonalized(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has had Muon since 2.9")
@pytest.mark.parametrize("arithmetic", [torch.float32, torch.bfloat16])
def test_it_is_torchs_muon_on_matrices(arithmetic: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if arithmetic is torch.float32:
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())  # torch's knows no other type
    own, theirs = parameters(), parameters()
    train(Muon(own, 0.02, momentum=0.9, weight_decay=0.1, arithmetic=arithmetic), own)
    options = {"momentum": 0.9, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    train(torch.optim.Muon(theirs, 0.02, **options), theirs)
    limit = 1e-5 if arithmetic is torch.float32 else 2e-3
    for one, other, start in zip(own, theirs, parameters(), strict=True):
        assert (one - start).abs().max() > 0.02
        assert torch.allclose(one, other, atol=limit)


def test_a_step_is_as_large_as_adamws() -> None:
    steps = {}
    for kind in ("adamw", "muon"):
        module = nn.ParameterList(parameters([(64, 64), (32, 96)]))
        before = copy.deepcopy(module)
        config = OptimConfig(matrices=kind, learning_rate=0.01)
        optimizer = muon(module, config) or adamw(module, config)
        train(optimizer, list(module), 1)
        steps[kind] = [
            float((one.detach() - old.detach()).square().mean().sqrt()) for one, old in zip(module, before, strict=True)
        ]
    # AdamW's first step is the learning rate itself, later ones 0.2 to 0.4 of it
    assert all(0.15 < mine / theirs < 0.4 for mine, theirs in zip(steps["muon"], steps["adamw"], strict=True))


def test_kernels_and_stacks_step_like_their_matrices() -> None:
    plain, kernel, stack = parameters([(8, 18)] * 2), parameters([(8, 2, 3, 3)]), parameters([(16, 18)])
    hidden_matrix(stack[0], 2)
    generator = torch.Generator().manual_seed(0)
    values, gradients = (torch.randn(2, 8, 18, generator=generator) for _ in range(2))
    for each, value, gradient in (
        *zip(plain, values, gradients, strict=True),
        (kernel[0], values[0], gradients[0]),
        (stack[0], values, gradients),
    ):
        each.data.copy_(value.reshape(each.shape))
        each.grad = gradient.reshape(each.shape).clone()
    for each in (plain, kernel, stack):
        Muon(each, 0.1).step()
    assert torch.allclose(kernel[0].flatten(1), plain[0], atol=1e-6)
    assert torch.allclose(stack[0], torch.cat([each.detach() for each in plain]), atol=1e-6)


def test_the_device_may_decide_that_a_step_is_not_taken() -> None:
    for found, gradient in ((1.0, math.nan), (1.0, 1.0), (0.0, 1.0)):
        own, other = parameters(), parameters()
        decided, plain = Muon(own, 0.02, weight_decay=0.1), Muon(other, 0.02, weight_decay=0.1)
        train(decided, own, 2)
        train(plain, other, 2)
        before = [each.detach().clone() for each in own]
        for each in (*own, *other):
            each.grad = gradient * torch.linspace(1, 2, each.numel()).view(each.shape)
        decided.found_inf = torch.tensor(found)  # type: ignore[attr-defined]
        decided.step()
        if found:
            assert all(torch.equal(one, old) for one, old in zip(own, before, strict=True))
            for each in (*own, *other):
                each.grad = torch.ones_like(each)
            decided.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
            decided.step()
        plain.step()
        assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(own, other, strict=True))


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    hidden_matrix(module[1].weight)
    config = OptimConfig(matrices="muon", learning_rate=0.1, matrix_weight_decay=0.5)
    (group,) = muon(module, config).param_groups
    assert [id(each) for each in group["params"]] == [id(module[1].weight)]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.95, 0.5)
    others = {id(each) for own in adamw(module, config).param_groups for each in own["params"]}
    assert others == {id(each) for each in module.parameters()} - {id(module[1].weight)}
    assert (
        muon(module, OptimConfig()) is None
        and sum(len(g["params"]) for g in adamw(module, OptimConfig()).param_groups) == 5
    )


def test_tags_stay_where_a_device_needs_new_parameters() -> None:
    module = nn.Linear(2, 2)
    hidden_matrix(module.weight, 2)
    with keeping_tags(module):
        module.weight, module.bias = (nn.Parameter(each.detach().clone()) for each in (module.weight, module.bias))
    assert is_hidden_matrix(module.weight) and not is_hidden_matrix(module.bias)


def test_a_model_without_hidden_matrices_is_refused() -> None:
    module = nn.Linear(2, 2)
    hidden_matrix(module.weight).requires_grad_(False)
    with pytest.raises(ConfigError, match=r"optim\.matrices"):
        muon(module, OptimConfig(matrices="muon"))


def learner() -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    hidden_matrix(model[1].weight)
    optim = OptimConfig(matrices="muon", learning_rate=0.01, matrix_learning_rate=0.03, warmup_steps=3, schedule="wsd")
    how = {"average_decay": 0.5, "precision": "float32", "accelerator": Accelerator(cpu=True)}
    return Learner(model, optim, 12, **how)


def test_a_learner_gives_both_optimizers_one_schedule_and_restores_them_to_the_bit() -> None:
    first, second = learner(), learner()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for step in range(12):
        first.apply(first.wrapped(x).square().mean(), step)
        rates = [group["lr"] for each in first.optimizers for group in each.param_groups]
        assert rates[-1] == pytest.approx(3 * rates[0])
        if step == 6:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        if step > 6:
            second.apply(second.wrapped(x).square().mean(), step)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_a_step_that_is_not_finite_changes_no_matrix() -> None:
    one = learner()
    before = [each.clone() for each in one.model.parameters()]
    assert not one.apply(one.wrapped(torch.full((1, 3), torch.nan)).sum(), 0).taken
    assert all(torch.equal(a, b) for a, b in zip(before, one.model.parameters(), strict=True))
