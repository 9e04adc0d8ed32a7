"""Every tokenizer's fixture, through the command line: latents, codes and reconstructions are the system's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.parity_fixtures import NO_PACKAGE, PARITY, expected, state_file

from stage1_tokenizer.canary import check_canary
from stage1_tokenizer.quantizers.kl import gaussian_kl, split_moments
from stage1_tokenizer.tokenizer import TokenizerModel

SMALL = [
    "llamagen_vq/vq16_tiny",
    "llamagen_vq/vq8_tiny",
    "llamagen_vq/vq16_nol2_tiny",
    "llamagen_vq/vq16_ch32",
    "taming/vqgan_f16_tiny",
    "taming/gumbel_f8_tiny",
    "diffusers_vq/vq_f4_tiny",
    "diffusers_vq/vq_f4_attn_tiny",
    "openai_dvae/dvae_tiny",
    "open_magvit2/lfq_f16_tiny",
    "open_magvit2/lfq_f8_ema_tiny",
    "rqvae/rq_separate_tiny",
    "rqvae/rq_shared_tiny",
]
PLACES = [
    *(("recorded", case) for case in SMALL if PARITY.is_dir()),
    *(("live", case) for case in SMALL if not (PARITY.is_dir() and case.startswith("open_magvit2"))),  # in no package
]
FULL = ["llamagen_vq/vq16_full", "taming/vqgan_f16_full", "openai_dvae/dvae_full", "open_magvit2/lfq_f16_full"]
TOLERANCE = 1e-4
Tessera = Callable[..., tuple[int, str]]


def imported(case: str, parity: Path, tmp_path: Path, tessera: Tessera, *options: object) -> TokenizerModel:
    """The fixture, imported with its configuration; its format must be recognised."""
    folder = parity / case
    out = tmp_path / "tokenizer"
    weights = state_file(folder, tmp_path)
    config = ("--config", folder / "config.json", "--image-size", 64)
    status, said = tessera("import", weights, "-o", out, *config, *options)
    assert status == 0 and said.startswith(f"{case.split('/')[0]} tokenizer"), said
    return TokenizerModel.load(out)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found.detach() - wanted).abs().max()) <= TOLERANCE


def check_codes(model: TokenizerModel, io: dict[str, torch.Tensor], prefix: str = "") -> None:
    """Everything that a fixture of codes holds."""
    image = io["image"]
    last = model.config.quantizer.type_name == "residual"  # these fixtures have the channels last
    with torch.no_grad():
        output = model(image)
        quantizer = model.bottleneck.quantizer
        assert torch.equal(model.encode(image), io[f"{prefix}codes"])
        assert torch.equal(output.codes, io[f"{prefix}codes"])
        if f"{prefix}recon" in io:  # no package has the dVAE's decoder
            size = tuple(io["random_recon"].shape[2:])
            close(output.images_BCYX, io[f"{prefix}recon"])
            close(model.decode(io["random_codes"], size), io[f"{prefix}random_recon"])
            close(model.decode(io[f"{prefix}codes"], size), io[f"{prefix}recon"])
        for name, found in (("latent", output.latents_BCHW), ("quant", quantizer.decode(output.codes))):
            if f"{prefix}{name}" in io:
                close(found.permute(0, 2, 3, 1) if last else found, io[f"{prefix}{name}"])
        if "code_logits" in io:
            close(quantizer.logits(output.latents_BCHW), io["code_logits"])


@pytest.mark.parametrize(("parities", "case"), PLACES, indirect=["parities"])
def test_codes_latents_and_reconstructions(case: str, parities: Path, tmp_path: Path, tessera: Tessera) -> None:
    io = expected(parities / case)
    model = imported(case, parities, tmp_path, tessera)
    prefix = "ema_" if "ema_recon" in io else ""
    check_codes(model, io, prefix)
    check_canary(model, tmp_path / "tokenizer")


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL)
def test_full_sizes(case: str, parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    check_codes(imported(case, parity, tmp_path, tessera), expected(parity / case))


def test_last_weights_instead_of_the_averages(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    case = "open_magvit2/lfq_f8_ema_tiny"
    io = expected(parity / case)
    check_codes(imported(case, parity, tmp_path, tessera, "--raw-weights"), io)


def check_gaussian(model: TokenizerModel, io: dict[str, torch.Tensor]) -> None:
    """Everything that a fixture of the KL autoencoder holds."""
    with torch.no_grad():
        output = model(io["image"])
        close(output.latents_BCHW, io["moments"])
        mean, logvar = split_moments(output.latents_BCHW)
        std = (0.5 * logvar).exp()
        close(mean, io["mean"])
        close(logvar, io["logvar"])
        close(std, io["std"])
        close(mean + std * io["noise"], io["sample"])
        assert torch.allclose(gaussian_kl(mean, logvar).sum((1, 2, 3)), io["kl"], rtol=1e-5, atol=TOLERANCE)
        close(mean * model.config.quantizer.scaling_factor, io["scaled_latent"])
        close(model.encode(io["image"]), io["mean"])
        close(output.images_BCYX, io["recon"])
        close(model.decode(io["sample"]), io["recon_sample"])
        close(model.decode(io["random_latent"] / model.config.quantizer.scaling_factor), io["random_recon"])


def test_kl_autoencoder(parities: Path, tmp_path: Path, tessera: Tessera) -> None:
    case = "sd_kl/kl_f8_tiny"
    check_gaussian(imported(case, parities, tmp_path, tessera), expected(parities / case))


@pytest.mark.slow
def test_full_kl_autoencoder(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    case = "sd_kl/kl_f8_full"
    check_gaussian(imported(case, parity, tmp_path, tessera), expected(parity / case))


def test_kl_autoencoder_under_diffusers_names_is_the_same(parities: Path, tmp_path: Path, tessera: Tessera) -> None:
    folder = parities / "sd_kl" / "kl_f8_tiny"
    config = ("--config", folder / "config.json")
    assert tessera("import", folder / "state.safetensors", "-o", tmp_path / "one", *config)[0] == 0
    assert tessera("import", folder / "state_diffusers.safetensors", "-o", tmp_path / "other", *config)[0] == 0
    one, other = (TokenizerModel.load(tmp_path / name) for name in ("one", "other"))
    assert one.fingerprint == other.fingerprint


def test_the_loss_of_the_original_in_value(parities: Path, tmp_path: Path, tessera: Tessera) -> None:
    case = "taming/vqgan_f16_tiny"
    io = expected(parities / case)
    losses = imported(case, parities, tmp_path, tessera)(io["image"]).losses
    close(torch.stack(list(losses.values())).sum(), io["quant_loss"])


@pytest.mark.parametrize("case", ["rqvae/rq_separate_tiny", "rqvae/rq_shared_tiny"])
def test_fewer_depths_and_the_commitment_of_all(case: str, parities: Path, tmp_path: Path, tessera: Tessera) -> None:
    io = expected(parities / case)
    model = imported(case, parities, tmp_path, tessera)
    with torch.no_grad():
        output = model(io["image"])
        commitment = output.losses["commitment"] / model.config.quantizer.codebook.commitment
        assert torch.allclose(commitment, io["commitment_loss"], rtol=1e-5)
        for depth in range(1, output.codes.shape[3] + 1):
            part = model.bottleneck.quantizer.decode(output.codes[..., :depth])
            close(part.permute(0, 2, 3, 1), io[f"quant_depth{depth}"])
        two = model.bottleneck.decode(output.codes[..., :2], (0, 0))
        close(model.decoder(two), io["partial_recon_depth2"])


def test_raw_statistics_of_the_dvae(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    folder = parity / "openai_dvae" / "dvae_tiny"
    out = tmp_path / "tokenizer"
    assert tessera("import", folder / "decoder.pkl", folder / "encoder.pkl", "-o", out)[0] == 0
    model, io = TokenizerModel.load(out), expected(folder)
    check_codes(model, io)
    with torch.no_grad():
        if "stats" not in io:
            pytest.skip(NO_PACKAGE)
        close(model.decoder.stats(model.bottleneck.decode(io["codes"], (0, 0))), io["stats"])
