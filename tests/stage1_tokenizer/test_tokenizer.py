from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.codes.latents import codes_of
from foundation.config import from_dict
from foundation.errors import CheckpointError, ConfigError, ContractError, DataError
from foundation.images.config import Preprocess
from foundation.storage.serialization import WEIGHTS, load_weights
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.image_metrics import psnr
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import (
    FSQConfig,
    GumbelConfig,
    IBQConfig,
    KLConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    VQConfig,
)
from stage1_tokenizer.tokenizer import TokenizerModel

QUANTIZERS = [
    FSQConfig(levels=(5, 5, 5)),
    VQConfig(codebook_size=32, width=6),
    VQConfig(codebook_size=32, width=6, normalize=True, learning="gradient"),
    ResidualConfig(depth=3, codebook=VQConfig(codebook_size=16, width=6)),
    LFQConfig(width=6),
    GumbelConfig(codebook_size=16, width=6),
    IBQConfig(codebook_size=32, width=6),
]


def small(quantizer: QuantizerConfig = QUANTIZERS[0], **changes: object) -> TokenizerModel:
    torch.manual_seed(0)
    settings: dict = {
        "base_width": 8,
        "width_multipliers": (1, 2, 2),
        "n_res_blocks": 1,
        "latent_channels": 8,
        "norm_groups": 4,
        "quantizer": quantizer,
        **changes,
    }
    return TokenizerModel(from_dict(TokenizerConfig, settings), Preprocess(height=16, width=24)).eval()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_decoding_the_codes_equals_the_forward_reconstruction(quantizer: QuantizerConfig) -> None:
    model = small(quantizer, attention_levels=(1,))
    images = torch.rand(3, 3, 16, 24) * 2 - 1
    output = model(images)
    codes = model.encode(images)
    assert torch.equal(codes, output.codes)
    depth = (3,) if isinstance(quantizer, ResidualConfig) else ()
    assert codes.shape == (3, 4, 6, *depth) and codes.dtype == torch.int64
    assert torch.equal(model.decode(codes), output.images_BCYX.detach())


def test_any_sides_that_are_multiples_of_the_stride_work() -> None:
    model = small()
    for height, width in ((4, 4), (16, 24), (32, 8), (20, 44)):
        images = torch.rand(1, 3, height, width) * 2 - 1
        codes = model.encode(images)
        assert codes.shape == (1, height // 4, width // 4)
        assert model.decode(codes).shape == images.shape


def test_wrong_images_and_codes_are_refused_by_name() -> None:
    model = small()
    with pytest.raises(DataError, match=r"18 x 24(.|\n)*multiples of 4"):
        model.encode(torch.zeros(1, 3, 18, 24))
    with pytest.raises(DataError, match="channels"):
        model.encode(torch.zeros(1, 1, 16, 24))
    with pytest.raises(DataError, match=r"outside the codebook(.|\n)*0\.\.124"):
        model.decode(torch.full((1, 4, 6), 125))
    for codes in (torch.zeros(1, 4, 6), torch.zeros(0, 4, 6, dtype=torch.int64), torch.zeros(1, 24, dtype=torch.int64)):
        with pytest.raises(DataError, match=r"codes(.|\n)*\(B, H, W\)"):
            model.decode(codes)
    with pytest.raises(DataError, match=r"depth(.|\n)*2(.|\n)*3"):
        small(QUANTIZERS[3]).decode(torch.zeros(1, 4, 6, 2, dtype=torch.int64))
    for images in (torch.zeros(3, 16, 24), torch.zeros(1, 3, 16, 24, dtype=torch.uint8), torch.zeros(0, 3, 16, 24)):
        with pytest.raises(DataError, match="not a batch of images"):
            model.encode(images)
    with pytest.raises(ConfigError, match="coarse_halvings"):
        small(KLConfig(width=4), coarse_halvings=1)
    with pytest.raises(DataError, match="not finite"):
        model.encode(torch.full((1, 3, 16, 24), torch.nan))
    with pytest.raises(DataError, match=r"outside the range(.|\n)*\[-1, 1\]"):
        model.encode(torch.full((1, 3, 16, 24), 255.0))
    with pytest.raises(ConfigError, match=r"data.preprocess.height(.|\n)*18(.|\n)*16 or 20"):
        TokenizerModel(model.config, Preprocess(height=18, width=24))


@pytest.mark.parametrize("quantizer", [QUANTIZERS[1], QUANTIZERS[3]])
def test_two_grids_decode_to_the_forward_reconstruction_at_any_size(quantizer: QuantizerConfig) -> None:
    model = small(quantizer, coarse_halvings=1)
    depth = 3 if isinstance(quantizer, ResidualConfig) else 1
    assert [level.shape[:2] for level in model.levels] == [(2, 3), (4, 6)]
    for height, width in ((16, 24), (8, 32)):
        images = torch.rand(2, 3, height, width) * 2 - 1
        output, codes = model(images), model.encode(images)
        assert codes.shape == (2, (height * width // 64 + height * width // 16) * depth)
        assert torch.equal(codes, output.codes)
        assert torch.equal(model.decode(codes, (height, width)), output.images_BCYX.detach())
    with pytest.raises(DataError, match=r"number of codes(.|\n)*image_size"):
        model.decode(codes[:, :-1])
    with pytest.raises(DataError, match=r"image_size(.|\n)*17 x 24(.|\n)*multiples of 8"):
        model.decode(codes, (17, 24))
    with pytest.raises(DataError, match=r"12 x 24(.|\n)*multiples of 8"):
        model.encode(torch.zeros(1, 3, 12, 24))


@pytest.mark.parametrize("quantizer", [FSQConfig(levels=(5, 4, 3)), VQConfig(codebook_size=8, width=6)])
def test_the_vector_of_a_code_is_what_the_quantizer_makes_of_it(quantizer: QuantizerConfig) -> None:
    model = small(quantizer)
    codes = torch.randint(quantizer.codebook_size, (2, 4, 6))
    vectors = model.code_vectors()
    assert vectors.shape == (quantizer.codebook_size, quantizer.width) and vectors.dtype == torch.float32
    assert torch.equal(vectors[codes].movedim(-1, 1), model.quantizers[0].decode(codes))


@pytest.mark.parametrize("changes", [{"quantizer": ResidualConfig(depth=2)}, {"coarse_halvings": 1}])
def test_a_code_of_several_codebooks_has_no_vector(changes: dict[str, Any]) -> None:
    model = small(**{"quantizer": FSQConfig(levels=(5, 4, 3)), **changes})
    with pytest.raises(ContractError, match="a code has no single vector"):
        model.code_vectors()


def test_the_fine_grid_is_encoded_knowing_the_coarse_one() -> None:
    model = small(QUANTIZERS[1], coarse_halvings=1)
    images = torch.rand(1, 3, 16, 24) * 2 - 1
    before = model.encode(images)
    with torch.no_grad():
        model.bottleneck.coarse.from_code.bias += 3
    after = model.encode(images)
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.equal(before[:, 6:], after[:, 6:])


def test_both_codebooks_of_two_grids_start_at_latents_of_the_first_batch() -> None:
    model = small(VQConfig(codebook_size=8, width=6, kmeans_iterations=0), coarse_halvings=1)
    before = [quantizer.codebook.clone() for quantizer in model.quantizers]
    model.train()
    model.initialize(torch.rand(4, 3, 16, 24) * 2 - 1, torch.Generator().manual_seed(0))
    assert all(not torch.equal(one, each.codebook) for one, each in zip(before, model.quantizers, strict=True))
    model(torch.rand(4, 3, 16, 24) * 2 - 1)  # nothing of the initialisation is left over for the update


@pytest.mark.parametrize("coarse_halvings", [0, 1])
def test_fsq_latents_of_each_grid_start_uncorrelated(coarse_halvings: int) -> None:
    model = small(FSQConfig(levels=(5, 5, 5)), coarse_halvings=coarse_halvings)
    images = torch.rand(64, 3, 16, 24) * 2 - 1
    model.initialize(images, torch.Generator().manual_seed(0))
    channels = model(images).latents_BCHW.detach().transpose(0, 1).flatten(1)  # of the finest grid
    assert torch.allclose(channels.corrcoef(), torch.eye(3), atol=1e-2)
    assert torch.allclose(channels.mean(1), torch.zeros(3), atol=1e-2)


def test_a_continuous_tokenizer_has_latents_and_their_bits_as_codes(tmp_path: Path) -> None:
    model = small(KLConfig(width=4))
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = model.encode(images)
    assert latents.shape == (2, 4, 4, 6) and latents.dtype == torch.float32 and not model.is_discrete
    assert torch.equal(model.decode(latents), model(images).images_BCYX.detach())
    spec, tokens = model.spec, model.tokens(images)
    assert (spec.latents, spec.shape, spec.codebook_size) == (True, (4, 6, 4), 1 << 16)
    assert tokens.shape == (2, spec.n_codes) and tokens.dtype == torch.int64
    decoded = model.decode(spec.grid(tokens))
    assert torch.allclose(decoded, model.decode(latents), atol=0.02) and torch.equal(
        spec.grid(tokens), codes_of(latents)
    )
    with pytest.raises(DataError, match="codes"):
        model.decode(spec.grid(tokens)[..., :2])
    model.save(tmp_path)
    assert torch.equal(TokenizerModel.load(tmp_path).encode(images), latents)


def test_256_pixels_at_stride_8_are_1024_tokens_192_times_fewer() -> None:
    config = TokenizerConfig(networks=VQGANNetworks(base_width=32), latent_channels=8)
    assert 256 * 256 * 3 // (256 // config.stride) ** 2 == 192


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    model = small()
    images = torch.rand(5, 3, 16, 24) * 2 - 1
    together = model.decode(model.encode(images))
    alone = torch.cat([model.decode(model.encode(image[None])) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_spec_says_what_the_codes_are() -> None:
    spec = small().spec
    (level,) = spec.levels
    assert (level.height, level.width, level.codebook_size, spec.stride, spec.n_codes) == (4, 6, 125, 4, 24)


def test_the_fingerprint_changes_with_every_weight_and_setting() -> None:
    model = small()
    before = model.fingerprint
    assert small().fingerprint == before
    with torch.no_grad():
        model.decoder.conv_out.bias[0] += 1e-6
    assert model.fingerprint != before
    assert small(dropout=0.1).fingerprint != before
    assert small(dropout=0).fingerprint == small(dropout=0.0).fingerprint


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_save_and_load_keep_every_parameter_buffer_and_output(tmp_path: Path, quantizer: QuantizerConfig) -> None:
    from stage1_tokenizer import Tokenizer

    model = small(quantizer)
    model.save(tmp_path)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    expected = model(images).images_BCYX
    plain = TokenizerModel.load(tmp_path)
    dressed = Tokenizer.from_pretrained(tmp_path)
    for other in (plain, dressed.model):
        assert other.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
        assert torch.equal(other(images).images_BCYX, expected)
    assert dressed.spec == model.spec
    dressed.save_pretrained(tmp_path / "again")
    assert TokenizerModel.load(tmp_path / "again").fingerprint == model.fingerprint


def test_lower_precision_weights_keep_the_quantizer_in_float32(tmp_path: Path) -> None:
    from stage1_tokenizer import Tokenizer

    small(QUANTIZERS[1]).save(tmp_path)
    low = Tokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert low.model.bottleneck.quantizer.codebook.dtype == torch.float32
    output = low(torch.rand(1, 3, 16, 24).bfloat16())
    assert torch.equal(low.decode(output.codes), output.reconstruction)


def test_transformers_auto_classes_open_the_folder(tmp_path: Path) -> None:
    from transformers import AutoModel

    import stage1_tokenizer.hub  # noqa: F401

    model = small()
    model.save(tmp_path)
    images = torch.rand(1, 3, 16, 24)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).encode(images), model.encode(images))


def test_a_changed_weight_a_missing_key_and_a_wrong_folder_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    small().save(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    changed = {name: value + 1 if "conv_out.bias" in name else value for name, value in tensors.items()}
    save_file(changed, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="changed or damaged after saving"):
        TokenizerModel.load(tmp_path)
    name = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="changed or damaged"):
        TokenizerModel.load(tmp_path)
    state = small().state_dict()
    odd = {
        **{k: v for k, v in state.items() if k != "bottleneck.to_code.bias"},
        "stray": state["bottleneck.to_code.bias"],
    }
    with pytest.raises(CheckpointError, match=r"missing \['bottleneck.to_code.bias'\], left over \['stray'\]"):
        load_weights(small(), odd, "x")
    (tmp_path / WEIGHTS).write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        TokenizerModel.load(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        TokenizerModel.load(tmp_path / "nowhere")


def test_psnr_is_20_dB_for_an_error_of_a_tenth_of_the_range() -> None:
    images = torch.zeros(2, 3, 4, 4)
    assert torch.allclose(psnr(images, images + 0.2), torch.full((2,), 20.0), atol=1e-4)
    assert torch.equal(psnr(images, images), torch.full((2,), 100.0))


@pytest.mark.parametrize("coarse_halvings", [0, 1])
@pytest.mark.parametrize("quantizer", [QUANTIZERS[1], QUANTIZERS[3]])
def test_codes_decode_from_arrays_of_any_integer_type(quantizer: QuantizerConfig, coarse_halvings: int) -> None:
    model = small(quantizer, coarse_halvings=coarse_halvings)
    codes = model.encode(torch.rand(2, 3, 16, 24) * 2 - 1)
    expected = model.decode(codes)
    for kind in ("uint8", "uint16", "int32", "uint64"):
        assert torch.equal(model.decode(codes.numpy().astype(kind)), expected)
    assert torch.equal(model.decode(codes.tolist()), expected)
    sized = codes[:, :1] if coarse_halvings else codes[:, :1].to(torch.uint8)  # not of the size that is given
    with pytest.raises(DataError, match="another number of codes"):
        model.decode(sized, (16, 24))
    for wrong in (codes[0], codes.flatten(), codes.bool(), codes - 1000, codes.float(), None, "codes"):
        with pytest.raises(DataError, match="codes"):
            model.decode(wrong, (16, 24) if coarse_halvings else None)
    for size in (16, "16x24", (16,), (16.0, 24.0), (-16, 24), (0, 0), (2**40, 24)):
        with pytest.raises(ConfigError, match="image_size"):
            model.decode(codes, size)  # type: ignore[arg-type]


def test_flat_codes_of_one_grid_are_refused_with_the_way_to_grids() -> None:
    model = small()
    codes = model.encode(torch.zeros(2, 3, 16, 24))
    with pytest.raises(DataError, match=r"tokenizer\.layout\.grid"):
        model.decode(codes.flatten(1))
    assert torch.equal(model.decode(model.layout.grid(codes.flatten(1))), model.decode(codes))


def test_latents_of_a_continuous_tokenizer_are_checked_too() -> None:
    model = small(KLConfig(width=4))
    latents = model.encode(torch.zeros(2, 3, 16, 24))
    expected = model.decode(latents)
    assert torch.equal(model.decode(latents.numpy()), expected) and torch.equal(
        model.decode(latents.double()), expected
    )
    for wrong in (latents[:, :3], latents[0], latents.long(), latents * torch.nan, latents[:0], "latents"):
        with pytest.raises(DataError, match="codes: "):
            model.decode(wrong)
