import json
import subprocess
import sys
from pathlib import Path

from support.tiny_run import ROOT


def test_the_judge_measures_and_fails_a_run_that_was_hardly_trained(finished_run: Path, tmp_path: Path) -> None:
    line = [sys.executable, "scripts/judge_completion.py", str(finished_run), "--json", str(tmp_path / "rates.json")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "SHORT" in done.stdout
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert len(rates) == 8 and rates["real validation digits"] > 0.95
    assert rates["the upper half read by an SVC trained on upper halves"] > 0.8
    assert all(0 <= rate <= 1 for rate in rates.values())
