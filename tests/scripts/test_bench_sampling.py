"""The benchmark of drawing codes compares equal models and counts what a step must read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_sampling

    return bench_sampling


def test_the_reference_has_our_matrices_and_the_floor_counts_them(bench: ModuleType) -> None:
    for size in bench.SIZES:
        workload = bench.Workload(size, 1, 4)
        with torch.device("meta"):
            theirs = bench.reference_model(workload)
        products = [each for name, each in theirs.named_parameters() if each.ndim == 2 and "embed" not in name]
        assert sum(each.numel() for each in products) == workload.n_weights
    prior = bench.our_prior(bench.Workload("256x6", 1, 4))
    products = [each for name, each in prior.named_parameters() if each.ndim == 2 and "embedding" not in name]
    assert sum(each.numel() for each in products) == bench.Workload("256x6", 1, 4).n_weights


def test_the_floor_is_the_time_to_read_or_to_compute(bench: ModuleType) -> None:
    workload = bench.Workload("256x6", 1, 16)
    cached = 6 * 2 * 256 * 128
    reading = 1e3 * 4 * (workload.n_weights + 2 * cached) / 50e9
    assert workload.floor(2, 50e9, 1e15) == pytest.approx(reading)
    assert workload.floor(2, 50e9, 1e15, n_bytes=2) < reading
    assert workload.floor(2, 1e15, 1e12) == pytest.approx(1e3 * 2 * 2 * (workload.n_weights + cached) / 1e12)


def test_a_quick_run_writes_its_rows(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bench, "VOCAB", 512)
    monkeypatch.setitem(bench.SIZES, "256x6", (32, 1, 2))
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--batches", "2", "--json", str(tmp_path / "rows.json")])
    bench.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 6 and all(row["ours"] > 0 and row["floor"] > 0 and row["ratio"] > 0 for row in rows)
    assert all(row["config"]["floor_of_gemv"] > 0 for row in rows[:2])
    assert "of the floor" in capsys.readouterr().out
