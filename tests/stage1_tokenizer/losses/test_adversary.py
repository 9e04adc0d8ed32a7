"""Adversarial losses against values worked out by hand.

The adversary in training: separation, gradients, restart, non-finite steps, two processes.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from foundation.errors import ConfigError, DataError
from foundation.storage.serialization import join_state, split_state
from stage1_tokenizer.losses.adversary import (
    Adversary,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    lecam,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
    ramp,
)
from stage1_tokenizer.losses.config import AdversarialConfig, DiscriminatorConfig, DiscriminatorOptim

REAL = torch.tensor([2.0, 0.5])
FAKE = torch.tensor([-3.0, 1.0])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_hinge_by_hand() -> None:
    # real: relu(1 - 2) = 0, relu(1 - .5) = .5; fake: relu(1 - 3) = 0, relu(1 + 1) = 2
    assert hinge_discriminator_loss(real_logits=REAL, fake_logits=FAKE).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert hinge_generator_loss(fake_logits=FAKE).item() == pytest.approx(1.0)


def test_non_saturating_by_hand() -> None:
    expected = 0.5 * ((softplus(-2) + softplus(-0.5)) / 2 + (softplus(-3) + softplus(1)) / 2)
    found = non_saturating_discriminator_loss(real_logits=REAL, fake_logits=FAKE)
    assert found.item() == pytest.approx(expected)
    assert non_saturating_generator_loss(fake_logits=FAKE).item() == pytest.approx((softplus(3) + softplus(-1)) / 2)


@pytest.mark.parametrize("loss", [hinge_discriminator_loss, non_saturating_discriminator_loss])
def test_the_order_of_real_and_fake_must_be_written_out(loss) -> None:
    with pytest.raises(TypeError):
        loss(REAL, FAKE)
    assert loss(real_logits=REAL, fake_logits=FAKE) < loss(real_logits=FAKE, fake_logits=REAL)


@pytest.mark.parametrize("loss", [hinge_discriminator_loss, non_saturating_discriminator_loss])
def test_shapes_that_would_broadcast_are_refused(loss) -> None:
    with pytest.raises(DataError, match=r"\(4, 1\) and \(4,\)"):
        loss(real_logits=torch.zeros(4, 1), fake_logits=torch.zeros(4))
    with pytest.raises(DataError, match="nothing to average"):
        loss(real_logits=torch.zeros(0), fake_logits=torch.zeros(0))


def test_lecam_by_hand() -> None:
    means = {"ema_real": torch.tensor(1.0), "ema_fake": torch.tensor(-0.5)}
    # real - ema_fake = 2.5, 1.0; ema_real - fake = 4, 0
    assert lecam(real_logits=REAL, fake_logits=FAKE, **means).item() == pytest.approx((6.25 + 1) / 2 + 16 / 2)
    # one-sided: a real logit below the mean of the reconstructions, a reconstruction's above the mean of the real ones
    free = lecam(real_logits=torch.tensor([-9.0]), fake_logits=torch.tensor([9.0]), **means)
    assert free.item() == 0


def test_lecam_refuses_running_means_that_would_broadcast() -> None:
    with pytest.raises(DataError, match="ema_fake"):
        lecam(real_logits=REAL, fake_logits=FAKE, ema_real=torch.tensor(0.0), ema_fake=torch.zeros(2, 1))


def test_losses_compute_in_float32_under_autocast() -> None:
    real, fake = torch.randn(8, 1, 4, 4), torch.randn(8, 1, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = hinge_discriminator_loss(real_logits=real.bfloat16(), fake_logits=fake.bfloat16())
    plain = hinge_discriminator_loss(real_logits=real.bfloat16().float(), fake_logits=fake.bfloat16().float())
    assert inside.dtype == torch.float32 and torch.equal(inside, plain)


def test_adaptive_weight_equals_the_ratio_of_gradient_norms() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction = (3 * weight[0] + 4 * weight[1]).abs()  # gradient (3, 4)
    against = 0.5 * weight[0]  # gradient (.5, 0)
    gradients = [torch.autograd.grad(each, weight)[0] for each in (reconstruction, against)]
    found = adaptive_weight(grad_reconstruction=gradients[0], grad_adversarial=gradients[1])
    assert found.item() == pytest.approx(5 / (0.5 + 1e-4)) and not found.requires_grad


def test_adaptive_weight_is_clamped_and_survives_zero_gradients() -> None:
    some, none = torch.full((3,), 1e3), torch.zeros(3)
    assert adaptive_weight(grad_reconstruction=some, grad_adversarial=none).item() == 1e4
    assert adaptive_weight(grad_reconstruction=some, grad_adversarial=none, max_weight=7.0).item() == 7
    assert adaptive_weight(grad_reconstruction=none, grad_adversarial=none).item() == 0


def test_the_ramp() -> None:
    assert [ramp(step, 10, 4) for step in (0, 9, 10, 11, 12, 13, 14, 99)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [ramp(step, 10, 0) for step in (9, 10)] == [0, 1]


CONFIG = AdversarialConfig(
    weight=0.5,
    start_step=2,
    ramp_steps=4,
    lecam_weight=0.01,
    lecam_decay=0.9,
    discriminator=DiscriminatorConfig(width=8, n_layers=2),
    optim=DiscriminatorOptim(learning_rate=2e-3),
)


def adversary(config: AdversarialConfig = CONFIG, **options: Any) -> Adversary:
    defaults = {"image_shape_CYX": (3, 16, 16), "n_steps": 200, "precision": "float32", "seed": 1}
    return Adversary(config, accelerator=Accelerator(cpu=True), **{**defaults, **options})


def weights(one: Adversary) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in one.learner.model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


class Decoder(nn.Module):
    """A toy whose last layer is ``conv_out``."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.conv_out = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv_out(torch.tanh(self.body(images)))


@pytest.mark.parametrize("loss", ["hinge", "non_saturating"])
@pytest.mark.parametrize("options", [{}, {"spectral_norm": True, "norm": "none"}])
def test_it_learns_to_separate_two_obvious_distributions(loss: Any, options: dict) -> None:
    discriminator = DiscriminatorConfig(width=8, n_layers=2, **options)
    one = adversary(replace(CONFIG, loss=loss, start_step=0, discriminator=discriminator))
    for step in range(60):
        images = 0.3 * torch.randn(8, 3, 16, 16) + 0.5
        metrics = one.train_step(images, 0.3 * torch.randn(8, 3, 16, 16) - 0.5, step)
    assert metrics["discriminator_accuracy_real"] == 1 and metrics["discriminator_accuracy_fake"] == 1
    assert metrics["logits_real"] > 0 > metrics["logits_fake"]
    judge = one.learner.model.eval()
    assert judge(0.3 * torch.randn(8, 3, 16, 16) + 0.5).min() > 0 > judge(0.3 * torch.randn(8, 3, 16, 16) - 0.5).max()
    assert one.mean_logits[0] > 0 > one.mean_logits[1], "the running means followed, and are not swapped"


def test_before_its_start_nothing_is_computed() -> None:
    one = adversary()
    before = weights(one)
    one.learner.model.forward = None  # any call would fail
    images, fake = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16, requires_grad=True)
    for step in (0, 1):
        term, metrics = one.generator_term(fake, fake.sum(), fake, step)
        assert term.item() == 0 and metrics == {} and not term.requires_grad
        assert one.train_step(images, fake, step) == {}
    assert equal(before, weights(one)) and not one.mean_logits.any()


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_the_generator_s_term_is_as_computed_by_hand(spectral_norm: bool) -> None:
    options = {"width": 8, "n_layers": 2, "spectral_norm": spectral_norm}
    one, decoder = adversary(replace(CONFIG, discriminator=DiscriminatorConfig(**options))), Decoder()
    images = torch.randn(2, 3, 16, 16)
    fake = decoder(images)
    reconstruction = (fake - images).abs().mean()
    before = weights(one)
    term, metrics = one.generator_term(fake, reconstruction, decoder.conv_out.weight, step=3)
    adversarial = -one.learner.model.eval()(fake).mean()
    norms = [
        torch.autograd.grad(each, decoder.conv_out.weight, retain_graph=True)[0].norm()
        for each in (reconstruction, adversarial)
    ]
    weight = norms[0] / (norms[1] + 1e-4)
    assert metrics["adaptive_weight"].item() == pytest.approx(weight.item(), rel=1e-4)
    assert metrics["gan_ramp"] == 0.5
    assert term.item() == pytest.approx((0.5 * 0.5 * weight * adversarial).item(), rel=1e-4)
    term.backward()
    assert decoder.body.weight.grad is not None and decoder.body.weight.grad.abs().sum() > 0
    assert all(each.grad is None and each.requires_grad for each in one.learner.model.parameters())
    assert equal(before, weights(one)), "spectral norms' vectors included"


def test_a_fixed_weight_needs_no_gradients_of_the_reconstruction() -> None:
    one, decoder = adversary(replace(CONFIG, adaptive=False)), Decoder()
    fake = decoder(torch.randn(2, 3, 16, 16))
    term, metrics = one.generator_term(fake, torch.zeros(()), decoder.conv_out.weight, step=100)
    assert term.item() == pytest.approx(0.5 * metrics["loss_adversarial"].item())
    assert "adaptive_weight" not in metrics


def test_training_the_discriminator_leaves_the_reconstruction_alone() -> None:
    one, fake = adversary(), torch.randn(2, 3, 16, 16, requires_grad=True)
    before = weights(one)
    metrics = one.train_step(torch.randn(2, 3, 16, 16), fake, step=2)
    assert fake.grad is None and not equal(before, weights(one))
    assert {"lecam", "discriminator_gradient_norm", "discriminator_loss", "discriminator_skipped_steps"} <= set(metrics)
    with pytest.raises(DataError, match="differ in shape"):
        one.train_step(torch.randn(3, 3, 16, 16), fake, step=2)


def test_its_learning_rate_runs_from_its_start_to_the_end_of_training() -> None:
    one, images = adversary(n_steps=10), torch.randn(2, 3, 16, 16)
    rates = [one.train_step(images, -images, step)["discriminator_learning_rate"] for step in range(2, 10)]
    assert rates[0] == 2e-3 and rates == sorted(rates, reverse=True) and rates[-1] < 3e-4


def test_a_step_that_is_not_finite_is_skipped() -> None:
    one = adversary()
    one.train_step(torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), step=2)
    before, means = weights(one), one.mean_logits.clone()
    metrics = one.train_step(torch.randn(2, 3, 16, 16), torch.full((2, 3, 16, 16), torch.nan), step=3)
    assert metrics["discriminator_skipped_steps"] == 1
    assert equal(before, weights(one)) and torch.equal(means, one.mean_logits)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_a_restored_adversary_takes_the_same_next_steps(spectral_norm: bool) -> None:
    options = {"width": 8, "n_layers": 2, "spectral_norm": spectral_norm}
    config = replace(CONFIG, discriminator=DiscriminatorConfig(**options))
    batches = [(torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)) for _ in range(6)]
    whole, other = adversary(config), adversary(config, seed=9)
    assert not equal(weights(whole), weights(other)), "the seed counts"
    for step, batch in enumerate(batches[:4], start=2):
        whole.train_step(*batch, step)
    tree, tensors = split_state(whole.state_dict())
    other.load_state_dict(join_state(tree, {name: each.clone() for name, each in tensors.items()}))
    for step, batch in enumerate(batches[4:], start=6):
        assert whole.train_step(*batch, step) == other.train_step(*batch, step)
    assert equal(weights(whole), weights(other)) and torch.equal(whole.mean_logits, other.mean_logits)


def test_building_it_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    adversary()
    assert torch.equal(torch.rand(1), expected)


def test_an_adversary_that_could_never_start_or_see_a_patch_is_refused() -> None:
    with pytest.raises(ConfigError, match="start_step"):
        adversary(n_steps=2)
    with pytest.raises(ConfigError, match="n_layers"):
        adversary(image_shape_CYX=(3, 8, 8))


def test_lower_precision_keeps_the_losses_in_float32() -> None:
    one, decoder = adversary(precision="bf16"), Decoder()
    images = torch.randn(2, 3, 16, 16)
    fake = decoder(images)
    term, metrics = one.generator_term(fake, (fake - images).abs().mean(), decoder.conv_out.weight, step=9)
    metrics |= one.train_step(images, fake, step=9)
    assert term.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in metrics.values() if isinstance(value, torch.Tensor))


def _two_processes() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # else a fork keeps its parent's single process
    torch.set_num_threads(1)  # nor can a fork use its parent's OpenMP threads
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    discriminator = DiscriminatorConfig(width=8, n_layers=2, spectral_norm=True)
    config = replace(CONFIG, start_step=0, discriminator=discriminator)
    torch.manual_seed(accelerator.process_index)  # other weights to begin with, other data
    one = adversary(config, seed=accelerator.process_index)
    decoder = Decoder()
    wrapped, optimizer = accelerator.prepare(decoder, torch.optim.AdamW(decoder.parameters(), lr=1e-2))
    for step in range(5):
        images = torch.randn(2, 3, 16, 16) * (1 + accelerator.process_index)
        fake = wrapped(images)
        reconstruction = (fake - images).abs().mean()
        term, metrics = one.generator_term(fake, reconstruction, decoder.conv_out.weight, step)
        accelerator.backward(reconstruction + term)
        optimizer.step()
        optimizer.zero_grad()
        one.train_step(images, fake.detach(), step)
    held = [*weights(one).values(), *decoder.state_dict().values(), one.mean_logits, metrics["adaptive_weight"]]
    mine = torch.cat([value.flatten() for value in held])
    both = [torch.empty_like(mine) for _ in range(2)]
    torch.distributed.all_gather(both, mine)
    assert torch.equal(both[0], both[1])
    assert torch.isfinite(mine).all() and one.mean_logits.abs().sum() > 0


def test_two_processes_with_other_data_hold_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import debug_launcher

    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    debug_launcher(_two_processes, num_processes=2)
