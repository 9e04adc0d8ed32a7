"""Import plan of a tokenizer, and the configuration file of its own system (``--config``)."""

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
from foundation.errors import ConfigError, nearest
from foundation.images.config import Preprocess
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin, Plan, Rule
from stage1_tokenizer.canary import N_IMAGES, save_canary
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel

USUAL_SIZE = 256
OWN_PREPROCESS = "_tessera_preprocess"
"""argument in which ``export_to_diffusers`` stores the preprocess"""
_CANARY_CODES = 1024  # one code in a thousand may differ
LOSS = Rule(r"loss\.", "the training loss with its discriminator and perceptual network")
AVERAGES = Rule(r"model_ema\.", "averages of the weights")
_OTHER_SECTIONS = {"lossconfig", "data", "lightning", "optimizer", "scheduler_config", "tensors", "notes", "wrapper"}


@dataclass(frozen=True)
class UpstreamArguments:
    """Arguments at any depth of a JSON or YAML file, by the system's own names.

    Attributes:
        values: content of the file; empty without a file.
        source: path, for messages.
        defaults: arguments of a published model, used if the file lacks them.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def find(self, name: str, default: Any = None) -> Any:
        """Value of an argument; the one nearest the root if several exist.

        Raises:
            ConfigError: two different values at one depth.
        """
        level = [self.values]
        while level:
            found = [each[name] for each in level if name in each]
            if found:
                if any(each != found[0] for each in found):
                    raise self.error(name, "has several values", found=found)
                return found[0]
            inner = [(key, value) for each in level for key, value in each.items()]
            level = [value for key, value in inner if isinstance(value, Mapping) and key not in _OTHER_SECTIONS]
        return self.defaults.get(name, default)

    def require(self, name: str, of: str) -> Any:
        """Value of an argument that tensor shapes do not determine.

        Raises:
            ConfigError: neither the file nor a published model has it.
        """
        value = self.find(name)
        if value is None:
            what = f"is needed: shapes of {of} do not determine it, and no published model has these shapes"
            found = f"{self.source} without it" if self.source else "no --config"
            raise ConfigError(what, field=name, found=found, fix=f"give a --config FILE with {name}")
        return value

    def require_agreement(self, expected: Mapping[str, Any]) -> None:
        """Refuse the file of another model.

        Args:
            expected: argument -> value that the tensors' shapes imply.

        Raises:
            ConfigError: a value differs, or the file has none of these arguments.
        """
        known = 0
        for name, value in expected.items():
            found = UpstreamArguments(self.values, self.source).find(name)
            found = list(found) if isinstance(found, (list, tuple)) else found
            if found is not None and found != value:
                fix = "give the configuration of this checkpoint"
                raise self.error(name, "contradicts the tensors", found=found, expected=value, fix=fix)
            known += found is not None
        if self.values and not known:
            names, fix = ", ".join(list(expected)[:4]), nearest(next(iter(self.values)), expected)
            raise ConfigError("has no argument of this format", field=self.source, expected=f"e.g. {names}", fix=fix)

    def error(self, name: str, what: str, **known: Any) -> ConfigError:
        """An error about one argument of the file; ``known`` are found, expected and fix."""
        return ConfigError(what, field=f"{self.source}: {name}", **known)


def read_arguments(path: Path | None) -> UpstreamArguments:
    """Read a configuration file, JSON or YAML.

    Raises:
        ConfigError: missing, unreadable or not a mapping.
    """
    if path is None:
        return UpstreamArguments()
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what, fix = f"cannot be read: {str(error)[:300]}", "give the system's own JSON or YAML file"
        raise ConfigError(what, field=f"--config {path}", fix=fix) from error
    if not isinstance(values, dict):
        raise ConfigError("holds no arguments", field=f"--config {path}", found=type(values).__name__)
    return UpstreamArguments(values, str(path))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)  # YAML reads 1e-05 as text
    except json.JSONDecodeError:
        return yaml.safe_load(text)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of an import.

    Attributes:
        arguments: the system's own configuration.
        averaged: use averaged weights if the system evaluates with them.
        image_size: side of the tokenizer's images in pixels; None takes the system's.
        tokenizer: folder of the tokenizer whose codes a prior draws; None if unknown.
        class_names: text file with a name a line, in the order of the labels; None takes the numbers as names.
    """

    arguments: UpstreamArguments = field(default_factory=UpstreamArguments)
    averaged: bool = True
    image_size: int | None = None
    tokenizer: Path | None = None
    class_names: Path | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerPlan(Plan):
    """Import plan of a tokenizer."""

    model: TokenizerModel

    def save(self, model: nn.Module, folder: Path) -> None:
        """Fill an empty folder with the model and, if discrete, a canary."""
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
    """Build the model on the meta device, and the plan of its tensors."""
    with torch.device("meta"):
        model = TokenizerModel(config, preprocess)
    found = (f"{config.networks.type_name} networks, {config.quantizer.type_name}, stride {config.stride}",)
    return TokenizerPlan(checkpoint=checkpoint, model=model, origins=origins(model), rules=rules, notes=found + notes)


def image_settings(
    checkpoint: Checkpoint, options: Options, image_channels: int, stride: int
) -> tuple[Preprocess, tuple[str, ...]]:
    """Choose the preprocess of an imported tokenizer, with a note if the size is assumed.

    Args:
        checkpoint: for messages.
        options: may give a size, directly or in the system's configuration.
        image_channels: 3 or 1.
        stride: pixels per code.

    Raises:
        CheckpointError: another number of channels.
        ConfigError: a size that is no multiple of the stride.
    """
    if image_channels not in (1, 3):
        raise checkpoint.error("has images neither RGB nor grey", found=f"{image_channels} channels", expected="3 or 1")
    ours = options.arguments.find(OWN_PREPROCESS)
    if ours is not None and options.image_size is None:
        return from_dict(Preprocess, ours, OWN_PREPROCESS), ()
    sides = [options.arguments.find(name) for name in ("resolution", "sample_size")]
    configured = next((side for side in sides if isinstance(side, int)), None)
    size = options.image_size or configured or USUAL_SIZE
    name = "--image-size" if options.image_size else "resolution"
    sound = isinstance(size, int) and size > 0 and size % stride == 0
    require(sound, name, size, f"a multiple of the stride, {stride}", "give --image-size")
    assumed = options.image_size is None and configured is None
    notes = (f"size {size} x {size} assumed; --image-size sets it",) if assumed else ()
    return Preprocess(height=size, width=size, mode="RGB" if image_channels == 3 else "L"), notes


def canary_pictures(n_images: int, preprocess: Preprocess) -> np.ndarray:
    """(B, Y, X, C) uint8: repeatable smooth gradients, edges and noise, different in each image."""
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
