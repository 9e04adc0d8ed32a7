"""Transformers over patches: the block beside torch's own layers, places, grids of any size, settings."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foundation.config import from_dict
from foundation.errors import ConfigError
from foundation.images.config import Preprocess
from foundation.training.muon import is_hidden_matrix
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.blocks import attend
from stage1_tokenizer.networks.config import ViTNetworks
from stage1_tokenizer.networks.vit import ViTBlock, overlapped, positions
from stage1_tokenizer.quantizers.config import VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

NETWORKS = ViTNetworks(patch_size=4, width=16, encoder_layers=1, decoder_layers=2, n_heads=2, mlp_ratio=2)


def small(networks: ViTNetworks = NETWORKS) -> TokenizerModel:
    torch.manual_seed(0)
    config = TokenizerConfig(networks=networks, latent_channels=6, quantizer=VQConfig(codebook_size=16, width=4))
    model = TokenizerModel(config, Preprocess(height=16, width=24)).eval()
    for parameter in model.parameters():  # nothing passes by being zero
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def test_a_block_is_torchs_attention_and_feed_forward() -> None:
    torch.manual_seed(0)
    block, reference = ViTBlock(16, n_heads=2, mlp_ratio=3), nn.MultiheadAttention(16, 2, bias=False, batch_first=True)
    for each in block.parameters():
        nn.init.normal_(each, std=0.3)
    reference.load_state_dict({"in_proj_weight": block.qkv.weight, "out_proj.weight": block.attention_out.weight})
    x = torch.randn(3, 10, 16)
    normed = block.attention_norm(x)
    after = x + reference(normed, normed, normed)[0]
    inside = F.gelu(block.mlp_in(block.mlp_norm(after)), approximate="tanh")
    assert torch.allclose(block(x), after + block.mlp_out(inside), atol=1e-5)


def test_a_block_starts_as_its_input_and_every_weight_learns() -> None:
    x = torch.randn(2, 6, 16)
    assert torch.equal(ViTBlock(16, n_heads=2, mlp_ratio=2)(x), x)
    model = small().train()
    output = model(torch.rand(4, 3, 16, 24) * 2 - 1)
    (output.images_BCYX.square().mean() + sum(output.losses.values())).backward()
    assert all(each.grad is not None and each.grad.any() for each in model.parameters())


@pytest.mark.parametrize("n_tokens", [10, 300])
def test_attention_is_the_librarys_for_few_and_many_tokens(n_tokens: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, n_tokens, 8, dtype=torch.float64).unbind(0)
    wanted = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(attend(q, k, v), wanted) and torch.allclose(attend(q[0], k[0], v[0]), wanted[0])


def test_places_are_sines_and_cosines_of_rows_and_columns() -> None:
    found = positions(3, 5, 8).view(3, 5, 8)
    for row in range(3):
        for column in range(5):
            angles = [place / 100 ** (k / 2) for place in (row, column) for k in range(2)]
            wanted = [0.5 * wave(angle) for wave in (math.sin, math.cos) for angle in angles]
            assert found[row, column].tolist() == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(positions(7, 9, 8).view(7, 9, 8)[:3, :5], found), "a place has one position in grids of any size"


def test_codes_and_images_of_any_grid(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path)
    loaded = TokenizerModel.load(tmp_path)
    for height, width in ((16, 24), (8, 40)):
        images = torch.rand(2, 3, height, width) * 2 - 1
        codes = model.encode(images)
        assert codes.shape == (2, height // 4, width // 4)
        assert torch.equal(loaded.decode(codes), model(images).images_BCYX.detach())


def test_moving_a_patch_changes_what_is_decoded_elsewhere() -> None:
    """Tokens see each other and their places."""
    model = small()
    codes = torch.randint(0, 16, (1, 4, 6))
    plain, turned = model.decode(codes), model.decode(codes.flip(2))
    assert not torch.allclose(plain, turned.unflatten(3, (6, 4)).flip(3).flatten(3), atol=1e-3)
    codes[0, 0, 0] = (codes[0, 0, 0] + 1) % 16
    assert not torch.allclose(model.decode(codes)[..., 12:, 20:], plain[..., 12:, 20:], atol=1e-4)


def test_matrices_of_blocks_are_for_muon() -> None:
    tagged = {name for name, each in small().named_parameters() if is_hidden_matrix(each)}
    layers = ("qkv", "attention_out", "mlp_in", "mlp_out")
    wanted = {f"{part}.blocks.{i}" for part, n in (("encoder", 1), ("decoder", 2)) for i in range(n)}
    assert tagged == {f"{block}.{layer}.weight" for block in wanted for layer in layers}
    assert small().encoder.blocks[0].qkv.weight.n_stacked == 3


def test_an_encoder_without_blocks_is_linear_but_for_its_norm() -> None:
    networks = ViTNetworks(patch_size=4, width=16, encoder_layers=0, decoder_layers=1, n_heads=2)
    model = small(networks)
    images = torch.rand(1, 3, 16, 24) * 2 - 1
    changed = images.clone()
    changed[..., :4, :4] *= -1
    one, other = model.encoder(images), model.encoder(changed)
    assert torch.equal(one[..., 1:], other[..., 1:]) and not torch.allclose(one[..., 0, 0], other[..., 0, 0])


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 18), ("width", 0), ("n_heads", 3), ("patch_size", 0), ("decoder_layers", 0), ("encoder_layers", -1)],
)
def test_settings_that_cannot_work_are_refused(field: str, value: int) -> None:
    values = {"networks": {"type": "vit", "width": 16, "n_heads": 2, field: value}}
    with pytest.raises(ConfigError, match=rf"networks\.{field}"):
        from_dict(TokenizerConfig, values)


def test_overlapping_blocks_are_the_librarys_fold_of_faded_blocks() -> None:
    torch.manual_seed(0)
    side, n_rows, n_columns = 4, 3, 5
    quarters_BQCSSHW = torch.randn(2, 4, 3, side, side, n_rows, n_columns, dtype=torch.float64)
    found = overlapped(quarters_BQCSSHW.flatten(1, 4), side)
    upper, lower = (torch.cat(list(quarters_BQCSSHW[:, i : i + 2].unbind(1)), 3) for i in (0, 2))
    blocks = torch.cat([upper, lower], 2)  # (B, C, 2 S, 2 S, H, W)
    rising = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    fade = torch.cat([rising, rising.flip(0)])
    weights = (fade[:, None] * fade)[:, :, None, None].expand(2 * side, 2 * side, n_rows, n_columns)
    how = {
        "output_size": (n_rows * side, n_columns * side),
        "kernel_size": 2 * side,
        "stride": side,
        "padding": side // 2,
    }
    total = F.fold((blocks * weights).flatten(4).flatten(1, 3), **how)
    covered = F.fold(weights.flatten(2).flatten(0, 1).unsqueeze(0), **how)
    torch.testing.assert_close(found, total / covered)


def test_no_border_of_a_block_is_seen_where_blocks_overlap() -> None:
    plain, soft = (small(dataclasses.replace(NETWORKS, overlap=each)) for each in (False, True))
    codes = torch.randint(16, (8, 4, 6))
    jumps = []
    for model in (plain, soft):
        images = model.decode(codes)
        steps = images.diff(dim=3).abs().mean((0, 1, 2))  # between neighbouring columns
        jumps.append(float(steps[3::4].mean() / steps[1::4].mean()))
    assert jumps[0] > 1.5 > 1.2 > jumps[1]


def test_blocks_of_an_odd_side_cannot_overlap() -> None:
    with pytest.raises(ConfigError, match=r"overlap(.|\n)*false for an odd patch_size, 3"):
        ViTNetworks(patch_size=3, overlap=True)
