"""Blocks of a page: pictures, tables, bars, heat maps; and the sections that hold them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from PIL import Image

_LOSSLESS = 250_000
"""pixels; larger pictures are compressed with loss"""
_MOST = 1_500_000
"""pixels; larger pictures are made smaller"""
_QUALITY = 86


class Block(Protocol):
    """What a section shows; ``kind`` names the macro of ``templates/blocks.html`` that draws it."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Embedded:
    """A picture inside a page.

    Attributes:
        source: data address.
        alt: what it shows, for those who do not see it.
        width, height: pixels.
        is_exact: whether it is lossless; its pixels are then shown with sharp edges where it is enlarged.
    """

    source: str
    alt: str
    width: int
    height: int
    is_exact: bool


def embed(image: Image.Image, alt: str, most: int = _MOST) -> Embedded:
    """A picture for a page: PNG up to 250,000 pixels; WebP above, made smaller where it has more than ``most``."""
    pixels = image.width * image.height
    if pixels > most:
        share = (most / pixels) ** 0.5
        image = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)
    exact, content = pixels <= _LOSSLESS, io.BytesIO()
    if exact:
        image.save(content, "PNG", optimize=True)
    else:
        image.save(content, "WEBP", quality=_QUALITY, method=4)
    data = base64.b64encode(content.getvalue()).decode()
    return Embedded(f"data:image/{'png' if exact else 'webp'};base64,{data}", alt, image.width, image.height, exact)


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        wide: whether it takes the whole width of the page.
    """

    kind: ClassVar[str] = "picture"

    image: Embedded
    caption: str = ""
    wide: bool = True


@dataclass(frozen=True)
class Rows:
    """A picture for each name, such as samples by class."""

    kind: ClassVar[str] = "rows"

    rows: Sequence[tuple[str, Embedded]]
    caption: str = ""


@dataclass(frozen=True)
class Slider:
    """Two pictures of one size over each other, and a handle that moves the border between them."""

    kind: ClassVar[str] = "slider"

    first: Embedded
    second: Embedded
    names: tuple[str, str]
    caption: str = ""


@dataclass(frozen=True)
class Film:
    """Pictures of the same things over time, and a handle that moves through them."""

    kind: ClassVar[str] = "film"

    name: str
    frames: Sequence[tuple[str, Embedded]]
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns. A cell that begins a row is its head.

    Attributes:
        heads: of the columns; empty for none.
        rows: of as many cells each.
        numeric: whether the cells after the first are numbers, which end at the right.
    """

    kind: ClassVar[str] = "table"

    rows: Sequence[Sequence[str]]
    heads: Sequence[str] = ()
    caption: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Bar:
    """A line of ``Bars``."""

    name: str
    value: float
    text: str


@dataclass(frozen=True)
class Bars:
    """Lengths with names, from 0.

    Attributes:
        mark: a value that a line across all of them shows; None for none.
    """

    kind: ClassVar[str] = "bars"

    title: str
    bars: Sequence[Bar]
    caption: str = ""
    mark: float | None = None

    @property
    def most(self) -> float:
        """The value of a full length."""
        return max([*(each.value for each in self.bars), self.mark or 0.0, 1e-12])


@dataclass(frozen=True)
class HeatMap:
    """Values on a grid as colours.

    Attributes:
        values: rows of columns.
        low, high: values of the first and the last colour.
    """

    kind: ClassVar[str] = "heat"

    title: str
    values: Sequence[Sequence[float]]
    low: float
    high: float
    unit: str
    caption: str = ""

    def share(self, value: float) -> float:
        """Where a value lies between low and high, 0 to 1."""
        return min(1.0, max(0.0, (value - self.low) / ((self.high - self.low) or 1.0)))


@dataclass(frozen=True)
class Notes:
    """Warnings, or other sentences, in a list."""

    kind: ClassVar[str] = "notes"

    notes: Sequence[str]
    are_warnings: bool = False


@dataclass(frozen=True)
class Listing:
    """A file's text, folded."""

    kind: ClassVar[str] = "listing"

    name: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: of the section.
        blocks: what it shows; a section without blocks is left out.
        lead: what the reader sees here, in a sentence.
        command: what makes the figures again; empty where nothing does but the run.
    """

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    lead: str = ""
    command: str = ""

    @property
    def anchor(self) -> str:
        """Name for links within the page."""
        return "-".join("".join(each if each.isalnum() else " " for each in self.title.lower()).split())
