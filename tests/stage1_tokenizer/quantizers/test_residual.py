import dataclasses

import pytest
import torch
from torch.nn import functional as F

from foundation.config import from_dict
from foundation.config_fields import without_defaults
from foundation.errors import ConfigError, DataError
from foundation.images.config import Preprocess
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import ResidualConfig, VQConfig
from stage1_tokenizer.quantizers.residual import ResidualVQ
from stage1_tokenizer.tokenizer import TokenizerModel


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


SIZES = ResidualConfig(depth=2, shared=False, codebook=VQConfig(width=3), codebook_sizes=(6, 11))


def test_each_depth_has_a_codebook_of_its_own_size() -> None:
    rq = ResidualVQ(SIZES)
    assert [len(vq.codebook) for vq in rq.codebooks] == [6, 11] and rq.codebook_size == 11
    latents = torch.randn(8, 3, 8, 8)
    rq.initialize(latents, generator())
    rq(latents)
    rq.update(0, generator())
    codes = rq.encode(latents)
    assert codes[..., 0].max() == 5 and codes[..., 1].max() == 10
    assert F.mse_loss(rq.decode(codes), latents) < F.mse_loss(rq.decode(codes[..., :1]), latents)


def test_sizes_are_read_wherever_they_are_written_and_old_settings_keep_their_digest() -> None:
    rest = {"type": "residual", "depth": 2, "shared": False}
    for values in (
        {"codebook": {"width": 3}, "codebook_sizes": [6, 11]},
        {"codebook": {"width": 3}, "codebook_size": [6, 11]},
        {"codebook": {"width": 3, "codebook_size": [6, 11]}},
    ):
        assert from_dict(ResidualConfig, {**rest, **values}) == SIZES
    assert "codebook_sizes" not in without_defaults(ResidualConfig()) and "codebook_sizes" in without_defaults(SIZES)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"shared": True}, "shared"),
        ({"depth": 3}, "codebook_sizes"),
        ({"codebook_sizes": (6, 1)}, "codebook_sizes"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}"):
        dataclasses.replace(SIZES, **changes)


def test_a_code_beyond_its_depth_s_codebook_is_not_decoded() -> None:
    networks = VQGANNetworks(base_width=8, width_multipliers=(1, 1), n_res_blocks=1, norm_groups=4)
    config = TokenizerConfig(networks=networks, latent_channels=8, quantizer=SIZES)
    tokenizer = TokenizerModel(config, Preprocess(height=8, width=8)).eval()
    assert tokenizer.levels[0].codebook_size == (6, 11)
    assert [slot.codebook_size for slot in tokenizer.layout.slots] == [6, 11]
    codes = torch.tensor([5, 10]).expand(1, 4, 4, 2)
    assert tokenizer.decode(codes).shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match=r"0..5 and 0..10"):
        tokenizer.decode(codes.flip(3))
