"""Inventory of a data source: images by class, size and mode, and the files that are passed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from foundation.images.depth import brightest

if TYPE_CHECKING:
    from foundation.images.array_image import AnyImage

_SHOWN = 8


@dataclass(frozen=True)
class PassedOver:
    """Files that are not read, of one kind.

    Attributes:
        kind: what they have in common, e.g. ``.heic``.
        reason: why they are not read, and what would help.
        count: number of files.
        example: one of them.
    """

    kind: str
    reason: str
    count: int
    example: str


class PassedOverFiles:
    """Counts files that are passed over, by kind and reason."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}

    def add(self, kind: str, reason: str, example: str, count: int = 1) -> None:
        """Count one file, or several of which one is the example."""
        self._counts[kind, reason] += count
        self._examples.setdefault((kind, reason), example)

    def rows(self) -> list[PassedOver]:
        """One entry for each kind, the most frequent first."""
        return [PassedOver(*key, count, self._examples[key]) for key, count in self._counts.most_common()]


@dataclass
class Shapes:
    """Sizes and modes of images, counted while a source is scanned.

    Attributes:
        modes: Pillow's modes, e.g. ``RGB``, or types of arrays, with the number of images.
        sizes: (width, height) in pixels, with the number of images.
        brightest: the largest ``depth.brightest``; None if no image has more than 8 bits.
    """

    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    brightest: int | None = None

    def add(self, image: AnyImage) -> None:
        """Count one image, as its file holds it."""
        self.modes[image.mode] += 1
        self.sizes[image.size] += 1
        self.brightest = _larger(self.brightest, brightest(image))

    def merge(self, other: Shapes) -> None:
        """Add the counts of another one."""
        self.modes.update(other.modes)
        self.sizes.update(other.sizes)
        self.brightest = _larger(self.brightest, other.brightest)

    def __add__(self, other: Shapes) -> Shapes:
        largest = _larger(self.brightest, other.brightest)
        return Shapes(self.modes + other.modes, self.sizes + other.sizes, largest)

    def summary(self, height: int, width: int) -> dict[str, Any]:
        """Modes with counts, least, median and largest size, and how many images are smaller than height x width."""
        areas = sorted(self.sizes.elements(), key=lambda size: size[0] * size[1])
        smaller = sum(count for size, count in self.sizes.items() if size[0] < width or size[1] < height)
        picked = [list(areas[i]) for i in (0, len(areas) // 2, -1)] if areas else []
        return {"modes": dict(self.modes.most_common()), "sizes": picked, "smaller": smaller, "asked": [width, height]}


def _larger(one: int | None, other: int | None) -> int | None:
    return max((each for each in (one, other) if each is not None), default=None)


def inventory(
    splits: dict[str, dict[str, int]],
    labels_N: np.ndarray | None,
    class_names: tuple[str, ...],
    passed_over: Iterable[PassedOver],
    notes: Iterable[str],
    shapes: dict[str, Any] | None,
) -> dict[str, Any]:
    """What was found, in a form for JSON.

    Args:
        splits: name -> its images that are ``used`` and ``failed``.
        labels_N: (N,) class numbers of all images, or None.
        class_names: by class number.
        passed_over: files that are not read.
        notes: sentences about the structure.
        shapes: ``Shapes.summary`` of the images; None if they were not decoded.
    """
    counts = None if labels_N is None else np.bincount(labels_N, minlength=len(class_names)).tolist()
    return {
        "splits": splits,
        "classes": None if counts is None else dict(zip(class_names, counts, strict=True)),
        "passed_over": [vars(each) for each in passed_over],
        "notes": list(notes),
        "shapes": shapes,
    }


def inventory_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An inventory as rows of a table: what, and how many. Planned images and files are all accounted for."""
    used = sum(each["used"] for each in found["splits"].values())
    failed = sum(each["failed"] for each in found["splits"].values())
    passed_over = sum(each["count"] for each in found["passed_over"])
    total = f"{used + failed + passed_over:,} = {used:,} used + {failed:,} failed + {passed_over:,} passed over"
    rows = [("found", total)]
    for name, each in found["splits"].items():
        unusable = f", {each['failed']:,} failed" if each["failed"] else ""
        rows.append((name, f"{each['used']:,} images{unusable}"))
    rows.append(("classes", _classes_text(found["classes"])))
    shapes = found["shapes"]
    if shapes and shapes["sizes"]:
        n_seen = sum(shapes["modes"].values())
        part = f" ({n_seen:,} images looked at)" if n_seen < used else ""
        rows += [("modes", f"{_listed(shapes['modes'])}{part}"), ("sizes", f"{_sizes_text(shapes)}{part}")]
    for each in found["passed_over"]:
        rows.append(("passed over", f"{each['count']:,} {each['kind']}: {each['reason']}; e.g. {each['example']}"))
    return [*rows, *(("note", note) for note in found["notes"])]


def inventory_text(found: Mapping[str, Any]) -> str:
    """The table as lines of text, before any image was used."""
    n_images = sum(each["used"] for each in found["splits"].values())
    passed_over = sum(each["count"] for each in found["passed_over"])
    total = f"{n_images + passed_over:,} = {n_images:,} images + {passed_over:,} passed over"
    return "\n".join(f"  {name:<12}{text}" for name, text in [("found", total), *inventory_rows(found)[1:]])


def _classes_text(counts: dict[str, int] | None) -> str:
    if not counts:
        return "none"
    ordered = sorted(counts.items(), key=lambda each: -each[1])
    if len(ordered) <= _SHOWN:
        return f"{len(counts)}: {_listed(counts)}"
    most, least = dict(ordered[: _SHOWN // 2]), dict(ordered[-_SHOWN // 2 :])
    return f"{len(counts):,}: most images {_listed(most)}; least {_listed(least)}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _sizes_text(shapes: dict[str, Any]) -> str:
    least, median, largest = (f"{width} x {height}" for width, height in shapes["sizes"])
    text = least if least == largest else f"{least} to {largest}, median {median}"
    if not shapes["smaller"]:
        return text
    width, height = shapes["asked"]
    return f"{text}; {shapes['smaller']:,} are smaller than {width} x {height} and are enlarged"
