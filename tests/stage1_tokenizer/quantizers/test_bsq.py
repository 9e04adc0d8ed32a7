import math

import pytest
import torch
from torch.nn import functional as F

from stage1_tokenizer.quantizers.bsq import BSQ
from stage1_tokenizer.quantizers.config import BSQConfig


def naive(latents_BCHW: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """E[H(p)] over the whole codebook, and the sum over bits of the entropy of each bit's mean."""
    width = latents_BCHW.shape[1]
    units_ND = F.normalize(latents_BCHW, dim=1).permute(0, 2, 3, 1).reshape(-1, width)
    codes_VD = BSQ(BSQConfig(width=width)).decode(torch.arange(1 << width).view(1, 1, -1))[0, :, 0].T
    p_NV = (units_ND @ codes_VD.T.to(units_ND) / temperature).softmax(1)
    ones_D = p_NV.mean(0) @ (codes_VD > 0).to(p_NV)  # P(bit = 1)
    of_bits = -torch.xlogy(ones_D, ones_D) - torch.xlogy(1 - ones_D, 1 - ones_D)
    return -torch.xlogy(p_NV, p_NV).sum(1).mean(), of_bits.sum()


@pytest.mark.parametrize("width", [2, 10, 16])
def test_codes_and_vectors_are_a_bijection(width: int) -> None:
    quantizer = BSQ(BSQConfig(width=width))
    codes = torch.arange(1 << width).view(1, 1, -1)
    vectors = quantizer.decode(codes)
    assert torch.equal(quantizer.encode(vectors), codes)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(1, 1, 1 << width))


def test_thirty_bits_fit() -> None:
    quantizer = BSQ(BSQConfig(width=30))
    codes = torch.tensor([[[0, 1, 2**29, 2**30 - 1, 65_535, 65_536]]])
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


@pytest.mark.parametrize("width", [2, 5, 8])
@pytest.mark.parametrize("temperature", [0.05, 0.7])
def test_the_entropy_term_and_its_gradient_equal_those_over_the_whole_codebook(width: int, temperature: float) -> None:
    quantizer = BSQ(BSQConfig(width=width, entropy_weight=0.5, entropy_temperature=temperature))
    latents = torch.randn(3, width, 4, 4, requires_grad=True)
    each, mean = naive(latents.double(), temperature)
    out = quantizer(latents)
    assert torch.allclose(out.losses["entropy"], (0.5 * (each - mean)).float(), atol=1e-5)
    assert float(out.metrics["entropy_each"]) == pytest.approx(each.item(), abs=1e-4)
    assert float(out.metrics["entropy_mean"]) == pytest.approx(mean.item(), abs=1e-4)
    (found,) = torch.autograd.grad(out.losses["entropy"], latents)
    (expected,) = torch.autograd.grad(0.5 * (each - mean), latents)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_second_entropy_bounds_that_of_the_mean_choice_from_above() -> None:
    latents = torch.randn(4, 4, 5, 5)
    units_ND = F.normalize(latents, dim=1).permute(0, 2, 3, 1).reshape(-1, 4)
    quantizer = BSQ(BSQConfig(width=4, entropy_temperature=0.3))
    codes_VD = quantizer.decode(torch.arange(16).view(1, 1, -1))[0, :, 0].T
    mean_V = (units_ND @ codes_VD.T / 0.3).softmax(1).mean(0)
    exact = -torch.xlogy(mean_V, mean_V).sum()
    assert exact <= quantizer(latents).metrics["entropy_mean"] <= 4 * math.log(2) + 1e-5


def test_the_gradient_passes_straight_through_to_the_sphere_and_exactly_to_the_latents() -> None:
    latents = torch.randn(2, 3, 4, 4, requires_grad=True)
    weights = torch.randn_like(latents)
    (found,) = torch.autograd.grad((BSQ(BSQConfig(width=3))(latents).latents_BCHW * weights).sum(), latents)
    (expected,) = torch.autograd.grad((F.normalize(latents, dim=1) * weights).sum(), latents)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("width", [2, 16])
def test_the_error_is_bounded_whatever_the_latents_are(width: int) -> None:
    """The farthest unit vector is an axis: |e_1 - 1 / sqrt(d)|^2 = 2 - 2 / sqrt(d)."""
    latents = torch.randn(50, width, 3, 3) * torch.logspace(-3, 3, 50)[:, None, None, None]
    out = BSQ(BSQConfig(width=width))(latents).latents_BCHW
    error = (F.normalize(latents, dim=1) - out).square().sum(1)
    assert error.max() <= 2 - 2 / math.sqrt(width) + 1e-5


def test_the_projection_starts_with_uncorrelated_channels_unless_initial_is_random() -> None:
    latents = torch.randn(8, 4, 6, 6) @ torch.ones(6, 6) + torch.randn(8, 4, 6, 6)
    latents[:, 1] = latents[:, 0] + 0.1 * latents[:, 1]
    start = BSQ(BSQConfig(width=4)).projection_start(latents)
    assert start is not None
    rows_NC = latents.permute(0, 2, 3, 1).reshape(-1, 4) @ start[0].T + start[1]
    assert torch.allclose(rows_NC.T @ rows_NC / len(rows_NC), torch.eye(4), atol=1e-3)
    assert BSQ(BSQConfig(width=4, initial="random")).projection_start(latents) is None
