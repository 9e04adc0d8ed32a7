"""RQ-VAE with a codebook of its own size for each depth, as its configuration allows: imported from random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.parity_fixtures import Tessera

from foundation.images.config import Preprocess
from pipeline.interop.structure import TAMING
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import ResidualConfig, VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

SIZES = [24, 36]


def rqvae(sizes: list[int]) -> TokenizerModel:
    """A tokenizer of RQ-VAE's form with random weights, 8 x 8 images, 4 x 4 x 2 codes."""
    torch.manual_seed(1)
    codebook = VQConfig(codebook_size=max(sizes), width=6, learning="gradient", revive_below=0.0)
    own = tuple(sizes) if len(set(sizes)) > 1 else ()
    networks = VQGANNetworks(base_width=32, width_multipliers=(1, 1), n_res_blocks=1, norm_groups=32)
    quantizer = ResidualConfig(depth=2, shared=False, codebook=codebook, codebook_sizes=own)
    config = TokenizerConfig(networks=networks, latent_channels=8, quantizer=quantizer)
    return TokenizerModel(config, Preprocess(height=8, width=8)).eval()


def write_as_rqvae(model: TokenizerModel, folder: Path, n_embed: object) -> tuple[Path, Path]:
    """The model as RQ-VAE's files: a row of padding below each codebook, and the configuration."""
    state, prefix = {}, "bottleneck.quantizer.codebooks."
    for name, weight in model.state_dict().items():
        if name.startswith(prefix):
            padded = torch.cat([weight, torch.zeros(1, weight.shape[1])])
            state[f"quantizer.codebooks.{name.removeprefix(prefix).split('.')[0]}.weight"] = padded
        else:
            state[TAMING.upstream(name, 2)] = weight.contiguous()
    save_file(state, folder / "rqvae.safetensors")
    ddconfig = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8, "in_channels": 3}
    hparams = {"n_embed": n_embed, "embed_dim": 6, "shared_codebook": False, "ddconfig": ddconfig}
    (folder / "config.yaml").write_text(yaml.safe_dump({"arch": {"hparams": hparams}}))
    return folder / "rqvae.safetensors", folder / "config.yaml"


@pytest.mark.parametrize(("sizes", "n_embed"), [(SIZES, SIZES), ([24, 24], [24, 24]), ([24, 24], 24)])
def test_sizes_of_each_depth_arrive(sizes: list[int], n_embed: object, tmp_path: Path, tessera: Tessera) -> None:
    theirs, out = rqvae(sizes), tmp_path / "tokenizer"
    file, config = write_as_rqvae(theirs, tmp_path, n_embed)
    command = ("import", file, "--format", "rqvae", "--config", config, "--image-size", 8, "-o", out)
    status, said = tessera(*command)
    assert status == 0, said
    ours, images = TokenizerModel.load(out), torch.rand(4, 3, 8, 8) * 2 - 1
    assert [slot.codebook_size for slot in ours.layout.slots] == sizes
    codes = ours.encode(images)
    assert torch.equal(codes, theirs.encode(images))
    assert torch.allclose(ours.decode(codes), theirs.decode(codes), atol=1e-5)


def test_sizes_that_contradict_the_tensors_are_refused(tmp_path: Path, tessera: Tessera) -> None:
    file, config = write_as_rqvae(rqvae(SIZES), tmp_path, [24, 40])
    status, said = tessera("import", file, "--format", "rqvae", "--config", config, "-o", tmp_path / "out")
    assert status != 0 and "n_embed" in said and "[24, 36]" in said and "[24, 40]" in said
