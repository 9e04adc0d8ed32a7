"""Trials of the prior alone, on the tokenizer and codes of another trial, for the time that its prior had."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from foundation.codes.dataset import TokenDataset
from foundation.training.parallel import build_accelerator
from pipeline.commands.start import start_run
from pipeline.planning.ledger import read_times
from pipeline.planning.measure import measure_prior
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import load_recipe
from scripts.compare_priors import row_folder
from scripts.trials.queue import Place, Trial

_EVALUATED = 0.05
"""share of the time for evaluations, as a budget plans"""


def prior_seconds(source: RunFolder) -> float:
    """What the prior of a trial took, evaluations included."""
    return float(read_times(source.times)["taken"]["prior"])


def train_prior(trial: Trial, seed: int, place: Place) -> float:
    """Train the prior of a trial that takes another one's codes; returns the seconds it took."""
    assert trial.codes_of is not None
    source = RunFolder(place.run(trial.codes_of, seed))
    folder = row_folder(source, place.run(trial.name, seed))
    began = time.perf_counter()
    job = start_run(str(source.recipe), str(folder.root), _overrides(trial, source, folder.root))
    with job:
        job.train_prior()
    return time.perf_counter() - began


def _overrides(trial: Trial, source: RunFolder, root: Path) -> dict[str, Any]:
    """The trial's fields, and as many steps as fit the time on this machine; kept where training has begun."""
    fields: dict[str, Any] = {**trial.fields, "name": trial.name, "budget": None}
    if (root / "recipe.yaml").is_file():
        begun = RunFolder(root).load_recipe().prior.training
        fit = begun.fit
        return {**fields, **_cadence(fit.steps), "prior.training.average_decay": begun.average_decay}
    recipe = load_recipe(str(source.recipe), fields)
    speed = measure_prior(recipe, TokenDataset(source.codes).spec, build_accelerator(recipe.machine.device))
    steps = max(1, int((1 - _EVALUATED) * prior_seconds(source) / speed.step))
    return {**fields, **_cadence(steps), "prior.training.average_decay": round(1 - 1 / max(10.0, 0.08 * steps), 5)}


def _cadence(steps: int) -> dict[str, Any]:
    return {"prior.training.fit.steps": steps, "prior.training.fit.evaluate_every": -(-steps // 4)}
