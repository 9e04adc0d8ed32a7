"""Importer of LlamaGen's class-conditional GPTs (Sun et al. 2024, arXiv:2406.06525)."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

import torch

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.config import from_dict, require
from foundation.errors import ConfigError, ContractError
from foundation.images.preprocess import Preprocess
from pipeline.generation.files import GeneratorIndex
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin, Rule
from pipeline.interop.priors import PriorPlan, block_origins, build_prior, class_names, with_zero_rows
from pipeline.interop.published import find_published
from pipeline.interop.structure import kernel, last_index
from pipeline.interop.tokenizer_plan import Options, PeerArguments
from pipeline.runs.recipe import tokenizer_folder
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.norm import EPSILON
from stage2_prior.prior import PriorModel

UNBOUND = "no tokenizer"
"""In place of a fingerprint: such a prior fits no tokenizer."""
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
    """Sizes from the shapes; heads and grid from the configuration, the table of published models or the tokenizer.

    Raises:
        CheckpointError: a tensor is missing.
        ConfigError: what shapes cannot tell is not said, or contradicts them.
        ContractError: the tokenizer has other codes than the prior.
    """
    n_codes, d_model = kernel(checkpoint, "tok_embeddings.weight")[:2]
    n_layers = 1 + last_index(checkpoint, _LAYER, _MAX_LAYERS)
    dropout = _number(options.arguments, "class_dropout_prob", _LABEL_DROPOUT)
    n_classes = kernel(checkpoint, _CLASSES)[0] - (dropout > 0)
    sizes = {"n_layers": n_layers, "d_model": d_model, "n_codes": n_codes, "n_classes": n_classes}
    published = find_published("llamagen_gpt", sizes)
    arguments = dataclasses.replace(options.arguments, defaults=published.says if published else {})
    n_heads = arguments.require("n_head", "a LlamaGen GPT")
    arguments.require_agreement({"dim": d_model, "n_layer": n_layers, "vocab_size": n_codes, "num_classes": n_classes,
                                 "cls_token_num": 1, "model_type": "c2i", "norm_eps": EPSILON, "n_head": n_heads,
                                 "block_size": options.arguments.find("block_size")})  # fmt: skip
    tokenizer = None if options.tokenizer is None else TokenizerModel.load(tokenizer_folder(options.tokenizer))
    grid = _Grid(checkpoint, options, arguments, None if tokenizer is None else tokenizer.spec)
    spec = grid.spec(n_codes).with_classes(class_names(options.class_names, n_classes))
    settings = {
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "d_ff": kernel(checkpoint, "layers.0.feed_forward.w1.weight")[0],
        "rope_base": float(_number(arguments, "rope_base", 10_000)),
        "class_rotation": "zero",
    }
    model = build_prior(settings, spec)
    notes = (f"has the shapes of {', '.join(published.files)}",) if published else ()
    return PriorPlan(
        checkpoint=checkpoint,
        model=model,
        origins=_origins(model),
        rules=(Rule(r"freqs_cis$", "a table of rotations, which is computed"),),
        notes=(f"{n_layers} layers, {model.config.n_heads} heads, width {d_model}", *notes, *grid.notes),
        index=GeneratorIndex(peer_sampling(arguments, spec.n_codes), dropout),
        tokenizer=None if tokenizer is None or options.tokenizer is None else (tokenizer, options.tokenizer),
    )


def peer_sampling(arguments: PeerArguments, n_codes: int) -> SamplingConfig:
    """How images are drawn, from LlamaGen's own arguments: cfg_scale, cfg_interval, temperature, top_k and top_p.

    A ``cfg_scale`` up to 1 means no guidance, a ``top_k`` of 0 no such filter. With a ``cfg_interval`` of k from 0 on,
    codes 0 to k + 1 are guided; below 0, all.
    """
    scale, interval = _number(arguments, "cfg_scale", 1.0), arguments.find("cfg_interval", -1)
    guided = interval + 2 if isinstance(interval, int) and interval >= 0 else n_codes
    return from_dict(SamplingConfig, {
        "guidance_scale": float(max(scale, 1.0)),
        "guidance_interval": (0.0, min(guided / n_codes, 1.0)),
        "temperature": float(_number(arguments, "temperature", 1.0)),
        "top_k": arguments.find("top_k") or None,
        "top_p": arguments.find("top_p"),
    }, "sampling")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The grid of codes, which no tensor tells."""

    checkpoint: Checkpoint
    options: Options
    arguments: PeerArguments
    tokenizer: CodeSpec | None

    def spec(self, n_codes: int) -> CodeSpec:
        """The specification of the codes, without classes: the tokenizer's, or one that fits no tokenizer."""
        side = math.isqrt(self._length)
        if self.tokenizer is None:
            pixels = side * self._stride
            level = CodeLevel(height=side, width=side, codebook_size=n_codes)
            return CodeSpec(levels=(level,), stride=self._stride, fingerprint=UNBOUND,
                            preprocess=Preprocess(height=pixels, width=pixels))  # fmt: skip
        found = [(*level.shape, level.codebook_size) for level in self.tokenizer.levels]
        if found != [(side, side, n_codes)]:
            raise ContractError("has other codes than the prior", field=f"--tokenizer {self.options.tokenizer}",
                                found=", ".join(_told(*each[:-1], n=each[-1]) for each in found),
                                expected=_told(side, side, n=n_codes),
                                fix="import the tokenizer that the prior was trained on, with --image_size "
                                    f"{side * self.tokenizer.stride}")  # fmt: skip
        return self.tokenizer

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the grid comes from, and what the prior can do with or without a tokenizer."""
        side, source = math.isqrt(self._length), self._said[1]
        bound = f"with the tokenizer in {self.options.tokenizer}: tessera sample opens the new folder"
        if self.tokenizer is None:
            bound = "bound to no tokenizer, so that it draws codes but no images: import again with --tokenizer FOLDER"
        return (f"grid of {side} x {side} codes, as {source} says", bound)

    @property
    def _length(self) -> int:
        length, source = self._said
        square = isinstance(length, int) and length > 0 and math.isqrt(length) ** 2 == length
        require(square, "block_size", length, f"a square number ({source} says otherwise)")
        return length

    @functools.cached_property
    def _said(self) -> tuple[int, str]:
        own, size = self.options.arguments.find("block_size"), self.options.image_size
        if size is not None:
            require(size > 0 and size % self._stride == 0, "--image_size", size, f"a multiple of {self._stride}")
            length = (size // self._stride) ** 2
            require(own in (None, length), "--image_size", size, f"a size that has {own} codes, as block_size says")
            return length, "--image_size"
        if own is not None:
            return own, "the configuration"
        names = [found for path in self.checkpoint.files if (found := _PUBLISHED_NAME.search(path.stem))]
        if names:
            return (int(names[0][1]) // _STRIDE) ** 2, f"the name {names[0][0]}"
        if "block_size" in self.arguments.defaults:
            return self.arguments.defaults["block_size"], "the table of published models"
        if self.tokenizer is not None:
            return self.tokenizer.n_codes, "the tokenizer"
        raise ConfigError("must be known: no shape tells the grid of codes", field="block_size",
                          found=f"no --config says it, and {self.checkpoint.source} is not a published name",
                          fix="give --image_size 256 or 384 (pixels), --tokenizer or --config")  # fmt: skip

    @property
    def _stride(self) -> int:
        if self.tokenizer is not None:
            return self.tokenizer.stride
        return int(_number(self.options.arguments, "downsample_size", _STRIDE))


def _told(*sides: int, n: int) -> str:
    return f"{' x '.join(map(str, sides))} codes of {n:,}"


def _number(arguments: PeerArguments, name: str, default: float) -> Any:
    value = arguments.find(name, default)
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    require(sound, name, value, "a number of at least 0")
    return value


def _origins(model: PriorModel) -> dict[str, Origin]:
    n_rows = model.n_classes + 1

    def classes(table_RE: torch.Tensor) -> torch.Tensor:
        return with_zero_rows(table_RE, n_rows)  # without a null class: it is never asked for

    return {
        "class_embedding.weight": Origin((_CLASSES,), classes),
        "code_embedding.weight": Origin(("tok_embeddings.weight",)),
        **block_origins(len(model.blocks), _PARTS, lambda i, key: f"layers.{i}.{key}"),
        "norm.weight": Origin(("norm.weight",)),
        "head.weight": Origin(("output.weight",)),
    }
