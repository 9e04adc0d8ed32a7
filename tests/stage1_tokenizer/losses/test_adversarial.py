"""Adversarial losses against values worked out by hand."""

import math

import pytest
import torch

from foundation.errors import DataError
from stage1_tokenizer.losses.adversarial import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    lecam,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
    ramp,
)

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
