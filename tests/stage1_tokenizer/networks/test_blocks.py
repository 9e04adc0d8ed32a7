"""The fused and rearranged pieces compute what the plain modules compute, forwards and backwards."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foundation.errors import ConfigError
from stage1_tokenizer.networks.blocks import AttentionBlock, ResidualBlock, Upsample
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.networks.fused_norm import norm_silu_conv


def _norm_and_conv(channels_in: int = 8, channels_out: int = 6, side: int = 3) -> tuple[nn.GroupNorm, nn.Conv2d]:
    torch.manual_seed(1)
    norm, conv = nn.GroupNorm(4, channels_in, eps=1e-6), nn.Conv2d(channels_in, channels_out, side, padding=side // 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, conv


def _plain(norm: nn.GroupNorm, conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return conv(F.silu(norm(x)))


def _with_gradients(function, x: torch.Tensor, *modules: nn.Module) -> list[torch.Tensor]:
    """The value and the gradients to the input and to every parameter, of a loss that weights each output value."""
    x = x.clone().requires_grad_()
    value = function(x)
    weights = torch.linspace(-1, 1, value.numel()).view(value.shape)
    parameters = [each for module in modules for each in module.parameters()]
    gradients = torch.autograd.grad((value.float() * weights).sum(), [x, *parameters])
    return [value.detach(), *gradients]


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm().clamp_min(1e-12))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sides", [(5, 6), (32, 33)])  # below and above the limit where the forward pass changes
@pytest.mark.parametrize("offset", [0.0, 10.0])  # a mean far from 0 is where a naive variance cancels
def test_norm_silu_conv_is_the_plain_modules(layout, sides, offset):
    norm, conv = _norm_and_conv()
    x = (torch.randn(3, 8, *sides) + offset).to(memory_format=layout)
    ours = _with_gradients(lambda x: norm_silu_conv(norm, conv, x), x, norm, conv)
    plain = _with_gradients(lambda x: _plain(norm, conv, x), x, norm, conv)
    for one, other in zip(ours, plain, strict=True):
        assert _relative(one, other) < (2e-6 if offset == 0 else 1e-4)


def test_norm_silu_conv_gradients_are_exact():
    norm, conv = (module.double() for module in _norm_and_conv(4, 3))
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64, requires_grad=True)

    def function(x, scale, shift, kernel, bias):
        values = {"weight": scale, "bias": shift}, {"weight": kernel, "bias": bias}
        norm_now, conv_now = copy.deepcopy(norm), copy.deepcopy(conv)
        for module, own in zip((norm_now, conv_now), values, strict=True):
            for name, value in own.items():
                del module._parameters[name]
                setattr(module, name, value)
        return norm_silu_conv(norm_now, conv_now, x)

    assert torch.autograd.gradcheck(function, (x, norm.weight, norm.bias, conv.weight, conv.bias))


def test_norm_silu_conv_under_autocast():
    norm, conv = _norm_and_conv(32, 32)
    x = torch.randn(4, 32, 32, 32).to(memory_format=torch.channels_last)
    exact = _with_gradients(lambda x: _plain(norm, conv, x), x, norm, conv)

    def lowered(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return norm_silu_conv(norm, conv, x)

    ours = _with_gradients(lowered, x, norm, conv)
    assert ours[0].dtype == torch.bfloat16
    assert all(each.dtype == torch.float32 for each in ours[1:])
    for one, other in zip(ours, exact, strict=True):
        assert _relative(one, other) < 2e-2


@pytest.mark.parametrize("offset", [10.0, 100.0])
def test_norm_silu_conv_in_bf16_where_the_mean_is_large_beside_the_deviation(offset):
    norm, conv = _norm_and_conv(32, 32)
    x = (torch.randn(4, 32, 32, 32) + offset).bfloat16()

    def lowered(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return norm_silu_conv(norm, conv, x)

    exact_norm, exact_conv = copy.deepcopy(norm).double(), copy.deepcopy(conv).double()
    exact = _with_gradients(lambda x: _plain(exact_norm, exact_conv, x), x.double(), exact_norm, exact_conv)
    for one, other in zip(_with_gradients(lowered, x, norm, conv), exact, strict=True):
        assert _relative(one, other) < 2e-2


def test_only_the_input_is_kept_for_the_backward_pass():
    norm, conv = _norm_and_conv(8, 8)
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm_silu_conv(norm, conv, x)
    large = [t for t in kept if t.numel() >= x.numel()]
    assert len(large) == 1
    assert large[0].data_ptr() == x.data_ptr()


def test_not_a_number_stays_visible():
    norm, conv = _norm_and_conv()
    x = torch.randn(2, 8, 6, 6)
    x[0, 0, 0, 0] = float("nan")
    value = norm_silu_conv(norm, conv, x)
    assert value[0].isnan().any()
    assert value[1].isfinite().all()


@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (8, 8)])
def test_upsample_is_nearest_then_convolution(sides):
    torch.manual_seed(2)
    upsample = Upsample(6)
    x = torch.randn(2, 6, *sides).to(memory_format=torch.channels_last)

    def plain(x):
        return upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    for one, other in zip(_with_gradients(upsample, x, upsample), _with_gradients(plain, x, upsample), strict=True):
        assert one.shape == other.shape
        assert _relative(one, other) < 2e-6


@pytest.mark.parametrize("sides", [(4, 6), (17, 16)])  # few tokens, and more than are computed explicitly
def test_attention_is_softmax_of_products(sides):
    torch.manual_seed(3)
    block = AttentionBlock(8, groups=4)
    x = torch.randn(2, 8, *sides)

    def plain(x):
        q, k, v = (layer(block.norm(x)).flatten(2).double() for layer in (block.q, block.k, block.v))
        shares = torch.einsum("bct,bcs->bts", q, k).div(8**0.5).softmax(2)
        return x + block.proj_out(torch.einsum("bts,bcs->bct", shares, v).float().view(x.shape))

    ours, other = _with_gradients(block, x, block), _with_gradients(plain, x, block)
    largest = max(float(each.norm()) for each in other[1:])
    assert _relative(ours[0], other[0]) < 2e-6
    for one, expected in zip(ours[1:], other[1:], strict=True):
        assert float((one - expected).norm()) < 1e-5 * largest  # k's bias has no gradient but rounding


@pytest.mark.parametrize(("channels_in", "channels_out"), [(8, 8), (8, 16)])
def test_residual_block_with_and_without_dropout(channels_in, channels_out):
    torch.manual_seed(4)
    block = ResidualBlock(channels_in, channels_out, groups=4, dropout=0.5)
    x = torch.randn(2, channels_in, 8, 8)
    torch.testing.assert_close(block(x), block.shortcut(x) + block.conv2.bias[:, None, None])  # as it starts
    nn.init.normal_(block.conv2.weight)
    expected = block.shortcut(x) + _plain(block.norm2, block.conv2, _plain(block.norm1, block.conv1, x))
    torch.testing.assert_close(block.eval()(x), expected)
    assert not torch.allclose(block.train()(x), expected, atol=1e-3)


def test_names_of_the_weights_are_the_published_ones():
    names = set(ResidualBlock(8, 16, groups=4, dropout=0.0).state_dict())
    modules = {name.rsplit(".", 1)[0] for name in names}
    assert modules == {"norm1", "conv1", "norm2", "conv2", "shortcut"}
    assert set(Upsample(8).state_dict()) == {"conv.weight", "conv.bias"}
    attention = {name.rsplit(".", 1)[0] for name in AttentionBlock(8, groups=4).state_dict()}
    assert attention == {"norm", "q", "k", "v", "proj_out"}


def test_copies_and_repeats_agree_bit_for_bit():
    torch.manual_seed(5)
    config = VQGANNetworks(base_width=32, width_multipliers=(1, 2), n_res_blocks=1)
    encoder, decoder = config.build_encoder(3, 16), config.build_decoder(16, 3)
    for block in [*encoder.modules(), *decoder.modules()]:
        if isinstance(block, ResidualBlock):
            nn.init.normal_(block.conv2.weight, std=0.1)
    x = torch.randn(2, 3, 16, 16)
    pairs = [(encoder, decoder), copy.deepcopy((encoder, decoder)), (encoder, decoder)]
    runs = [_with_gradients(lambda x, e=e, d=d: d(e(x)), x, e, d) for e, d in pairs]
    for other in runs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patches_multiply_the_stride(patch_size):
    config = VQGANNetworks(patch_size=patch_size, base_width=32, width_multipliers=(1, 1), n_res_blocks=1)
    encoder, decoder = config.build_encoder(3, 8), config.build_decoder(8, 3)
    assert config.stride == 2 * patch_size
    assert encoder.conv_in.in_channels == decoder.conv_out.out_channels == 3 * patch_size**2
    images = torch.randn(2, 3, 16, 24)
    latents = encoder(images)
    assert latents.shape == (2, 8, 16 // config.stride, 24 // config.stride)
    assert decoder(latents).shape == images.shape


def test_patch_size_must_be_positive():
    with pytest.raises(ConfigError, match="patch_size"):
        VQGANNetworks(patch_size=0)
