"""Sizes of a VQGAN-family model are recovered from its tensors, under the names of every system."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foundation.errors import CheckpointError
from foundation.images.config import Preprocess
from foundation.unpickling.values import LazyTensor
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.structure import (
    DIFFUSERS,
    LLAMAGEN,
    OLD_DIFFUSERS,
    TAMING,
    Naming,
    multiples,
    network_origins,
    read_structure,
)
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

NETWORKS = VQGANNetworks(
    base_width=8, width_multipliers=(1, 2, 3), n_res_blocks=2, attention_levels=(2,), norm_groups=4
)
CONFIG = TokenizerConfig(networks=NETWORKS, latent_channels=6, quantizer=VQConfig(codebook_size=16, width=4))


def checkpoint(naming: Naming, model: TokenizerModel, **changes: tuple[int, ...] | None) -> Checkpoint:
    """The model's tensors, without values, by the system's names."""
    origins = network_origins(model, naming)
    shapes = {
        origins[name].keys[0]: tuple(value.shape) for name, value in model.state_dict().items() if name in origins
    }
    kept = {key: shape for key, shape in {**shapes, **changes}.items() if shape is not None}
    return Checkpoint(
        {key: LazyTensor(shape, torch.float32, lambda: torch.zeros(0)) for key, shape in kept.items()}, {}, (Path("x"),)
    )


@pytest.fixture(scope="module")
def model() -> TokenizerModel:
    with torch.device("meta"):
        return TokenizerModel(CONFIG, Preprocess(height=16, width=16))


@pytest.mark.parametrize("naming", [TAMING, LLAMAGEN, DIFFUSERS, OLD_DIFFUSERS])
def test_names_and_shapes_give_back_the_configuration(naming: Naming, model: TokenizerModel) -> None:
    found = read_structure(checkpoint(naming, model), naming)
    assert {name: getattr(NETWORKS, name) for name in found.networks} == found.networks
    assert (found.image_channels, found.n_levels, found.encoder_channels, found.latent_channels) == (3, 3, 6, 6)


@pytest.mark.parametrize("naming", [TAMING, LLAMAGEN, DIFFUSERS, OLD_DIFFUSERS])
def test_every_tensor_has_a_name_of_its_own(naming: Naming, model: TokenizerModel) -> None:
    keys = [origin.keys[0] for origin in network_origins(model, naming).values()]
    assert len(set(keys)) == len(keys)
    assert sum(key.startswith(("quant_conv.", "post_quant_conv.")) for key in keys) == 4


def test_a_kernel_of_attention_may_be_a_matrix(model: TokenizerModel) -> None:
    origins = network_origins(model, DIFFUSERS)
    kernel = origins["encoder.middle.1.q.weight"].make(torch.ones(24, 24))
    assert kernel.shape == (24, 24, 1, 1)
    assert origins["encoder.conv_in.weight"].make(torch.ones(8, 3)).shape == (8, 3)


def test_tensors_that_tell_no_structure_are_refused(model: TokenizerModel) -> None:
    with pytest.raises(CheckpointError, match=r"no encoder\.conv_out\.weight"):
        read_structure(checkpoint(TAMING, model, **{"encoder.conv_out.weight": None}), TAMING)
    with pytest.raises(CheckpointError, match="not a kernel"):
        read_structure(checkpoint(TAMING, model, **{"encoder.conv_in.weight": (8,)}), TAMING)
    with pytest.raises(CheckpointError, match="too large a number"):
        read_structure(checkpoint(TAMING, model, **{"encoder.down.99.block.0.conv2.weight": (8, 8)}), TAMING)
    with pytest.raises(CheckpointError, match="multiples of 8"):
        multiples(checkpoint(TAMING, model), [8, 12], 8)
