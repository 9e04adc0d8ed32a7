"""Precision ``auto`` of a recipe: resolved once, by the sizes of its models on the device, and kept in the run."""

from __future__ import annotations

import os
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foundation.config_fields import replaced
from foundation.training.precision import (
    TYPICAL,
    VARIABLE,
    Convolution,
    Operation,
    Product,
    measure_precisions,
    settled,
)
from pipeline.runs.recipe import Recipe

if TYPE_CHECKING:
    from stage1_tokenizer.config import TokenizerConfig
    from stage2_prior.config import PriorConfig

TOKENIZER, PERCEPTUAL, PRIOR = (
    "tokenizer.training.precision",
    "tokenizer.training.perceptual.precision",
    "prior.training.precision",
)
_MOST_KINDS = 3
_VGG16 = ((3, 64, 1), (64, 64, 1), (64, 128, 2), (128, 256, 4))
"""channels, and what the sides are divided by, of convolutions that take most of the time in its first blocks"""


def settle_precision(recipe: Recipe, device: torch.device) -> tuple[Recipe, list[str]]:
    """Replace each ``auto`` by the faster precision on the device; float32 where a stage is not trained.

    Returns:
        the recipe; and a sentence for each choice, and for each explicit bf16 that is slower here.

    Raises:
        ConfigError: see ``foundation.training.precision.settled``.
    """
    chosen: dict[str, str] = dict.fromkeys((TOKENIZER, PERCEPTUAL, PRIOR), "float32")
    said = []
    for name, operations in _operations(recipe).items():
        asked, stage = attrgetter(name)(recipe), name.removesuffix(".precision").replace(".training", "")
        if asked == "bf16" and measure_precisions(operations, str(device)).faster == "float32":
            slower = measure_precisions(operations, str(device)).text()
            said.append(f"{stage}: bf16, as the recipe says; {slower}, and --{name} auto would take float32")
        if asked == "auto":
            chosen[name] = settled(asked, device, operations)
            is_set = os.environ.get(VARIABLE, "auto") != "auto"
            why = f"{VARIABLE} is set" if is_set else measure_precisions(operations, str(device)).text()
            said.append(f"{stage}: {chosen[name]} ({why})")
    is_open = {name: value for name, value in chosen.items() if attrgetter(name)(recipe) == "auto"}
    return replaced(recipe, is_open), said


def adopt_precision(recipe: Recipe, saved: Recipe) -> Recipe:
    """Replace each ``auto`` by what the run that exists has chosen."""
    names = (TOKENIZER, PERCEPTUAL, PRIOR)
    return replaced(recipe, {name: attrgetter(name)(saved) for name in names if attrgetter(name)(recipe) == "auto"})


def _operations(recipe: Recipe) -> dict[str, tuple[Operation, ...]]:
    """What each stage that the recipe trains mostly computes, by the field of its precision."""
    stage, preprocess = recipe.tokenizer, recipe.data.preprocess
    found: dict[str, tuple[Operation, ...]] = {}
    if recipe.codes is None and stage.pretrained is None:
        size = (preprocess.n_channels, preprocess.height, preprocess.width)
        found[TOKENIZER] = tokenizer_operations(stage.model, size)
        if stage.training.perceptual.weight > 0:
            height, width = preprocess.height, preprocess.width
            blocks = ((one, other, max(1, height // n), max(1, width // n)) for one, other, n in _VGG16)
            found[PERCEPTUAL] = tuple(Convolution(one, other, 3, y, x) for one, other, y, x in blocks)
    found[PRIOR] = prior_operations(recipe.prior.model, recipe.prior.training.fit.batch_size)
    return found


def prior_operations(config: PriorConfig, batch_size: int) -> tuple[Operation, ...]:
    """Products of a block, on the codes of a batch."""
    rows, width = 64 * batch_size, config.shape.d_model
    return Product(rows, width, 3 * width), Product(rows, width, config.feed_forward_width)


def tokenizer_operations(config: TokenizerConfig, size_CYX: tuple[int, int, int]) -> tuple[Operation, ...]:
    """The convolutions and products of encoder and decoder with the largest share of their FLOPs, for one image."""
    channels, height, width = size_CYX
    side = config.stride
    with torch.device("meta"), torch.no_grad(), _Counted() as watch:
        try:
            config.networks.build_encoder(channels, config.encoder_channels)(torch.empty(1, channels, height, width))
            latents = torch.empty(1, config.latent_channels, height // side, width // side)
            config.networks.build_decoder(config.latent_channels, channels)(latents)
        except (NotImplementedError, RuntimeError):  # networks of a plugin that need real tensors
            return TYPICAL
    return tuple(each for each, _ in watch.flops.most_common(_MOST_KINDS)) or TYPICAL


class _Counted(TorchDispatchMode):
    """Adds up the FLOPs of each kind of convolution and product."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[Operation] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            weight, transposed = args[1], args[6]
            one, other = (0, 1) if transposed else (1, 0)
            kind: Operation = Convolution(weight.shape[one], weight.shape[other], weight.shape[2], *result.shape[2:])
            self.flops[kind] += int(kind.flops)
        elif func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            rows_RK, weight_KN = args[-2:]
            kind = Product(rows_RK.shape[0], rows_RK.shape[1], weight_KN.shape[1])
            self.flops[kind] += int(kind.flops)
        return result
