"""What the commands of ``cli.py`` do, behind its quick front."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import ConfigError
from foundation.hardware import usable_device
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe, load_recipe, recipe_text
from pipeline.runs.stages import Run


@dataclass
class Job:
    """A run started from the command line, with its messages."""

    run: Run

    def all(self) -> None:
        """Everything, in order."""
        began = time.perf_counter()
        self.train_tokenizer()
        has_codes = self.run.recipe.tokenizer.model.is_discrete
        if has_codes:
            self.encode()
            self.train_prior()
            self.run.sample()
            self._show_uses()
        else:
            self._say("no codes, prior or samples: the tokenizer's latent is continuous")
        self.report()
        folder = self.run.folder
        self._say(f"done in {time.perf_counter() - began:.0f} s")
        self._say(f"  look at   {folder.report}")
        if has_codes:
            self._say(f"  samples   {folder.samples / 'grid.png'}")
            self._say(f"  more      tessera sample {folder.root}")

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

    def _show_uses(self) -> None:
        from pipeline.report.gallery import draw_run_uses

        if self.run.accelerator.is_main_process:
            draw_run_uses(self.run.folder, self.run.recipe.seed, self.run.accelerator.device)

    def _say(self, text: str) -> None:
        self.run.accelerator.print(text, flush=True)


def start_run(recipe: str, run_dir: str | None = None, overrides: Mapping[str, Any] | None = None) -> Job:
    """Load a recipe, or that of a run folder, and claim its run folder.

    Args:
        recipe: YAML file, built-in name, or run folder.
        run_dir: the run folder; None derives it.
        overrides: dotted name -> value.

    Raises:
        ConfigError: a recipe that cannot be read, or a wrong value in it.
        CheckpointError: the folder belongs to another recipe, or another process works in it.
    """
    run = prepared_run(recipe, run_dir, overrides)
    run.start()
    return Job(run)


def prepared_run(recipe: str, run_dir: str | None = None, overrides: Mapping[str, Any] | None = None) -> Run:
    """As ``start_run``, without claiming the folder.

    Raises:
        ConfigError: a recipe that cannot be read, or a wrong value in it.
    """
    loaded, folder = _resolve(recipe, overrides)
    if run_dir is not None:
        if not run_dir or Path(run_dir).is_file():
            raise ConfigError("cannot be a run folder", field="--run_dir", found=repr(run_dir), expected="a folder")
        folder = RunFolder(Path(run_dir))
    return Run(loaded, folder)


def print_resolved(recipe: str, overrides: Mapping[str, Any] | None = None) -> None:
    """Print a recipe with every default filled in."""
    print(recipe_text(_resolve(recipe, overrides)[0]))


def _resolve(recipe: str, overrides: Mapping[str, Any] | None) -> tuple[Recipe, RunFolder]:
    """The recipe, and the run folder that it belongs to or would get."""
    folder = RunFolder(Path(recipe))
    if folder.recipe.is_file():
        return load_recipe(str(folder.recipe), overrides), folder
    loaded = load_recipe(recipe, overrides)
    return loaded, RunFolder(Path("runs") / loaded.name)


def print_estimate(recipe: str, overrides: Mapping[str, Any] | None, device: str) -> None:
    """Print what a recipe costs."""
    import torch

    from pipeline.runs.estimate import estimate

    print(estimate(_resolve(recipe, overrides)[0], torch.device(usable_device(device))).text())


def open_run(folder: str) -> Job:
    """A run that exists already.

    Raises:
        CheckpointError: the folder is not a run.
    """
    run_folder = RunFolder(Path(folder))
    return Job(Run(run_folder.load_recipe(), run_folder))


def _last(folder: RunFolder, stage: str) -> str:
    from foundation.training.log import read_metrics

    rows = read_metrics(folder.metrics, stage, "held_out")
    if not rows:
        return ""
    row = {name: math.nan if value is None else value for name, value in rows[-1].items()}
    if stage == "tokenizer":
        use = f", {row['code_usage']:.1%} of the codes in use" if "code_usage" in row else ""
        return f" (held-out PSNR {row['psnr']:.2f} dB{use})"
    return (
        f" (held-out {row['bits_per_code']:.3f} bits per code, {row['bits_per_image']:.1f} bits per image;"
        f" {row['nats_per_code']:.3f} nats beside ln(V) = {row['uniform_nats_per_code']:.3f};"
        f" code frequencies alone need {row['unigram_bits_per_code']:.3f} bits)"
    )
