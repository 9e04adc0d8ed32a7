"""What a caller asked for, checked: classes, seeds, settings, and whether the result fits in memory."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foundation.config import from_dict, to_dict
from foundation.errors import ConfigError, DataError, nearest
from pipeline.generation.options import OUTPUT_TYPES, DrawOptions, SamplingOptions
from stage2_prior.decoding.engine import free_bytes
from stage2_prior.decoding.sampling import SamplingConfig

_SETTINGS = tuple(SamplingOptions.__annotations__)
_OPTIONS = tuple(DrawOptions.__annotations__)
_SHARE = 0.5  # of the free memory that one call may fill
_PICTURE = 1024  # bytes that a Pillow image takes beside its pixels


@dataclass(frozen=True, kw_only=True)
class Request:
    """``DrawOptions`` with their defaults filled in.

    Attributes:
        seed: as given; ``seeds_of`` makes a list of it.
        best_of, batch_size, output_type: see ``DrawOptions``.
        sampling: how codes are drawn.
    """

    seed: Any
    best_of: int
    batch_size: int | None
    output_type: str
    sampling: SamplingConfig


def request_of(options: Mapping[str, Any], defaults: SamplingConfig) -> Request:
    """Check the options of a call.

    Args:
        options: of ``DrawOptions``.
        defaults: sampling settings used where the options name none.

    Raises:
        ConfigError: an option that does not exist, or a value outside its range.
    """
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError("is not an option", field=name, fix=nearest(name, _OPTIONS))
    changes = {name: _plain(name, options[name]) for name in _SETTINGS if options.get(name) is not None}
    best_of, batch_size = options.get("best_of", 1), options.get("batch_size")
    if batch_size is not None:
        require_count("batch_size", batch_size)
    require_count("best_of", best_of)
    output_type = options.get("output_type", "pil")
    require_choice("output_type", output_type, OUTPUT_TYPES)
    return Request(
        seed=options.get("seed"), best_of=whole(best_of), output_type=output_type,
        batch_size=None if batch_size is None else whole(batch_size),
        sampling=from_dict(SamplingConfig, {**to_dict(defaults), **changes}),
    )  # fmt: skip


def _plain(name: str, value: Any) -> Any:
    """A NumPy or torch number as a Python one; other arrays are no setting."""
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


def require_count(name: str, value: object) -> None:
    """Raise ``ConfigError`` unless ``value`` is a whole number from 1."""
    if whole(value, 0) < 1:
        raise ConfigError("has a value that cannot work", field=name, found=repr(value)[:200], expected="1 or more")


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless ``value`` is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        found = repr(value)[:200]
        raise ConfigError("is not one of the choices", field=name, found=found, fix=nearest(found, choices))


def require_flag(name: str, value: object) -> None:
    """Raise ``ConfigError`` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError("has the wrong type", field=name, found=repr(value)[:200], expected="True or False")


def seeds_of(seed: Any, n: int) -> list[int]:
    """One seed for each of n images: seed + i, or those of a list; a random start for None.

    Raises:
        ConfigError: neither a whole number from 0 nor n of them.
    """
    if seed is None:
        seed = int(torch.randint(2**31, ()).item())
    first = whole(seed)
    if first >= 0:
        return [first + i for i in range(n)]
    try:
        given = None if not isinstance(seed, Iterable) or isinstance(seed, (str, bytes)) else list(seed)
    except TypeError:  # a tensor of no dimension calls itself iterable
        given = None
    seeds = [whole(each) for each in given or []]
    if len(seeds) != n or min(seeds, default=-1) < 0:
        raise ConfigError("is not a seed", field="seed", found=repr(seed)[:200],
                          expected=f"a whole number from 0, or a list of {n} of them, one for each image")  # fmt: skip
    return seeds


def label_ids(class_labels: Any, names: Mapping[str, int], null_class: int) -> list[int]:
    """Class numbers of names or numbers; None becomes the null class.

    Args:
        class_labels: a class, several, or None.
        names: class name -> class number.
        null_class: the number of no class.

    Raises:
        DataError: a class that does not exist, none at all, or any where there are no classes.
    """
    if class_labels is None:
        return [null_class]
    single = isinstance(class_labels, (int, str)) or not isinstance(class_labels, Iterable)
    labels = [class_labels] if single or getattr(class_labels, "ndim", 1) == 0 else list(class_labels)
    if not labels:
        raise DataError("is empty", field="class_labels", expected="a class, several, or None for no class")
    if not names:
        raise DataError("this prior knows no classes", field="class_labels", found=repr(class_labels)[:200],
                        fix="leave class_labels out: it generates without a class")  # fmt: skip
    return [_label_id(label, names) for label in labels]


def require_room(
    n_images: int, n_codes: int, n_values: int, request: Request, device: torch.device, *, decoding: int = 0
) -> None:
    """Refuse a call whose result would not fit in memory.

    Args:
        n_images: asked for.
        n_codes: of one image.
        n_values: of one image's pixels.
        request: for the number of candidates and the type of the output.
        device: where codes are drawn.
        decoding: bytes that the decoder needs for one image.

    Raises:
        DataError: naming both sizes.
    """
    per_value = {"pil": 1, "np": 4, "pt": 4, "latent": 0}[request.output_type]
    needed = n_images * (request.best_of * n_codes * 32 + n_values * per_value + _PICTURE)
    needed += decoding if request.output_type != "latent" else 0
    free = min(free_bytes(torch.device("cpu")), free_bytes(device))
    if needed > _SHARE * free:
        asked = f"{n_images:,} images" + (f" of {request.best_of:,} candidates each" if request.best_of > 1 else "")
        raise DataError("more images than fit in memory", field="images", found=f"{asked}, {needed / 2**30:,.1f} GiB",
                        expected=f"at most {_SHARE * free / 2**30:,.1f} GiB",
                        fix="ask for fewer or smaller ones, or for files: tessera sample --count")  # fmt: skip


def _label_id(label: Any, names: Mapping[str, int]) -> int:
    if isinstance(label, str) and label in names:
        return names[label]
    number = int(label) if isinstance(label, str) and label.isdecimal() and len(label) < 20 else whole(label)
    if not 0 <= number < len(names):
        raise DataError("no such class", field="class_labels", found=repr(label)[:200],
                        expected=f"a number in 0..{len(names) - 1} or a name",
                        fix=nearest(str(label)[:200], names))  # fmt: skip
    return number
