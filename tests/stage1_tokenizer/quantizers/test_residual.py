import pytest
import torch
from torch.nn import functional as F

from foundation.errors import ConfigError
from stage1_tokenizer.quantizers.config import ResidualConfig, VQConfig
from stage1_tokenizer.quantizers.residual import ResidualVQ


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shared", [True, False])
def test_reconstruction_improves_with_every_depth(shared: bool) -> None:
    rq = ResidualVQ(ResidualConfig(depth=4, shared=shared, codebook=VQConfig(codebook_size=64, width=4)))
    latents = torch.randn(8, 4, 16, 16)
    rq.initialize(latents, generator())
    for step in range(10):
        rq(latents)
        rq.update(step, generator(step))
    codes = rq.encode(latents)
    errors = [F.mse_loss(rq.decode(codes[..., : depth + 1]), latents).item() for depth in range(4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.25 * errors[0] < 0.25


def test_a_shared_codebook_starts_with_vectors_of_every_depth() -> None:
    rq = ResidualVQ(ResidualConfig(depth=2, codebook=VQConfig(codebook_size=16, width=4, kmeans_iterations=0)))
    rq.initialize(torch.randn(4, 4, 8, 8) + 5, generator())
    lengths = rq.codebooks[0].codebook.norm(dim=1)
    assert (lengths > 6).any() and (lengths < 4).any()  # latents are about 10 long, what is left over about 3


def test_each_code_is_nearest_to_what_is_left_over() -> None:
    rq = ResidualVQ(ResidualConfig(depth=3, shared=False, codebook=VQConfig(codebook_size=30, width=3)))
    latents = torch.randn(1, 3, 4, 4)
    codes, left = rq.encode(latents), latents.permute(0, 2, 3, 1).reshape(-1, 3)
    for depth, vq in enumerate(rq.codebooks):
        nearest = torch.cdist(left, vq.codebook).argmin(1)
        assert torch.equal(codes[..., depth].flatten(), nearest)
        left = left - vq.codebook[nearest]


def test_commitment_is_the_average_over_partial_sums() -> None:
    rq = ResidualVQ(ResidualConfig(depth=3, codebook=VQConfig(codebook_size=30, width=3, commitment=0.5)))
    latents = torch.randn(1, 3, 4, 4, requires_grad=True)
    out = rq(latents)
    partial = [F.mse_loss(latents, rq.decode(out.codes_BHW[..., : d + 1])) for d in range(3)]
    assert torch.allclose(out.losses["commitment"], 0.5 * sum(partial) / 3)
    weights = torch.randn_like(latents)
    (gradient,) = torch.autograd.grad((out.latents_BCHW * weights).sum(), latents)
    assert torch.equal(gradient, weights)


def test_the_codebook_loss_reaches_every_codebook_and_no_latent() -> None:
    each = VQConfig(codebook_size=8, width=3, learning="gradient")
    rq = ResidualVQ(ResidualConfig(depth=2, shared=False, codebook=each))
    latents = torch.randn(1, 3, 4, 4, requires_grad=True)
    leaves = [latents, *(vq.codebook for vq in rq.codebooks)]
    gradients = torch.autograd.grad(rq(latents).losses["codebook"], leaves, allow_unused=True)
    assert gradients[0] is None and all(each.abs().sum() > 0 for each in gradients[1:])


def test_shared_means_one_codebook_and_every_codebook_is_revived() -> None:
    each = VQConfig(codebook_size=16, width=2, revive_every=1)
    assert len(ResidualVQ(ResidualConfig(depth=3, codebook=each)).codebooks) == 1
    rq = ResidualVQ(ResidualConfig(depth=2, shared=False, codebook=each))
    for vq in rq.codebooks:
        vq.codebook[1:] = 1e4
        vq.code_sums.copy_(vq.codebook)
    for step in range(8):
        rq(torch.randn(2, 2, 8, 8))
        rq.update(step, generator(step))
    for vq in rq.codebooks:
        assert vq.codebook.abs().max() < 100
        assert torch.allclose(vq.codebook, vq.code_sums / vq.code_counts.unsqueeze(1))


def test_a_step_that_was_not_taken_leaves_no_trace() -> None:
    rq = ResidualVQ(ResidualConfig(depth=2, codebook=VQConfig(codebook_size=8, width=2)))
    before = {name: value.clone() for name, value in rq.state_dict().items()}
    rq(torch.randn(1, 2, 4, 4))
    rq.forget()
    rq.update(0, generator())
    assert all(torch.equal(value, before[name]) for name, value in rq.state_dict().items())


@pytest.mark.parametrize("option", [{"normalize": True}, {"rotation": True}, {"entropy_weight": 0.1}])
def test_options_that_do_not_add_up_are_refused(option: dict) -> None:
    with pytest.raises(ConfigError, match=f"codebook.{next(iter(option))}"):
        ResidualConfig(codebook=VQConfig(**option))
