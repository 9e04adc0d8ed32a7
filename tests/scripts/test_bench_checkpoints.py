"""The rows have the agreed form; what is compared is the same state."""

import json
import sys
from pathlib import Path

import pytest
import torch

from foundation.training.checkpoints import latest_checkpoint, named_tensors

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_checkpoints

    return bench_checkpoints


def test_quick_writes_rows(bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.json"
    monkeypatch.setattr(bench, "BETWEEN", 0.01)
    monkeypatch.setattr(bench, "_SIDE", 32)
    arguments = ["--quick", "--gigabytes", "0.001", "--folder", str(tmp_path), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    bench.main()
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert [row["unit"] for row in rows] == ["s", "s", "ms", "s"] and all(row["ours"] > 0 for row in rows)
    assert [each.name for each in tmp_path.iterdir()] == ["rows.json"], "it tidies up"


def test_the_reference_writes_a_checkpoint_that_verifies(bench, tmp_path: Path) -> None:
    state = bench.state_of(0.0005)
    for step in (1, 2, 3):
        bench.save_as_before(tmp_path, step, state)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 3 and len(list(tmp_path.iterdir())) == 2
    saved = dict(named_tensors(found.state))
    assert all(torch.equal(saved[name], each) for name, each in named_tensors(state))
