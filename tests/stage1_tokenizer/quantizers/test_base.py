import torch
from torch.nn import functional as F

from stage1_tokenizer.quantizers.base import rotate_to


def test_the_value_is_the_code_and_the_gradient_is_that_of_the_paper_s_formula() -> None:
    latents, codes, weights = (torch.randn(64, 5, dtype=torch.float64) for _ in range(3))
    ours = latents.clone().requires_grad_(True)
    out = rotate_to(ours, codes)
    assert torch.equal(out, codes)
    (gradient,) = torch.autograd.grad((out * weights).sum(), ours)

    written = latents.clone().requires_grad_(True)
    e, q = F.normalize(latents, dim=1), F.normalize(codes, dim=1)
    w = F.normalize(e + q, dim=1)
    scale = codes.norm(dim=1, keepdim=True) / latents.norm(dim=1, keepdim=True)
    turned = written - 2 * w * (w * written).sum(1, True) + 2 * q * (e * written).sum(1, True)
    assert torch.allclose(scale * turned, codes), "the formula does map each latent to its code"
    (expected,) = torch.autograd.grad((scale * turned * weights).sum(), written)
    assert torch.allclose(gradient, expected)


def test_the_angle_between_gradient_and_code_becomes_that_between_gradient_and_latent() -> None:
    latents, codes, weights = (torch.randn(32, 4) for _ in range(3))
    leaf = latents.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((rotate_to(leaf, codes) * weights).sum(), leaf)
    at_code = F.cosine_similarity(weights, codes)
    assert torch.allclose(F.cosine_similarity(gradient, latents), at_code, atol=1e-5)


def test_latents_without_direction_or_opposite_to_their_code_have_finite_gradients() -> None:
    latents = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    codes = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.0, 0.0]])
    (gradient,) = torch.autograd.grad(rotate_to(latents, codes).sum(), latents)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[0], torch.ones(2)), "straight through where there is nothing to rotate"
