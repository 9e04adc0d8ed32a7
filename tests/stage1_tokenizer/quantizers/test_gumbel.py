import math

import pytest
import torch

from foundation.errors import ConfigError
from stage1_tokenizer.quantizers.config import GumbelConfig
from stage1_tokenizer.quantizers.gumbel import Gumbel, kl_to_uniform, temperature_at


@pytest.mark.parametrize(("shape", "half_way"), [("cosine", 0.55), ("exponential", 0.1**0.5)])
def test_the_temperature_falls_from_start_to_end_and_stays(shape: str, half_way: float) -> None:
    config = GumbelConfig(temperature_start=1.0, temperature_end=0.1, temperature_steps=100, temperature_shape=shape)
    curve = [temperature_at(config, step) for step in range(0, 120, 10)]
    assert curve[0] == pytest.approx(1.0) and curve[5] == pytest.approx(half_way)
    assert curve[10] == curve[11] == pytest.approx(0.1)
    assert curve == sorted(curve, reverse=True)


def test_without_steps_the_last_temperature_holds_at_once() -> None:
    assert temperature_at(GumbelConfig(temperature_steps=0, temperature_end=0.3), 0) == pytest.approx(0.3)
    with pytest.raises(ConfigError, match="temperature_end"):
        GumbelConfig(temperature_end=0.0)


def test_indices_survive_as_logits() -> None:
    gumbel = Gumbel(GumbelConfig(codebook_size=300, width=8)).eval()
    codes = torch.arange(300).view(1, 15, 20)
    logits = torch.nn.functional.one_hot(codes, 300).permute(0, 3, 1, 2).float()
    assert torch.equal(gumbel.encode(logits), codes)
    assert torch.equal(gumbel(logits).latents_BCHW, gumbel.decode(codes))


def test_training_mixes_codes_ever_more_sharply_and_reaches_logits_and_codes() -> None:
    gumbel = Gumbel(GumbelConfig(codebook_size=6, width=4, temperature_steps=10, temperature_end=0.01))
    logits = torch.randn(1, 6, 20, 20, requires_grad=True)

    def away_from_codes(step: int) -> float:
        gumbel.schedule(step)
        rows = gumbel(logits).latents_BCHW.permute(0, 2, 3, 1).reshape(-1, 4)
        return torch.cdist(rows, gumbel.codebook).min(1).values.mean().item()

    assert away_from_codes(10) < 0.1 * away_from_codes(0)
    gumbel.schedule(0)
    gradients = torch.autograd.grad(gumbel(logits).latents_BCHW.square().sum(), (logits, gumbel.codebook))
    assert all(each.abs().sum() > 0 for each in gradients)


def test_hard_training_gives_single_codes_with_a_gradient() -> None:
    gumbel = Gumbel(GumbelConfig(codebook_size=6, width=4, hard=True))
    logits = torch.randn(1, 6, 5, 5, requires_grad=True)
    out = gumbel(logits).latents_BCHW
    rows = out.permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.cdist(rows, gumbel.codebook).min(1).values.max() < 1e-3
    assert torch.autograd.grad(out.square().sum(), logits)[0].abs().sum() > 0


def test_the_kl_to_uniform_and_its_warm_up() -> None:
    assert kl_to_uniform(torch.zeros(3, 8)).item() == pytest.approx(0, abs=1e-6)
    assert kl_to_uniform(torch.eye(8) * 100).item() == pytest.approx(math.log(8), abs=1e-5)
    gumbel = Gumbel(GumbelConfig(codebook_size=8, width=2, kl_weight=0.4, kl_warmup_steps=10)).eval()
    logits = torch.randn(1, 8, 3, 3)
    whole = kl_to_uniform(logits.permute(0, 2, 3, 1).reshape(-1, 8))
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)):
        gumbel.schedule(step)
        assert torch.allclose(gumbel(logits).losses["kl"], 0.4 * share * whole)


def test_noise_follows_torch_s_seed() -> None:
    gumbel, logits = Gumbel(GumbelConfig(codebook_size=8, width=2)), torch.randn(1, 8, 3, 3)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(gumbel(logits).latents_BCHW)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
