import math

import pytest
import torch

from stage1_tokenizer.quantizers import lfq
from stage1_tokenizer.quantizers.config import LFQConfig
from stage1_tokenizer.quantizers.lfq import LFQ


def naive(latents_ND: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Both entropies over the whole codebook."""
    width = latents_ND.shape[1]
    codes = LFQ(LFQConfig(width=width)).decode(torch.arange(1 << width).view(1, 1, -1))[0, :, 0].T.to(latents_ND)
    p = (-(latents_ND[:, None] - codes[None]).square().sum(2) / temperature).softmax(1)
    mean = p.mean(0)
    return -torch.xlogy(p, p).sum(1).mean(), -torch.xlogy(mean, mean).sum()


def test_channel_0_is_the_least_significant_bit_and_0_gives_minus_1() -> None:
    quantizer = LFQ(LFQConfig(width=4))
    latents = torch.tensor([[0.3, -0.2, -5.0, 0.0], [-1.0, 2.0, 0.1, 9.0]]).T.reshape(1, 4, 1, 2)
    codes = quantizer.encode(latents)
    assert codes.tolist() == [[[0b0001, 0b1110]]]
    assert quantizer.decode(codes)[0, :, 0].T.tolist() == [[1, -1, -1, -1], [-1, 1, 1, 1]]


@pytest.mark.parametrize("width", [1, 10, 16])
def test_codes_and_signs_are_a_bijection(width: int) -> None:
    quantizer = LFQ(LFQConfig(width=width))
    codes = torch.arange(1 << width).view(1, 1, -1)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_thirty_bits_fit() -> None:
    quantizer = LFQ(LFQConfig(width=30))
    codes = torch.tensor([[[0, 1, 2**29, 2**30 - 1, 65_535, 65_536, 65_537]]])
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_entropies_and_gradients_equal_those_over_the_whole_codebook(width: int) -> None:
    latents = torch.randn(20, width, dtype=torch.float64, requires_grad=True)
    for index in range(2):
        expected = naive(latents, 0.7)[index]
        found = lfq.bit_entropies(latents * (4 / 0.7))[index]
        assert torch.allclose(expected, found, atol=1e-9)
        one, other = (torch.autograd.grad(each, latents)[0] for each in (expected, found))
        assert torch.allclose(one, other, atol=1e-9)


def test_groups_of_bits_bound_the_entropy_from_above() -> None:
    logits = torch.randn(50, 6)
    each, exact = lfq.bit_entropies(logits)
    each_again, bound = lfq.bit_entropies(logits, group_bits=2)
    assert torch.equal(each, each_again)
    assert exact < bound <= 6 * math.log(2) + 1e-5


def test_the_loss_is_the_weighted_difference_and_the_boost_falls_linearly() -> None:
    quantizer = LFQ(LFQConfig(width=3, entropy_weight=0.5, entropy_temperature=2.0, entropy_boost=3.0, boost_steps=100))
    latents = torch.randn(2, 3, 4, 4)
    each, mean = naive(latents.permute(0, 2, 3, 1).reshape(-1, 3), 2.0)
    for step, factor in ((0, 3.0), (50, 2.0), (100, 1.0), (5000, 1.0)):
        quantizer.schedule(step)
        assert torch.allclose(quantizer(latents).losses["entropy"], 0.5 * factor * (each - mean), atol=1e-5)


def test_the_gradient_is_straight_through() -> None:
    latents = torch.randn(2, 3, 4, 4, requires_grad=True)
    weights = torch.randn_like(latents)
    (gradient,) = torch.autograd.grad((LFQ(LFQConfig(width=3))(latents).latents_BCHW * weights).sum(), latents)
    assert torch.equal(gradient, weights)
