"""Recipes become runs: ``run``, ``train-tokenizer``, ``train-prior``, ``estimate``, ``report``, ``recipes``."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import ConfigError
from foundation.paths import expand
from pipeline.commands.fields import read_fields
from pipeline.commands.options import Device, Fields, RecipeName, RunName, RunOut
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe, load_recipe, recipe_text
from pipeline.runs.recipe_files import built_in_recipes

if TYPE_CHECKING:
    from pipeline.runs.stages import Run


def run(recipe: RecipeName, /, *fields: Fields, out: RunOut = None, print_recipe: bool = False) -> None:
    """Images in, new images out: train both stages, export codes, sample, report. Continues where it stopped.

    Every field of the recipe is an option: tessera fields lists them, tessera fields prior.training explains some.

    Args:
        print_recipe: print the resolved recipe and stop
    """
    overrides = read_fields(fields, run)
    if print_recipe:
        print(recipe_text(resolve(recipe, out, overrides)[0]))
    else:
        start_run(recipe, out, overrides).all()


def train_tokenizer(recipe: RecipeName, /, *fields: Fields, out: RunOut = None) -> None:
    """Train the tokenizer, stage 1, and freeze it in the run folder."""
    start_run(recipe, out, read_fields(fields, train_tokenizer)).train_tokenizer()


def train_prior(
    recipe: RecipeName,
    /,
    *fields: Fields,
    codes: str | None = None,
    tokenizer: str | None = None,
    grid: str | None = None,
    codebook_size: int | None = None,
    out: RunOut = None,
) -> None:
    """Train the prior, stage 2, on the run's codes, or on codes of your own (--codes): then also samples and report.

    With the tokenizer of the codes, samples are pictures; without one they are codes.

    Args:
        codes: a token dataset, a folder saved by datasets, .parquet with a column codes, or .npy, .npz; then the run
            folder is runs/NAME-codes by default
        tokenizer: with --codes: folder of the tokenizer that made them; default the one inside, if there is one
        grid: with --codes without a tokenizer: HxW, or HxWxD, of flat rows; default a square
        codebook_size: with --codes without a tokenizer: number of codes; default the largest plus one
    """
    overrides = read_fields(fields, train_prior)
    own = {"source": codes, "tokenizer": tokenizer, "grid": grid, "codebook_size": codebook_size}
    given = {f"codes.{name}": value for name, value in own.items() if value is not None}
    if codes is None and given:
        name = f"--{next(iter(given)).removeprefix('codes.').replace('_', '-')}"
        raise ConfigError("has no effect without --codes", field=name, fix="give --codes, or leave it out")
    job = start_run(recipe, out, {**overrides, **given})
    job.train_prior()
    if job.run.recipe.codes is not None:
        job.run.sample()
        job.report()
        job.say_where()


def estimate(recipe: RecipeName, /, *fields: Fields, device: Device = "auto") -> None:
    """Print what a recipe costs before it runs: parameters, FLOPs, tokens, compression, hours on this machine."""
    loaded, _ = resolve(recipe, None, read_fields(fields, estimate))

    import torch

    from foundation.hardware import usable_device
    from pipeline.runs.estimate import estimate as estimate_costs

    print(estimate_costs(loaded, torch.device(usable_device(device))).text())


def report(run: RunName, /) -> None:
    """Write report.html of a finished run again."""
    from pipeline.runs.stages import Run

    folder = RunFolder(Path(run))
    Job(Run(folder.load_recipe(), folder)).report()
    print(folder.report)


def recipes() -> None:
    """List the built-in recipes."""
    for name in built_in_recipes():
        print(f"{name:20} {load_recipe(name).description}")


@dataclass
class Job:
    """A run of the command line, with its messages."""

    run: Run

    def all(self) -> None:
        """Everything, in order."""
        began = time.perf_counter()
        if self.run.recipe.codes is None or self.run.recipe.tokenizer.pretrained is not None:
            self.train_tokenizer()
        has_codes = self.run.recipe.codes is not None or self.run.recipe.tokenizer.model.is_discrete
        if has_codes:
            self.encode()
            self.train_prior()
            self.run.sample()
            self._draw_gallery()
        else:
            self._say("no codes, prior or samples: the tokenizer's latent is continuous")
        self.report()
        self._say(f"done in {time.perf_counter() - began:.0f} s")
        self.say_where(has_codes=has_codes)

    def say_where(self, *, has_codes: bool = True) -> None:
        """Print where the results are."""
        folder = self.run.folder
        self._say(f"  look at   {folder.report}")
        if has_codes:
            self._say(f"  samples   {folder.samples / 'grid.png'}")
            latent = "" if folder.tokenizer.is_dir() else " --output-type latent"
            self._say(f"  more      tessera sample {folder.root}{latent}")

    def train_tokenizer(self) -> None:
        """Stage 1."""
        self.run.train_tokenizer()
        self._say(f"tokenizer: {self.run.folder.tokenizer}{_last(self.run.folder, 'tokenizer')}")

    def encode(self) -> None:
        """Export."""
        self.run.encode()
        self._say(f"codes: {self.run.folder.codes}")

    def train_prior(self) -> None:
        """Stage 2."""
        self.run.train_prior()
        self._say(f"prior: {self.run.folder.prior}{_last(self.run.folder, 'prior')}")

    def report(self) -> None:
        """The report."""
        from pipeline.report.report import write_report

        if self.run.accelerator.is_main_process:
            write_report(self.run.folder)

    def _draw_gallery(self) -> None:
        from pipeline.report.gallery import draw_run_gallery

        if self.run.accelerator.is_main_process:
            draw_run_gallery(self.run.folder, self.run.recipe.seed, self.run.accelerator.device)

    def _say(self, text: str) -> None:
        self.run.accelerator.print(text, flush=True)


def start_run(recipe: str, out: str | None = None, overrides: Mapping[str, Any] | None = None) -> Job:
    """Load a recipe, or that of a run folder, and claim its run folder.

    Args:
        recipe: YAML file, built-in name, or run folder.
        out: the run folder; None derives it.
        overrides: dotted name -> value.

    Raises:
        ConfigError: an unreadable recipe, or a wrong value in it.
        CheckpointError: the folder belongs to another recipe, or another process works in it.
    """
    run = prepared_run(recipe, out, overrides)
    run.start()
    return Job(run)


def prepared_run(recipe: str, out: str | None = None, overrides: Mapping[str, Any] | None = None) -> Run:
    """As ``start_run``, without claiming the folder.

    Raises:
        ConfigError: an unreadable recipe, or a wrong value in it.
    """
    from pipeline.runs.own_codes import require_effect, run_of

    given, source = dict(overrides or {}), (overrides or {}).get("codes.source")
    loaded, folder = resolve(recipe, out, given)
    if loaded.codes is not None:
        require_effect(given)
    if source is not None and out is None and not RunFolder(Path(recipe)).recipe.is_file():
        folder = RunFolder(folder.root.with_name(f"{folder.root.name}-codes"))
    return run_of(loaded, folder, is_named=source is not None or folder.root != Path(recipe))


def resolve(recipe: str, out: str | None, overrides: Mapping[str, Any] | None) -> tuple[Recipe, RunFolder]:
    """The recipe, and the run folder that it belongs to or would get.

    Raises:
        ConfigError: an unreadable recipe, a wrong value in it, or an ``out`` that cannot be a folder.
    """
    folder = RunFolder(Path(expand(recipe, "recipe")))
    if folder.recipe.is_file():
        loaded = load_recipe(str(folder.recipe), overrides)
    else:
        loaded = load_recipe(recipe, overrides)
        folder = RunFolder(Path("runs") / loaded.name)
    if out is None:
        return loaded, folder
    if not out or Path(out).is_file():
        raise ConfigError("cannot be a run folder", field="--out", found=repr(out), expected="a folder")
    return loaded, RunFolder(Path(expand(out, "--out")))


def _last(folder: RunFolder, stage: str) -> str:
    from foundation.training.log import read_metrics

    rows = read_metrics(folder.metrics, stage, "held_out")
    if not rows:
        return ""
    row = {name: math.nan if value is None else value for name, value in rows[-1].items()}
    if stage == "tokenizer":
        use = f", {row['code_usage']:.1%} of the codes in use" if "code_usage" in row else ""
        return f" (validation PSNR {row['psnr']:.2f} dB{use})"
    return (
        f" (validation {row['bits_per_code']:.3f} bits per code, {row['bits_per_image']:.1f} bits per image;"
        f" {row['nats_per_code']:.3f} nats beside ln(V) = {row['uniform_nats_per_code']:.3f};"
        f" code frequencies alone need {row['unigram_bits_per_code']:.3f} bits)"
    )
