"""Charts: every point lies within the axes, gaps stay gaps, and what a pointer reads is what was logged."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Series

VALUES = st.lists(st.floats(-1e6, 1e6) | st.none() | st.just(math.nan), min_size=1, max_size=400)


def inside(x: float, y: float) -> bool:
    return LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1 and TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1


@given(values=VALUES, log=st.booleans())
def test_all_points_and_ticks_lie_within_the_axes(values: list[float | None], log: bool) -> None:
    chart = Chart("title", "step", "loss", [Series("one", range(len(values)), values)], log=log)
    (curve,) = chart.curves
    assert all(inside(x, y) for x, y in chart.dots(curve))
    assert all(inside(x, TOP) for x, _ in chart.x_ticks) and all(inside(LEFT, y) for y, _ in chart.y_ticks)
    drawn = sum(y is not None and not math.isnan(y) and (y > 0 or not log) for y in curve.ys)
    assert len(chart.dots(curve)) == drawn == len(chart.data["curves"][0]["x"])


def test_a_gap_begins_a_new_part_of_the_path() -> None:
    chart = Chart("title", "step", "loss", [Series("one", [0, 1, 2, 3], [1.0, None, 2.0, 3.0])])
    path = chart.path(chart.curves[0])
    assert path.count("M") == 2 and path.count("L") == 1


def test_long_curves_are_drawn_as_means_of_neighbours() -> None:
    chart = Chart("title", "step", "loss", [Series("one", range(4800), [float(i % 2) for i in range(4800)])])
    (curve,) = chart.curves
    assert len(curve.xs) == 240 and curve.ys == pytest.approx([0.5] * 240)


def test_a_logarithmic_axis_spreads_decades_evenly() -> None:
    chart = Chart("title", "step", "loss", [Series("one", [0, 1, 2], [0.01, 0.1, 1.0])], log=True)
    low, middle, high = (chart.y(value) for value in (0.01, 0.1, 1.0))
    assert middle - low == pytest.approx(high - middle, abs=0.2) and high < low


def test_limits_can_be_given_and_a_constant_curve_has_room() -> None:
    shares = Chart("title", "step", "share", [Series("one", [0, 1], [0.4, 0.4])], low=0.0, high=1.0)
    assert shares.limits == (0, 1, 0.0, 1.0)
    assert Chart("first", "step", "loss", [Series("a", [40], [2.0])]).limits[:2] == (40, 41)
    constant = Chart("title", "step", "loss", [Series("one", [5], [2.0])])
    assert constant.limits[2] < 2.0 < constant.limits[3]


def test_the_table_of_values_has_a_column_for_each_curve_and_at_most_twelve_rows() -> None:
    curves = [Series("one", range(100), [float(i) for i in range(100)]), Series("two", [0, 99], [7.0, 7.0])]
    heads, rows = Chart("title", "step", "loss", curves).listed
    assert heads == ["step", "one", "two"] and len(rows) == 12
    assert rows[0] == ["0", "0", "7"] and rows[-1] == ["99", "99", "7"]
