"""The plan of a tokenizer, and what its folder holds.

``--config FILE``: what a system's own configuration says about a checkpoint, by the system's own argument names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from foundation.config import from_dict, require
from foundation.errors import CheckpointError, ConfigError, nearest
from foundation.images.preprocess import Preprocess
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin, Rule
from stage1_tokenizer.canary import N_IMAGES, save_canary
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel

_OF_OTHER_THINGS = {"lossconfig", "data", "lightning", "optimizer", "scheduler_config", "tensors", "notes", "wrapper"}


@dataclass(frozen=True)
class PeerArguments:
    """Arguments in a JSON or YAML file, wherever in its tree they stand.

    Attributes:
        values: the file's tree; empty without a file.
        source: the file, for messages.
        defaults: what holds where the file says nothing: what is known of a published model.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def find(self, name: str, default: Any = None) -> Any:
        """The value of an argument; of those that stand at different depths, the one nearest the root.

        Raises:
            ConfigError: two values at one depth that differ.
        """
        level = [self.values]
        while level:
            found = [each[name] for each in level if name in each]
            if found:
                if any(each != found[0] for each in found):
                    raise ConfigError("is said twice, with different values", field=f"{self.source}: {name}",
                                      found=found)  # fmt: skip
                return found[0]
            level = [inner for each in level for key, inner in each.items()
                     if isinstance(inner, Mapping) and key not in _OF_OTHER_THINGS]  # fmt: skip
        return self.defaults.get(name, default)

    def require(self, name: str, of: str) -> Any:
        """The value of an argument that the tensors' shapes cannot tell.

        Raises:
            ConfigError: it is not said.
        """
        value = self.find(name)
        if value is None:
            lacking = f"{self.source} does not say it" if self.source else "no --config"
            raise ConfigError(f"must be known: the shapes of {of} cannot tell it, and no published model has them",
                              field=name, found=lacking, fix=f"give --config FILE that says {name}")  # fmt: skip
        return value

    def require_agreement(self, told: Mapping[str, Any]) -> None:
        """Refuse a file that belongs to another model.

        Args:
            told: argument -> what the tensors' shapes say it is.

        Raises:
            ConfigError: naming the argument and both values, or that the file has none of these arguments.
        """
        known = 0
        for name, value in told.items():
            found = PeerArguments(self.values, self.source).find(name)
            found = list(found) if isinstance(found, (list, tuple)) else found
            if found is not None and found != value:
                raise ConfigError("does not fit the tensors", field=f"{self.source}: {name}", found=found,
                                  expected=value, fix="give the configuration of this checkpoint")  # fmt: skip
            known += found is not None
        if self.values and not known:
            raise ConfigError("says nothing about this format's models", field=self.source,
                              expected=f"arguments such as {', '.join(list(told)[:4])}",
                              fix=nearest(next(iter(self.values)), told))  # fmt: skip


def read_arguments(path: Path | None) -> PeerArguments:
    """Read a configuration file, JSON or YAML.

    Raises:
        ConfigError: missing, unreadable or not a mapping.
    """
    if path is None:
        return PeerArguments()
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {str(error)[:300]}", field=f"--config {path}",
                          fix="give the system's own JSON or YAML file") from error  # fmt: skip
    if not isinstance(values, dict):
        raise ConfigError("holds no arguments", field=f"--config {path}", found=type(values).__name__)
    return PeerArguments(values, str(path))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)  # to YAML, 1e-05 would be a text
    except json.JSONDecodeError:
        return yaml.safe_load(text)


USUAL_SIZE = 256
OWN_PREPROCESS = "_tessera_preprocess"
"""argument under which our own export says how images become pixels"""
_CANARY_CODES = 1024  # so that one code in a thousand may differ
LOSS = Rule(r"loss\.", "the training loss with its discriminator and perceptual network")
AVERAGES = Rule(r"model_ema\.", "averages of the weights")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says beside the files.

    Attributes:
        arguments: the system's own configuration.
        averaged: take averaged weights where the system itself evaluates with them.
        image_size: side of the tokenizer's images in pixels; None takes the system's.
        tokenizer: a folder of ours with the tokenizer whose codes a prior draws; None for one that is not known.
        class_names: a text file with a name a line, in the order of the labels; None calls them by their numbers.
    """

    arguments: PeerArguments = field(default_factory=PeerArguments)
    averaged: bool = True
    image_size: int | None = None
    tokenizer: Path | None = None
    class_names: Path | None = None


@dataclass(frozen=True)
class TokenizerPlan:
    """See ``plan.Plan``.

    Attributes:
        checkpoint: the part of the file that it is made of.
        model: our tokenizer, without values.
        origins: what its tensors are made of.
        rules: what is left out.
        notes: what was found or assumed.
    """

    checkpoint: Checkpoint
    model: TokenizerModel
    origins: Mapping[str, Origin]
    rules: tuple[Rule, ...]
    notes: tuple[str, ...]

    def save(self, model: nn.Module, folder: Path) -> None:
        """Fill an empty folder with the model and, if it makes codes, a canary."""
        assert isinstance(model, TokenizerModel)
        model.save(folder)
        if model.is_discrete:
            n_codes = model.layout.n_codes
            n_images = min(N_IMAGES, max(4, math.ceil(_CANARY_CODES / n_codes)))
            save_canary(model, canary_pictures(n_images, model.preprocess), folder)


def plan_tokenizer(
    checkpoint: Checkpoint,
    config: TokenizerConfig,
    preprocess: Preprocess,
    origins: Callable[[TokenizerModel], dict[str, Origin]],
    rules: tuple[Rule, ...] = (),
    notes: tuple[str, ...] = (),
) -> TokenizerPlan:
    """Build the model without values and ask for the origins of its tensors."""
    with torch.device("meta"):
        model = TokenizerModel(config, preprocess)
    found = (f"{config.networks} networks, {config.quantizer.type_name}, stride {config.stride}",)
    return TokenizerPlan(checkpoint, model, origins(model), rules, found + notes)


def image_settings(
    checkpoint: Checkpoint, options: Options, image_channels: int, stride: int, said: int | None
) -> tuple[Preprocess, tuple[str, ...]]:
    """How images become pixels for an imported tokenizer, and a note if its size is assumed.

    Args:
        checkpoint: for messages.
        options: may name a size.
        image_channels: 3 or 1.
        stride: pixels per code.
        said: the side that the system's configuration or the table of published models says.

    Raises:
        CheckpointError: another number of channels.
        ConfigError: a size that is no multiple of the stride.
    """
    if image_channels not in (1, 3):
        raise CheckpointError("is of images that are neither colour nor grey", field=checkpoint.source,
                              found=f"{image_channels} channels", expected="3 or 1")  # fmt: skip
    ours = options.arguments.find(OWN_PREPROCESS)
    if ours is not None and options.image_size is None:
        return from_dict(Preprocess, ours, OWN_PREPROCESS), ()
    size = options.image_size or said or USUAL_SIZE
    name = "--image_size" if options.image_size else "resolution"
    sound = isinstance(size, int) and size > 0 and size % stride == 0
    require(sound, name, size, f"a multiple of the stride, {stride}", "give --image_size")
    assumed = options.image_size is None and said is None
    notes = (f"size {size} x {size} assumed, since nothing says it; --image_size sets it",) if assumed else ()
    return Preprocess(height=size, width=size, mode="RGB" if image_channels == 3 else "L"), notes


def said_size(arguments: PeerArguments, *names: str) -> int | None:
    """The side of the images that a configuration says, under the first of these names that it has."""
    values: list[Any] = [arguments.find(name) for name in names]
    return next((value for value in values if isinstance(value, int)), None)


def canary_pictures(n_images: int, preprocess: Preprocess) -> np.ndarray:
    """(B, Y, X, C) uint8: the same smooth gradients, edges and noise every time, different from image to image."""
    rng = np.random.default_rng(0)
    sides = (n_images, preprocess.height, preprocess.width)
    rows, columns = np.meshgrid(np.linspace(-1, 1, sides[1]), np.linspace(-1, 1, sides[2]), indexing="ij")
    pictures = np.empty((*sides, preprocess.n_channels))
    for picture in pictures:
        for channel in range(preprocess.n_channels):
            across, down, phase, edge = rng.uniform(-6, 6, 4)
            wave = np.sin(across * columns + down * rows + phase)
            picture[..., channel] = 0.7 * wave + 0.3 * np.sign(columns + edge / 6 * rows)
    noisy = 127.5 * (1 + pictures) + rng.normal(0, 8, pictures.shape)
    return noisy.clip(0, 255).round().astype(np.uint8)
