"""The families of networks beside the default one, and quantizers without projections."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foundation.config import from_dict
from foundation.errors import ConfigError
from foundation.images.config import Preprocess
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import DVAENetworks, Magvit2Networks, VQGANNetworks
from stage1_tokenizer.networks.dvae import DVAEBlock
from stage1_tokenizer.networks.fused_norm import norm_silu_conv
from stage1_tokenizer.networks.magvit2 import AdaptiveNorm, DepthToSpace
from stage1_tokenizer.quantizers.config import (
    FSQConfig,
    GumbelConfig,
    KLConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    VQConfig,
)
from stage1_tokenizer.tokenizer import TokenizerModel

VARIANTS: dict[str, tuple[QuantizerConfig, dict]] = {
    "magvit2": (LFQConfig(width=6), {"family": Magvit2Networks, "projection": "none"}),
    "magvit2, projected": (FSQConfig(levels=(5, 5)), {"family": Magvit2Networks}),
    "dvae": (GumbelConfig(codebook_size=16, width=6), {"family": DVAENetworks, "projection": "none"}),
    "vq alone": (VQConfig(codebook_size=16, width=6), {"projection": "none"}),
    "residual alone": (ResidualConfig(depth=2, codebook=VQConfig(codebook_size=16, width=6)), {"projection": "none"}),
    "logits in the quantizer": (GumbelConfig(codebook_size=16, width=6, logit_layer=True), {}),
    "kl, double": (KLConfig(width=4), {"projection": "double"}),
    "kl alone": (KLConfig(width=6), {"projection": "none"}),
}


def small(variant: str) -> TokenizerModel:
    torch.manual_seed(0)
    quantizer, changes = VARIANTS[variant]
    base = 32 if variant == "dvae" else 8  # a quarter of it is inside a block: with two channels, a ReLU may be dead
    family, rest = changes.get("family", VQGANNetworks), {k: v for k, v in changes.items() if k != "family"}
    networks = family(base_width=base, width_multipliers=(1, 2, 2), n_res_blocks=2, norm_groups=4)
    config = TokenizerConfig(networks=networks, quantizer=quantizer, latent_channels=6, **rest)
    model = TokenizerModel(config, Preprocess(height=16, width=24)).eval()
    for name, parameter in model.named_parameters():  # nothing passes by being zero
        if name.endswith("conv2.weight"):
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_the_codes_equals_the_forward_reconstruction(variant: str, tmp_path: Path) -> None:
    model = small(variant)
    images = torch.rand(3, 3, 16, 24) * 2 - 1
    output, codes = model(images), model.encode(images)
    assert torch.equal(codes, output.codes) and codes.shape[-2:] in ((4, 6), (6, 2))
    assert torch.equal(model.decode(codes), output.images_BCYX.detach())
    wide = torch.rand(1, 3, 8, 32) * 2 - 1
    assert model.decode(model.encode(wide)).shape == wide.shape
    model.save(tmp_path)
    assert torch.equal(TokenizerModel.load(tmp_path).decode(codes), output.images_BCYX.detach())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_gets_a_gradient(variant: str) -> None:
    model = small(variant).train()
    output = model(torch.rand(4, 3, 16, 24) * 2 - 1)
    (output.images_BCYX.square().mean() + sum(output.losses.values())).backward()
    without = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.abs().sum() > 0]
    assert not without


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("kl")])
def test_lower_precision_networks_take_codes_of_a_float32_quantizer(variant: str, tmp_path: Path) -> None:
    from stage1_tokenizer import Tokenizer

    small(variant).save(tmp_path)
    low = Tokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    output = low((torch.rand(1, 3, 16, 24) * 2 - 1).bfloat16())
    assert torch.equal(low.decode(output.codes), output.reconstruction.detach())


def test_depth_to_space_takes_the_offsets_from_the_most_significant_channels() -> None:
    layer = DepthToSpace(3)
    x = torch.randn(2, 3, 4, 5)
    wide, out = layer.conv1(x), layer(x)
    for row in range(2):
        for column in range(2):
            first = (2 * row + column) * 3
            assert torch.equal(out[:, :, row::2, column::2], wide[:, first : first + 3])


def test_adaptive_norm_scales_by_the_codes_deviation_and_shifts_by_their_mean() -> None:
    layer = AdaptiveNorm(8, 3, groups=2)
    x, codes = torch.randn(2, 8, 6, 4), torch.randn(2, 3, 3, 2)
    out = layer(x, codes)
    rows = codes.flatten(2).double()
    deviation = ((rows - rows.mean(2, keepdim=True)).square().sum(2) / 5 + 1e-6).sqrt().float()
    for image in range(2):
        scale = layer.gamma.weight @ deviation[image] + layer.gamma.bias
        shift = layer.beta.weight @ rows[image].mean(1).float() + layer.beta.bias
        wanted = F.group_norm(x[image : image + 1], 2, eps=1e-6)[0] * scale[:, None, None] + shift[:, None, None]
        assert torch.allclose(out[image], wanted, atol=1e-5)
    assert layer(x, codes[:, :, :1, :1]).isfinite().all()  # one position has no deviation


def test_dvae_block_is_its_input_and_a_share_of_four_convolutions() -> None:
    block = DVAEBlock(4, 8, sides=(3, 3, 3, 1), scale=1 / 64)
    x = torch.randn(2, 4, 5, 6)
    hidden = x
    for conv, side in zip(block.convs, (3, 3, 3, 1), strict=True):
        hidden = F.conv2d(hidden.clamp_min(0), conv.weight, conv.bias, padding=(side - 1) // 2)
    assert [conv.out_channels for conv in block.convs] == [2, 2, 2, 8]
    assert torch.allclose(block(x), block.shortcut(x) + hidden / 64, atol=1e-6)


def test_dvae_pixels_are_the_location_within_the_range() -> None:
    model = small("dvae")
    codes = torch.randint(0, 16, (2, 4, 6))
    with torch.no_grad():
        stats = model.decoder.stats(model.bottleneck.decode(codes, (4, 6)))
        images = model.decode(codes)
    wanted = ((stats[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1) * 2 - 1
    assert torch.equal(images, wanted) and stats.shape[1] == 6
    with torch.no_grad():
        model.decoder.conv_out.bias[:3] = 9.0
    assert float(model.decode(codes).max()) == 1.0


def test_logits_in_the_quantizer_are_a_convolution_of_the_latents() -> None:
    model = small("logits in the quantizer")
    quantizer = model.bottleneck.quantizer
    latents = torch.randn(2, 6, 3, 4)
    logits = quantizer.logits(latents)
    assert torch.equal(logits, quantizer.to_logits(latents)) and logits.shape == (2, 16, 3, 4)
    assert torch.equal(quantizer.encode(latents), logits.argmax(1))


def test_norm_silu_conv_without_a_bias_is_the_plain_modules() -> None:
    norm, conv = nn.GroupNorm(4, 8, eps=1e-6), nn.Conv2d(8, 6, 3, padding=1, bias=False)
    results = []
    for function in (lambda x: norm_silu_conv(norm, conv, x), lambda x: conv(F.silu(norm(x)))):
        x = torch.linspace(-3, 3, 2 * 8 * 5 * 6).view(2, 8, 5, 6).sin().requires_grad_()
        value = function(x)
        gradients = torch.autograd.grad((value * value.detach().cos()).sum(), [x, conv.weight, norm.weight, norm.bias])
        results.append([value, *gradients])
    for ours, plain in zip(*results, strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"networks": {"type": "magvit2", "middle_attention": True}}, "networks.middle_attention"),
        ({"networks": {"type": "magvit2", "attention_levels": (1,)}}, "networks.attention_levels"),
        ({"networks": {"type": "dvae", "patch_size": 2}}, "networks.patch_size"),
        ({"networks": {"type": "dvae", "norm_groups": 4}}, "projection"),
        ({"projection": "none", "quantizer": VQConfig(width=5)}, "latent_channels"),
        ({"projection": "double", "coarse_halvings": 1}, "coarse_halvings"),
    ],
)
def test_variants_that_cannot_work_are_refused_by_field(changes: dict, said: str) -> None:
    settings = {"networks": {"base_width": 8, "norm_groups": 4}, "latent_channels": 8, **changes}
    with pytest.raises(ConfigError, match=f"^{said}"):
        from_dict(TokenizerConfig, settings)
