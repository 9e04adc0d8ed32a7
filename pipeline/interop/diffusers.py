"""Our tokenizer in the layout of diffusers' ``VQModel`` or ``AutoencoderKL``: the way back from an import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from foundation.config import to_dict
from foundation.errors import ContractError
from foundation.storage import durable
from pipeline.interop.structure import DIFFUSERS
from pipeline.interop.tokenizer_plan import OWN_PREPROCESS
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.quantizers.config import KLConfig, VQConfig
from stage1_tokenizer.quantizers.vq import VQ
from stage1_tokenizer.tokenizer import TokenizerModel

WEIGHTS = "diffusion_pytorch_model.safetensors"


def export_to_diffusers(model: TokenizerModel, folder: Path) -> str:
    """Write ``config.json`` and the weights into a new folder.

    Args:
        model: a tokenizer of the VQGAN family with plain nearest codes or a Gaussian latent.
        folder: must not exist.

    Returns:
        The name of the class in diffusers that opens it.

    Raises:
        ContractError: diffusers has no such architecture; the field is named.
        StorageError: the folder exists or cannot be written.
    """
    config = diffusers_config(model)
    tensors = diffusers_tensors(model)

    def fill(temporary: Path) -> None:
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})

    durable.publish_folder(folder, fill)
    return str(config["_class_name"])


def diffusers_config(model: TokenizerModel) -> dict[str, Any]:
    """The constructor arguments of diffusers' class, and under ``_tessera_preprocess`` how images become pixels.

    Raises:
        ContractError: as ``export_to_diffusers``.
    """
    config, preprocess = model.config, model.preprocess
    _require_expressible(config)
    attention = [i in config.attention_levels for i in range(len(config.width_multipliers))]
    common = {
        "in_channels": preprocess.n_channels,
        "out_channels": preprocess.n_channels,
        "down_block_types": [f"{'Attn' if each else ''}DownEncoderBlock2D" for each in attention],
        "up_block_types": [f"{'Attn' if each else ''}UpDecoderBlock2D" for each in reversed(attention)],
        "block_out_channels": [config.base_width * multiplier for multiplier in config.width_multipliers],
        "layers_per_block": config.n_res_blocks,
        "act_fn": "silu",
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "sample_size": preprocess.height,
        "mid_block_add_attention": config.middle_attention,
        OWN_PREPROCESS: to_dict(preprocess),
    }
    quantizer = config.quantizer
    if isinstance(quantizer, KLConfig):
        projected = config.projection == "double"
        return {**common, "_class_name": "AutoencoderKL", "scaling_factor": quantizer.scaling_factor,
                "use_quant_conv": projected, "use_post_quant_conv": projected}  # fmt: skip
    assert isinstance(quantizer, VQConfig)
    return {**common, "_class_name": "VQModel", "num_vq_embeddings": quantizer.codebook_size,
            "vq_embed_dim": quantizer.width, "norm_type": "group", "scaling_factor": 1.0}  # fmt: skip


def diffusers_tensors(model: TokenizerModel) -> dict[str, torch.Tensor]:
    """The weights by diffusers' names; kernels of attention as plain matrices."""
    n_levels = len(model.config.width_multipliers)
    tensors = {}
    for name, value in model.state_dict().items():
        if not name.startswith("bottleneck.quantizer."):
            key = DIFFUSERS.peer(name, n_levels)
            matrix = ".attentions." in key and value.ndim == 4
            tensors[key] = (value[:, :, 0, 0] if matrix else value).detach().cpu().contiguous()
    quantizer = model.bottleneck.quantizer
    if isinstance(quantizer, VQ):
        tensors["quantize.embedding.weight"] = quantizer.code_vectors().detach().cpu().clone()
    return tensors


def _require_expressible(config: TokenizerConfig) -> None:
    quantizer = config.quantizer
    projections = ("double", "none") if isinstance(quantizer, KLConfig) else ("plain",)
    first = config.width_multipliers[0]
    checks: list[tuple[bool, str, object, str]] = [
        (config.networks == "vqgan", "networks", config.networks, "vqgan"),
        (config.patch_size == 1, "patch_size", config.patch_size, "1"),
        (config.coarse_halvings == 0, "coarse_halvings", config.coarse_halvings, "0"),
        (first == 1, "width_multipliers", config.width_multipliers, "1 first"),
        (isinstance(quantizer, (VQConfig, KLConfig)), "quantizer.type", quantizer.type_name, "vq or kl"),
        (not getattr(quantizer, "normalize", False), "quantizer.normalize", True, "false: nearest codes as they are"),
        (config.projection in projections, "projection", config.projection, " or ".join(projections)),
    ]
    if isinstance(quantizer, KLConfig):
        width = quantizer.width
        checks.append((width == config.latent_channels, "quantizer.width", width, f"{config.latent_channels}, as many "
                       "as latent_channels"))  # fmt: skip
    for holds, field, found, expected in checks:
        if not holds:
            raise ContractError("diffusers has no such architecture", field=field, found=found, expected=expected)
