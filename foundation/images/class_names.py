"""Class names and their numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from foundation.errors import DataError

_FEW_IMAGES = 20
_LONG_NAME = 100
"""characters, beyond which a name is a caption"""


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


def require_plausible_classes(names_N: Sequence[str], field: str, *, trusted: bool) -> None:
    """Refuse texts that are hardly classes: JSON, captions, paths, and names that most images have to themselves.

    Args:
        names_N: the class of each image.
        field: where the classes are from, e.g. ``data.source.label_column``.
        trusted: ``trust_classes`` of the source: nothing is refused.

    Raises:
        DataError: what they look like, and the two ways out.
    """
    if trusted or not names_N:
        return
    counts = Counter(names_N)
    alone = sum(n == 1 for n in counts.values())
    for what, found in _doubts(counts, len(names_N), alone):
        source = field.rpartition(".")[0]
        shown = found if len(found) <= _LONG_NAME else f"{found[:_LONG_NAME]}..."
        raise DataError(
            f"holds {what}, which are hardly classes",
            field=field,
            found=f"{len(counts):,} different ones for {len(names_N):,} images, e.g. {shown!r}",
            expected="the same few names for many images",
            fix=f"leave {field} out; or take them as classes all the same (--{source}.trust_classes true)",
        )


def _doubts(counts: Counter[str], n_images: int, alone: int) -> Iterator[tuple[str, str]]:
    """What the names look like if not classes, and one that does."""
    mostly = len(counts) / 2
    looks = (
        ("JSON texts", lambda name: (name[:1] + name[-1:] in ("{}", "[]") and '"' in name) or name[:2] == "{}"),
        ("long texts", lambda name: len(name) > _LONG_NAME),
        ("names of files", lambda name: re.search(r"\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif)$", name.lower())),
        ("web addresses", lambda name: re.match(r"https?://", name)),
    )
    for what, looks_so in looks:
        found = [name for name in counts if looks_so(name)]
        if len(found) > mostly:
            yield what, found[0]
    if n_images > _FEW_IMAGES and alone > n_images / 2:
        yield "a name of its own for nearly each image", next(name for name, n in counts.items() if n == 1)
