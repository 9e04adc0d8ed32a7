"""Budgets as text."""

import pytest

from foundation.errors import ConfigError
from pipeline.runs.duration import Budget, duration


@pytest.mark.parametrize(
    ("text", "total", "first"),
    [
        ("20m", 1200, None),
        ("2h", 7200, None),
        ("1h30m", 5400, None),
        ("1d", 86_400, None),
        ("90s", 90, None),
        ("0.5h", 1800, None),
        ("10m+30m", 2400, 600),
        ("10m + 1h", 4200, 600),
    ],
)
def test_times_and_pairs_of_times_are_read(text: str, total: float, first: float | None) -> None:
    assert Budget.parse(text) == Budget(total, first)


@pytest.mark.parametrize("text", ["", "20", "m", "20min", "20m+", "1m+2m+3m", "-20m", "20 bananas", "10s", "m20"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Budget.parse(text, "--budget")
    assert "--budget" in str(refused.value) and ("20m" in str(refused.value) or "30 seconds" in str(refused.value))


def test_durations_are_shown_in_the_unit_that_fits() -> None:
    shown = [duration(seconds) for seconds in (4.6, 119, 150, 7000, 9000, 200_000)]
    assert shown == ["5 s", "119 s", "2.5 min", "116.7 min", "2.5 h", "2.3 days"]
