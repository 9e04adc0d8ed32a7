"""Recipe: one YAML file that describes an experiment, from images to samples; read without torch.

A recipe may extend others, and may name a finished tokenizer as its stage 1.
"""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from foundation.codes.config import OwnCodes
from foundation.config import differences, from_dict, require, to_dict
from foundation.config_fields import added_later, override, path_fields, without_defaults
from foundation.errors import ContractError
from foundation.hardware import TokenAccess
from foundation.images.config import DataConfig, Preprocess
from foundation.paths import PathText, absolute, relative_to
from foundation.storage import durable
from foundation.storage.names import is_portable
from foundation.training.config import TrackerName
from foundation.yaml_text import write_value
from pipeline.encoding.plan import EncodeConfig
from pipeline.runs.duration import Budget
from pipeline.runs.explicit import require_agreement, require_effect
from pipeline.runs.named_models import model_folder, with_named_models
from pipeline.runs.recipe_files import chosen_since, read_recipe
from stage1_tokenizer.config import TokenizerConfig, TokenizerTraining
from stage2_prior.config import LoRAConfig, PriorConfig, PriorTraining
from stage2_prior.decoding.sampling import SamplingConfig

_CADENCE = {
    "cache_mib",
    "remote_cache_gib",
    "shuffle_window",  # what it amounts to is in the identity, see ImageSet.order_settings
    "streaming",
    "max_failed_share",
    "evaluate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "evaluate_images",
    "evaluate_at_start",
    "preview_images",
    "evaluate_rfid",
    "micro_batch_size",
    "checkpoint_blocks",
    "compile",
}
_PLACES = {"path", "validation_path", "labels", "validation_labels"}
RELOCATABLE = {
    *(f"data.source.{name}" for name in _PLACES),
    *("tokenizer.pretrained", "tokenizer.start_from", "prior.start_from"),
}
"""fields whose path may change without making another recipe"""


@dataclass(frozen=True, kw_only=True)
class TokenizerStage:
    """Stage 1: the tokenizer."""

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    """architecture"""
    training: TokenizerTraining = field(default_factory=TokenizerTraining)
    """how it is trained"""
    pretrained: PathText | None = added_later(None)
    """folder of a finished tokenizer, imported or of a run, to use instead of training one; model and data.preprocess
    become that tokenizer's"""
    start_from: PathText | None = added_later(None)
    """folder of a tokenizer, imported or of a run, whose weights training starts from; model becomes that tokenizer's,
    and data.preprocess too where it is not given"""
    freeze: tuple[Literal["encoder", "codebook", "decoder"], ...] = added_later(())
    """parts that keep the weights of start_from; with encoder and codebook, codes stay the same to the bit"""

    def __post_init__(self) -> None:
        require(
            self.pretrained is None or self.start_from is None,
            "start_from",
            self.start_from,
            "null beside pretrained, which is not trained",
            "leave out one of the two",
        )
        fix = "name the folder of the weights to keep, or leave freeze out"
        require(not self.freeze or self.start_from is not None, "freeze", self.freeze, "[] without start_from", fix)
        require(len(set(self.freeze)) < 3, "freeze", self.freeze, "at most two parts: nothing is left to train")
        later, expected = self.training.freeze_coding_after, "null with freeze, which holds from the first step"
        require(not self.freeze or later is None, "training.freeze_coding_after", later, expected)
        rival = self.training.adversarial.weight
        fix = "set tokenizer.training.adversarial.weight to 0, or train the decoder"
        require(
            "decoder" not in self.freeze or rival == 0, "freeze", self.freeze, "no decoder with a discriminator", fix
        )


@dataclass(frozen=True, kw_only=True)
class PriorStage:
    """Stage 2: the prior."""

    model: PriorConfig = field(default_factory=PriorConfig)
    """architecture"""
    training: PriorTraining = field(default_factory=PriorTraining)
    """how it is trained"""
    start_from: PathText | None = added_later(None)
    """folder of a prior, imported or of a run, whose weights training starts from; model becomes that prior's where it
    is not given; what does not fit the codes or their classes is new, and named"""
    lora: LoRAConfig | None = added_later(None)  # a field, not a shared value
    """low-rank adapters: only they are trained, and the class table where classes are new; null trains all weights"""

    def __post_init__(self) -> None:
        fix = "name the prior that the adapters are for, or leave lora out"
        require(self.lora is None or self.start_from is not None, "lora", self.lora, "null without start_from", fix)
        matrices = self.training.optim.matrices
        fits = self.lora is None or matrices == "adamw"
        require(fits, "training.optim.matrices", matrices, "adamw for adapters, which have few weights")


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """The sample grid at the end of a run."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """how codes are sampled; also the generator's defaults"""
    images_per_class: int = 10
    """images of each class in the grid"""
    max_classes: int = 10
    """classes shown, evenly spread over all"""
    unconditional_images: int = 64
    """images in the grid when there are no classes"""

    def __post_init__(self) -> None:
        for name in ("images_per_class", "max_classes", "unconditional_images"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive whole number")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it runs; nothing here changes what a run computes on a CPU."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one, and the run says which"""
    tokens: TokenAccess = field(default_factory=TokenAccess)
    """how token datasets are read: in memory, or from the disk where they are larger"""
    workers: int | None = added_later(None)
    """processes that read and decode the images of each training process; 0 reads in threads; null takes one for each
    core that a training process may use, and 0 where pixels are in memory or there is one core"""
    track: TrackerName | None = added_later(None)
    """show metrics and pictures of the training in tensorboard, wandb or trackio too; null shows them nowhere else"""

    def __post_init__(self) -> None:
        sound = isinstance(self.device, str) and re.fullmatch(r"[a-z]+(:[0-9]+)?", self.device) is not None
        require(sound, "device", self.device, "auto, cpu, cuda, cuda:1, mps ...")
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "0 or more processes, or null")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment, from images to samples."""

    name: str
    """short name; the run folder is runs/<name> unless --out says otherwise"""
    description: str = ""
    """one sentence for readers and the report"""
    seed: int = 0
    """of everything random: initial weights, data order, augmentation, dropout, samples"""
    data: DataConfig = field(default_factory=DataConfig)
    """which images"""
    tokenizer: TokenizerStage = field(default_factory=TokenizerStage)
    """stage 1"""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """export of the codes"""
    codes: OwnCodes | None = added_later(None)  # a field, not a shared value
    """codes of one's own for the prior, instead of images and a tokenizer that the run trains; null encodes images"""
    prior: PriorStage = field(default_factory=PriorStage)
    """stage 2"""
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    """images sampled at the end"""
    machine: Machine = field(default_factory=Machine)
    """where it runs"""
    budget: str | None = added_later(None)
    """time for the whole run on the machine that begins it, e.g. 20m, 2h or 10m+30m for the two stages: precision,
    steps and what open names are chosen to fit and written into the run's recipe; null takes the recipe as it is"""
    open: tuple[Literal["resolution", "tokenizer", "prior"], ...] = added_later(())
    """sizes that a budget chooses too, by the number of images and the compute, unless they are given"""

    def __post_init__(self) -> None:
        if self.budget is not None:
            Budget.parse(self.budget)
        sound = self.name.strip() and is_portable(self.name) and not self.name.startswith(".")
        expected = "a short name that a folder can have on Linux, macOS and Windows"
        require(bool(sound), "name", repr(self.name), expected)
        dropout, scale = self.prior.training.label_dropout, self.samples.sampling.guidance_scale
        trained = dropout > 0 or scale == 1.0 or not self.prior.model.class_conditional
        fix = "guidance compares with the null class, which only label dropout trains"
        require(trained, "prior.training.label_dropout", dropout, f"above 0 for a guidance_scale of {scale}", fix)


def load_recipe(recipe: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply overrides.

    A recipe that says ``extends: NAME``, or a list of names, is laid over those: built-in recipes, YAML files, or files
    beside it without their ending.

    Args:
        recipe: path of a YAML file, or the name of a built-in recipe such as ``digits``.
        overrides: dotted name -> value, e.g. ``{"prior.training.fit.steps": 100}``.

    Raises:
        ConfigError: no such file or built-in recipe, unreadable YAML, an unknown key, a wrong value; an override that
            cannot act, or settings that contradict a model that the recipe names.
    """
    found = read_recipe(recipe)
    values, given = found.values, dict[str, Any]()
    for dotted, value in (overrides or {}).items():
        override(values, dotted, value)
        override(given, dotted, value)
    chosen = chosen_since(found.chosen, given)
    full = with_named_models(values, chosen)
    resolved = from_dict(Recipe, full)
    require_agreement(resolved, full, chosen)
    require_effect(resolved, given, found.own)
    return resolved


def recipe_text(recipe: Recipe, folder: Path | None = None) -> str:
    """The resolved recipe as YAML, with the versions of what computes.

    Args:
        recipe: the recipe; its paths are written from the root.
        folder: where the file will stand; it then also says where the paths are, seen from there.
    """
    values = to_dict(recipe)
    seen: dict[str, str] = {}
    for name, path, mark in path_fields(recipe):
        override(values, name, absolute(path, mark))
        relative = None if folder is None else relative_to(absolute(path, mark), folder.absolute())
        seen |= {} if relative is None else {name: relative}
    return write_value({**values, "paths": seen, "versions": versions()})


def versions() -> dict[str, str]:
    """Versions that a result can depend on."""
    names = ("tessera-images", "torch", "accelerate", "datasets", "numpy", "pillow", "pyarrow")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def determining(part: Any) -> Any:
    """A part of a recipe as plain values, without the fields that change nothing about what is computed."""
    if isinstance(part, dict):
        return {name: determining(value) for name, value in part.items() if name not in _CADENCE}
    if isinstance(part, DataConfig):  # where the images are does not matter, but which they are
        values = without_defaults(part)
        source = {name: value for name, value in values["source"].items() if name not in _PLACES}
        return determining({**values, "source": source})
    return determining(without_defaults(part)) if dataclasses.is_dataclass(part) else part


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def adopt_tokenizer(folder: Path, target: Path, config: TokenizerConfig, preprocess: Preprocess) -> None:
    """Check a finished tokenizer and copy it into a run.

    Args:
        folder: a tokenizer folder, or a run folder.
        target: must not exist.
        config, preprocess: the recipe's.

    Raises:
        CheckpointError: missing or damaged.
        ContractError: settings differ from the recipe's, or codes from those stored with the tokenizer.
    """
    from stage1_tokenizer.canary import check_canary
    from stage1_tokenizer.tokenizer import TokenizerModel

    source = tokenizer_folder(folder)
    tokenizer = TokenizerModel.load(source)
    found = {"model": tokenizer.config, "preprocess": tokenizer.preprocess}
    rows = differences({"model": config, "preprocess": preprocess}, found)
    if rows:
        name, expected, value = rows[0]
        what, fix = f"the tokenizer differs from the recipe in {name}", "start a new run in another folder"
        raise ContractError(what, field=str(source), found=value, expected=expected, fix=fix)
    if tokenizer.is_discrete:
        check_canary(tokenizer, source)
    durable.publish_folder(target, lambda temporary: durable.copy_files(source, temporary))


def tokenizer_folder(folder: Path) -> Path:
    """Path of the tokenizer in a run folder, or the folder itself."""
    return model_folder(folder, "tokenizer")
