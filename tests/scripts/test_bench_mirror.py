"""The rows have the agreed form, and the mirror that was measured holds the last checkpoint."""

import json
import sys
from pathlib import Path

import pytest

from foundation.storage.remote.mirror_index import MirrorStore

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_quick_writes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_checkpoints
    import bench_mirror

    file = tmp_path / "rows.json"
    monkeypatch.setattr(bench_mirror, "BETWEEN", 0.01)
    monkeypatch.setattr(bench_checkpoints, "_SIDE", 32)
    arguments = ["--quick", "--gigabytes", "0.001", "--folder", str(tmp_path), "--address", "memory://bench"]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments, "--json", str(file)])
    bench_mirror.main()
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert [row["unit"] for row in rows] == ["s", "1/s", "1/s", "s"] and all(row["ours"] > 0 for row in rows)
    index = MirrorStore("memory://bench").read()
    assert index is not None and any("step-00000003" in path for path in index.files)
    assert [each.name for each in tmp_path.iterdir()] == ["rows.json"], "it tidies up"
