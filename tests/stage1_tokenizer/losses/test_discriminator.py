"""The patch discriminator: grids, sizes it refuses, independence of the images in a batch."""

import copy

import pytest
import torch

from foundation.config import from_dict
from foundation.errors import ConfigError
from stage1_tokenizer.losses.config import AdversarialConfig, DiscriminatorConfig, PerceptualConfig
from stage1_tokenizer.losses.discriminator import BlurredHalving, PatchDiscriminator, patch_grid

VARIANTS = [
    {},
    {"norm": "none"},
    {"spectral_norm": True},
    {"blur": True},
    {"blur": True, "spectral_norm": True, "norm": "none"},
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize(("n_layers", "side"), [(3, 32), (3, 24), (1, 8), (2, 13), (3, 31)])
def test_the_grid_is_as_announced(options: dict, n_layers: int, side: int) -> None:
    config = DiscriminatorConfig(width=8, n_layers=n_layers, **options)
    logits = PatchDiscriminator(config, 3)(torch.randn(2, 3, side, side + 8))
    assert logits.shape == (2, 1, patch_grid(config, side), patch_grid(config, side + 8))
    assert logits.shape[2] >= 1


@pytest.mark.parametrize("options", VARIANTS)
def test_every_parameter_learns_and_the_image_gets_a_gradient(options: dict) -> None:
    discriminator = PatchDiscriminator(DiscriminatorConfig(width=8, n_layers=2, **options), 1)
    images = torch.randn(2, 1, 24, 24, requires_grad=True)
    discriminator(images).square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in discriminator.parameters())
    copy.deepcopy(discriminator)


@pytest.mark.parametrize(("side", "most"), [(23, "n_layers to 2"), (8, "n_layers to 1"), (5, "at least 6 x 6")])
def test_images_without_a_single_patch_are_refused_with_what_would_fit(side: int, most: str) -> None:
    with pytest.raises(ConfigError, match=most):
        PatchDiscriminator(DiscriminatorConfig(width=8, n_layers=3), 3)(torch.randn(1, 3, side, side))


@pytest.mark.parametrize("options", [{}, {"blur": True}])
def test_an_image_is_judged_alone(options: dict) -> None:
    discriminator = PatchDiscriminator(DiscriminatorConfig(width=8, **options), 3)
    one, others = torch.randn(1, 3, 32, 32), 5 * torch.randn(3, 3, 32, 32)
    alone, among = discriminator(one), discriminator(torch.cat([one, others]))[:1]
    assert torch.allclose(alone, among, atol=1e-5)
    assert not any("running" in name for name, _ in discriminator.named_buffers())


def test_the_published_architecture_has_70_pixel_patches_and_doubling_widths() -> None:
    discriminator = PatchDiscriminator(DiscriminatorConfig(), 3)
    widths = [each.out_channels for each in discriminator.layers if isinstance(each, torch.nn.Conv2d)]
    assert widths == [64, 128, 256, 512, 1]
    field = 1
    for kernel, stride in [(4, 1), (4, 1), (4, 2), (4, 2), (4, 2)]:
        field = (field - 1) * stride + kernel
    assert field == 70, "the docstring's number"
    plain = PatchDiscriminator(DiscriminatorConfig(width=4, norm="none"), 1)
    images = torch.randn(1, 1, 160, 160, requires_grad=True)
    logits = plain(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert images.grad is not None
    assert int((images.grad[0, 0].abs().sum(0) > 0).sum()) == field


def test_the_blur_keeps_a_constant_and_damps_the_finest_stripes() -> None:
    halve = BlurredHalving()
    assert torch.allclose(halve(torch.ones(1, 2, 8, 8)), torch.ones(1, 2, 4, 4))
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    assert halve(stripes)[..., 1:-1].abs().max() < 1e-6


def test_a_spectral_norm_bounds_the_kernel() -> None:
    discriminator = PatchDiscriminator(DiscriminatorConfig(width=8, spectral_norm=True), 3).train()
    for _ in range(50):
        discriminator(torch.randn(1, 3, 32, 32))
    kernel = discriminator.layers[0].weight
    assert torch.linalg.matrix_norm(kernel.flatten(1), 2).item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("cls", "values", "field"),
    [
        (DiscriminatorConfig, {"width": 0}, "width"),
        (DiscriminatorConfig, {"n_layers": 0}, "n_layers"),
        (DiscriminatorConfig, {"norm": "batch"}, "norm"),
        (AdversarialConfig, {"weight": -1}, "weight"),
        (AdversarialConfig, {"start_step": -1}, "start_step"),
        (AdversarialConfig, {"ramp_steps": -1}, "ramp_steps"),
        (AdversarialConfig, {"lecam_decay": 1.0}, "lecam_decay"),
        (AdversarialConfig, {"lecam_weight": -0.1}, "lecam_weight"),
        (AdversarialConfig, {"loss": "wasserstein"}, "loss"),
        (PerceptualConfig, {"weight": -1}, "weight"),
        (PerceptualConfig, {"precision": "fp16"}, "precision"),
    ],
)
def test_values_that_cannot_work_are_refused(cls: type, values: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        from_dict(cls, values)


def test_setting_one_option_of_the_optimizer_keeps_the_adversary_s_other_defaults() -> None:
    optim = from_dict(AdversarialConfig, {"optim": {"learning_rate": 1e-3}}).optim
    assert (optim.learning_rate, optim.beta1, optim.beta2) == (1e-3, 0.5, 0.9)
