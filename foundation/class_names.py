"""Class names: their order gives labels their numbers."""

from __future__ import annotations

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
