"""Recipes become runs: ``run``, ``train-tokenizer``, ``train-prior``, ``estimate``, ``report``, ``recipes``."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from foundation.config import require
from foundation.errors import ConfigError
from foundation.paths import expand, is_remote
from pipeline.commands.fields import read_fields
from pipeline.commands.on_workers import train_with
from pipeline.commands.options import (
    Device,
    EngineGroup,
    Fields,
    RecipeName,
    RunName,
    RunOut,
    Track,
    output_file,
    read_path,
)
from pipeline.engines.config import EngineConfig
from pipeline.output_files import output_at
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe, load_recipe, recipe_text
from pipeline.runs.recipe_files import built_in_recipes, own_fields

if TYPE_CHECKING:
    from pipeline.commands.job import Job
    from pipeline.commands.on_workers import TrainingWork
    from pipeline.runs.stages import Run


def run(
    recipe: RecipeName,
    /,
    *fields: Fields,
    budget: str | None = None,
    out: RunOut = None,
    track: Track = None,
    print_recipe: bool = False,
    engine: EngineGroup = EngineConfig(),
) -> None:
    """Images in, new images out: train both stages, export codes, sample, report. Continues where it stopped.

    Every field of the recipe is an option: tessera fields lists them, tessera fields prior.training explains some.

    Args:
        budget: time for everything on this machine: 20m, 2h, 1h30m, or 10m+30m for the two stages. Precision, steps
            and what the recipe leaves open are chosen to fit
        print_recipe: print the resolved recipe and stop
    """
    overrides = _tracked(read_fields(fields, run), track)
    if budget is not None:
        overrides["budget"] = budget
    if print_recipe:
        print(recipe_text(resolve(recipe, out, overrides)[0]))
    else:
        _train(engine, _train_all, recipe, out, overrides)


def train_tokenizer(
    recipe: RecipeName,
    /,
    *fields: Fields,
    out: RunOut = None,
    track: Track = None,
    engine: EngineGroup = EngineConfig(),
) -> None:
    """Train the tokenizer, stage 1, and freeze it in the run folder."""
    _train(engine, _train_tokenizer, recipe, out, _tracked(read_fields(fields, train_tokenizer), track))


def train_prior(
    recipe: RecipeName,
    /,
    *fields: Fields,
    codes: str | None = None,
    tokenizer: str | None = None,
    grid: str | None = None,
    codebook_size: int | None = None,
    out: RunOut = None,
    track: Track = None,
    engine: EngineGroup = EngineConfig(),
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
    overrides = _tracked(read_fields(fields, train_prior), track)
    own = {"source": codes, "tokenizer": tokenizer, "grid": grid, "codebook_size": codebook_size}
    given = {f"codes.{name}": value for name, value in own.items() if value is not None}
    if codes is None and given:
        name = f"--{next(iter(given)).removeprefix('codes.').replace('_', '-')}"
        raise ConfigError("has no effect without --codes", field=name, fix="give --codes, or leave it out")
    _train(engine, _train_prior, recipe, out, {**overrides, **given})


def _train_all(recipe: str, out: str | None, overrides: Mapping[str, Any], *, lock_seconds: float = 0.0) -> None:
    start_run(recipe, out, overrides, estimate_first=True, lock_seconds=lock_seconds).all()


def _train_tokenizer(recipe: str, out: str | None, overrides: Mapping[str, Any], *, lock_seconds: float = 0.0) -> None:
    start_run(recipe, out, overrides, stages=("tokenizer",), lock_seconds=lock_seconds).train_tokenizer()


def _train_prior(recipe: str, out: str | None, overrides: Mapping[str, Any], *, lock_seconds: float = 0.0) -> None:
    job = start_run(recipe, out, overrides, stages=("prior",), lock_seconds=lock_seconds)
    job.train_prior()
    if job.run.recipe.codes is not None:
        job.run.sample()
        job.report()
        job.say_where()


def _train(
    engine: EngineConfig, work: TrainingWork, recipe: str, out: str | None, overrides: Mapping[str, Any]
) -> None:
    """Train here, or on the workers of the engine."""
    resolved = None if engine.engine == "local" else _run_of(recipe, out, overrides)
    train_with(engine, work, recipe, out, overrides, resolved)


def _tracked(overrides: dict[str, Any], track: str | None) -> dict[str, Any]:
    """The fields of the recipe that were given, with the tracker that ``--track`` names."""
    return overrides if track is None else {**overrides, "machine.track": track}


def estimate(
    recipe: RecipeName,
    /,
    *fields: Fields,
    device: Device = "auto",
    on: str | None = None,
    images: int | None = None,
    json: Annotated[str | None, Parameter(converter=read_path, help="also write all figures to this file")] = None,
) -> None:
    """Print what a recipe costs before it runs: models, memory, time and disk, by part.

    Args:
        on: compute times for a named machine instead of measuring here: h100, h200, a100-40, a100-80, l4, l40s,
            rtx-4090, rtx-3090, t4, cpu-8, cpu-32-avx512
        images: how many images there are; default the recipe's
    """
    loaded, _ = resolve(recipe, None, read_fields(fields, estimate))
    require(images is None or images > 1, "--images", images, "2 or more")
    path = None if json is None else output_file(json, (".json",), "--json")
    about = {"command": "estimate", "recipe": recipe, "on": on}
    outputs = None if path is None else output_at(path, about)

    from accelerate import Accelerator

    from foundation.hardware import usable_device
    from foundation.storage.serialization import json_text
    from pipeline.planning.estimate import estimate as estimate_costs

    here = "cpu" if on is not None else usable_device(device)
    result = estimate_costs(loaded, Accelerator(cpu=here == "cpu"), on=on, images=images)
    print(result.text())
    if path is not None and outputs is not None:
        outputs.write(path.name, json_text(result.numbers, indent=1))


def report(run: RunName, /) -> None:
    """Write report.html of a finished run again."""
    from pipeline.report.report import write_report

    folder = RunFolder(Path(run))
    write_report(folder)
    print(folder.report)


def recipes() -> None:
    """List the built-in recipes."""
    for name in built_in_recipes():
        print(f"{name:20} {load_recipe(name).description}")


def start_run(
    recipe: str,
    out: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    estimate_first: bool = False,
    stages: Collection[str] = ("tokenizer", "prior"),
    lock_seconds: float = 0.0,
) -> Job:
    """Load a recipe, or that of a run folder, and claim its run folder.

    A new run is fitted to its budget, if it has one.

    Args:
        recipe: YAML file, built-in name, or run folder.
        out: the run folder; None derives it.
        overrides: dotted name -> value.
        estimate_first: say what a new run without a budget is expected to take.
        stages: that will be trained, and must fit the memory.
        lock_seconds: that another process's lock of the folder is waited for.

    Raises:
        ConfigError: an unreadable recipe, or a wrong value in it; too short a budget; more memory than there is.
        CheckpointError: the folder belongs to another recipe, or another process works in it.
    """
    began = time.perf_counter()
    run = prepared_run(recipe, out, overrides)

    from pipeline.commands.job import Job
    from pipeline.planning.budget import kept_fields
    from pipeline.planning.computed import model_work
    from pipeline.planning.estimate import process_bytes
    from pipeline.planning.fit_run import expect_run, fit_run, peak_memory, promise_text
    from pipeline.planning.fits import require_fits
    from pipeline.planning.ledger import Ledger
    from pipeline.planning.times import START

    given = kept_fields(run.recipe, overrides or {}, own_fields(recipe))
    is_kept = run.accelerator.is_main_process and not run.folder.has_samples()
    ledger = Ledger(run.folder.times if is_kept else None)
    is_new = not run.folder.recipe.is_file()
    process = process_bytes() if is_new else 0
    is_open = "budget" in given or not RunFolder(Path(recipe)).recipe.is_file()  # a run's recipe has its choices made
    fits = is_new and is_open
    fitted = fit_run(run, given, lambda: ledger.spent + time.perf_counter() - began) if fits else None
    missing = [each for each in stages if not getattr(run.folder, each).exists()]
    require_fits(run.recipe, run.accelerator.device, missing, n_processes=run.accelerator.num_processes)
    run.start(lock_seconds)
    expected = expect_run(run) if is_new and fitted is None and estimate_first else fitted
    if expected is not None:
        ledger.expect(expected.times)
        title = "expected" if fitted is None else f"budget {run.recipe.budget}"
        memory = peak_memory(run.recipe, run.accelerator.device, process)
        run.accelerator.print(f"{title}:\n{promise_text(expected, memory)}", flush=True)
    ledger.add(START, time.perf_counter() - began)
    run.work_of = model_work
    return Job(run, ledger, given, fitted)


def prepared_run(recipe: str, out: str | None = None, overrides: Mapping[str, Any] | None = None) -> Run:
    """As ``start_run``, without fitting a budget and claiming the folder.

    Raises:
        ConfigError: an unreadable recipe, or a wrong value in it.
    """
    from pipeline.evaluation.in_training import open_rfid
    from pipeline.planning.budget import kept_fields
    from pipeline.planning.fit_run import adopt_run
    from pipeline.runs.own_codes import require_effect, run_of

    given, source = dict(overrides or {}), (overrides or {}).get("codes.source")
    loaded, folder = _run_of(recipe, out, given)
    if loaded.codes is not None:
        require_effect(given)
    run = run_of(loaded, folder, is_named=source is not None or folder.root != Path(recipe))
    run.open_rfid = open_rfid
    adopt_run(run, kept_fields(run.recipe, given, own_fields(recipe)))
    return run


def _run_of(recipe: str, out: str | None, overrides: Mapping[str, Any]) -> tuple[Recipe, RunFolder]:
    """As ``resolve``; a new run on codes of one's own has a folder of its own by default."""
    loaded, folder = resolve(recipe, out, overrides)
    if overrides.get("codes.source") is not None and out is None and not RunFolder(Path(recipe)).recipe.is_file():
        folder = RunFolder(folder.root.with_name(f"{folder.root.name}-codes"))
    return loaded, folder


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
    if not out or Path(out).is_file() or is_remote(out):
        raise ConfigError("cannot be a run folder", field="--out", found=repr(out), expected="a folder")
    return loaded, RunFolder(Path(expand(out, "--out")))
