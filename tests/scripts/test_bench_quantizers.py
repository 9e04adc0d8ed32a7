import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_run import ROOT

LINE = [sys.executable, "scripts/bench_quantizers.py", "--quick", "--seconds", "0.1", "--threads", "1"]


@pytest.mark.slow  # eight fresh interpreters, each importing torch
def test_the_rows_have_the_agreed_keys_and_a_ratio_above_1_means_better(tmp_path: Path) -> None:
    if importlib.util.find_spec("vector_quantize_pytorch") is None:
        pytest.skip("vector-quantize-pytorch, the reference, is not installed")
    rows_file = tmp_path / "rows.json"
    done = subprocess.run([*LINE, "--json", str(rows_file)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(rows_file.read_text())
    assert len(rows) == 8
    for row in rows:
        keys = {"workload", "unit", "ours", "reference", "reference_name", "ratio", "floor", "config"}
        assert row.keys() == keys
        assert row["ratio"] is None or row["ratio"] == pytest.approx(row["reference"] / row["ours"])
        assert row["workload"] in done.stdout


def test_a_missing_reference_is_named_with_the_way_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'vector_quantize_pytorch' else find(name, *rest)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(LINE, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "pip install vector-quantize-pytorch" in done.stderr
