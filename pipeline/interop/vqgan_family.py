"""Importers of the VQGAN family: taming, LlamaGen, latent-diffusion, diffusers, RQ-VAE."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from foundation.config import from_dict
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin, Rule
from pipeline.interop.published import find_published
from pipeline.interop.structure import (
    DIFFUSERS,
    LLAMAGEN,
    OLD_DIFFUSERS,
    TAMING,
    Naming,
    Structure,
    diffusers_arguments,
    kernel,
    last_index,
    network_origins,
    read_structure,
)
from pipeline.interop.tokenizer_plan import (
    AVERAGES,
    LOSS,
    Options,
    TokenizerPlan,
    UpstreamArguments,
    image_settings,
    plan_tokenizer,
)
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.quantizers.config import GumbelConfig, KLConfig, QuantizerConfig, ResidualConfig, VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

_STABLE_DIFFUSION = "first_stage_model."
_RESIDUAL_CODEBOOK = re.compile(r"quantizer\.codebooks\.(\d+)\.")
_MAX_DEPTH = 64
_GROUPS = 32


def plan_llamagen_vq(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """Plan LlamaGen's VQModel: unit-length codes, attention at the lowest resolution."""
    n_codes, width = kernel(checkpoint, "quantize.embedding.weight")[:2]
    known = _Known.of("llamagen_vq", checkpoint, options, LLAMAGEN, codebook=(n_codes, width))
    found, multipliers = known.structure, list(known.structure.width_multipliers)
    expected = {"codebook_size": n_codes, "codebook_embed_dim": width, "z_channels": found.latent_channels}
    expected |= {"ch": found.base_width, "num_res_blocks": found.n_res_blocks}
    options.arguments.require_agreement({**expected, "encoder_ch_mult": multipliers, "decoder_ch_mult": multipliers})
    normalize = bool(known.options.arguments.require("codebook_l2_norm", "a LlamaGen tokenizer"))
    quantizer = _frozen_codebook(n_codes, width, normalize=normalize)
    own = {"codebook": Origin(("quantize.embedding.weight",))}
    return known.plan(quantizer, own, (LOSS, Rule(r"quantize\.codebook_used$", "a counter of training")))


def plan_taming(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """Plan taming's VQModel (nearest codes) or GumbelVQ (a logit for each code)."""
    gumbel = checkpoint.has("quantize.embed.")
    key = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"
    n_codes, width = kernel(checkpoint, key)[:2]
    known = _Known.of("taming", checkpoint, options, TAMING, codebook=(n_codes, width))
    options.arguments.require_agreement({**_ddconfig(known), "n_embed": n_codes, "embed_dim": width})
    if not gumbel:
        # taming's commitment factor multiplies the codebook's term, not the encoder's.
        quantizer = _frozen_codebook(n_codes, width, commitment=1.0, codebook_weight=0.25)
        return known.plan(quantizer, {"codebook": Origin((key,))}, (LOSS, AVERAGES))
    logits = {f"to_logits.{last}": Origin((f"quantize.proj.{last}",)) for last in ("weight", "bias")}
    relaxed = GumbelConfig(codebook_size=n_codes, width=width, hard=True, logit_layer=True)
    return known.plan(relaxed, {"codebook": Origin((key,)), **logits}, (LOSS, AVERAGES))


def plan_sd_kl(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """Plan latent-diffusion's KL autoencoder: its own file, diffusers' file, or inside Stable Diffusion."""
    if checkpoint.has(_STABLE_DIFFUSION):
        checkpoint = checkpoint.below(_STABLE_DIFFUSION, "other parts of a whole diffusion model")
    naming = _diffusers_naming(checkpoint)
    known = _Known.of("sd_kl", checkpoint, options, naming or TAMING, codebook=None)
    found = known.structure
    if found.encoder_channels != 2 * found.latent_channels:
        what, channels = "has no quantizer, and no means and log-variances", f"{found.encoder_channels} channels"
        needed = f"{2 * found.latent_channels} channels, or a tensor such as quantize.embedding.weight"
        raise checkpoint.error(what, found=channels, expected=needed, fix="copy the file again, or give the FORMAT")
    projected = checkpoint.has("quant_conv.") or checkpoint.has("post_quant_conv.")
    width = kernel(checkpoint, "post_quant_conv.weight")[1] if projected else found.latent_channels
    expected = (
        diffusers_arguments(found, found.latent_channels, found.image_channels)
        if naming
        else {**_ddconfig(known), "embed_dim": width}
    )
    options.arguments.require_agreement(expected)
    groups = known.options.arguments.require("norm_num_groups", "a diffusers autoencoder") if naming else _GROUPS
    scale = known.options.arguments.find("scaling_factor", known.options.arguments.find("scale_factor", 1.0))
    projection = "double" if projected else "none"
    quantizer = KLConfig(width=width, scaling_factor=scale)
    return known.plan(quantizer, {}, (LOSS, AVERAGES), norm_groups=groups, projection=projection)


def plan_diffusers_vq(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """Plan diffusers' VQModel: nearest codes."""
    n_codes, width = kernel(checkpoint, "quantize.embedding.weight")[:2]
    naming = _diffusers_naming(checkpoint) or DIFFUSERS
    known = _Known.of("diffusers_vq", checkpoint, options, naming, codebook=(n_codes, width))
    found = known.structure
    common = diffusers_arguments(found, found.latent_channels, found.image_channels)
    expected = {**common, "num_vq_embeddings": n_codes, "vq_embed_dim": width}
    options.arguments.require_agreement(expected)
    groups = known.options.arguments.require("norm_num_groups", "a diffusers VQModel")
    own = {"codebook": Origin(("quantize.embedding.weight",))}
    return known.plan(_frozen_codebook(n_codes, width), own, (), norm_groups=groups)


def plan_rqvae(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """Plan RQ-VAE: several codes at each position; the last row of each codebook is padding."""
    depth = 1 + last_index(checkpoint, _RESIDUAL_CODEBOOK, _MAX_DEPTH)
    keys = [f"quantizer.codebooks.{i}.weight" for i in range(depth)]
    width = kernel(checkpoint, keys[0])[1]
    sizes = [kernel(checkpoint, key)[0] - 1 for key in keys]
    known = _Known.of("rqvae", checkpoint, options, TAMING, codebook=(max(sizes), width))
    differ = len(set(sizes)) > 1
    listed = isinstance(UpstreamArguments(options.arguments.values).find("n_embed"), (list, tuple))
    n_embed = sizes if differ or listed else sizes[0]
    options.arguments.require_agreement({**_ddconfig(known), "n_embed": n_embed, "embed_dim": width})
    shared = _is_shared(checkpoint, keys, options.arguments)
    codebook, own_sizes = _frozen_codebook(max(sizes), width), tuple(sizes) if differ else ()
    quantizer = ResidualConfig(depth=depth, shared=shared, codebook=codebook, codebook_sizes=own_sizes)
    tables = [tuple(keys)] if shared else [(key,) for key in keys]
    own = {f"codebooks.{i}.codebook": Origin(table, _without_padding) for i, table in enumerate(tables)}
    running = Rule(r"quantizer\.codebooks\.\d+\.(cluster_size_ema|embed_ema)$", "running averages of training")
    return known.plan(quantizer, own, (LOSS, running))


@dataclass(frozen=True)
class _Known:
    """A model without its quantizer."""

    checkpoint: Checkpoint
    options: Options
    naming: Naming
    structure: Structure
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        format_name: str,
        checkpoint: Checkpoint,
        options: Options,
        naming: Naming,
        codebook: tuple[int, int] | None,
    ) -> _Known:
        structure = read_structure(checkpoint, naming)
        published = find_published(format_name, {**dataclasses.asdict(structure), "codebook": codebook})
        arguments = dataclasses.replace(options.arguments, defaults=published.arguments)
        return cls(checkpoint, dataclasses.replace(options, arguments=arguments), naming, structure, published.notes)

    def plan(
        self,
        quantizer: QuantizerConfig,
        own: Mapping[str, Origin],
        rules: tuple[Rule, ...],
        *,
        norm_groups: int = _GROUPS,
        **settings: Any,
    ) -> TokenizerPlan:
        """Complete the plan with the quantizer's tensors ``own`` and fields ``settings`` of ``TokenizerConfig``."""
        networks = {"type": "vqgan", **self.structure.networks, "norm_groups": norm_groups}
        latents = {"latent_channels": self.structure.latent_channels, "quantizer": quantizer}
        config = from_dict(TokenizerConfig, {"networks": networks, **latents, **settings}, "the model")
        channels = self.structure.image_channels
        preprocess, assumed = image_settings(self.checkpoint, self.options, channels, config.stride)

        def origins(model: TokenizerModel) -> dict[str, Origin]:
            quantizers = {f"bottleneck.quantizer.{name}": origin for name, origin in own.items()}
            return {**network_origins(model, self.naming), **quantizers}

        return plan_tokenizer(self.checkpoint, config, preprocess, origins, rules, self.notes + assumed)


def _frozen_codebook(n_codes: int, width: int, **settings: Any) -> VQConfig:
    return VQConfig(codebook_size=n_codes, width=width, learning="gradient", revive_below=0.0, **settings)


def _ddconfig(known: _Known) -> dict[str, Any]:
    """The structure by taming's argument names."""
    found, arguments = known.structure, dataclasses.replace(known.options.arguments, defaults={})
    config: dict[str, Any] = {"ch": found.base_width, "ch_mult": list(found.width_multipliers)}
    config |= {"num_res_blocks": found.n_res_blocks, "z_channels": found.latent_channels}
    config |= {"in_channels": found.image_channels}
    nominal, resolutions = arguments.find("resolution"), arguments.find("attn_resolutions")
    if isinstance(nominal, int) and isinstance(resolutions, list):
        sides = [nominal >> i for i in range(found.n_levels)]
        there = [sides[i] for i in found.attention_levels]
        config["attn_resolutions"] = resolutions if {*resolutions} & {*sides} == {*there} else there
    return config


def _diffusers_naming(checkpoint: Checkpoint) -> Naming | None:
    if not checkpoint.has("encoder.down_blocks."):
        return None
    old = any(key.endswith(".query.weight") for key in checkpoint.tensors)
    return OLD_DIFFUSERS if old else DIFFUSERS


def _is_shared(checkpoint: Checkpoint, keys: list[str], arguments: UpstreamArguments) -> bool:
    """Whether all depths share one codebook: by the configuration or, without one, if all are equal."""
    shared = arguments.find("shared_codebook")
    if shared is False or len(keys) == 1:
        return len(keys) == 1
    shapes = [checkpoint.shape(key) for key in keys]
    first = checkpoint.tensors[keys[0]].read()
    equal = len({*shapes}) == 1 and all(torch.equal(first, checkpoint.tensors[key].read()) for key in keys[1:])
    if shared and not equal:
        raise arguments.error("shared_codebook", "contradicts different codebooks", found=shared, expected="false")
    return equal


def _without_padding(table: torch.Tensor, *equal_tables: torch.Tensor) -> torch.Tensor:
    return table[:-1]
