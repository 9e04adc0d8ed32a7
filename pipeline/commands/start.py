"""A run begins or goes on: its recipe is read, its mirror fetched, its budget fitted and its folder claimed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import ConfigError
from foundation.paths import expand, is_remote
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.recipe_files import own_fields

if TYPE_CHECKING:
    from pipeline.commands.job import Job
    from pipeline.runs.mirror import RunMirror
    from pipeline.runs.stages import Run


def start_run(
    recipe: str | None,
    out: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    estimate_first: bool = False,
    stages: Collection[str] = ("tokenizer", "prior"),
    mirror: str | None = None,
    lock_seconds: float = 0.0,
) -> Job:
    """Load a recipe, or that of a run folder, and claim its run folder.

    A new run is fitted to its budget, if it has one.

    Args:
        recipe: YAML file, built-in name, or run folder; None takes the recipe of the mirror.
        out: the run folder; None derives it.
        overrides: dotted name -> value.
        estimate_first: say what a new run without a budget is expected to take.
        stages: that will be trained, and must fit the memory.
        mirror: address of the run's mirror, from which it is fetched; None takes the one that the folder had, if any,
            ``none`` ends it. The run is mirrored in the context of the job.
        lock_seconds: that another process's lock of the folder is waited for.

    Raises:
        ConfigError: an unreadable recipe, or a wrong value in it; too short a budget; more memory than there is.
        CheckpointError: the folder belongs to another recipe, or another process works in it; or the mirror is of
            another run.
        RemoteError: the mirror's store gives no access.
    """
    began = time.perf_counter()
    recipe, out, opened = fetched_run(recipe, out, overrides, mirror)
    run = prepared_run(recipe, out, overrides)

    from pipeline.commands.job import Job
    from pipeline.planning.budget_fields import kept_fields
    from pipeline.planning.computed import model_work
    from pipeline.planning.estimate import process_bytes
    from pipeline.planning.fit_run import expect_run, fit_run, peak_memory, promise_text
    from pipeline.planning.fits import require_fits
    from pipeline.planning.ledger import Ledger
    from pipeline.planning.times import START
    from pipeline.report.live import LiveReport

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
    run.work_of, run.evaluated = model_work, LiveReport()
    return Job(run, ledger, given, fitted, opened)


def fetched_run(
    recipe: str | None, out: str | None, overrides: Mapping[str, Any] | None, mirror: str | None
) -> tuple[str, str | None, RunMirror | None]:
    """Bring what a run's mirror has into its folder, and claim the mirror; process 0 does, the others wait.

    Arguments and errors: see ``start_run``.

    Returns:
        the recipe, ``out``, and the mirror; None without one.
    """
    from foundation.training.heartbeat import wait_for_everyone
    from foundation.training.parallel import build_accelerator
    from pipeline.planning.budget_fields import kept_fields
    from pipeline.runs.mirror import mirrored_run, open_mirror

    if recipe is None:
        own, (loaded, folder) = set[str](), mirrored_run(mirror or "", out, overrides)
        recipe, out = str(folder.root), None
    else:
        own, (loaded, folder) = own_fields(recipe), resolve(recipe, out, overrides)
    opened = open_mirror(mirror, folder)
    if opened is None:
        return recipe, out, None
    accelerator = build_accelerator(loaded.machine.device)
    if accelerator.is_main_process:
        kept = kept_fields(loaded, overrides or {}, own)
        opened.fetch(accelerator.print, lambda there: _require_same(loaded, there, kept, opened.store.shown))
        opened.claim()
        if mirror is None:
            accelerator.print(f"mirror: {opened.store.shown}, as before; --mirror none ends it")
    wait_for_everyone(accelerator)
    return recipe, out, opened


def _require_same(recipe: Recipe, there: RunFolder, kept: Collection[str], shown: str) -> None:
    """Refuse to fetch a run of another recipe.

    Args:
        recipe: the one that was given.
        there: a folder with the recipe of the mirror.
        kept: dotted names of fields that the user has set.
        shown: what an error calls the mirror.

    Raises:
        CheckpointError: another recipe made a part; names the fields that differ.
    """
    from pipeline.planning.fit_run import adopt_run
    from pipeline.runs.own_codes import run_of
    from pipeline.runs.precision import adopt_precision

    run = run_of(recipe, there)
    adopt_run(run, kept)
    there.compare(adopt_precision(run.recipe, there.load_recipe()), may_extend=True, shown=shown)


def prepared_run(recipe: str, out: str | None = None, overrides: Mapping[str, Any] | None = None) -> Run:
    """As ``start_run``, without fitting a budget and claiming the folder.

    Raises:
        ConfigError: an unreadable recipe, or a wrong value in it.
    """
    from pipeline.evaluation.in_training import open_rfid
    from pipeline.planning.budget_fields import kept_fields
    from pipeline.planning.fit_run import adopt_run
    from pipeline.runs.own_codes import require_effect, run_of

    given, source = dict(overrides or {}), (overrides or {}).get("codes.source")
    loaded, folder = resolve(recipe, out, given)
    if loaded.codes is not None:
        require_effect(given)
    run = run_of(loaded, folder, is_named=source is not None or folder.root != Path(recipe))
    run.open_rfid = open_rfid
    adopt_run(run, kept_fields(run.recipe, given, own_fields(recipe)))
    return run


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
        own = "" if (overrides or {}).get("codes.source") is None else "-codes"
        folder = RunFolder(Path("runs") / f"{loaded.name}{own}")
    if out is None:
        return loaded, folder
    if not out or Path(out).is_file() or is_remote(out):
        raise ConfigError("cannot be a run folder", field="--out", found=repr(out), expected="a folder")
    return loaded, RunFolder(Path(expand(out, "--out")))
