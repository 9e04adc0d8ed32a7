"""The fields of a recipe that a budget may choose, and which of them it leaves as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from operator import attrgetter
from typing import Any

from foundation.config import Choice
from foundation.config_fields import replaced
from pipeline.runs.recipe import Recipe

_SIZES = {
    "resolution": ("data.preprocess.height", "data.preprocess.width"),
    "tokenizer": ("tokenizer.model", "tokenizer.training.fit.batch_size"),
    "prior": ("prior.model", "prior.training.fit.batch_size", "prior.training.optim.learning_rate"),
}
"""fields of each part that a recipe can leave open"""
_CADENCE = ("fit.steps", "fit.evaluate_every", "fit.checkpoint_every", "fit.log_every", "average_decay")
_COUNTED = (
    "warmup_steps",
    "start_step",
    "ramp_steps",
    "until_step",
    "zero_step",
    "boost_steps",
    "anneal_steps",
    "temperature_steps",
    "kl_warmup_steps",
)
"""fields that count optimizer steps and keep their share of them"""


def fittable(recipe: Recipe) -> list[str]:
    """Dotted names of fields that a budget may choose; a run that exists keeps its own."""
    names = [*_timed(recipe), "encode.flip", "tokenizer.training.perceptual.precision"]
    names += [f"{stage}.training.precision" for stage in ("tokenizer", "prior")]
    for part in recipe.open:
        names += _SIZES[part]
    if "tokenizer" in recipe.open:  # with all that is inside
        names = [name for name in names if not name.startswith("tokenizer.model.")]
    return names


def kept_fields(recipe: Recipe, overrides: Collection[str], own: Collection[str]) -> set[str]:
    """Dotted names of fields that a budget leaves as they are.

    Args:
        recipe: with all fields.
        overrides: names of fields on the command line; a section that is given whole keeps all that is inside.
        own: names of fields in the user's own recipe file: a length or cadence there is what a budget replaces.
    """
    inside = {name for name in fittable(recipe) if any(name.startswith(f"{each}.") for each in overrides)}
    return {*overrides, *inside, *(set(own) - set(_timed(recipe)))}


def _timed(recipe: Recipe) -> list[str]:
    """Fields that say how long a training is, or count its steps."""
    names = []
    for stage in ("tokenizer", "prior"):
        training = getattr(recipe, stage).training
        fields = [*_CADENCE, *(name for name, _ in scaled(training, 1, 1))]
        names += [f"{stage}.training.{name}" for name in fields]
    quantizer = recipe.tokenizer.model.quantizer
    return names + [f"tokenizer.model.quantizer.{name}" for name, _ in scaled(quantizer, 1, 1)]


def adopt_fit(recipe: Recipe, saved: Recipe, given: Collection[str]) -> Recipe:
    """The recipe with what its run has chosen, but for fields that the user sets."""
    names = [
        name for name in fittable(recipe) if not any(each == name or each.startswith(f"{name}.") for each in given)
    ]
    values = {}
    for name in names:
        try:
            values[name] = attrgetter(name)(saved)
        except AttributeError:  # another quantizer: the folder's recipe is compared later
            continue
    return replaced(recipe, values)


def scaled(config: Any, steps: int, before: int, where: str = "") -> Iterator[tuple[str, int]]:
    """Fields that count optimizer steps, in proportion; a warm-up stays as long as it was, up to a twentieth."""
    for each in dataclasses.fields(config):
        name, value = f"{where}.{each.name}" if where else each.name, getattr(config, each.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, Choice):
            yield from scaled(value, steps, before, name)
        elif each.name in _COUNTED and value:
            least = min(value, steps // 20) if each.name == "warmup_steps" else 0
            yield name, max(1, least, round(value * steps / before))
