"""The tokenizer as other trainers of the transformers world see it."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel
from transformers.utils import ModelOutput

from foundation.images.config import Preprocess
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.hub import Tokenizer
from stage1_tokenizer.networks.config import DVAENetworks, Magvit2Networks, ViTNetworks, VQGANNetworks
from stage1_tokenizer.quantizers.config import GumbelConfig, KLConfig, VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

SIZES = {"base_width": 8, "width_multipliers": (1, 2), "n_res_blocks": 1, "norm_groups": 4}
MODELS = {
    "vqgan": TokenizerConfig(
        networks=VQGANNetworks(**SIZES, attention_levels=(1,), dropout=0.1),
        latent_channels=8,
        quantizer=VQConfig(codebook_size=16, width=4),
    ),
    "magvit2": TokenizerConfig(
        networks=Magvit2Networks(**SIZES), latent_channels=8, quantizer=VQConfig(codebook_size=16, width=4)
    ),
    "dvae": TokenizerConfig(
        networks=DVAENetworks(**SIZES),
        latent_channels=6,
        projection="none",
        quantizer=GumbelConfig(codebook_size=16, width=6),
    ),
    "vit": TokenizerConfig(
        networks=ViTNetworks(patch_size=2, width=16, encoder_layers=1, decoder_layers=2, n_heads=2),
        latent_channels=8,
        quantizer=VQConfig(codebook_size=16, width=4),
    ),
    "kl": TokenizerConfig(networks=VQGANNetworks(**SIZES), latent_channels=8, quantizer=KLConfig(width=4)),
}


def opened(config: TokenizerConfig, folder: Path) -> Tokenizer:
    torch.manual_seed(0)
    TokenizerModel(config, Preprocess(height=16, width=16)).save(folder)
    tokenizer = AutoModel.from_pretrained(folder)
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def gradients(tokenizer: Tokenizer) -> list[torch.Tensor]:
    for quantizer in tokenizer.model.quantizers:
        quantizer.forget()  # else the next forward pass moves the codebook
    torch.manual_seed(1)
    tokenizer.train().zero_grad()
    tokenizer(torch.rand(2, 3, 16, 16) * 2 - 1).loss.backward()
    return [each.grad for each in tokenizer.parameters() if each.grad is not None]


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_auto_model_opens_it_and_its_output_has_a_loss(config: TokenizerConfig, tmp_path: Path) -> None:
    tokenizer = opened(config, tmp_path)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    output = tokenizer(images)
    assert isinstance(output, ModelOutput)
    assert torch.equal(output.codes, tokenizer.encode(images))
    assert torch.equal(output["reconstruction"].detach(), tokenizer.decode(output.codes))
    expected = F.mse_loss(output.reconstruction, images) + sum(output.losses.values())
    assert torch.equal(output.loss, expected)
    as_tuple = tokenizer(images, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.loss)
    output.loss.backward()
    assert tokenizer.model.encoder.conv_in.weight.grad.isfinite().all()


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_checkpointing_keeps_gradients_and_stores_less(config: TokenizerConfig, tmp_path: Path) -> None:
    tokenizer = opened(config, tmp_path)
    stored: list[int] = []

    def measured() -> list[torch.Tensor]:
        stored.append(0)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            stored[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return gradients(tokenizer)

    plain = measured()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions call it activation checkpointing
        tokenizer.gradient_checkpointing_enable()
    assert tokenizer.is_gradient_checkpointing
    checkpointed = measured()
    again = gradients(copy.deepcopy(tokenizer))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        tokenizer.gradient_checkpointing_disable()
    disabled = measured()
    assert not tokenizer.is_gradient_checkpointing
    for other in (checkpointed, again, disabled):
        assert len(other) == len(plain) > 10
        assert all(torch.equal(one, two) for one, two in zip(plain, other, strict=True))
    assert stored[1] < stored[0] == stored[2]


def test_a_loop_that_never_updates_the_codebook_keeps_one_batch_of_latents(tmp_path: Path) -> None:
    tokenizer = opened(MODELS["vqgan"], tmp_path)
    tokenizer.train()
    for _ in range(3):
        tokenizer(torch.rand(2, 3, 16, 16) * 2 - 1).loss.backward()
    assert len(tokenizer.model.bottleneck.quantizer._seen) == 1


def test_blocks_that_must_stay_on_one_device_are_blocks_of_the_networks(tmp_path: Path) -> None:
    found = {
        type(module).__name__
        for name, config in MODELS.items()
        for module in opened(config, _made(tmp_path / name)).modules()
    }
    assert set(Tokenizer._no_split_modules) <= found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
