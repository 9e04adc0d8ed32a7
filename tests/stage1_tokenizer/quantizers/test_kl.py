import pytest
import torch
from torch.distributions import Normal, kl_divergence

from foundation.errors import ConfigError
from stage1_tokenizer.quantizers.config import KLConfig
from stage1_tokenizer.quantizers.kl import GaussianLatent, gaussian_kl


def test_the_closed_form_agrees_with_sampling_and_with_torch() -> None:
    mean, logvar = torch.tensor([0.0, 1.5, -0.7, 0.2]), torch.tensor([0.0, -1.0, 0.8, -3.0])
    posterior, prior = Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)
    drawn = posterior.sample((200_000,))
    sampled = (posterior.log_prob(drawn) - prior.log_prob(drawn)).mean(0)
    assert torch.allclose(gaussian_kl(mean, logvar), sampled, atol=0.02)
    assert torch.allclose(gaussian_kl(mean, logvar), kl_divergence(posterior, prior), atol=1e-6)
    assert gaussian_kl(torch.zeros(1), torch.zeros(1)).item() == 0


def test_the_loss_is_the_weighted_average_and_rises_linearly() -> None:
    latent = GaussianLatent(KLConfig(width=3, weight=0.2, anneal_steps=40))
    parameters = torch.randn(2, 6, 4, 5)
    whole = gaussian_kl(parameters[:, :3], parameters[:, 3:])
    for step, share in ((0, 0.0), (10, 0.25), (40, 1.0), (1000, 1.0)):
        latent.schedule(step)
        out = latent(parameters)
        assert torch.allclose(out.losses["kl"], 0.2 * share * whole.mean())
    assert torch.allclose(out.metrics["kl_nats_per_image"], whole.sum() / 2)
    assert GaussianLatent(KLConfig(weight=0.2)).weight == 0.2, "no annealing: the whole weight at once"


def test_training_draws_with_the_given_mean_and_deviation_and_evaluation_takes_the_mean() -> None:
    latent = GaussianLatent(KLConfig(width=1))
    parameters = torch.cat([torch.full((1, 1, 200, 200), 2.0), torch.full((1, 1, 200, 200), -2.0)], 1)
    drawn = latent(parameters).latents_BCHW
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.01)
    assert drawn.std().item() == pytest.approx(torch.tensor(-1.0).exp().item(), abs=0.01)
    assert torch.equal(latent.eval()(parameters).latents_BCHW, parameters[:, :1])
    assert torch.equal(latent.encode(parameters), parameters[:, :1])


def test_the_draw_is_reparameterized() -> None:
    latent, parameters = GaussianLatent(KLConfig(width=2)), torch.randn(1, 4, 3, 3, requires_grad=True)
    out = latent(parameters).latents_BCHW
    (gradient,) = torch.autograd.grad(out.sum(), parameters)
    assert torch.equal(gradient[:, :2], torch.ones(1, 2, 3, 3))
    assert torch.allclose(gradient[:, 2:], 0.5 * (out - parameters[:, :2]), atol=1e-6)


def test_extreme_log_variances_are_clamped() -> None:
    latent = GaussianLatent(KLConfig(width=1))
    out = latent(torch.tensor([0.0, 0.0, 1e4, -1e4]).view(1, 2, 1, 2))
    assert out.latents_BCHW.isfinite().all() and out.losses["kl"].isfinite()


def test_channels_that_say_nothing_are_not_active() -> None:
    latent = GaussianLatent(KLConfig(width=3))
    parameters = torch.zeros(4, 6, 5, 5)
    parameters[:, 1] = torch.randn(4, 5, 5)
    parameters[:, 2] = 7.0
    assert latent(parameters).metrics["active_channels"] == 1


def test_it_has_no_codes() -> None:
    latent = GaussianLatent(KLConfig(width=3))
    assert (latent.is_discrete, latent.codebook_size, latent.latent_width) == (False, 0, 6)
    with pytest.raises(ConfigError, match="weight"):
        KLConfig(weight=-1.0)
