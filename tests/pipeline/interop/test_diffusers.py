from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foundation.config import from_dict
from foundation.errors import ContractError
from foundation.images.config import Preprocess
from pipeline.interop.diffusers import WEIGHTS, diffusers_config, export_to_diffusers
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.quantizers.config import FSQConfig, KLConfig, QuantizerConfig, VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

Tessera = Callable[..., tuple[int, str]]


def small(quantizer: QuantizerConfig, **changes: object) -> TokenizerModel:
    settings: dict = {
        "base_width": 8,
        "width_multipliers": (1, 2, 2),
        "n_res_blocks": 1,
        "latent_channels": 4,
        "norm_groups": 4,
        "quantizer": quantizer,
        **changes,
    }
    model = TokenizerModel(from_dict(TokenizerConfig, settings), Preprocess(height=16, width=24, mode="L")).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    "model",
    [
        small(VQConfig(codebook_size=16, width=6), attention_levels=(0, 2)),
        small(VQConfig(codebook_size=16, width=6, learning="gradient", revive_below=0), middle_attention=False),
        small(VQConfig(codebook_size=16, width=6, learning="gradient", revive_below=0, projection=True)),
        small(KLConfig(width=4, scaling_factor=0.5), projection="double"),
        small(KLConfig(width=4), projection="none"),
    ],
    ids=["averages", "gradient", "one map", "kl", "kl without projection"],
)
def test_import_of_the_export_gives_the_same_to_the_bit(
    model: TokenizerModel, tmp_path: Path, tessera: Tessera
) -> None:
    model.save(_made(tmp_path / "ours"))
    assert tessera("export-diffusers", tmp_path / "ours", "-o", tmp_path / "theirs")[0] == 0
    config = ("--config", tmp_path / "theirs" / "config.json")
    status, said = tessera("import", tmp_path / "theirs" / WEIGHTS, "-o", tmp_path / "back", *config)
    assert status == 0, said
    back = TokenizerModel.load(tmp_path / "back")
    assert back.preprocess == model.preprocess
    images = torch.rand(2, 1, 16, 24) * 2 - 1
    with torch.no_grad():
        assert torch.equal(back.encode(images), model.encode(images))
        assert torch.equal(back(images).images_BCYX, model(images).images_BCYX)


def test_the_export_of_a_fixture_is_its_own_diffusers_file(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    folder = parity / "sd_kl" / "kl_f8_tiny"
    assert tessera("import", folder / "state.safetensors", "-o", tmp_path / "ours")[0] == 0
    status, said = tessera("export-diffusers", tmp_path / "ours", "--out", tmp_path / "theirs")
    assert status == 0 and said.startswith("AutoencoderKL")
    found = load_file(tmp_path / "theirs" / WEIGHTS)
    wanted = {key: value.float() for key, value in load_file(folder / "state_diffusers.safetensors").items()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize(
    ("quantizer", "changes", "field"),
    [
        (FSQConfig(), {}, "quantizer.type"),
        (VQConfig(width=6, normalize=True), {}, "quantizer.normalize"),
        (VQConfig(width=6), {"patch_size": 2}, "patch_size"),
        (VQConfig(width=6), {"coarse_halvings": 1}, "coarse_halvings"),
        (VQConfig(width=6), {"width_multipliers": (2, 2)}, "width_multipliers"),
        (VQConfig(width=4), {"projection": "none"}, "projection"),
        (VQConfig(width=6), {"networks": "magvit2", "middle_attention": False}, "networks"),
        (KLConfig(width=4), {}, "projection"),
        (KLConfig(width=2), {"projection": "double"}, "quantizer.width"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_field(
    quantizer: QuantizerConfig, changes: dict, field: str
) -> None:
    with pytest.raises(ContractError, match=rf"^{field}: diffusers has no such architecture"):
        diffusers_config(small(quantizer, **changes))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("quantizer", "changes"),
    [
        (VQConfig(codebook_size=16, width=6), {"attention_levels": (0, 2)}),
        (VQConfig(codebook_size=16, width=6), {"middle_attention": False}),
        (KLConfig(width=4, scaling_factor=0.5), {"projection": "double", "attention_levels": (1,)}),
        (KLConfig(width=4), {"projection": "none"}),
    ],
)
def test_diffusers_itself_opens_the_export(quantizer: QuantizerConfig, changes: dict, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = small(quantizer, **changes)
    name = export_to_diffusers(model, tmp_path / "theirs")
    theirs, loading = getattr(diffusers, name).from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(loading.values())
    images = torch.rand(2, 1, 16, 24) * 2 - 1
    with torch.no_grad():
        ours = model(images)
        encoded = theirs.encode(images)
        latents = encoded.latents if name == "VQModel" else encoded.latent_dist.mean
        wanted = ours.latents_BCHW if name == "VQModel" else model.encode(images)
        assert torch.allclose(latents, wanted, atol=1e-5)
        assert torch.allclose(theirs.decode(wanted).sample, ours.images_BCYX, atol=1e-5)
