"""Trained models of a run folder, a model folder or the hub, on a device."""

from __future__ import annotations

from pathlib import Path

import torch

from foundation.hardware import usable_device
from foundation.paths import expand
from pipeline.generation.generator import ImageGenerator
from pipeline.generation.options import Speed
from pipeline.runs.recipe import tokenizer_folder
from stage1_tokenizer.tokenizer import TokenizerModel


def open_generator(run: str, device: str, speed: Speed = Speed()) -> ImageGenerator:
    """Open the generator of a run folder, or of a model repository on the hub.

    Raises:
        CheckpointError, ContractError: see ``ImageGenerator.from_pretrained``.
        ConfigError: this machine has no such device.
    """
    generator = ImageGenerator.from_pretrained(run).to(usable_device(device))
    if speed.precision == "bf16":
        generator.to(torch.bfloat16)
    return generator.compile() if speed.compile else generator


def open_tokenizer(run_or_folder: str | Path, device: str) -> TokenizerModel:
    """Open the tokenizer of a run folder, or a tokenizer folder itself.

    Raises:
        CheckpointError: no tokenizer there, or a damaged one.
        ConfigError: this machine has no such device.
    """
    return TokenizerModel.load(tokenizer_folder(Path(expand(run_or_folder, "run")))).to(usable_device(device))
