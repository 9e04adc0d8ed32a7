"""Importer of Open-MAGVIT2's tokenizers (lookup-free codes), with averaged weights if present."""

from __future__ import annotations

import re
from collections.abc import Callable

from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin, Rule
from pipeline.interop.structure import kernel, last_index, multiples
from pipeline.interop.tokenizer_plan import AVERAGES, LOSS, Options, TokenizerPlan, image_settings, plan_tokenizer
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import Magvit2Networks
from stage1_tokenizer.quantizers.config import LFQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

_AVERAGES = "model_ema."
_COUNTERS = Rule(r"model_ema\.(decay|num_updates)$", "counters of the average")
_LEVEL = re.compile(r"encoder\.down\.(\d+)\.")
_OWN_LEVEL = re.compile(r"(encoder|decoder)\.levels\.(\d+)\.(blocks|resample|norm)\.(.+)")
_MIDDLE = re.compile(r"encoder\.mid_block\.(\d+)\.")


def plan_open_magvit2(checkpoint: Checkpoint, options: Options) -> TokenizerPlan:
    """Plan from shapes alone, except for the image size."""
    base, image_channels = kernel(checkpoint, "encoder.conv_in.weight")[:2]
    n_levels = 1 + last_index(checkpoint, _LEVEL, 16)
    widths = [kernel(checkpoint, f"encoder.down.{i}.block.0.conv2.weight")[0] for i in range(n_levels)]
    n_blocks = 1 + last_index(checkpoint, _MIDDLE, 64)
    bits = kernel(checkpoint, "encoder.conv_out.weight")[0]
    multipliers = multiples(checkpoint, widths, base)
    networks = Magvit2Networks(base_width=base, width_multipliers=multipliers, n_res_blocks=n_blocks)
    config = TokenizerConfig(
        networks=networks,
        projection="none",
        latent_channels=bits,
        quantizer=LFQConfig(width=bits),
    )
    expected = {"ch": base, "ch_mult": list(multipliers), "num_res_blocks": n_blocks}
    expected |= {"z_channels": bits, "embed_dim": bits, "n_embed": 2**bits, "in_channels": image_channels}
    options.arguments.require_agreement(expected)
    preprocess, assumed = image_settings(checkpoint, options, image_channels, config.stride)
    averaged = options.averaged and checkpoint.has(_AVERAGES)
    rules = (LOSS, _COUNTERS) if averaged else (LOSS, AVERAGES)
    last = "weights of the last step: the file has no averages, or --averaged is false"
    note = "averaged weights, as in the system's own evaluation" if averaged else last
    return plan_tokenizer(checkpoint, config, preprocess, _origins(averaged), rules, (note, *assumed))


def upstream_name(own: str, n_levels: int) -> str:
    """Translate our name of a tensor."""
    level = _OWN_LEVEL.fullmatch(own)
    if level is None:
        return own.replace(".middle.", ".mid_block.").replace(".shortcut.", ".nin_shortcut.")
    side, index, part, rest = level.groups()
    i = int(index) if side == "encoder" else n_levels - 1 - int(index)
    if part == "norm":
        return f"decoder.adaptive.{i}.{rest}"
    rest = rest.replace("shortcut.", "nin_shortcut.")
    if side == "encoder":
        return f"encoder.down.{i}.block.{rest}" if part == "blocks" else f"encoder.down.{i}.downsample.{rest}"
    return f"decoder.up.{i}.block.{rest}" if part == "blocks" else f"decoder.up.{i}.upsample.{rest}"


def _origins(averaged: bool) -> Callable[[TokenizerModel], dict[str, Origin]]:
    def origins(model: TokenizerModel) -> dict[str, Origin]:
        assert isinstance(model.config.networks, Magvit2Networks)
        n_levels = len(model.config.networks.width_multipliers)
        keys = {name: upstream_name(name, n_levels) for name in model.state_dict()}
        if not averaged:
            return {name: Origin((key,)) for name, key in keys.items()}
        return {name: Origin((_AVERAGES + key.replace(".", ""),), passed_over=(key,)) for name, key in keys.items()}

    return origins
