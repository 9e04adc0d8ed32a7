"""Importer of taming's Net2NetTransformer (Esser et al. 2021, arXiv:2012.09841): tokenizer and prior in one file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import torch

from foundation.config import require
from foundation.errors import CheckpointError, ConfigError
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin, Rule
from pipeline.interop.priors import (
    GeneratorPlan,
    Pair,
    block_origins,
    build_prior,
    class_names,
    drawn_plainly,
    with_zero_rows,
)
from pipeline.interop.structure import kernel, last_index
from pipeline.interop.tokenizer_plan import Options, PeerArguments, TokenizerPlan
from pipeline.interop.vqgan_family import plan_taming
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
    """The class-conditional and the unconditional one, with the tokenizer that lies in the same file.

    Raises:
        CheckpointError: a tensor is missing, the condition is an image, or there are fewer places than codes.
        ConfigError: what shapes cannot tell is not said, or contradicts them.
    """
    _require_no_image(checkpoint)
    inner = checkpoint.below(_FIRST, "")
    first = plan_taming(dataclasses.replace(inner, beside={}), options)
    vocab_size, d_model = kernel(checkpoint, "transformer.tok_emb.weight")[:2]
    length = kernel(checkpoint, "transformer.pos_emb")[1]
    n_layers, layout = 1 + last_index(checkpoint, _LAYER, _MAX_LAYERS), first.model.layout
    n_heads = options.arguments.require("n_head", "a Net2NetTransformer")
    options.arguments.require_agreement({"vocab_size": vocab_size, "block_size": length, "n_layer": n_layers,
                                         "n_embd": d_model, "n_unmasked": 0, "n_head": n_heads})  # fmt: skip
    if not layout.codebook_size <= vocab_size or layout.n_codes > length:
        raise CheckpointError("has a transformer that is too small for its tokenizer's codes", field=checkpoint.source,
                              found=f"{vocab_size} indices at {length} places",
                              expected=f"{layout.codebook_size} at {layout.n_codes}",
                              fix="give --image_size, if the images are smaller")  # fmt: skip
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
            Rule(re.escape(_CONDITION), "names the condition, and has no part in drawing codes"),
        ),
        notes=(f"{n_layers} layers, {model.prior.config.n_heads} heads, width {d_model}", *_notes(model), *first.notes),
        index=drawn_plainly(label_dropout=0.0),
    )


def _require_no_image(checkpoint: Checkpoint) -> None:
    key = next((key for key in checkpoint.tensors if re.match(r"cond_stage_model\.(encoder|quantize)\.", key)), None)
    if key is not None:
        raise CheckpointError("is conditioned on images, which no prior here is", field=checkpoint.source, found=key,
                              expected="a prior of classes, or of images alone",
                              fix="its tokenizer can be imported from the file that it was trained from")  # fmt: skip


def _condition(options: Options, vocab_size: int) -> tuple[slice, tuple[str, ...]]:
    """Rows of the table that stand for conditions, and names of the classes; none without a class.

    Raises:
        ConfigError: nothing says what the condition is, or it is neither a class nor nothing.
    """
    arguments = options.arguments
    stage = arguments.find("cond_stage_config")
    if isinstance(stage, Mapping) and str(stage.get("target")).endswith("CoordStage"):
        raise ConfigError("is conditioned on coordinates, which no prior here is", found=stage["target"],
                          field=f"{arguments.source}: cond_stage_config", expected="classes, or none")  # fmt: skip
    if _is_unconditional(arguments):
        token = arguments.find("sos_token", 0)
        require(isinstance(token, int) and 0 <= token < vocab_size, "sos_token", token, f"0..{vocab_size - 1}")
        if options.class_names is not None:
            raise ConfigError("means nothing for a prior without classes", field="--class_names",
                              found=str(options.class_names), fix="leave it out")  # fmt: skip
        return slice(token, token + 1), ()
    n_classes = arguments.require("n_classes", "a Net2NetTransformer (an unconditional one says sos_token)")
    require(isinstance(n_classes, int) and 0 < n_classes <= vocab_size, "n_classes", n_classes, f"1..{vocab_size}")
    return slice(0, n_classes), class_names(options.class_names, n_classes)


def _is_unconditional(arguments: PeerArguments) -> bool:
    if arguments.find("n_classes") is not None:
        return False
    none = arguments.find("cond_stage_config") == "__is_unconditional__"
    return none or bool(arguments.find("be_unconditional", False)) or arguments.find("sos_token") is not None


def _within(first: TokenizerPlan) -> dict[str, Origin]:
    """The tokenizer's origins by the names that they have in the whole file."""
    return {
        f"tokenizer.{name}": dataclasses.replace(each, keys=tuple(_FIRST + key for key in each.keys))
        for name, each in first.origins.items()
    }


def _origins(model: PriorModel, conditions: slice) -> dict[str, Origin]:
    table, n_rows, n_places = "transformer.tok_emb.weight", model.n_classes + 1, model.n_codes + 1

    def classes(table_VE: torch.Tensor) -> torch.Tensor:
        return with_zero_rows(table_VE[conditions], n_rows)  # classes have no null class: it is never asked for

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
    more = (f"{extra} indices have no image; they are never drawn for one",) if extra else ()
    knows = f"{n_classes} classes and no null class: no guidance" if n_classes else "unconditional"
    return (knows, *more)
