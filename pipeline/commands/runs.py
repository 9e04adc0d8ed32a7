"""Recipes become runs: ``run``, ``train-tokenizer``, ``train-prior``, ``estimate``, ``report``, ``recipes``."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from foundation.config import require
from foundation.errors import ConfigError, DataError
from pipeline.commands.fields import read_fields
from pipeline.commands.options import (
    Device,
    EngineGroup,
    Fields,
    MirrorAddress,
    RecipeName,
    RecipeOrField,
    RunOut,
    Track,
    output_file,
    read_path,
)
from pipeline.commands.start import resolve, start_run
from pipeline.engines.config import EngineConfig
from pipeline.output_files import output_at
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe, load_recipe, recipe_text
from pipeline.runs.recipe_files import built_in_recipes, own_fields

if TYPE_CHECKING:
    from accelerate import Accelerator


TrainedParts = Literal["all", "tokenizer", "prior"]


def run(
    recipe: RecipeOrField = None,
    /,
    *fields: Fields,
    budget: str | None = None,
    out: RunOut = None,
    mirror: MirrorAddress = None,
    track: Track = None,
    print_recipe: bool = False,
    engine: EngineGroup = EngineConfig(),
) -> None:
    """Images in, new images out: train both stages, export codes, sample, report. Continues where it stopped.

    Every field of the recipe is an option: tessera fields lists them, tessera fields prior.training explains some.
    On an empty machine --mirror alone goes on with what it holds.

    Args:
        budget: time for everything on this machine: 20m, 2h, 1h30m, or 10m+30m for the two stages. Precision, steps
            and what the recipe leaves open are chosen to fit
        print_recipe: print the resolved recipe and stop
    """
    if recipe is not None and recipe.startswith("-"):
        fields, recipe = (recipe, *fields), None
    overrides = _tracked(read_fields(fields, run), track)
    if budget is not None:
        overrides["budget"] = budget
    if recipe is None and (mirror is None or print_recipe):
        fix = "give a recipe, e.g. digits, or --mirror with the address of a run"
        raise ConfigError("run needs RECIPE", fix=fix)
    if print_recipe and recipe is not None:
        print(recipe_text(resolve(recipe, out, overrides)[0]))
    else:
        _train(engine, "all", recipe, out, overrides, mirror)


def train_tokenizer(
    recipe: RecipeName,
    /,
    *fields: Fields,
    out: RunOut = None,
    mirror: MirrorAddress = None,
    track: Track = None,
    engine: EngineGroup = EngineConfig(),
) -> None:
    """Train the tokenizer, stage 1, and freeze it in the run folder."""
    _train(engine, "tokenizer", recipe, out, _tracked(read_fields(fields, train_tokenizer), track), mirror)


def train_prior(
    recipe: RecipeName,
    /,
    *fields: Fields,
    codes: str | None = None,
    tokenizer: str | None = None,
    grid: str | None = None,
    codebook_size: int | None = None,
    out: RunOut = None,
    mirror: MirrorAddress = None,
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
    _train(engine, "prior", recipe, out, {**overrides, **given}, mirror)


def train_here(
    what: TrainedParts,
    recipe: str | None,
    out: str | None,
    overrides: Mapping[str, Any],
    *,
    mirror: str | None = None,
    lock_seconds: float = 0.0,
) -> None:
    """The work of a training command, as one process of it does it.

    Args:
        what: all of a run, or one stage.
        recipe, out, overrides, mirror, lock_seconds: see ``start_run``.
    """
    stages = ("tokenizer", "prior") if what == "all" else (what,)
    how: dict[str, Any] = {"estimate_first": what == "all", "mirror": mirror, "lock_seconds": lock_seconds}
    with start_run(recipe, out, overrides, stages=stages, **how) as job:
        if what == "all":
            job.all()
        elif what == "tokenizer":
            job.train_tokenizer()
        else:
            job.train_prior()
            if job.run.recipe.codes is not None:
                job.run.sample()
                job.report()
                job.say_where()


def _train(
    engine: EngineConfig,
    what: TrainedParts,
    recipe: str | None,
    out: str | None,
    overrides: Mapping[str, Any],
    mirror: str | None,
) -> None:
    """Train here, or on the workers of the engine."""
    if engine.engine == "local":
        train_here(what, recipe, out, overrides, mirror=mirror)
        return
    from pipeline.commands.on_workers import train_on_workers
    from pipeline.runs.mirror import mirrored_run

    resolved = mirrored_run(mirror or "", out, overrides) if recipe is None else resolve(recipe, out, overrides)
    work = functools.partial(train_here, what)
    train_on_workers(engine, work, recipe, overrides, resolved, mirror)


def _tracked(overrides: dict[str, Any], track: str | None) -> dict[str, Any]:
    """The fields of the recipe that were given, with the tracker that ``--track`` names."""
    return overrides if track is None else {**overrides, "machine.track": track}


def estimate(
    recipe: RecipeName,
    /,
    *fields: Fields,
    budget: str | None = None,
    device: Device = "auto",
    on: str | None = None,
    images: int | None = None,
    json: Annotated[str | None, Parameter(converter=read_path, help="also write all figures to this file")] = None,
) -> None:
    """Print what a recipe costs before it runs: models, memory, time and disk, by part.

    Args:
        budget: time for everything, as of run: what a run would choose here now is chosen first
        on: compute times for a named machine instead of measuring here: h100, h200, a100-40, a100-80, l4, l40s,
            rtx-4090, rtx-3090, t4, cpu-8, cpu-32-avx512
        images: how many images there are; default the recipe's
    """
    overrides = read_fields(fields, estimate)
    if budget is not None:
        overrides["budget"] = budget
    loaded, _ = resolve(recipe, None, overrides)
    require(images is None or images > 1, "--images", images, "2 or more")
    path = None if json is None else output_file(json, (".json",), "--json")
    about = {"command": "estimate", "recipe": recipe, "on": on}
    outputs = None if path is None else output_at(path, about)

    from accelerate import Accelerator

    from foundation.hardware import usable_device
    from foundation.storage.serialization import json_text
    from pipeline.planning.budget_fields import kept_fields
    from pipeline.planning.estimate import estimate as estimate_costs

    here = "cpu" if on is not None else usable_device(device)
    accelerator = Accelerator(cpu=here == "cpu")
    given = kept_fields(loaded, overrides, own_fields(recipe))
    is_open = "budget" in given or not RunFolder(Path(recipe)).recipe.is_file()
    if loaded.budget is not None and is_open and on is None and images is None:
        loaded = _fitted(loaded, given, accelerator)
    elif "budget" in given:
        fix = "leave --budget out, and set steps and sizes, or estimate without --on and --images"
        raise ConfigError("has no effect: a budget measures this machine and these images", field="--budget", fix=fix)
    elif loaded.budget is not None and is_open:
        print(f"note: steps and sizes are the recipe's; its budget of {loaded.budget} would choose others")
    result = estimate_costs(loaded, accelerator, on=on, images=images)
    print(result.text())
    if path is not None and outputs is not None:
        outputs.write(path.name, json_text(result.numbers, indent=1))


def _fitted(recipe: Recipe, given: Collection[str], accelerator: Accelerator) -> Recipe:
    """The recipe with what its budget would choose now, which is printed; as it is, where it only names images that
    are not here.
    """
    from pipeline.planning.fit_run import fit_recipe, promise_text

    try:
        fitted = fit_recipe(recipe, given, accelerator)
    except DataError:
        if "budget" in given:
            raise
        print(f"note: without its images a budget of {recipe.budget} chooses nothing; steps and sizes are the recipe's")
        return recipe
    print(f"budget {recipe.budget}:\n{promise_text(fitted, {})}\n", flush=True)
    return fitted.recipe


def recipes() -> None:
    """List the built-in recipes."""
    for name in built_in_recipes():
        print(f"{name:20} {load_recipe(name).description}")
