"""Validate a generation request: labels, seeds, sampling settings."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foundation.arguments import shown
from foundation.config import from_dict, require, to_dict
from foundation.errors import ConfigError, DataError, nearest
from foundation.images.class_names import class_number
from foundation.randomness import derive_seed
from pipeline.generation.options import OUTPUT_TYPES, DrawOptions, SamplingOptions
from stage2_prior.decoding.sampling import FILTERS, GUIDANCE, SamplingConfig

_SETTINGS = tuple(SamplingOptions.__annotations__)
_OPTIONS = tuple(DrawOptions.__annotations__)


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """``DrawOptions`` with their defaults filled in.

    Attributes:
        seed, generator: as given; ``seeds`` makes a list of them.
        best_of, batch_size, output_type: see ``DrawOptions``.
        sampling: guidance, temperature and filters.
        guided: a guidance setting that the call itself gives, and that needs a class to act; None if it gives none.
    """

    seed: Any
    generator: Any
    best_of: int
    batch_size: int | None
    output_type: str
    sampling: SamplingConfig
    guided: str | None = None

    def seeds(self, n: int) -> list[int]:
        """The seed of each of n images.

        Raises:
            ConfigError: see ``seeds_of`` and ``seeds_from``.
        """
        if self.generator is None:
            return seeds_of(self.seed, n)
        if self.seed is not None:
            raise ConfigError("cannot be used with a seed", field="generator", fix="leave one of them out")
        return seeds_from(self.generator, n)


def settings_of(options: Mapping[str, Any], defaults: SamplingConfig, no_guidance: str | None = None) -> DrawSettings:
    """Check the options of a call.

    Args:
        options: of ``DrawOptions``.
        defaults: sampling settings used where the options name none.
        no_guidance: why guidance cannot act; None where it can.

    Raises:
        ConfigError: an option that does not exist or cannot act, or a value outside its range.
    """
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError("is not an option", field=name, fix=nearest(name, _OPTIONS))
    changes = {name: _plain(name, options[name]) for name in _SETTINGS if options.get(name) is not None}
    batch_size, output_type = options.get("batch_size"), options.get("output_type", "pil")
    require_choice("output_type", output_type, OUTPUT_TYPES)
    sampling = from_dict(SamplingConfig, {**to_dict(defaults), **changes})
    best_of = count("best_of", options.get("best_of", 1))
    _require_effect({**changes, **({"best_of": best_of} if best_of > 1 else {})}, sampling, no_guidance)
    return DrawSettings(
        seed=options.get("seed"),
        generator=options.get("generator"),
        best_of=best_of,
        batch_size=None if batch_size is None else count("batch_size", batch_size),
        output_type="np" if output_type == "numpy" else output_type,
        sampling=sampling,
        guided=next((name for name in changes if _guides(name, changes[name])), None),
    )


def _guides(name: str, value: Any) -> bool:
    """Whether a setting asks for guidance; scale 1 asks for none."""
    return name in GUIDANCE and (name, value) != ("guidance_scale", 1)


def _require_effect(given: Mapping[str, Any], sampling: SamplingConfig, no_guidance: str | None) -> None:
    """Refuse given settings that cannot act beside the others."""
    off, schedule = "guidance_scale" not in given and sampling.guidance_scale == 1, sampling.schedule
    likeliest = "temperature 0 always takes the likeliest code" if sampling.takes_likeliest else None
    moot = {
        "schedule_power": None if schedule == "power-cosine" else "only the schedule power-cosine uses it",
        "schedule_start": None if schedule == "step" else "only the schedule step uses it",
        **dict.fromkeys((*FILTERS, "best_of"), likeliest),
    }
    for name in given:
        unguided = no_guidance or ("guidance_scale is 1: give it too" if off and name != "guidance_scale" else None)
        why = (unguided if _guides(name, given[name]) else None) or moot.get(name)
        ConfigError.unless(
            why is None, f"has no effect: {why}", field=name, found=shown(given[name]), fix="leave it out"
        )


def _plain(name: str, value: Any) -> Any:
    """A NumPy or torch number as a Python one; arrays are refused."""
    if not hasattr(value, "ndim"):
        return value
    if value.ndim:
        raise ConfigError("has the wrong type", field=name, found=f"an array of {tuple(value.shape)}")
    return value.item()


def whole(value: Any, default: int = -1) -> int:
    """A Python, NumPy or torch whole number as ``int``; ``default`` for anything else, True and False included."""
    try:
        return default if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return default


def count(name: str, value: object) -> int:
    """A whole number from 1 as ``int``; ``ConfigError`` naming the option for anything else."""
    number = whole(value)
    require(number >= 1, name, shown(value), "1 or more")
    return number


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless ``value`` is one of the choices."""
    known, found = isinstance(value, str) and value in choices, shown(value)
    ConfigError.unless(known, "is not one of the choices", field=name, found=found, fix=nearest(found, choices))


def require_flag(name: str, value: object) -> None:
    """Raise ``ConfigError`` unless ``value`` is True or False."""
    right = isinstance(value, bool)
    ConfigError.unless(right, "has the wrong type", field=name, found=shown(value), expected="True or False")


def require_one_or_all(name: str, n: int, n_images: int) -> None:
    """Raise ``DataError`` unless there is one thing for all images, or one for each."""
    problem, expected = "are neither one nor as many as the images", f"1 or {n_images}"
    DataError.unless(n in (1, n_images), problem, field=name, found=n, expected=expected)


def image_seed(seed: int, index: int) -> int:
    """The seed that gives image ``index`` of a call alone: that of image 0 is the call's, the others are hashes."""
    return seed if index == 0 else derive_seed("image", seed, index)


def seeds_of(seed: Any, n: int) -> list[int]:
    """The seed of each of n images: ``image_seed`` of one number, the numbers of a list, a random start for None.

    Raises:
        ConfigError: neither a whole number from 0 nor n of them.
    """
    first = int(torch.randint(2**31, ()).item()) if seed is None else whole(seed)
    if first >= 0:
        return [image_seed(first, i) for i in range(n)]
    listed = isinstance(seed, Iterable) and not isinstance(seed, (str, bytes))
    listed = listed and getattr(seed, "ndim", 1) > 0  # a tensor without dimensions calls itself iterable
    seeds = [whole(each) for each in seed] if listed else []
    if len(seeds) != n or min(seeds, default=-1) < 0:
        expected = f"a whole number from 0, or a list of {n} of them, one for each image"
        raise ConfigError("is not a seed", field="seed", found=shown(seed), expected=expected)
    return seeds


def seeds_from(generator: Any, n: int) -> list[int]:
    """The seeds of n images: n numbers of one ``torch.Generator``, or one number of each of n generators.

    Raises:
        ConfigError: neither a generator nor n of them.
    """
    listed = isinstance(generator, (list, tuple))
    several = list(generator) if listed else [generator]
    if not all(isinstance(each, torch.Generator) for each in several) or (listed and len(several) != n):
        expected = f"a torch.Generator, or a list of {n} of them, one for each image"
        raise ConfigError("is not a generator", field="generator", found=shown(generator), expected=expected)
    each_gives = n if len(several) == 1 else 1
    sampled = [torch.randint(2**63 - 1, (each_gives,), generator=each, device=each.device) for each in several]
    return [seed for numbers in sampled for seed in numbers.tolist()]


def label_ids(class_labels: Any, names: Mapping[str, int], null_class: int) -> list[int]:
    """Class numbers of names or numbers; None becomes the null class.

    Args:
        class_labels: a class, several, or None. Text is a name, or a number with the mark ``#``, as in ``"#3"``.
        names: class name -> class number.
        null_class: the number of no class.

    Raises:
        DataError: a class that does not exist, an empty list, or a class of a prior without classes.
    """
    if class_labels is None:
        return [null_class]
    single = isinstance(class_labels, (int, str)) or not isinstance(class_labels, Iterable)
    labels = [class_labels] if single or getattr(class_labels, "ndim", 1) == 0 else list(class_labels)
    if not labels:
        raise DataError("is empty", field="class_labels", expected="a class, several, or None for no class")
    fix, found = "leave class_labels out: it generates without a class", shown(class_labels)
    DataError.unless(len(names) > 0, "this prior knows no classes", field="class_labels", found=found, fix=fix)
    return [_label_id(label, names) for label in labels]


def _label_id(label: Any, names: Mapping[str, int]) -> int:
    if isinstance(label, str):
        return class_number(str(label), names, "class_labels")
    number = whole(label)
    if 0 <= number < len(names):
        return number
    found, expected = shown(label), f"a number in 0..{len(names) - 1} or a name"
    raise DataError("no such class", field="class_labels", found=found, expected=expected)
