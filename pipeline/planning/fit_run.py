"""A run's recipe, fitted to its budget before it starts, and again when stage 1 is over."""

from __future__ import annotations

import functools
import shlex
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import torch

from foundation.codes.dataset import TokenDataset
from foundation.errors import TesseraError
from foundation.hardware import usable_cores
from foundation.images.image_set import open_splits
from foundation.images.sources import ImageSource
from pipeline.planning.budget import Fitted, Fitting, spec_of
from pipeline.planning.budget_fields import adopt_fit
from pipeline.planning.fits import gigabytes, if_countable, needed, trained_stages
from pipeline.planning.measure import TokenizerSpeed, measure_prior, measure_reading, measure_tokenizer
from pipeline.planning.memory import Kind, code_layout, step_memory
from pipeline.planning.times import ENCODE, FIRST_STAGE, TRAIN_PRIOR, Counts, Speeds, run_times
from pipeline.runs.duration import Budget, duration
from pipeline.runs.images import open_run_sources
from pipeline.runs.recipe import Recipe
from pipeline.runs.stages import Run
from stage1_tokenizer.losses.vgg16 import locate_vgg16

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOOKED_AT = 32


def adopt_run(run: Run, given: Collection[str]) -> None:
    """Give a run that has begun what its budget chose then, but for fields that the user sets."""
    recipe = run.recipe
    if recipe.budget is None or not run.folder.recipe.is_file():
        return
    saved = run.folder.load_recipe()
    if saved.budget is None:
        return
    run.recipe = adopt_fit(recipe, saved, given)
    if Budget.parse(recipe.budget) != Budget.parse(saved.budget):
        steps = 2 * saved.prior.training.fit.steps
        command = f"tessera run {shlex.quote(str(run.folder.root))} --prior.training.fit.steps {steps}"
        fix = f"more steps continue a stage, for example: {command}"
        run.accelerator.print(f"the run keeps what fits the budget that it began with, {saved.budget}; {fix}")


def fit_run(run: Run, given: Collection[str], spent: Callable[[], float]) -> Fitted | None:
    """Fit a run that has not begun to its recipe's budget.

    Every process calls it; process 0's choice counts.

    Args:
        run: not started; gets the fitted recipe.
        given: dotted names of fields that the user has set.
        spent: gives the seconds of the budget that are gone.

    Returns:
        what was chosen; None without a budget.

    Raises:
        ConfigError: too short a budget.
        DataError: no images.
    """
    if run.recipe.budget is None:
        return None
    fitted = _fitting(run.recipe, _splits(run), given, spent, run.accelerator).fit()
    run.recipe = _of_process_0(fitted.recipe, run.accelerator)
    return fitted


def fit_recipe(recipe: Recipe, given: Collection[str], accelerator: Accelerator) -> Fitted:
    """What ``fit_run`` would choose for a recipe with a budget if it began now; writes nothing.

    Raises:
        ConfigError: too short a budget.
        DataError: no images.
    """
    began = time.perf_counter()
    splits = open_splits(recipe.data)
    return _fitting(recipe, splits, given, lambda: time.perf_counter() - began, accelerator).fit()


def expect_run(run: Run) -> Fitted | None:
    """What a run is expected to take, as its recipe is; every process calls it. None for codes of one's own.

    Raises:
        DataError: no images.
    """
    recipe, accelerator = run.recipe, run.accelerator
    if recipe.codes is not None:
        return None
    counts, _, read = _images(recipe, _splits(run))
    tokenizer = measure_tokenizer(recipe, accelerator)
    prior = measure_prior(recipe, spec_of(recipe, counts.classes), accelerator)
    speeds = Speeds(tokenizer, prior, read)
    return Fitted(recipe, run_times(recipe, counts, speeds), speeds, counts, 0.0)


def fit_run_prior(
    run: Run, given: Collection[str], spent: Callable[[], float], tokenizer: TokenizerSpeed | None
) -> Fitted | None:
    """Fit the prior's steps again to what is left of the budget, unless the prior has begun.

    Arguments and errors: see ``fit_run``.
    """
    folder, recipe = run.folder, run.recipe
    if recipe.budget is None or folder.prior.exists() or _has_checkpoint(run) or tokenizer is None:
        return None
    spec = TokenDataset(folder.codes, "train", recipe.machine.tokens).spec
    done = {*FIRST_STAGE, ENCODE}
    fitting = _fitting(recipe, _splits(run), given, spent, run.accelerator)
    fitted = fitting.fit_prior(spec, tokenizer, done)
    run.recipe = _of_process_0(fitted.recipe, run.accelerator)
    return fitted


def _has_checkpoint(run: Run) -> bool:
    checkpoints = run.folder.checkpoints("prior")
    return checkpoints.is_dir() and any(checkpoints.glob("step-*"))


def _fitting(
    recipe: Recipe,
    splits: Mapping[str, ImageSource],
    given: Collection[str],
    spent: Callable[[], float],
    accelerator: Accelerator,
) -> Fitting:
    assert recipe.budget is not None
    counts, side, read = _images(recipe, splits)
    return Fitting(recipe, Budget.parse(recipe.budget), given, counts, side, read, spent, accelerator)


def _splits(run: Run) -> Mapping[str, ImageSource]:
    """The images of a run."""
    stage = run.recipe.tokenizer
    if stage.pretrained is None and stage.training.perceptual.weight > 0:
        locate_vgg16(stage.training.perceptual.vgg_weights)  # a missing file stops the run before data is read
    return open_run_sources(run.folder, run.recipe).splits


def _images(recipe: Recipe, splits: Mapping[str, ImageSource]) -> tuple[Counts, int | None, float]:
    """Numbers of images, their usual shorter side, and seconds to read one."""
    train, validation = splits["train"], splits["validation"]
    classes = 0 if train.labels is None else len(train.class_names)
    counts = Counts(len(train.ids), len(validation.ids), classes)
    read = measure_reading(train, recipe.data.preprocess, usable_cores())
    return counts, _usual_side(train), read


def _usual_side(source: ImageSource) -> int | None:
    """Median of the shorter sides of some images, in pixels; None if none can be read."""
    sides = []
    step = max(1, len(source.ids) // _LOOKED_AT)
    for index in range(0, len(source.ids), step):
        try:
            sides.append(min(source.read(index).size))
        except (TesseraError, OSError, ValueError):  # the scan will list it
            continue
    return int(statistics.median(sides)) if sides else None


def _of_process_0(recipe: Recipe, accelerator: Accelerator) -> Recipe:
    if accelerator.num_processes == 1:
        return recipe
    held = [recipe]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]


def peak_memory(recipe: Recipe, device: torch.device, process: int) -> dict[str, int]:
    """Bytes at the peak of the training of each stage; counted, not measured.

    Args:
        recipe: with its precisions resolved.
        device: where it trains.
        process: of the process before it has built anything; counts on a CPU.
    """
    kind: Kind = "cpu" if device.type == "cpu" else "gpu"
    counted = {
        stage: if_countable(stage, functools.partial(step_memory, recipe, stage, kind))
        for stage in trained_stages(recipe)
    }
    base = process if kind == "cpu" else 0
    return {stage: base + needed(each, kind) for stage, each in counted.items() if each is not None}


def promise_text(fitted: Fitted, memory: Mapping[str, int]) -> str:
    """What was chosen and what is expected, as a table; ``memory`` of each stage in bytes."""
    recipe, speeds, times = fitted.recipe, fitted.speeds, fitted.times
    rows = []
    if speeds.tokenizer is not None:
        rows += _tokenizer_rows(recipe, speeds.tokenizer)
    if TRAIN_PRIOR in times:
        fit, model = recipe.prior.training.fit, recipe.prior.model
        passes = fit.steps * fit.batch_size / max(1, fitted.counts.train)
        size = f"{model.shape.n_layers} blocks of width {model.shape.d_model}, dropout {model.dropout:g}"
        rows.append(("prior", f"{size}, {recipe.prior.training.precision}"))
        images = fit.batch_size / speeds.prior.step
        speed = f"{images:,.0f} images/s, {images * code_layout(recipe).n_codes:,.0f} tokens/s"
        rows.append(("", f"{fit.steps:,} steps of {fit.batch_size}, {passes:.1f} passes; {speed}"))
    if memory:
        rows.append(("memory", ", ".join(f"{stage} {gigabytes(n)}" for stage, n in memory.items())))
    shown = ", ".join(f"{name} {duration(value)}" for name, value in times.items() if value >= 1)
    rows.append(("expected", shown))
    rows.append(("in all", duration(fitted.spent + sum(times.values()))))
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:{width}}  {value}" for name, value in rows]
    return "\n".join([*lines, *(f"  note: {note}" for note in fitted.notes)])


def _tokenizer_rows(recipe: Recipe, speed: TokenizerSpeed) -> list[tuple[str, str]]:
    preprocess, stage = recipe.data.preprocess, recipe.tokenizer
    model, fit = stage.model, stage.training.fit
    rows = [("images", f"{preprocess.height} x {preprocess.width} pixels, {_grids(recipe)}")]
    if stage.pretrained is None:
        widths = (("base width", "base_width"), ("width", "width"))
        network = [
            f"{what} {getattr(model.networks, name):,}" for what, name in widths if hasattr(model.networks, name)
        ]
        rows.append(("tokenizer", ", ".join([*network, stage.training.precision])))
        rows.append(("", f"{fit.steps:,} steps of {fit.batch_size}; {fit.batch_size / speed.step:,.0f} images/s"))
    return rows


def _grids(recipe: Recipe) -> str:
    """The codes of an image: sides of each grid, codebook, and depth where it is more than one."""
    preprocess, model = recipe.data.preprocess, recipe.tokenizer.model
    if not model.is_discrete:
        return f"{preprocess.height // model.stride} x {preprocess.width // model.stride} latents"
    grids = []
    for level in code_layout(recipe).levels:
        sides = f"{level.height} x {level.width}" + (f" x {level.depth}" if level.depth > 1 else "")
        sizes = [level.codebook_size] if isinstance(level.codebook_size, int) else level.codebook_size
        grids.append(f"{sides} codes of {', '.join(f'{size:,}' for size in sizes)}")
    return " and ".join(grids)
