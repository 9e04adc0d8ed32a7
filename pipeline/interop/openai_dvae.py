"""Importer of DALL-E's discrete VAE: encoder and decoder, a pickled module each."""

from __future__ import annotations

import re

import torch

from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin
from pipeline.interop.structure import kernel, last_index, multiples
from pipeline.interop.tokenizer_plan import Options, TokenizerPlan, image_settings, plan_tokenizer
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import DVAENetworks
from stage1_tokenizer.quantizers.config import GumbelConfig
from stage1_tokenizer.tokenizer import TokenizerModel

_BLOCK = re.compile(r"(encoder|decoder)\.groups\.(\d+)\.(\d+)\.(.+)")
_CODEBOOK = "bottleneck.quantizer.codebook"


def plan_openai_dvae(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """Plan from shapes alone.

    Raises:
        CheckpointError: one of the two files is missing.
    """
    for part, other in (("encoder", "decoder"), ("decoder", "encoder")):
        if not checkpoint.has(f"{part}."):
            fix = f"give both files: {other}.pkl and {part}.pkl"
            raise checkpoint.error(f"holds the {other} alone", expected="encoder and decoder", fix=fix)
    base, image_channels = kernel(checkpoint, "encoder.blocks.input.w")[:2]
    n_init, n_codes = kernel(checkpoint, "decoder.blocks.input.w")[:2]
    n_groups = last_index(checkpoint, re.compile(r"encoder\.blocks\.group_(\d+)\."), 16)
    n_blocks = last_index(checkpoint, re.compile(r"encoder\.blocks\.group_1\.block_(\d+)\."), 64)
    ends = [f"encoder.blocks.group_{i + 1}.block_1.res_path.conv_4.w" for i in range(n_groups)]
    widths = [kernel(checkpoint, key)[0] for key in ends]
    multipliers = multiples(checkpoint, widths, base)
    networks = DVAENetworks(base_width=base, width_multipliers=multipliers, n_res_blocks=n_blocks, norm_groups=1)
    config = TokenizerConfig(
        networks=networks,
        projection="none",
        latent_channels=n_init,
        quantizer=GumbelConfig(codebook_size=n_codes, width=n_init),
    )
    expected = {"n_hid": base, "n_init": n_init, "n_blk_per_group": n_blocks, "vocab_size": n_codes}
    options.arguments.require_agreement(expected)
    preprocess, assumed = image_settings(checkpoint, options, image_channels, config.stride)
    return plan_tokenizer(checkpoint, config, preprocess, _origins, notes=assumed)


def _origins(model: TokenizerModel) -> dict[str, Origin]:
    return {
        name: Origin(("decoder.blocks.input.w", "decoder.blocks.input.b"), _code_vectors)
        if name == _CODEBOOK
        else Origin((_upstream_name(name),))
        for name in model.state_dict()
    }


def _code_vectors(kernel_CV11: torch.Tensor, bias_C: torch.Tensor) -> torch.Tensor:
    """(V, C) columns of a 1 x 1 convolution of one-hot codes, plus its bias."""
    return kernel_CV11[:, :, 0, 0].T + bias_C


def _upstream_name(own: str) -> str:
    path, _, last = own.rpartition(".")
    block = _BLOCK.fullmatch(path)
    if block is None:
        side, _, _ = path.partition(".")
        place = "input" if path.endswith("conv_in") else "output.conv"
        return f"{side}.blocks.{place}.{last[0]}"
    side, group, number, part = block.groups()
    inner = "id_path" if part == "shortcut" else f"res_path.conv_{int(part.removeprefix('convs.')) + 1}"
    return f"{side}.blocks.group_{int(group) + 1}.block_{int(number) + 1}.{inner}.{last[0]}"
