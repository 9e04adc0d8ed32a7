import math

import pytest
import torch

from stage1_tokenizer.quantizers import codebook
from stage1_tokenizer.quantizers.entropy import choice_entropies, entropy_loss


def naive(vectors: torch.Tensor, codebook: torch.Tensor, temperature: float) -> torch.Tensor:
    p = (-(vectors[:, None] - codebook[None]).square().sum(2) / temperature).softmax(1)
    mean = p.mean(0)
    return -torch.xlogy(p, p).sum(1).mean() + torch.xlogy(mean, mean).sum()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("block", [1, 64, 1 << 20])
def test_value_and_gradients_equal_those_of_the_whole_matrix(
    temperature: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codebook, "CPU_BLOCK", block)
    start = torch.randn(40, 3, dtype=torch.float64), torch.randn(13, 3, dtype=torch.float64)
    results = []
    for function in (naive, entropy_loss):
        leaves = [each.clone().requires_grad_(True) for each in start]
        loss = function(*leaves, temperature)
        results.append([loss, *torch.autograd.grad(1.7 * loss, leaves)])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(expected, found, atol=1e-10)


def test_each_entropy_has_its_own_gradient() -> None:
    arguments = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 3), (5, 3), (5,))]
    assert torch.autograd.gradcheck(choice_entropies, arguments)


def test_the_ends_of_the_scale() -> None:
    codes = torch.eye(8) * 10
    assert entropy_loss(codes, codes, 0.01).item() == pytest.approx(-math.log(8), abs=1e-5), "certain and even"
    assert entropy_loss(torch.zeros(5, 8), codes, 0.01).item() == pytest.approx(0, abs=1e-5), "undecided, all alike"


def test_probabilities_that_vanish_leave_finite_gradients() -> None:
    vectors, codes = torch.zeros(4, 2, requires_grad=True), (torch.randn(9, 2) * 1e3).requires_grad_(True)
    loss = entropy_loss(vectors, codes, 0.01)
    assert all(each.isfinite().all() for each in (loss, *torch.autograd.grad(loss, (vectors, codes))))
