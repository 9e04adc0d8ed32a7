"""A generator as a command wants it."""

from __future__ import annotations

import torch

from foundation.hardware import usable_device
from pipeline.generation.generator import ImageGenerator
from pipeline.generation.options import Speed


def open_generator(run: str, device: str, speed: Speed = Speed()) -> ImageGenerator:
    """A run folder's generator, or that of a model repository on the hub.

    Raises:
        CheckpointError, ContractError: see ``ImageGenerator.from_pretrained``.
        ConfigError: this machine has no such device.
    """
    generator = ImageGenerator.from_pretrained(run).to(usable_device(device))
    if speed.precision == "bf16":
        generator.prior.to(torch.bfloat16)
    return generator.compile() if speed.compile else generator
