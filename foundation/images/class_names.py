"""Class names and their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foundation.errors import DataError


def in_order(names: set[str]) -> tuple[str, ...]:
    """Class names in label order: by number when all are numbers, else alphabetically."""
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numeric else (0, name)))


def require_same_classes(expected: tuple[str, ...] | None, found: tuple[str, ...], field: str) -> None:
    """Refuse images whose classes are not the ``expected`` ones; None expects nothing."""
    if expected is not None and found != expected:
        raise DataError(
            "has other classes than the training images",
            field=field,
            found=", ".join(found) or "no classes",
            expected=", ".join(expected) or "no classes",
        )


def class_numbers(
    names_N: Sequence[str], class_names: tuple[str, ...] | None, field: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number each image's class.

    Args:
        names_N: the class of each image.
        class_names: the classes of the training images; None takes the classes of ``names_N``.
        field: names the source in error messages.

    Returns:
        (N,) int64, and the class names in label order.

    Raises:
        DataError: a class that the training images lack.
    """
    classes = class_names or in_order(set(names_N))
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(names_N) - number.keys())
    found, fix = ", ".join(unknown[:10]), "train on a split that has every class"
    DataError.unless(not unknown, "has classes that the training split lacks", field=field, found=found, fix=fix)
    return np.array([number[name] for name in names_N], np.int64), classes
