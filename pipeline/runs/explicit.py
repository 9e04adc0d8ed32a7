"""Fields of a recipe that were given and cannot act: refused on the command line, named where a file has them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from foundation.config import differences, from_dict
from foundation.config_fields import entries, merge
from foundation.errors import ConfigError
from pipeline.runs.recipe_files import leaves, say
from stage2_prior.decoding.sampling import FILTERS, GUIDANCE


@dataclass(frozen=True)
class Rule:
    """When fields cannot act.

    Attributes:
        fields: dotted names, of sections too.
        moot: recipe => whether they cannot act.
        why: in words.
        unless: fields below a section to which it does not apply.
        refused: on the command line; else only named, since runs that differ in the tokenizer share such fields.
    """

    fields: tuple[str, ...]
    moot: Callable[[Any], bool]
    why: str
    unless: tuple[str, ...] = ()
    refused: bool = True


_SAMPLING = "samples.sampling"
RULES = (
    Rule(
        ("data.source.subfolders", "data.source.trust_classes"),
        lambda recipe: getattr(recipe.data.source, "labels", None) is not None,
        "data.source.labels names the classes",
    ),
    Rule(
        ("data.validation_share",),
        lambda recipe: any(getattr(recipe.data.source, f"validation_{part}", None) for part in ("path", "split")),
        "data.source names a validation part",
    ),
    Rule(
        ("tokenizer.training",),
        lambda recipe: recipe.tokenizer.pretrained is not None,
        "tokenizer.pretrained is not trained",
        refused=False,
    ),
    Rule(
        (*(f"{_SAMPLING}.{name}" for name in GUIDANCE), "prior.training.label_dropout", "samples.images_per_class"),
        lambda recipe: not recipe.prior.model.class_conditional,
        "prior.model.class_conditional is false",
    ),
    Rule(
        (f"{_SAMPLING}.schedule_power",),
        lambda recipe: recipe.samples.sampling.schedule != "power-cosine",
        "only the schedule power-cosine uses it",
    ),
    Rule(
        (f"{_SAMPLING}.schedule_start",),
        lambda recipe: recipe.samples.sampling.schedule != "step",
        "only the schedule step uses it",
    ),
    Rule(
        tuple(f"{_SAMPLING}.{name}" for name in FILTERS),
        lambda recipe: recipe.samples.sampling.takes_likeliest,
        "temperature 0 always takes the likeliest code",
    ),
    Rule(
        ("encode.corner_scale",),
        lambda recipe: not recipe.encode.ten_crop,
        "only encode.ten_crop cuts corners",
    ),
    Rule(
        ("prior.training.views",),
        lambda recipe: not (recipe.encode.ten_crop or recipe.encode.flip),
        "each image has one view: neither encode.flip nor encode.ten_crop is on",
    ),
    Rule(
        ("prior.model.rope_base",),
        lambda recipe: recipe.prior.model.positions != "rope",
        "prior.model.positions is not rope",
    ),
    Rule(
        ("machine.tokens.packed_folder",),
        lambda recipe: recipe.machine.tokens.form in ("memory", "streamed"),
        "machine.tokens.form makes no packed copy",
    ),
    Rule(
        ("machine.tokens.memory_limit_mib",),
        lambda recipe: recipe.machine.tokens.form != "auto",
        "machine.tokens.form is not auto",
    ),
    *(
        Rule(
            (f"tokenizer.training.{name}",),
            lambda recipe, name=name: getattr(recipe.tokenizer.training, name).weight == 0,  # type: ignore[misc]
            f"tokenizer.training.{name}.weight is 0",
            unless=(f"tokenizer.training.{name}.weight",),
        )
        for name in ("perceptual", "adversarial")
    ),
    Rule(
        ("tokenizer.training.adversarial.lecam_decay",),
        lambda recipe: recipe.tokenizer.training.adversarial.lecam_weight == 0,
        "tokenizer.training.adversarial.lecam_weight is 0",
    ),
    *(
        Rule(
            (f"{optim}.{name}",),
            lambda recipe, optim=optim, moot=moot: moot(operator.attrgetter(optim)(recipe).schedule),  # type: ignore[misc]
            why,
        )
        for optim in ("tokenizer.training.optim", "tokenizer.training.adversarial.optim", "prior.training.optim")
        for name, moot, why in (
            ("decay_share", lambda schedule: schedule != "wsd", "only the schedule wsd uses it"),
            ("min_factor", lambda schedule: schedule == "constant", "the schedule constant does not fall"),
        )
    ),
)


def require_effect(recipe: Any, given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse given fields that cannot act; those from a file are named on stderr.

    A value that is the default is left alone: it changes nothing.

    Args:
        recipe: as all of it makes it.
        given: nested values of the command line or of Python.
        own: nested values of the recipe's own file.

    Raises:
        ConfigError: naming the field and why it cannot act.
    """
    defaults = {each.name: each.default for each in entries(type(recipe))}
    for values, from_file in ((given, False), (own, True)):
        for name in leaves(values):
            rule = _moot(name, recipe)
            if rule is None or _value(recipe, name) == defaults.get(name, MISSING):
                continue
            if rule.refused and not from_file:
                fix = "leave it out"
                raise ConfigError(f"has no effect: {rule.why}", field=name, found=_value(recipe, name), fix=fix)
            say(f"{name} has no effect: {rule.why}")


def require_agreement(recipe: Any, values: Mapping[str, Any], chosen: Mapping[str, dict[str, Any] | None]) -> None:
    """Refuse settings that were chosen beside a tokenizer that the recipe names, and differ from its own.

    Args:
        recipe: with the tokenizer's settings.
        values: of that recipe.
        chosen: for each stage, nested values that were given where its model was named, or later; or None.

    Raises:
        ConfigError: naming the first setting that differs.
    """
    given, starts = chosen.get("tokenizer"), recipe.tokenizer.start_from is not None
    if given is None or not (starts or recipe.tokenizer.pretrained is not None):
        return
    parts = {"tokenizer": "model"} if starts else {"data": "preprocess", "tokenizer": "model"}
    asked = {part: {name: given[part][name]} for part, name in parts.items() if name in given.get(part, {})}
    rows = differences(recipe, from_dict(type(recipe), merge(values, asked)))
    if rows:
        name, own, other = rows[0]
        field = "tokenizer.start_from" if starts else "tokenizer.pretrained"
        what, fix = "is not that of the tokenizer", f"leave it out, or leave out {field} to train one"
        raise ConfigError(what, field=name, found=other, expected=own, fix=fix)


def _moot(name: str, recipe: Any) -> Rule | None:
    for rule in RULES:
        inside = any(name == each or name.startswith(f"{each}.") for each in rule.fields)
        if inside and name not in rule.unless and rule.moot(recipe):
            return rule
    return None


def _value(recipe: Any, name: str) -> Any:
    try:
        return operator.attrgetter(name)(recipe)
    except AttributeError:  # the name of an alternative
        return None
