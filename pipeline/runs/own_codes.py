"""A run on codes of one's own: no images, and a finished tokenizer or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from foundation.codes.config import OwnCodes
from foundation.codes.fetched import local_codes
from foundation.config import from_dict, to_dict
from foundation.errors import ConfigError, TesseraError
from foundation.images.config import DataConfig
from foundation.images.image_set import ImageSet
from foundation.paths import expand, is_remote
from foundation.training.heartbeat import wait_for_everyone
from pipeline.encoding.own_codes import CodesImport, inner_tokenizer, require_own, require_unchanged
from pipeline.runs.encode import ExportJob
from pipeline.runs.folder import RunFolder
from pipeline.runs.named_models import with_named_models
from pipeline.runs.recipe import Recipe, TokenizerStage, tokenizer_folder
from pipeline.runs.stages import Run

_KEPT = ("data.validation_share", "encode.images_per_shard", "tokenizer.pretrained")


def require_effect(overrides: Mapping[str, Any]) -> None:
    """Refuse given fields of a recipe that have no part in a prior on codes of one's own.

    Raises:
        ConfigError: naming the first.
    """
    for name, value in overrides.items():
        if name.split(".")[0] in ("data", "tokenizer", "encode", "budget") and name not in _KEPT:
            what, fix = "has no effect: the codes are given", "leave it out, or leave --codes out"
            raise ConfigError(what, field=f"--{name.replace('_', '-')}", found=value, fix=fix)


def on_own_codes(recipe: Recipe) -> Recipe:
    """A recipe with the tokenizer of its codes, or without one; its images and budget have no part in it.

    Raises:
        ConfigError: the named folder holds no tokenizer.
    """
    assert recipe.codes is not None
    share, stage = recipe.data.validation_share, recipe.tokenizer
    is_known = stage.pretrained is not None and recipe.codes.tokenizer is None and is_remote(recipe.codes.source)
    place = None if is_known else tokenizer_of(recipe.codes)  # a run that continues needs no store
    named = stage.pretrained if place is None else str(place)
    data, tokenizer = to_dict(DataConfig(validation_share=share)), to_dict(TokenizerStage())
    if named is not None:
        data["preprocess"] = to_dict(recipe.data.preprocess)
        tokenizer = {"pretrained": named, "model": to_dict(stage.model)}
        if place is not None:
            del tokenizer["model"]
    values = {**to_dict(recipe), "data": data, "tokenizer": tokenizer, "budget": None}
    return from_dict(Recipe, with_named_models(values))


def tokenizer_of(own: OwnCodes) -> Path | None:
    """Folder of the tokenizer that is named, or inside the source; None without one.

    Raises:
        ConfigError: the named folder holds none.
    """
    if own.tokenizer is None:
        return inner_tokenizer(local_codes(own.source, "--codes"))
    named = Path(expand(own.tokenizer, "--tokenizer"))
    for place in (named / "codes" / "tokenizer", tokenizer_folder(named)):
        if (place / "config.json").is_file():
            return place
    fix = "give a run, a token dataset, or a folder made by tessera import"
    raise ConfigError("holds no tokenizer", field="--tokenizer", found=own.tokenizer, fix=fix)


class CodesRun(Run):
    """A run whose codes are given: the token dataset is a checked copy of the source.

    Attributes:
        is_named: whether the source was given for this very run, and must be what the run was begun with; otherwise
            differences are only printed.
    """

    is_named = False

    @cached_property
    def job(self) -> CodesImport:
        """The import of the codes."""
        recipe, pretrained = self.recipe, self.recipe.tokenizer.pretrained
        assert recipe.codes is not None
        place = None if pretrained is None else tokenizer_folder(Path(pretrained))
        tokenizer = place if place is None or place.is_dir() else self.folder.tokenizer
        return CodesImport(recipe.codes, tokenizer, recipe.data.validation_share, recipe.encode.images_per_shard)

    @cached_property
    def images(self) -> dict[str, ImageSet]:
        """There are none.

        Raises:
            ConfigError: always.
        """
        what, fix = "needs images, and this run was trained on codes", "use a run on images"
        raise ConfigError(what, field="run", found=str(self.folder.root), fix=fix)

    def start(self) -> None:
        """As of every run; the codes in the folder are compared with the source first.

        Raises:
            ContractError: the source has changed, and was named for this run.
            DataError: the folder's codes were made from images.
        """
        if self.folder.codes.is_dir() and self.accelerator.is_main_process:
            self._compare()
        super().start()

    def train_tokenizer(self) -> None:
        """Copy the tokenizer that made the codes, if there is one."""
        if self.recipe.tokenizer.pretrained is not None:
            super().train_tokenizer()

    def encode(self, job: ExportJob | None = None) -> bool:
        """Copy the codes into the run, once."""
        if not self.folder.codes.is_dir() and self.accelerator.is_main_process:
            for note in self.job.write(self.folder.codes):
                self.accelerator.print(f"codes: {note}", flush=True)
            if self.job.tokenizer is None:
                self.accelerator.print("codes: no tokenizer is known, so samples are codes, not pictures", flush=True)
        wait_for_everyone(self.accelerator)
        return True

    def train_prior(self) -> None:
        """Train stage 2, after the tokenizer and the codes are in place."""
        self.train_tokenizer()
        self.encode()
        super().train_prior()

    def _compare(self) -> None:
        require_own(self.folder.codes)
        try:
            require_unchanged(self.job, self.folder.codes)
        except TesseraError as error:
            if self.is_named:
                raise
            said = " ".join(line.strip() for line in str(error).splitlines()[:2])
            self.accelerator.print(f"the run goes on with its own copy of the codes; {said}", flush=True)
        saved, recipe = self.folder.load_recipe(), self.recipe
        assert recipe.codes is not None
        if saved.codes is not None:  # equal codes, and their tokenizer, may lie elsewhere now
            stage = dataclasses.replace(recipe.tokenizer, pretrained=saved.tokenizer.pretrained)
            codes = dataclasses.replace(recipe.codes, source=saved.codes.source, tokenizer=saved.codes.tokenizer)
            self.recipe = dataclasses.replace(recipe, codes=codes, tokenizer=stage)

    @property
    def _has_tokenizer(self) -> bool:
        return self.folder.tokenizer.is_dir()

    def _require_codes(self) -> None:
        """Every source has codes."""


def run_of(recipe: Recipe, folder: RunFolder, *, is_named: bool = False) -> Run:
    """The run of a recipe: on images, or on codes of one's own."""
    if recipe.codes is None:
        return Run(recipe, folder)
    run = CodesRun(on_own_codes(recipe), folder)
    run.is_named = is_named
    return run
