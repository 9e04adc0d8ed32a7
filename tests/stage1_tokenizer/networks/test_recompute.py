"""Blocks that keep only their inputs, and compiled ones, compute what plain ones compute."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from foundation.errors import ConfigError
from stage1_tokenizer.networks.config import DVAENetworks, Magvit2Networks, NetworksConfig, ViTNetworks, VQGANNetworks
from stage1_tokenizer.networks.recompute import Block, compile_blocks, recompute_blocks

SIZES = {"base_width": 8, "width_multipliers": (1, 2), "n_res_blocks": 1}
FAMILIES: list[NetworksConfig] = [
    VQGANNetworks(**SIZES, norm_groups=4, dropout=0.3, attention_levels=(1,)),
    Magvit2Networks(**SIZES, norm_groups=4, dropout=0.3),
    DVAENetworks(**SIZES, norm_groups=1),
    ViTNetworks(patch_size=2, width=16, encoder_layers=1, decoder_layers=2, n_heads=2),
]


def both_networks(family: NetworksConfig) -> nn.Sequential:
    """Encoder and decoder whose residual paths are not zero."""
    torch.manual_seed(0)
    networks = nn.Sequential(family.build_encoder(3, 8), family.build_decoder(8, 3))
    for each in networks.parameters():
        if not each.any():
            nn.init.normal_(each, std=0.1)
    return networks


def gradients(networks: nn.Module, n_images: int = 2) -> tuple[torch.Tensor, int]:
    """All gradients in a row, and the bytes that the forward pass kept."""
    torch.manual_seed(n_images)
    networks.zero_grad()
    kept = {}
    images = torch.randn(n_images, 3, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(id(x), x), lambda x: x):
        loss = networks(images).square().mean()
    loss.backward()
    return torch.cat([each.grad.flatten() for each in networks.parameters()]), sum(x.nbytes for x in kept.values())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.type_name)
def test_blocks_that_keep_their_inputs_only_have_the_same_gradients(family: NetworksConfig) -> None:
    networks = both_networks(family).train()
    plain, kept = gradients(networks)
    recompute_blocks(networks)
    again, kept_again = gradients(networks)
    assert torch.equal(plain, again) and kept_again < 0.7 * kept


def test_nothing_is_computed_again_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = both_networks(FAMILIES[0])
    recompute_blocks(networks)
    refuse = pytest.fail
    monkeypatch.setattr("stage1_tokenizer.networks.recompute.checkpoint", lambda *_, **__: refuse("computed again"))
    with torch.no_grad():
        networks.train()(torch.randn(1, 3, 16, 16))
    networks.eval()(torch.randn(1, 3, 16, 16))


def test_compiled_blocks_of_many_sizes_compute_the_same() -> None:
    from torch._dynamo.utils import counters

    config = VQGANNetworks(base_width=8, width_multipliers=(1, 2, 2, 3, 4), n_res_blocks=1, norm_groups=4)
    networks = both_networks(replace(config, middle_attention=False)).train()
    plain, _ = gradients(networks)
    names = list(networks.state_dict())
    counters.clear()
    compile_blocks(networks, backend="eager")
    compiled, _ = gradients(networks)
    assert float((compiled - plain).norm()) < 1e-4 * float(plain.norm())
    n_blocks = sum(isinstance(each, Block) for each in networks.modules())
    assert 8 < counters["frames"]["ok"] <= n_blocks, "as many as the compiler usually makes, or for each call"
    assert not counters["unimplemented"], "the compiler gave up"
    assert list(networks.state_dict()) == names
    copied = copy.deepcopy(networks)
    assert all(each._compiled_call_impl is None for each in copied.modules())


@pytest.mark.parametrize(("change", "field"), [(recompute_blocks, "checkpoint_blocks"), (compile_blocks, "compile")])
def test_networks_without_blocks_are_refused(change, field: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=rf"training.{field}(.|\n)*networks without blocks(.|\n)*recompute.Block"):
        change(nn.Conv2d(3, 3, 1))
