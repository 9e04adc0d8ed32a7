"""Interface of the terms of a tokenizer's loss that a recipe lists beyond pixels, LPIPS and the adversary.

A term is a mean over images: a step in micro-batches calls it for some of them after the other and adds the values up,
each times its share of the batch. What belongs to a term and is trained is trained beside the tokenizer and is no part
of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from stage1_tokenizer.config import TokenizerTraining
from stage1_tokenizer.terms.config import TermConfig
from stage1_tokenizer.tokenizer import TokenizerModel

if TYPE_CHECKING:
    from accelerate import Accelerator

Metrics = dict[str, torch.Tensor | float]


@dataclass(frozen=True)
class TermContext:
    """What a term is built for.

    Attributes:
        model: the tokenizer; not yet on the device.
        training: how it is trained.
        accelerator: devices and processes.
        seed: of all that the term draws.
    """

    model: TokenizerModel
    training: TokenizerTraining
    accelerator: Accelerator
    seed: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the finest grid of codes."""
        preprocess, stride = self.model.preprocess, self.model.config.stride
        return preprocess.height // stride, preprocess.width // stride


@dataclass(frozen=True)
class Seen:
    """What a term sees of some images in a training step.

    Attributes:
        images_BCYX: in [-1, 1].
        reconstructions_BCYX: float32, with a graph, not clamped.
        latents_BCHW: before quantization, float32, with a graph unless the encoder is frozen; of the finest grid.
        inputs_BCHW: what the decoder gets: quantized latents after the projection, with a graph.
        codes: of all grids, as the tokenizer encodes.
        step: optimizer step, from 0.
        decode: the decoder as the step computes it, (B, C, H, W) inputs of any grid => images, float32.
    """

    images_BCYX: torch.Tensor
    reconstructions_BCYX: torch.Tensor
    latents_BCHW: torch.Tensor
    inputs_BCHW: torch.Tensor
    codes: torch.Tensor
    step: int
    decode: Callable[[torch.Tensor], torch.Tensor]


class Term:
    """Base of all terms; a subclass implements ``__call__``.

    Attributes:
        config: its settings.
        judges_reconstructions: whether it is a distance of reconstructions from images and nothing else; the
            adversary's adaptive weight counts such a term as part of the reconstruction loss.
        judges_coding: whether it acts on encoder and codebook alone; then it is left out once they are frozen.
        trained: what is trained beside the tokenizer, built with the weights that the seed gives; None for nothing.
        frozen: networks that stay as they are, by name; they are on the device and in no checkpoint.
    """

    judges_reconstructions: bool = False
    judges_coding: bool = False

    def __init__(self, config: TermConfig, context: TermContext) -> None:
        self.config = config
        self.trained: nn.Module | None = None
        self.frozen: dict[str, nn.Module] = {}

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, Metrics]:
        """The term before its weight, a scalar: a mean over these images; and scalars to log, means too."""
        raise NotImplementedError
