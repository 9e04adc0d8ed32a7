"""The rows have the agreed form, and the memory of a packed dataset does not grow with its rows."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from foundation.hardware import TokenAccess

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_tokens

    return bench_tokens


def test_quick_writes_rows(bench, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    tiny = dataclasses.replace(bench.QUICK, rows=300, files=300, small_rows=500, batches=2, epoch=100_000)
    monkeypatch.setattr(bench, "QUICK", tiny)
    monkeypatch.setattr(bench, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--folder", str(tmp_path), "--json", str(file)])
    bench.main()
    rows = json.loads(file.read_text())
    keys = {"workload", "unit", "ours", "reference", "reference_name", "ratio", "floor", "config"}
    assert len(rows) == 14 and all(set(row) == keys for row in rows)
    for row in rows:
        better = row["ours"] / row["reference"] if row["unit"] != "MiB" else row["reference"] / max(row["ours"], 1e-9)
        assert row["ratio"] is None or row["ratio"] == pytest.approx(better)
    assert "one .npy per image" in capsys.readouterr().out
    assert [each.name for each in tmp_path.iterdir()] == ["rows.json"], "it tidies up"


@pytest.mark.slow  # millions of rows, four fresh interpreters
def test_the_peak_memory_of_a_packed_dataset_does_not_grow_with_its_rows(bench, tmp_path):
    bench.write_dataset(tmp_path / "warm", 4, 1, 512)
    peaks = {}
    for shards in (2, 50):
        folder = bench.write_dataset(tmp_path / f"{shards}", 4, shards, 100_000, linked=True)
        for name in ("packing", "packed"):
            peaks[name, shards] = bench.in_fresh_process(bench.peak_of_reading, folder, TokenAccess(form="packed"), 200)
    columns_mib = 5_000_000 * (16 * 2 + 8 + 1) / 2**20
    assert peaks["packed", 50] < peaks["packed", 2] + 4 < columns_mib / 10, peaks
    assert peaks["packing", 50] < peaks["packing", 2] + 100 < columns_mib, peaks
