"""Importer of taming's Net2NetTransformer (Esser et al. 2021, arXiv:2012.09841): tokenizer and prior in one file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import torch

from foundation.config import require
from foundation.errors import ConfigError
from pipeline.generation.files import GeneratorIndex
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin, Rule
from pipeline.interop.priors import GeneratorPlan, Pair, block_origins, build_prior, class_names, with_zero_rows
from pipeline.interop.structure import kernel, last_index
from pipeline.interop.tokenizer_plan import Options, TokenizerPlan, UpstreamArguments
from pipeline.interop.vqgan_family import plan_taming
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel

_FIRST = "first_stage_model."
_CONDITION = "cond_stage_model."
_LAYER = re.compile(r"transformer\.blocks\.(\d+)\.")
_MAX_LAYERS = 256
_PARTS = {
    f"{own}.{last}": tuple(f"{key}.{last}" for key in keys)
    for own, keys in {
        "attention_norm": ("ln1",),
        "attention.qkv": ("attn.query", "attn.key", "attn.value"),
        "attention.out": ("attn.proj",),
        "feed_forward_norm": ("ln2",),
        "feed_forward.up": ("mlp.0",),
        "feed_forward.down": ("mlp.2",),
    }.items()
    for last in ("weight", "bias")
}


def plan_net2net(checkpoint: Checkpoint, options: Options) -> GeneratorPlan:
    """Plan a class-conditional or unconditional prior with the tokenizer of the same file.

    Raises:
        CheckpointError: a tensor is missing, the condition is an image, or there are fewer positions than codes.
        ConfigError: an argument is missing or contradicts the tensors.
    """
    _require_no_image(checkpoint)
    inner = checkpoint.below(_FIRST, "")
    first = plan_taming(dataclasses.replace(inner, beside={}), options)
    vocab_size, d_model = kernel(checkpoint, "transformer.tok_emb.weight")[:2]
    length = kernel(checkpoint, "transformer.pos_emb")[1]
    n_layers, layout = 1 + last_index(checkpoint, _LAYER, _MAX_LAYERS), first.model.layout
    n_heads = options.arguments.require("n_head", "a Net2NetTransformer")
    expected = {"vocab_size": vocab_size, "block_size": length, "n_layer": n_layers, "n_embd": d_model}
    options.arguments.require_agreement({**expected, "n_unmasked": 0, "n_head": n_heads})
    if not layout.codebook_size <= vocab_size or layout.n_codes > length:
        found, needed = f"{vocab_size} indices, {length} positions", f"{layout.codebook_size} and {layout.n_codes}"
        what, fix = "has a transformer too small for its tokenizer", "give --image-size if the images are smaller"
        raise checkpoint.error(what, found=found, expected=needed, fix=fix)
    rows, names = _condition(options, vocab_size)
    settings = {
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "d_ff": kernel(checkpoint, "transformer.blocks.0.mlp.0.weight")[0],
        "positions": "learned",
        "block": "gpt",
        "extra_codes": vocab_size - layout.codebook_size,
        "class_conditional": bool(names),
    }
    model = Pair(first.model, build_prior(settings, layout.with_classes(names)))
    return GeneratorPlan(
        checkpoint=checkpoint,
        tokenizer=first,
        model=model,
        origins={**_within(first), **{f"prior.{name}": each for name, each in _origins(model.prior, rows).items()}},
        rules=(
            *(Rule(re.escape(_FIRST) + each.pattern, each.reason) for each in first.rules),
            Rule(r"transformer\.blocks\.\d+\.attn\.mask$", "the causal mask"),
            Rule(re.escape(_CONDITION), "the condition's names, unused in sampling"),
        ),
        notes=(f"{n_layers} layers, {model.prior.config.n_heads} heads, width {d_model}", *_notes(model), *first.notes),
        index=GeneratorIndex(SamplingConfig(), label_dropout=0.0),
    )


def _require_no_image(checkpoint: Checkpoint) -> None:
    key = next((key for key in checkpoint.tensors if re.match(r"cond_stage_model\.(encoder|quantize)\.", key)), None)
    if key is not None:
        expected, fix = (
            "a class-conditional or unconditional prior",
            "import its tokenizer from the tokenizer's own file",
        )
        raise checkpoint.error("is conditioned on images", found=key, expected=expected, fix=fix)


def _condition(options: Options, vocab_size: int) -> tuple[slice, tuple[str, ...]]:
    """Rows of the embedding table of the conditions, and class names (empty if unconditional).

    Raises:
        ConfigError: the condition is unknown, or neither a class nor none.
    """
    arguments = options.arguments
    stage = arguments.find("cond_stage_config")
    if isinstance(stage, Mapping) and str(stage.get("target")).endswith("CoordStage"):
        what, expected = "is a condition on coordinates", "classes, or none"
        raise arguments.error("cond_stage_config", what, found=stage["target"], expected=expected)
    if _is_unconditional(arguments):
        token = arguments.find("sos_token", 0)
        require(isinstance(token, int) and 0 <= token < vocab_size, "sos_token", token, f"0..{vocab_size - 1}")
        if options.class_names is not None:
            what, found = "has no use for a prior without classes", str(options.class_names)
            raise ConfigError(what, field="--class-names", found=found, fix="leave it out")
        return slice(token, token + 1), ()
    n_classes = arguments.require("n_classes", "a Net2NetTransformer (sos_token of an unconditional one)")
    require(isinstance(n_classes, int) and 0 < n_classes <= vocab_size, "n_classes", n_classes, f"1..{vocab_size}")
    return slice(0, n_classes), class_names(options.class_names, n_classes)


def _is_unconditional(arguments: UpstreamArguments) -> bool:
    if arguments.find("n_classes") is not None:
        return False
    none = arguments.find("cond_stage_config") == "__is_unconditional__"
    return none or bool(arguments.find("be_unconditional", False)) or arguments.find("sos_token") is not None


def _within(first: TokenizerPlan) -> dict[str, Origin]:
    """The tokenizer's origins by their names in the whole file."""
    return {
        f"tokenizer.{name}": dataclasses.replace(each, keys=tuple(_FIRST + key for key in each.keys))
        for name, each in first.origins.items()
    }


def _origins(model: PriorModel, conditions: slice) -> dict[str, Origin]:
    table, n_rows, n_places = "transformer.tok_emb.weight", model.n_classes + 1, model.n_codes + 1

    def classes(table_VE: torch.Tensor) -> torch.Tensor:
        return with_zero_rows(table_VE[conditions], n_rows)  # there is no null class; its row is never used

    def places(table_1TE: torch.Tensor) -> torch.Tensor:
        return with_zero_rows(table_1TE[0], n_places)  # the last code is never an input

    return {
        "class_embedding.weight": Origin((table,), classes),
        "code_embedding.weight": Origin((table,)),
        "place_embedding.weight": Origin(("transformer.pos_emb",), places),
        **block_origins(len(model.blocks), _PARTS, lambda i, key: f"transformer.blocks.{i}.{key}"),
        "norm.weight": Origin(("transformer.ln_f.weight",)),
        "norm.bias": Origin(("transformer.ln_f.bias",)),
        "head.weight": Origin(("transformer.head.weight",)),
    }


def _notes(model: Pair) -> tuple[str, ...]:
    extra, n_classes = model.prior.config.extra_codes, model.prior.n_classes
    more = (f"{extra} indices are no image codes and are never sampled",) if extra else ()
    knows = f"{n_classes} classes and no null class: no guidance" if n_classes else "unconditional"
    return (knows, *more)
