"""What every quantizer promises, whatever its kind."""

import pytest
import torch

from foundation.config import from_dict, to_dict
from stage1_tokenizer.quantizers.config import (
    BSQConfig,
    FSQConfig,
    GumbelConfig,
    IBQConfig,
    KLConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    VQConfig,
)

DISCRETE = {
    "fsq unit variance": FSQConfig(levels=(5, 4, 3), unit_variance=True),
    "fsq": FSQConfig(levels=(5, 4, 3)),
    "vq": VQConfig(codebook_size=40, width=4),
    "vq gradient": VQConfig(codebook_size=40, width=4, learning="gradient", entropy_weight=0.1),
    "vq normalized": VQConfig(codebook_size=40, width=4, normalize=True, rotation=True),
    "vq projection": VQConfig(codebook_size=40, width=4, learning="gradient", projection=True, revive_below=0),
    "lfq": LFQConfig(width=5),
    "bsq": BSQConfig(width=5),
    "residual": ResidualConfig(depth=3, codebook=VQConfig(codebook_size=20, width=4)),
    "residual apart": ResidualConfig(
        depth=2, shared=False, codebook=VQConfig(codebook_size=20, width=4, learning="gradient")
    ),
    "gumbel": GumbelConfig(codebook_size=12, width=4),
    "ibq": IBQConfig(codebook_size=40, width=4),
}
EVERY = {**DISCRETE, "kl": KLConfig(width=4)}


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY.keys())
def test_a_configuration_survives_being_written_and_read(config: QuantizerConfig) -> None:
    assert from_dict(type(config), to_dict(config)) == config


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY.keys())
def test_outside_training_the_decoder_gets_the_decoded_codes_bit_for_bit(config: QuantizerConfig) -> None:
    quantizer = config.build().eval()
    latents = torch.randn(2, quantizer.latent_width, 5, 3)
    out = quantizer(latents)
    assert torch.equal(out.codes_BHW, quantizer.encode(latents))
    assert torch.equal(out.latents_BCHW, quantizer.decode(out.codes_BHW))
    assert out.latents_BCHW.shape == (2, quantizer.width, 5, 3)
    if quantizer.is_discrete:
        assert out.codes_BHW.dtype == torch.int64 and out.codes_BHW.min() >= 0
        assert out.codes_BHW.max() < quantizer.codebook_size
        assert out.codes_BHW.shape == (2, 5, 3) + ((quantizer.depth,) if quantizer.depth > 1 else ())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY.keys())
def test_lower_precision_input_of_equal_value_gives_equal_results(config: QuantizerConfig, dtype: torch.dtype) -> None:
    quantizer = config.build().eval()
    low = torch.randn(2, quantizer.latent_width, 6, 6).to(dtype)
    plain = quantizer(low.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, decoded, encoded = quantizer(low), quantizer.decode(plain.codes_BHW), quantizer.encode(low)
    assert torch.equal(inside.codes_BHW, plain.codes_BHW) and torch.equal(encoded, plain.codes_BHW)
    assert torch.equal(inside.latents_BCHW, plain.latents_BCHW) and torch.equal(decoded, plain.latents_BCHW)
    for name, loss in plain.losses.items():
        assert loss.dtype == inside.losses[name].dtype == torch.float32
        assert torch.equal(loss, inside.losses[name])


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY.keys())
def test_constant_latents_have_finite_losses_and_gradients(config: QuantizerConfig, value: float) -> None:
    quantizer = config.build().train()
    latents = torch.full((2, quantizer.latent_width, 4, 4), value, requires_grad=True)
    quantizer.initialize(latents, torch.Generator().manual_seed(0))
    for step in range(12):
        quantizer.schedule(step)
        out = quantizer(latents)
        loss = out.latents_BCHW.square().mean() + sum(out.losses.values())
        leaves = [latents, *quantizer.parameters()]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        quantizer.update(step, torch.Generator().manual_seed(step))
        assert loss.isfinite()
        assert gradients[0] is not None and all(each.isfinite().all() for each in gradients if each is not None)
    assert all(each.isfinite().all() for each in quantizer.state_dict().values())


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY.keys())
def test_state_is_restored_and_nothing_of_it_is_hidden(config: QuantizerConfig) -> None:
    one, other = config.build().eval(), config.build().eval()
    other.load_state_dict(one.state_dict())
    latents = torch.randn(1, one.latent_width, 4, 4)
    assert torch.equal(one(latents).latents_BCHW, other(latents).latents_BCHW)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537])
def test_codes_of_one_depth_survive_decode_and_encode_at_the_edges_of_16_bits(size: int) -> None:
    residual = ResidualConfig(depth=1, codebook=VQConfig(codebook_size=size, width=4)).build().eval()
    codes = torch.tensor([[[0, 1, size // 2, size - 2, size - 1]]])
    assert torch.equal(residual.encode(residual.decode(codes)), codes)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537])
def test_gumbel_s_codes_are_the_largest_logits_at_the_edges_of_16_bits(size: int) -> None:
    gumbel = GumbelConfig(codebook_size=size, width=2).build().eval()
    codes = torch.tensor([[[0, 1, size // 2, size - 2, size - 1]]])
    logits = torch.zeros(1, size, 1, 5).scatter_(1, codes[:, None], 1.0)
    assert torch.equal(gumbel.encode(logits), codes)
    assert torch.equal(gumbel(logits).latents_BCHW, gumbel.decode(codes))
