from pathlib import Path

import pytest
import torch

from foundation.errors import CheckpointError, ConfigError, DataError
from foundation.images import Preprocess
from foundation.model_files import WEIGHTS
from foundation.tensor_files import load_weights
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.evaluate import psnr
from stage1_tokenizer.quantizers import EMAVQConfig, FSQConfig, QuantizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel

QUANTIZERS = [FSQConfig(levels=(5, 5, 5)), EMAVQConfig(codebook_size=32, width=6)]


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
    return TokenizerModel(TokenizerConfig(**settings), Preprocess(height=16, width=24)).eval()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_decoding_the_codes_equals_the_forward_reconstruction(quantizer: QuantizerConfig) -> None:
    model = small(quantizer, attention_levels=(1,))
    images = torch.rand(3, 3, 16, 24) * 2 - 1
    output = model(images)
    codes = model.encode(images)
    assert torch.equal(codes, output.codes_BHW)
    assert codes.shape == (3, 4, 6) and codes.dtype == torch.int64
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
    with pytest.raises(ConfigError, match=r"data.preprocess.height(.|\n)*18(.|\n)*16 or 20"):
        TokenizerModel(model.config, Preprocess(height=18, width=24))


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
    assert low.model.quantizer.codebook.dtype == torch.float32
    output = low(torch.rand(1, 3, 16, 24).bfloat16())
    assert torch.equal(low.decode(output.codes_BHW), output.images_BCYX)


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
    odd = {**{k: v for k, v in state.items() if k != "to_code.bias"}, "stray": state["to_code.bias"]}
    with pytest.raises(CheckpointError, match=r"missing \['to_code.bias'\], left over \['stray'\]"):
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
