"""Importer of LlamaGen's class-conditional GPTs (Sun et al. 2024, arXiv:2406.06525)."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import torch

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.config import from_dict, require
from foundation.errors import ConfigError, ContractError
from foundation.images.config import Preprocess
from pipeline.generation.files import GeneratorIndex
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin, Rule
from pipeline.interop.priors import PriorPlan, block_origins, build_prior, class_names, with_zero_rows
from pipeline.interop.published import find_published
from pipeline.interop.structure import kernel, last_index
from pipeline.interop.tokenizer_plan import Options, UpstreamArguments
from pipeline.runs.recipe import tokenizer_folder
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.cpu_kernels import EPSILON
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel

UNBOUND = "no tokenizer"
"""instead of a fingerprint: fits no tokenizer"""
_STRIDE = 16
_LABEL_DROPOUT = 0.1
_LAYER = re.compile(r"layers\.(\d+)\.")
_MAX_LAYERS = 256
_PUBLISHED_NAME = re.compile(r"c2i_(?:B|L|XL|XXL|3B)_(256|384)")
_CLASSES = "cls_embedding.embedding_table.weight"
_PARTS = {
    "attention_norm.weight": ("attention_norm.weight",),
    "attention.qkv.weight": ("attention.wqkv.weight",),
    "attention.out.weight": ("attention.wo.weight",),
    "feed_forward_norm.weight": ("ffn_norm.weight",),
    "feed_forward.gate_up.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
    "feed_forward.down.weight": ("feed_forward.w2.weight",),
}


def plan_llamagen_gpt(checkpoint: Checkpoint, options: Options) -> PriorPlan:
    """Plan sizes from shapes, heads and grid from the configuration, published models or the tokenizer.

    Raises:
        CheckpointError: a tensor is missing.
        ConfigError: an argument is missing or contradicts the tensors.
        ContractError: the tokenizer has other codes than the prior.
    """
    n_codes, d_model = kernel(checkpoint, "tok_embeddings.weight")[:2]
    n_layers = 1 + last_index(checkpoint, _LAYER, _MAX_LAYERS)
    dropout = _number(options.arguments, "class_dropout_prob", _LABEL_DROPOUT)
    n_classes = kernel(checkpoint, _CLASSES)[0] - (dropout > 0)
    sizes = {"n_layers": n_layers, "d_model": d_model, "n_codes": n_codes, "n_classes": n_classes}
    published = find_published("llamagen_gpt", sizes)
    arguments = dataclasses.replace(options.arguments, defaults=published.arguments)
    n_heads = arguments.require("n_head", "a LlamaGen GPT")
    expected = {"dim": d_model, "n_layer": n_layers, "n_head": n_heads, "vocab_size": n_codes, "num_classes": n_classes}
    expected |= {"cls_token_num": 1, "model_type": "c2i", "norm_eps": EPSILON}
    arguments.require_agreement({**expected, "block_size": options.arguments.find("block_size")})
    tokenizer = None if options.tokenizer is None else TokenizerModel.load(tokenizer_folder(options.tokenizer))
    own_spec = None if tokenizer is None else tokenizer.spec
    side, stride, source = _find_grid(checkpoint, options, arguments, own_spec)
    spec = _spec(side, stride, n_codes, options, own_spec).with_classes(class_names(options.class_names, n_classes))
    settings = {
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "d_ff": kernel(checkpoint, "layers.0.feed_forward.w1.weight")[0],
        "rope_base": float(_number(arguments, "rope_base", 10_000)),
        "class_rotation": "zero",
    }
    model = build_prior(settings, spec)
    bound = f"with the tokenizer in {options.tokenizer}: tessera sample opens the new folder"
    if tokenizer is None:
        bound = "bound to no tokenizer: samples codes but no images; import again with --tokenizer FOLDER"
    notes = (*published.notes, f"grid of {side} x {side} codes, from {source}", bound)
    return PriorPlan(
        checkpoint=checkpoint,
        model=model,
        origins=_origins(model),
        rules=(Rule(r"freqs_cis$", "a computed table of rotations"),),
        notes=(f"{n_layers} layers, {model.config.n_heads} heads, width {d_model}", *notes),
        index=GeneratorIndex(upstream_sampling(arguments, spec.n_codes), dropout),
        tokenizer=None if tokenizer is None or options.tokenizer is None else (tokenizer, options.tokenizer),
    )


def upstream_sampling(arguments: UpstreamArguments, n_codes: int) -> SamplingConfig:
    """Translate LlamaGen's sampling arguments: cfg_scale, cfg_interval, temperature, top_k and top_p.

    ``cfg_scale`` <= 1: no guidance. ``top_k`` = 0: no filter. ``cfg_interval`` k >= 0: guidance of codes 0 to k + 1;
    k < 0: of all codes.
    """
    scale, interval = _number(arguments, "cfg_scale", 1.0), arguments.find("cfg_interval", -1)
    guided = interval + 2 if isinstance(interval, int) and interval >= 0 else n_codes
    fields = {
        "guidance_scale": float(max(scale, 1.0)),
        "guidance_interval": (0.0, min(guided / n_codes, 1.0)),
        "temperature": float(_number(arguments, "temperature", 1.0)),
        "top_k": arguments.find("top_k") or None,
        "top_p": arguments.find("top_p"),
    }
    return from_dict(SamplingConfig, fields, "sampling")


def _find_grid(
    checkpoint: Checkpoint, options: Options, arguments: UpstreamArguments, tokenizer: CodeSpec | None
) -> tuple[int, int, str]:
    """Side of the code grid, pixels per code, and source of the side; no tensor determines them."""
    own, size = options.arguments.find("block_size"), options.image_size
    stride = tokenizer.stride if tokenizer else int(_number(options.arguments, "downsample_size", _STRIDE))
    names = [found for path in checkpoint.files if (found := _PUBLISHED_NAME.search(path.stem))]
    if size is not None:
        require(size > 0 and size % stride == 0, "--image-size", size, f"a multiple of {stride}")
        length, source = (size // stride) ** 2, "--image-size"
        require(own in (None, length), "--image-size", size, f"a size of {own} codes, the block_size")
    elif own is not None:
        length, source = own, "the configuration"
    elif names:
        length, source = (int(names[0][1]) // _STRIDE) ** 2, f"the name {names[0][0]}"
    elif "block_size" in arguments.defaults:
        length, source = arguments.defaults["block_size"], "the table of published models"
    elif tokenizer is not None:
        length, source = tokenizer.n_codes, "the tokenizer"
    else:
        unknown = f"neither --config nor a published name in {checkpoint.source}"
        fix = "give --image-size 256 or 384 (pixels), --tokenizer or --config"
        raise ConfigError("is needed: shapes lack the code grid", field="block_size", found=unknown, fix=fix)
    square = isinstance(length, int) and length > 0 and math.isqrt(length) ** 2 == length
    require(square, "block_size", length, f"a square number, from {source}")
    return math.isqrt(length), stride, source


def _spec(side: int, stride: int, n_codes: int, options: Options, tokenizer: CodeSpec | None) -> CodeSpec:
    """Specification of the codes without classes: the tokenizer's, or one that fits no tokenizer."""
    if tokenizer is None:
        preprocess = Preprocess(height=side * stride, width=side * stride)
        levels = (CodeLevel(height=side, width=side, codebook_size=n_codes),)
        return CodeSpec(levels=levels, stride=stride, fingerprint=UNBOUND, preprocess=preprocess)
    if [(*level.shape, level.codebook_size) for level in tokenizer.levels] != [(side, side, n_codes)]:
        field, expected = f"--tokenizer {options.tokenizer}", _described(side, side, n=n_codes)
        found = ", ".join(_described(*level.shape, n=max(level.sizes)) for level in tokenizer.levels)
        fix = f"import the prior's own tokenizer, with --image-size {side * stride}"
        raise ContractError("has other codes than the prior", field=field, found=found, expected=expected, fix=fix)
    return tokenizer


def _described(*sides: int, n: int) -> str:
    return f"{' x '.join(map(str, sides))} codes of {n:,}"


def _number(arguments: UpstreamArguments, name: str, default: float) -> Any:
    value = arguments.find(name, default)
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    require(sound, name, value, "a number of at least 0")
    return value


def _origins(model: PriorModel) -> dict[str, Origin]:
    n_rows = model.n_classes + 1

    def classes(table_RE: torch.Tensor) -> torch.Tensor:
        return with_zero_rows(table_RE, n_rows)  # a null class that the file lacks is never used

    return {
        "class_embedding.weight": Origin((_CLASSES,), classes),
        "code_embedding.weight": Origin(("tok_embeddings.weight",)),
        **block_origins(len(model.blocks), _PARTS, lambda i, key: f"layers.{i}.{key}"),
        "norm.weight": Origin(("norm.weight",)),
        "head.weight": Origin(("output.weight",)),
    }
