"""Importers of systems whose networks are our default ones: taming, LlamaGen, latent-diffusion, diffusers, RQ-VAE."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from foundation.config import from_dict
from foundation.errors import CheckpointError, ConfigError
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
    kernel,
    last_index,
    network_origins,
    read_structure,
)
from pipeline.interop.tokenizer_plan import (
    AVERAGES,
    LOSS,
    Options,
    PeerArguments,
    TokenizerPlan,
    image_settings,
    plan_tokenizer,
    said_size,
)
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.quantizers.config import GumbelConfig, KLConfig, QuantizerConfig, ResidualConfig, VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

_STABLE_DIFFUSION = "first_stage_model."
_RESIDUAL_CODEBOOK = re.compile(r"quantizer\.codebooks\.(\d+)\.")
_MAX_DEPTH = 64
_GROUPS = 32


def plan_llamagen_vq(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """LlamaGen's VQModel: codes of unit length, attention at the lowest resolution."""
    n_codes, width = kernel(checkpoint, "quantize.embedding.weight")[:2]
    known = _Known.of("llamagen_vq", checkpoint, options, LLAMAGEN, codebook=(n_codes, width))
    found, multipliers = known.structure, list(known.structure.width_multipliers)
    options.arguments.require_agreement({
        "codebook_size": n_codes, "codebook_embed_dim": width, "z_channels": found.latent_channels,
        "ch": found.base_width, "num_res_blocks": found.n_res_blocks, "encoder_ch_mult": multipliers,
        "decoder_ch_mult": multipliers})  # fmt: skip
    normalize = bool(known.arguments.require("codebook_l2_norm", "a LlamaGen tokenizer"))
    quantizer = _frozen_codebook(n_codes, width, normalize=normalize)
    own = {"codebook": Origin(("quantize.embedding.weight",))}
    return known.plan(quantizer, own, (LOSS, Rule(r"quantize\.codebook_used$", "a counter of training")))


def plan_taming(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """The VQModel and GumbelVQ of taming, and what has their names: plain nearest codes, or logits for each code."""
    gumbel = checkpoint.has("quantize.embed.")
    key = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"
    n_codes, width = kernel(checkpoint, key)[:2]
    known = _Known.of("taming", checkpoint, options, TAMING, codebook=(n_codes, width))
    options.arguments.require_agreement({**_ddconfig(known), "n_embed": n_codes, "embed_dim": width})
    if not gumbel:
        # The original's commitment factor stands before the codebook's term, not before the encoder's.
        quantizer = _frozen_codebook(n_codes, width, commitment=1.0, codebook_weight=0.25)
        return known.plan(quantizer, {"codebook": Origin((key,))}, (LOSS, AVERAGES))
    logits = {f"to_logits.{last}": Origin((f"quantize.proj.{last}",)) for last in ("weight", "bias")}
    relaxed = GumbelConfig(codebook_size=n_codes, width=width, hard=True, logit_layer=True)
    return known.plan(relaxed, {"codebook": Origin((key,)), **logits}, (LOSS, AVERAGES))


def plan_sd_kl(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """The KL autoencoder of latent-diffusion, under its own names, those of diffusers, or inside Stable Diffusion."""
    if checkpoint.has(_STABLE_DIFFUSION):
        checkpoint = checkpoint.below(_STABLE_DIFFUSION, "other parts of a whole diffusion model")
    naming = _diffusers_naming(checkpoint)
    known = _Known.of("sd_kl", checkpoint, options, naming or TAMING, codebook=None)
    found = known.structure
    if found.encoder_channels != 2 * found.latent_channels:
        raise CheckpointError("has no quantizer, and its encoder does not end in means and log-variances either",
                              field=checkpoint.source, found=f"{found.encoder_channels} channels",
                              expected=f"{2 * found.latent_channels}, or a tensor such as quantize.embedding.weight",
                              fix="take the file anew, or name the FORMAT")  # fmt: skip
    projected = checkpoint.has("quant_conv.") or checkpoint.has("post_quant_conv.")
    width = kernel(checkpoint, "post_quant_conv.weight")[1] if projected else found.latent_channels
    told = _diffusers_told(found) if naming else {**_ddconfig(known), "embed_dim": width}
    options.arguments.require_agreement(told)
    groups = known.arguments.require("norm_num_groups", "a diffusers autoencoder") if naming else _GROUPS
    scale = known.arguments.find("scaling_factor", known.arguments.find("scale_factor", 1.0))
    projection = "double" if projected else "none"
    quantizer = KLConfig(width=width, scaling_factor=scale)
    return known.plan(quantizer, {}, (LOSS, AVERAGES), norm_groups=groups, projection=projection)


def plan_diffusers_vq(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """The VQModel of diffusers: plain nearest codes."""
    n_codes, width = kernel(checkpoint, "quantize.embedding.weight")[:2]
    naming = _diffusers_naming(checkpoint) or DIFFUSERS
    known = _Known.of("diffusers_vq", checkpoint, options, naming, codebook=(n_codes, width))
    options.arguments.require_agreement(
        {**_diffusers_told(known.structure), "num_vq_embeddings": n_codes, "vq_embed_dim": width})  # fmt: skip
    groups = known.arguments.require("norm_num_groups", "a diffusers VQModel")
    own = {"codebook": Origin(("quantize.embedding.weight",))}
    return known.plan(_frozen_codebook(n_codes, width), own, (), norm_groups=groups)


def plan_rqvae(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """RQ-VAE: several codes at each position, each codebook with a last row for padding."""
    depth = 1 + last_index(checkpoint, _RESIDUAL_CODEBOOK, _MAX_DEPTH)
    keys = [f"quantizer.codebooks.{i}.weight" for i in range(depth)]
    rows, width = kernel(checkpoint, keys[0])[:2]
    known = _Known.of("rqvae", checkpoint, options, TAMING, codebook=(rows - 1, width))
    options.arguments.require_agreement({**_ddconfig(known), "n_embed": rows - 1, "embed_dim": width})
    shared = _is_shared(checkpoint, keys, options.arguments)
    quantizer = ResidualConfig(depth=depth, shared=shared, codebook=_frozen_codebook(rows - 1, width))
    tables = [tuple(keys)] if shared else [(key,) for key in keys]
    own = {f"codebooks.{i}.codebook": Origin(table, _without_padding) for i, table in enumerate(tables)}
    running = Rule(r"quantizer\.codebooks\.\d+\.(cluster_size_ema|embed_ema)$", "running averages of training")
    return known.plan(quantizer, own, (LOSS, running))


@dataclass(frozen=True)
class _Known:
    """What is known of a model before its quantizer is considered."""

    checkpoint: Checkpoint
    options: Options
    naming: Naming
    structure: Structure
    arguments: PeerArguments
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        format_name: str,
        checkpoint: Checkpoint,
        options: Options,
        naming: Naming,
        *,
        codebook: tuple[int, int] | None,
    ) -> _Known:
        structure = read_structure(checkpoint, naming)
        published = find_published(format_name, {**structure.settings, "codebook": codebook})
        says = published.says if published else {}
        notes = (f"has the shapes of {', '.join(published.files)}",) if published else ()
        arguments = dataclasses.replace(options.arguments, defaults=says)
        return cls(checkpoint, options, naming, structure, arguments, notes)

    def plan(
        self, quantizer: QuantizerConfig, own: Mapping[str, Origin], rules: tuple[Rule, ...], **settings: Any
    ) -> TokenizerPlan:
        """The plan; ``own`` are the quantizer's tensors, ``settings`` fields of ``TokenizerConfig``."""
        fields = {**self.structure.settings, "norm_groups": _GROUPS, "quantizer": quantizer, **settings}
        config = from_dict(TokenizerConfig, fields, "the model")
        said = said_size(self.arguments, "resolution", "sample_size")
        channels = self.structure.image_channels
        preprocess, assumed = image_settings(self.checkpoint, self.options, channels, config.stride, said)

        def origins(model: TokenizerModel) -> dict[str, Origin]:
            quantizers = {f"bottleneck.quantizer.{name}": origin for name, origin in own.items()}
            return {**network_origins(model, self.naming), **quantizers}

        return plan_tokenizer(self.checkpoint, config, preprocess, origins, rules, self.notes + assumed)


def _frozen_codebook(n_codes: int, width: int, **settings: Any) -> VQConfig:
    return VQConfig(codebook_size=n_codes, width=width, learning="gradient", revive_below=0.0, **settings)


def _ddconfig(known: _Known) -> dict[str, Any]:
    """What the structure says, by taming's names."""
    found, arguments = known.structure, known.options.arguments
    told = {"ch": found.base_width, "ch_mult": list(found.width_multipliers), "num_res_blocks": found.n_res_blocks,
            "z_channels": found.latent_channels, "in_channels": found.image_channels}  # fmt: skip
    nominal, resolutions = arguments.find("resolution"), arguments.find("attn_resolutions")
    if isinstance(nominal, int) and isinstance(resolutions, list):
        sides = [nominal >> i for i in range(found.n_levels)]
        there = [sides[i] for i in found.attention_levels]
        told["attn_resolutions"] = resolutions if {*resolutions} & {*sides} == {*there} else there
    return told


def _diffusers_told(found: Structure) -> dict[str, Any]:
    """What the structure says, by diffusers' names."""
    attention = [i in found.attention_levels for i in range(found.n_levels)]
    return {
        "block_out_channels": [found.base_width * multiplier for multiplier in found.width_multipliers],
        "layers_per_block": found.n_res_blocks,
        "latent_channels": found.latent_channels,
        "in_channels": found.image_channels,
        "down_block_types": [f"{'Attn' if each else ''}DownEncoderBlock2D" for each in attention],
        "up_block_types": [f"{'Attn' if each else ''}UpDecoderBlock2D" for each in reversed(attention)],
    }


def _diffusers_naming(checkpoint: Checkpoint) -> Naming | None:
    if not checkpoint.has("encoder.down_blocks."):
        return None
    old = any(key.endswith(".query.weight") for key in checkpoint.tensors)
    return OLD_DIFFUSERS if old else DIFFUSERS


def _is_shared(checkpoint: Checkpoint, keys: list[str], arguments: PeerArguments) -> bool:
    """Whether all depths use one codebook: they do if the configuration says so or, without one, if all are equal."""
    said = arguments.find("shared_codebook")
    if said is False or len(keys) == 1:
        return len(keys) == 1
    shapes = [checkpoint.shape(key) for key in keys]
    first = checkpoint.tensors[keys[0]].read()
    equal = len({*shapes}) == 1 and all(torch.equal(first, checkpoint.tensors[key].read()) for key in keys[1:])
    if said and not equal:
        raise ConfigError("does not fit the tensors", field=f"{arguments.source}: shared_codebook", found=said,
                          expected="false: the codebooks differ")  # fmt: skip
    return equal


def _without_padding(table: torch.Tensor, *equal_tables: torch.Tensor) -> torch.Tensor:
    return table[:-1]
