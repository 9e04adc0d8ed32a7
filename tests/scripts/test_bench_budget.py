"""The benchmark of budgets prints what was promised beside what it took."""

from pathlib import Path

from scripts.bench_budget import table


def test_a_row_is_shown_with_its_parts(tmp_path: Path) -> None:
    parts = {"expected": {"start": 6.0, "prior": 60.0}, "taken": {"start": 8.0, "prior": 50.0}}
    row = {"workload": "folder, 5m", "ours": 285.0, "reference": 300.0, "config": {"parts": parts}}
    shown = table(row)
    assert "folder, 5m" in shown and "(-5.0%)" in shown
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("  prior")] == ["s"]
