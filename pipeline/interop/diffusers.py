"""Export of a tokenizer to diffusers' ``VQModel`` or ``AutoencoderKL``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from foundation.config import to_dict
from foundation.errors import ContractError
from foundation.storage import durable
from pipeline.interop.structure import DIFFUSERS, diffusers_arguments
from pipeline.interop.tokenizer_plan import OWN_PREPROCESS
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import KLConfig, VQConfig
from stage1_tokenizer.quantizers.vq import VQ
from stage1_tokenizer.tokenizer import TokenizerModel

WEIGHTS = "diffusion_pytorch_model.safetensors"
_NO_SUCH = "diffusers has no such architecture"


def export_to_diffusers(model: TokenizerModel, folder: Path) -> str:
    """Write ``config.json`` and the weights into a new folder.

    Args:
        model: a tokenizer of the VQGAN family with nearest codes or a Gaussian latent.
        folder: must not exist.

    Returns:
        Name of the class in diffusers.

    Raises:
        ContractError: diffusers has no such architecture; names the field.
        StorageError: the folder exists or cannot be written.
    """
    config = diffusers_config(model)
    tensors = diffusers_tensors(model)

    def fill(temporary: Path) -> None:
        durable.write_bytes(temporary / "config.json", json.dumps(config, indent=2, sort_keys=True).encode())
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})

    durable.publish_folder(folder, fill)
    return str(config["_class_name"])


def diffusers_config(model: TokenizerModel) -> dict[str, Any]:
    """Constructor arguments of diffusers' class, and the preprocess under ``_tessera_preprocess``.

    Raises:
        ContractError: see ``export_to_diffusers``.
    """
    config, preprocess = model.config, model.preprocess
    networks = _require_expressible(config)
    common = {
        **diffusers_arguments(networks, config.latent_channels, preprocess.n_channels),
        "out_channels": preprocess.n_channels,
        "act_fn": "silu",
        "norm_num_groups": networks.norm_groups,
        "sample_size": preprocess.height,
        "mid_block_add_attention": networks.middle_attention,
        OWN_PREPROCESS: to_dict(preprocess),
    }
    quantizer = config.quantizer
    if isinstance(quantizer, VQConfig):
        codebook = {"num_vq_embeddings": quantizer.codebook_size, "vq_embed_dim": quantizer.width}
        return {**common, **codebook, "_class_name": "VQModel", "norm_type": "group", "scaling_factor": 1.0}
    assert isinstance(quantizer, KLConfig)
    projected = dict.fromkeys(("use_quant_conv", "use_post_quant_conv"), config.projection == "double")
    return {**common, **projected, "_class_name": "AutoencoderKL", "scaling_factor": quantizer.scaling_factor}


def diffusers_tensors(model: TokenizerModel) -> dict[str, torch.Tensor]:
    """Weights by diffusers' names; attention kernels as matrices."""
    n_levels = len(_networks(model.config).width_multipliers)
    tensors = {}
    for name, value in model.state_dict().items():
        if not name.startswith("bottleneck.quantizer."):
            key = DIFFUSERS.upstream(name, n_levels)
            matrix = ".attentions." in key and value.ndim == 4
            tensors[key] = (value[:, :, 0, 0] if matrix else value).detach().cpu().contiguous()
    quantizer = model.bottleneck.quantizer
    if isinstance(quantizer, VQ):
        tensors["quantize.embedding.weight"] = quantizer.code_vectors().detach().cpu().clone()
    return tensors


def _networks(config: TokenizerConfig) -> VQGANNetworks:
    networks = config.networks
    if not isinstance(networks, VQGANNetworks):
        raise ContractError(_NO_SUCH, field="networks", found=networks.type_name, expected="vqgan")
    return networks


def _require_expressible(config: TokenizerConfig) -> VQGANNetworks:
    quantizer, networks = config.quantizer, _networks(config)
    projections = ("plain",) if config.is_discrete else ("double", "none")
    first = networks.width_multipliers[0]
    checks: list[tuple[bool, str, object, str]] = [
        (networks.patch_size == 1, "patch_size", networks.patch_size, "1"),
        (config.coarse_halvings == 0, "coarse_halvings", config.coarse_halvings, "0"),
        (first == 1, "width_multipliers", networks.width_multipliers, "1 first"),
        (quantizer.type_name in ("vq", "kl"), "quantizer.type", quantizer.type_name, "vq or kl"),
        (not getattr(quantizer, "normalize", False), "quantizer.normalize", True, "false"),
        (config.projection in projections, "projection", config.projection, " or ".join(projections)),
    ]
    if isinstance(quantizer, KLConfig):
        width, channels = quantizer.width, config.latent_channels
        checks.append((width == channels, "quantizer.width", width, f"{channels}, the latent_channels"))
    for holds, field, found, expected in checks:
        if not holds:
            raise ContractError(_NO_SUCH, field=field, found=found, expected=expected)
    return networks
