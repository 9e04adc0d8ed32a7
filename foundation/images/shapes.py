"""Shapes of images, (height, width) in pixels: the nearest to an aspect ratio, those of one area, their names.

Several shapes of one area are aspect buckets, as in Podell et al. 2023 (SDXL), arXiv:2307.01952, section 2.3. Here all
have exactly the same number of pixels, so that all images have the same number of codes. Imports neither numpy nor
Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from foundation.errors import ConfigError

Shape = tuple[int, int]
"""(height, width) in pixels"""
WORDS = ("square", "landscape", "portrait")


def bucket_of(size: tuple[int, int], shapes: Sequence[Shape]) -> int:
    """The shape nearest to an image's aspect ratio, by the logarithm of the ratio; the first of equally near ones.

    Args:
        size: (width, height) of the upright image, as Pillow gives it.
        shapes: (height, width) each.

    Returns:
        an index into ``shapes``.
    """
    ratio = math.log(size[0] / size[1])
    distances = [round(abs(math.log(width / height) - ratio), 9) for height, width in shapes]
    return distances.index(min(distances))


def equal_shapes(height: int, width: int, multiple: int, most: float = 3.0) -> list[Shape]:
    """All shapes with the pixels of ``height`` x ``width`` and sides that are multiples, up to a ratio of ``most``."""
    area = (height // multiple) * (width // multiple)
    short = [(side, area // side) for side in range(1, math.isqrt(area) + 1) if area % side == 0]
    sides = sorted({*short, *(pair[::-1] for pair in short)})
    return [(h * multiple, w * multiple) for h, w in sides if max(h, w) <= most * min(h, w)]


def propose_shapes(n_pixels: int, multiple: int, most: float = 2.0, tolerance: float = 0.2) -> list[Shape]:
    """Shapes of one area near ``n_pixels``: of the areas within the tolerance, the one with the most aspect ratios.

    >>> propose_shapes(256 * 256, 16)
    [(192, 336), (224, 288), (288, 224), (336, 192)]

    Args:
        n_pixels: wished for.
        multiple: of all sides, the tokenizer's stride.
        most: largest ratio of a long side to a short one.
        tolerance: largest relative difference of the area.
    """
    wished = n_pixels / multiple**2
    areas = range(max(1, math.ceil(wished * (1 - tolerance))), math.floor(wished * (1 + tolerance)) + 1)
    choices = [equal_shapes(multiple, area * multiple, multiple, most) for area in areas]
    return max(choices, key=lambda each: (len(each), -abs(each[0][0] * each[0][1] - n_pixels)) if each else (0, 0))


def aspect_name(shape: Shape) -> str:
    """The ratio of width to height in least terms, e.g. ``16:9``."""
    divisor = math.gcd(*shape)
    return f"{shape[1] // divisor}:{shape[0] // divisor}"


def find_shape(aspect: Any, shapes: Sequence[Shape]) -> int:
    """The shape that a text, a pair or a number names.

    Args:
        aspect: ``"16:9"`` (width to height), ``"256x144"`` (height x width in pixels), ``portrait``, ``landscape`` or
            ``square``, (height, width) in pixels, or an index into ``shapes``. A word means the first shape that is
            higher than wide, wider than high, or neither.
        shapes: (height, width) each.

    Raises:
        ConfigError: none of the shapes is named; the message lists them.
    """
    named = _names(shapes)
    key = "x".join(map(str, aspect)) if isinstance(aspect, (tuple, list)) else str(aspect).strip().lower()
    if isinstance(aspect, int) and not isinstance(aspect, bool) and 0 <= aspect < len(shapes):
        return int(aspect)
    if key in named:
        return named[key]
    sides = key.split(":")
    if len(sides) == 2 and all(each.isdecimal() and int(each) for each in sides):
        reduced = aspect_name((int(sides[1]), int(sides[0])))
        if reduced in named:
            return named[reduced]
    raise ConfigError("names none of the shapes", field="aspect", found=repr(aspect), expected=shapes_text(shapes))


def shapes_text(shapes: Sequence[Shape]) -> str:
    """The shapes in words, e.g. ``64 x 48 (3:4, portrait), 48 x 64 (4:3, landscape)``."""
    words = {i: name for name, i in _names(shapes).items() if name in WORDS}
    about = (", ".join(filter(None, (aspect_name(each), words.get(i)))) for i, each in enumerate(shapes))
    return ", ".join(f"{h} x {w} ({text})" for (h, w), text in zip(shapes, about, strict=True))


def _names(shapes: Sequence[Shape]) -> Mapping[str, int]:
    """Every text that names a shape; of several shapes with one name, the first has it."""
    found: dict[str, int] = {}
    for i, (height, width) in enumerate(shapes):
        word = "square" if height == width else "landscape" if width > height else "portrait"
        for name in (f"{height}x{width}", f"{height} x {width}", aspect_name((height, width)), word):
            found.setdefault(name, i)
    return found
