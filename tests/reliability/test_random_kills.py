"""SIGKILL at random moments of a real run (slow)."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foundation.storage.durable import file_sha256

STEPS = {
    "tokenizer.training.fit": {"steps": 400, "batch_size": 64, "evaluate_every": 100, "checkpoint_every": 10},
    "prior.training.fit": {"steps": 400, "batch_size": 64, "evaluate_every": 100, "checkpoint_every": 10},
}


def start(folder: Path) -> subprocess.Popen:
    overrides = [part for name, value in STEPS.items() for part in (f"--{name}", str(value))]
    line = [sys.executable, "-m", "pipeline.cli", "run", "digits", "--out", str(folder), *overrides]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_five_random_kills_change_nothing(tmp_path: Path) -> None:
    assert start(tmp_path / "whole").wait() == 0
    rng = random.Random(0)
    for _ in range(5):
        process = start(tmp_path / "killed")
        time.sleep(5 + rng.random() * 8)
        assert process.poll() is None, "the run was over before the kill: make it longer"
        process.kill()
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    for part in ("tokenizer", "codes", "prior", "samples"):
        files = [path for path in (tmp_path / "whole" / part).rglob("*") if path.is_file()]
        assert files
        for path in files:
            assert file_sha256(path) == file_sha256(tmp_path / "killed" / path.relative_to(tmp_path / "whole")), path
