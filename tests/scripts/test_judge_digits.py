import json
import subprocess
import sys
from pathlib import Path

from support.tiny_run import ROOT


def test_the_judge_measures_and_fails_a_run_that_was_hardly_trained(finished_run: Path, tmp_path: Path) -> None:
    line = [sys.executable, "scripts/judge_digits.py", str(finished_run), "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "SHORT  validation PSNR" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures) == 7
    assert figures["SVC accuracy on real validation digits"] > 0.95
    assert 0 <= figures["SVC accuracy on 500 samples"] < 0.5
