"""Curves as SVG: ticks, paths and the values that a pointer reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 42
"""of the margins around the curves"""
_MOST_POINTS = 240
_LISTED = 12


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        xs, ys: of its points; a y that is None or not finite leaves a gap.
        dashed: for what the others are compared with.
        dots: whether the points themselves are drawn.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    dashed: bool = False
    dots: bool = False

    def thinned(self) -> Series:
        """At most 240 points: means of neighbours."""
        xs, ys = np.asarray(self.xs, float), np.asarray([math.nan if y is None else y for y in self.ys], float)
        ys[~np.isfinite(ys)] = math.nan
        if len(xs) > _MOST_POINTS:
            parts = np.array_split(np.arange(len(xs)), _MOST_POINTS)
            known = [part[~np.isnan(ys[part])] for part in parts]
            xs = np.array([xs[part].mean() for part in parts])
            ys = np.array([ys[part].mean() if len(part) else math.nan for part in known])
        return Series(self.name, xs.tolist(), ys.tolist(), self.dashed, self.dots)


@dataclass(frozen=True)
class Chart:
    """Curves over one axis.

    Attributes:
        x_name, y_name: of the axes, with units.
        log: whether the vertical axis is logarithmic; values of 0 and below are then left out.
        low, high: limits of the vertical axis; None takes those of the values.
    """

    kind: ClassVar[str] = "chart"

    title: str
    x_name: str
    y_name: str
    series: Sequence[Series]
    caption: str = ""
    log: bool = False
    low: float | None = None
    high: float | None = None

    @cached_property
    def curves(self) -> list[Series]:
        """The series as they are drawn."""
        thin = [each.thinned() for each in self.series]
        if not self.log:
            return thin
        above = [[y if y > 0 else math.nan for y in each.ys] for each in thin]  # type: ignore[operator]
        return [Series(s.name, s.xs, ys, s.dashed, s.dots) for s, ys in zip(thin, above, strict=True)]

    @cached_property
    def limits(self) -> tuple[float, float, float, float]:
        """Smallest and largest x, smallest and largest y."""
        xs = [x for each in self.curves for x in each.xs] or [0.0, 1.0]
        ys = [y for each in self.curves for y in each.ys if y is not None and math.isfinite(y)] or [1.0]
        low, high = (min(ys) if self.low is None else self.low), (max(ys) if self.high is None else self.high)
        if low == high:
            low, high = (low / 2, high * 2) if self.log else (low - 0.5, high + 0.5)
        edge = 0.0 if self.log else 0.04 * (high - low)
        first, last = min(xs), max(xs)
        return (
            first,
            last if last > first else first + 1,
            low if self.low is not None else low - edge,
            high if self.high is not None else high + edge,
        )

    def x(self, value: float) -> float:
        """Place of a value in the picture."""
        first, last, _, _ = self.limits
        return round(LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Place of a value in the picture."""
        _, _, low, high = self.limits
        low, high, value = (math.log(each) for each in (low, high, value)) if self.log else (low, high, value)
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Places and texts."""
        first, last, _, _ = self.limits
        return [(self.x(each), f"{each:,.6g}") for each in _ticks(first, last, log=False)]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Places and texts."""
        _, _, low, high = self.limits
        return [(self.y(each), f"{each:,.4g}") for each in _ticks(low, high, log=self.log)]

    def path(self, curve: Series) -> str:
        """The ``d`` of a curve's path; gaps begin a new part."""
        words, move = [], True
        for x, y in zip(curve.xs, curve.ys, strict=True):
            if y is None or math.isnan(y):
                move = True
                continue
            words.append(f"{'M' if move else 'L'}{self.x(x):g} {self.y(y):g}")
            move = False
        return "".join(words)

    def dots(self, curve: Series) -> list[tuple[float, float]]:
        """Places of a curve's points."""
        known = [(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if y is not None and not math.isnan(y)]
        return [(self.x(x), self.y(y)) for x, y in known]

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script reads: limits, and the points of each curve that have a value."""
        curves = []
        for each in self.curves:
            known = [(x, y) for x, y in zip(each.xs, each.ys, strict=True) if y is not None and not math.isnan(y)]
            xs, ys = [_short(x) for x, _ in known], [_short(y) for _, y in known]
            curves.append({"name": each.name, "x": xs, "y": ys})
        box = {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM, "width": WIDTH}
        return {"x": self.x_name, "limits": [_short(each) for each in self.limits[:2]], "box": box, "curves": curves}

    @property
    def listed(self) -> tuple[list[str], list[list[str]]]:
        """A table of at most 12 lines: heads, and rows of the values nearest to evenly spread x."""
        drawn = [each for each in self.curves if any(y is not None and not math.isnan(y) for y in each.ys)]
        first, last, _, _ = self.limits
        grid = sorted({x for each in drawn for x in each.xs})
        chosen = grid if len(grid) <= _LISTED else np.linspace(first, last, _LISTED).tolist()
        rows = [[f"{x:,.6g}", *(_nearest(each, x) for each in drawn)] for x in chosen]
        return [self.x_name, *(each.name for each in drawn)], rows


def _nearest(curve: Series, x: float) -> str:
    known = [(abs(a - x), y) for a, y in zip(curve.xs, curve.ys, strict=True) if y is not None and not math.isnan(y)]
    return f"{min(known)[1]:.5g}" if known else ""


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    from matplotlib.ticker import LogLocator, MaxNLocator

    spread = log and high / low >= 30
    locator = LogLocator(subs=(1.0, 3.0) if high / low < 1000 else (1.0,)) if spread else MaxNLocator(5)
    return [float(each) for each in locator.tick_values(low, high) if low <= each <= high]
